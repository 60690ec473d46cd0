package protocol

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// The plain exchange over TCP:
//
//	near                              far
//	Request (token, bytes, idle) ->
//	                              <-  Reply
//	bytes of the stream, Done    <->  bytes of the stream, Done     if bytes > 0
//	                     idle of silence                            if idle > 0
//	                              <-  Late
//	Done                         ->
const (
	// farStall is how long the far end waits for a peer that stands still.
	farStall = 10 * time.Second
	// unprovenTime is the longest that the far end bears with a peer in all,
	// beside what its exchange asks for, unless its protocol has more Patience.
	unprovenTime = time.Minute
	// MaxBytes is the most that a message can ask for, MaxIdle what the reflector waits.
	MaxBytes = 1<<32 - 1
	MaxIdle  = time.Hour
)

// Plain is the name of wallprobe's own protocol over TCP.
const Plain = "plain"

// plain is that protocol.
var plain = &Protocol{
	Doc:    "wallprobe's own message and data phase over TCP",
	Bulk:   true,
	Claims: func(peek Peek, _ bool) bool { return wire.IsMessage(peek(4)) },
	TCP:    &Ends{Probe: probePlain, Serve: servePlain},
}

// probePlain is the near end.
func probePlain(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	if step(StageToken, x.token(c, &r)) {
		x.carry(c, &r, step)
	}
	return r
}

// AppendAsk and Answered are probePlain with a token alone, for a caller that
// moves the bytes itself: a sweep of thousands of ports. AppendAsk appends what
// is to be sent.
func (x Exchange) AppendAsk(b []byte) []byte {
	m := x.message(wire.Request)
	return m.Append(b, x.Keys)
}

// Answered is the result for what came back, wire.MessageSize bytes or fewer
// with the error that ended the reading. took is since the connection stood.
func (x Exchange) Answered(b []byte, err error, took time.Duration) (r Result) {
	r.Stage, r.Took, r.RTT = StageToken, took, took
	r.Seen, r.Sample, r.Err = messageOf(b, err, x.Keys, wire.Reply)
	if r.Fault = FaultOf(r.Err); r.Err == nil {
		r.Stage = StageDone
	}
	return r
}

// steps gives the function that notes how a stage ended and tells whether to go on.
func (r *Result) steps() func(stage string, err error) bool {
	began := time.Now()
	return func(stage string, err error) bool {
		r.Stage, r.Err, r.Fault, r.Took = stage, err, FaultOf(err), time.Since(began)
		return err == nil
	}
}

// carry is what the near end does after its token was answered, unless the
// protocol has its own ways: the data phase, the silence, the end.
func (x Exchange) carry(c net.Conn, r *Result, step func(string, error) bool) {
	if x.Bytes > 0 {
		var err error
		p := newPace()
		r.Up, r.Down, err = swap(c, half{x.Keys, wire.Request, x.Probe, x.Attempt}, x.Bytes, x.message(wire.Request), x.Stall, p)
		r.Rate, r.Pause = rate(min(r.Up, r.Down), time.Since(p.began)), p.pause(err != nil)
		if !step(StageData, err) {
			return
		}
	}
	if x.Idle > 0 && !step(StageIdle, x.idle(c)) {
		return
	}
	step(StageDone, nil)
}

func (x Exchange) message(k wire.Kind) wire.Message {
	return wire.Message{Kind: k, Offline: x.Offline, Port: x.Port, Session: x.Keys.ID, Probe: x.Probe,
		Attempt: x.Attempt, Size: wire.MessageSize, Time: x.Now(), Idle: x.Idle, Bytes: x.Bytes}
}

// token sends the request and reads its answer.
func (x Exchange) token(c net.Conn, r *Result) error {
	sent := time.Now()
	c.SetDeadline(sent.Add(x.Stall))
	m := x.message(wire.Request)
	if _, err := c.Write(m.Append(nil, x.Keys)); err != nil {
		return err
	}
	var err error
	r.Seen, r.Sample, err = readMessage(c, x.Keys, wire.Reply)
	r.RTT = time.Since(sent)
	return err
}

// idle waits for the late message and confirms it.
func (x Exchange) idle(c net.Conn) error {
	c.SetDeadline(time.Now().Add(x.Idle + x.Stall))
	if _, _, err := readMessage(c, x.Keys, wire.Late); err != nil {
		return err
	}
	m := x.message(wire.Request)
	_, err := c.Write(m.Append(nil, x.Keys))
	return err
}

// readMessage reads one message of exactly MessageSize bytes. sample holds what
// came when it was not ours.
func readMessage(c net.Conn, k *wire.Keys, want wire.Kind) (m wire.Message, sample []byte, err error) {
	buf := make([]byte, wire.MessageSize)
	n, err := io.ReadFull(c, buf)
	return messageOf(buf[:n], err, k, want)
}

// messageOf is readMessage for bytes that are here, up to the error that ended
// the reading.
func messageOf(buf []byte, err error, k *wire.Keys, want wire.Kind) (m wire.Message, sample []byte, _ error) {
	if len(buf) >= 4 && !wire.IsMessage(buf) {
		return m, buf, ErrForeign
	}
	if err != nil {
		return m, buf, err
	}
	m, err = wire.Parse(buf, k)
	if err != nil {
		return m, buf, errAltered
	}
	if m.Kind != want {
		return m, buf, ErrForeign // our own message, thrown back
	}
	return m, nil, nil
}

// A half is one end's side of a data phase.
type half struct {
	keys    *wire.Keys
	kind    wire.Kind // Request at the near end, Reply at the far end
	probe   uint32
	attempt uint16
}

func (h half) other() wire.Kind {
	if h.kind == wire.Request {
		return wire.Reply
	}
	return wire.Request
}

// swap sends n bytes of this end's stream while it reads n bytes of the other
// end's. Its closing message, last, says that these arrived unaltered; the other
// end's says so of what was sent. stall bounds each pause, an allowance all of it. p
// measures what is read of the stream, and not the closing message: where this
// end's direction is the slower one, that comes long after.
func swap(c net.Conn, h half, n uint32, last wire.Message, stall time.Duration, p *pace) (up, down int64, err error) {
	sent := make(chan error, 1)
	var held panics
	defer held.again()
	go func() {
		err := error(net.ErrClosed)
		defer func() { sent <- err }()
		defer held.keep(func() { c.SetDeadline(past) })
		up, err = sendStream(c, h.keys.NewStream(h.kind, h.probe, h.attempt), n, stall)
	}()
	down, err = checkStream(pacedConn{c, p}, h.keys.NewStream(h.other(), h.probe, h.attempt), n, stall)
	if err != nil {
		c.SetWriteDeadline(time.Unix(1, 0)) // the sender must not outlive a failed read
		// Of a reset the half that meets it first takes the error; the other sees an end.
		if sendErr := <-sent; faultOf(err) == FaultEOF && errors.Is(sendErr, syscall.ECONNRESET) {
			err = sendErr
		}
		return up, down, err
	}
	if err := <-sent; err != nil {
		return up, down, err
	}
	c.SetDeadline(time.Now().Add(stall + drain(n)))
	_, sendErr := c.Write(last.Append(nil, h.keys))
	if sendErr != nil && !errors.Is(sendErr, net.ErrClosed) {
		return up, down, sendErr
	}
	if _, _, err = readMessage(c, h.keys, h.other()); err == nil {
		err = sendErr // of a library that closes over what it reads, the reader knows why
	}
	return up, down, err
}

// drain is how much longer than a pause the other end's closing message may
// take, while what was sent is still in this system's buffers: some MiB of them,
// and a slow line of 64 KiB/s.
func drain(n uint32) time.Duration {
	return time.Duration(min(n, 4<<20)>>16) * time.Second
}

// chunk is how much of a stream is made, sent and compared at once, in bytes:
// two records of TLS.
const chunk = 32 << 10

// A sink and a source are the halves of a connection, or of what goes over one.
type (
	sink interface {
		io.Writer
		SetWriteDeadline(time.Time) error
	}
	source interface {
		io.Reader
		SetReadDeadline(time.Time) error
	}
)

func sendStream(c sink, s *wire.Stream, n uint32, stall time.Duration) (int64, error) {
	buf := make([]byte, min(chunk, int(n)))
	all := allow(stall)
	var total int64
	for total < int64(n) {
		b := buf[:min(int64(len(buf)), int64(n)-total)]
		s.Read(b)
		c.SetWriteDeadline(sooner(time.Now().Add(stall), all.until()))
		k, err := c.Write(b)
		total += int64(k)
		all.moved.Store(total)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// checkStream reads n bytes and stops at the first that differs from s.
func checkStream(c source, s *wire.Stream, n uint32, stall time.Duration) (int64, error) {
	got := make([]byte, min(chunk, int(n)))
	w := compared{want: s, buf: make([]byte, len(got))}
	all := allow(stall)
	for w.n < int64(n) {
		all.moved.Store(w.n)
		c.SetReadDeadline(sooner(time.Now().Add(stall), all.until()))
		k, err := c.Read(got[:min(int64(len(got)), int64(n)-w.n)])
		if _, bad := w.Write(got[:k]); bad != nil {
			return w.n, bad
		}
		if err != nil {
			return w.n, err
		}
	}
	return w.n, nil
}

// servePlain is the far end. It returns one event.
func servePlain(ctx context.Context, c net.Conn, far Far) []wire.Event {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := Arrived(c, far.Now())
	e.Stage = StageToken
	head := make([]byte, wire.MessageSize)
	c.SetDeadline(time.Now().Add(farStall))
	n, err := io.ReadFull(c, head)
	if err != nil {
		e.BytesIn, e.Digest = int64(n), digest(head[:n])
		return failed(e, err)
	}
	m, keys, err := far.Prove(head, c.RemoteAddr())
	e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	if err == nil && m.Kind != wire.Request {
		err = wire.ErrAltered
	}
	if err != nil {
		e.Digest = digest(head)
		return failed(e, err)
	}
	reply := replyTo(m, c.RemoteAddr(), far.Now())
	if reply.Bytes == 0 && reply.Idle == 0 {
		cork(c) // these are the last words
	}
	if _, err := c.Write(reply.Append(nil, keys)); err != nil {
		return failed(e, err)
	}
	serveCarry(c, keys, reply, &e)
	return []wire.Event{e}
}

// serveCarry is the far end of carry: it goes on after a token was answered.
func serveCarry(c net.Conn, keys *wire.Keys, reply wire.Message, e *wire.Event) {
	fail := func(err error) { e.Fault = faultOf(err) }
	e.Answered = true
	if reply.Idle > MaxIdle {
		fail(fmt.Errorf("asked for %v of idling; at most %v", reply.Idle, MaxIdle))
		return
	}
	if reply.Bytes > 0 {
		e.Stage = StageData
		var err error
		p := newPace()
		e.BytesOut, e.BytesIn, err = swap(c, half{keys, wire.Reply, reply.Probe, reply.Attempt}, reply.Bytes, reply, farStall, p)
		e.Pause = p.stood(0, e.BytesIn < int64(reply.Bytes))
		if err != nil {
			fail(err)
			return
		}
	}
	if reply.Idle > 0 {
		e.Stage = StageIdle
		if err := serveIdle(c, keys, reply); err != nil {
			fail(err)
			return
		}
	}
	e.Stage = StageDone
}

// serveIdle keeps silent, sends the late message and waits for its confirmation.
func serveIdle(c net.Conn, keys *wire.Keys, reply wire.Message) error {
	until := time.Now().Add(reply.Idle)
	c.SetReadDeadline(until)
	if n, err := c.Read(make([]byte, 1)); n > 0 || faultOf(err) != FaultTimeout || time.Now().Before(until) {
		if err == nil {
			err = errAltered // the near end says nothing now
		}
		return err // a deadline before its time is the end of the far end itself
	}
	reply.Kind = wire.Late
	c.SetDeadline(time.Now().Add(farStall))
	if _, err := c.Write(reply.Append(nil, keys)); err != nil {
		return err
	}
	_, _, err := readMessage(c, keys, wire.Request)
	return err
}

// Arrived begins the event of a connection.
func Arrived(c net.Conn, now time.Time) wire.Event {
	return wire.Event{Time: now, Transport: scenarios.TCP, Remote: AddrPort(c.RemoteAddr()), Local: AddrPort(c.LocalAddr()), Stage: StageConnect}
}

func failed(e wire.Event, err error) []wire.Event {
	e.Fault = faultOf(err)
	return []wire.Event{e}
}

func digest(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// AddrPort is an address of either transport, zero for what has none.
func AddrPort(a net.Addr) (ap netip.AddrPort) {
	switch a := a.(type) {
	case nil:
	case interface{ AddrPort() netip.AddrPort }: // as net has them: nothing is spelled and read back
		ap = a.AddrPort()
	default:
		ap, _ = netip.ParseAddrPort(a.String())
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
