package protocol

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// screenConnect is what a traffic study saw of ScreenConnect's relay on 8041:
//
//	 0  'S' 'C' 'R' 01      a token that is always the same; these four bytes are made up
//	 4  04 or 06            then the host name begins 7 or 9 bytes on
//	11  name 01             in clear, ended by 01 or 02
//	    message(84)         wallprobe's own
//
// The answer is the same token, 04 and the far end's message.
var screenConnect = &Protocol{
	Names:     true,
	Doc:       "ScreenConnect's relay as its traffic was seen: a fixed token, the host name in clear, then wallprobe's own message and data",
	Imitation: "the vendor does not document its relay: the layout is that of a third party's traffic study, the token and all after the host name are made up",
	Claims:    func(peek Peek, inTLS bool) bool { return !inTLS && bytes.Equal(peek(4), screenConnectToken) },
	TCP:       &Ends{Probe: probeScreenConnect, Serve: serveScreenConnect},
}

var (
	screenConnectToken = []byte{'S', 'C', 'R', 1}
	errScreenConnect   = errors.New("not the beginning of a ScreenConnect relay session")
)

// maxHost is the longest host name (RFC 1035 section 2.3.4).
const maxHost = 253

// A relayHead is the beginning of a session. Kind is 4 or 6, End 1 or 2.
type relayHead struct {
	Kind, End byte
	Host      string
}

// filler is what lies between the kind and the host name: zeros.
func (h relayHead) filler() int {
	if h.Kind == 6 {
		return 8
	}
	return 6
}

// Append appends the bytes of h.
func (h relayHead) Append(b []byte) []byte {
	b = append(append(b, screenConnectToken...), h.Kind)
	b = append(b, make([]byte, h.filler())...)
	return append(append(b, h.Host...), h.End)
}

// readRelayHead reads up to the end of the host name and no further.
func readRelayHead(r io.Reader) (h relayHead, read []byte, err error) {
	read = make([]byte, 5, 5+8+maxHost+1)
	if n, err := io.ReadFull(r, read); err != nil {
		return h, read[:n], err
	}
	if h.Kind = read[4]; !bytes.HasPrefix(read, screenConnectToken) || h.Kind != 4 && h.Kind != 6 {
		return h, read, errScreenConnect
	}
	one := make([]byte, 1)
	for begin := len(read) + h.filler(); ; {
		if _, err := io.ReadFull(r, one); err != nil {
			return h, read, err
		}
		read = append(read, one[0])
		switch at := len(read) - 1; {
		case at < begin && one[0] != 0:
			return h, read, errScreenConnect
		case at < begin:
		case one[0] == 1 || one[0] == 2:
			h.Host, h.End = string(read[begin:at]), one[0]
			return h, read, nil
		case one[0] < ' ' || one[0] > '~' || at-begin >= maxHost:
			return h, read, errScreenConnect
		}
	}
}

// said is the head as a line, so that the judge can tell that it was rewritten.
func (h relayHead) said() string { return fmt.Sprintf("relay %d %s %d", h.Kind, h.Host, h.End) }

// probeScreenConnect is the near end.
func probeScreenConnect(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	var said wire.Transcript
	defer func() { r.Said = said.Said() }()
	head := relayHead{Kind: 4, Host: cmp.Or(x.ServerName, hostOf(c.RemoteAddr())), End: 1}
	said.Say(head.said())
	if step(StageToken, x.askRelay(c, head, &r)) {
		x.carry(c, &r, step)
	}
	return r
}

// askRelay sends the head with the token and reads its answer.
func (x Exchange) askRelay(c net.Conn, head relayHead, r *Result) error {
	sent := time.Now()
	c.SetDeadline(sent.Add(x.Stall))
	m := x.message(wire.Request)
	if _, err := c.Write(m.Append(head.Append(nil), x.Keys)); err != nil {
		return err
	}
	want := append(bytes.Clone(screenConnectToken), 4)
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if !bytes.HasPrefix(want, got[:n]) {
		err = ErrForeign
	}
	if err != nil {
		r.Sample = got[:n]
		return err
	}
	r.Seen, r.Sample, err = readMessage(c, x.Keys, wire.Reply)
	r.RTT = time.Since(sent)
	return err
}

// hostOf is the address of an end without its port.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return ""
	}
	return host
}

// serveScreenConnect is the far end.
func serveScreenConnect(ctx context.Context, c net.Conn, far Far) (events []wire.Event) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := Arrived(c, far.Now())
	e.Stage = StageToken
	said := new(wire.Transcript)
	far.Tell(said)
	defer func() { saying(events, said.Said()) }()
	c.SetDeadline(time.Now().Add(farStall))
	head, read, err := readRelayHead(c)
	if errors.Is(err, errScreenConnect) {
		err = fmt.Errorf("%w: %w", err, errAltered)
	}
	if err != nil {
		e.BytesIn, e.Digest = int64(len(read)), digest(read)
		return failed(e, err)
	}
	said.Hear(head.said())
	m, keys, err := provenMessage(c, far, &e)
	if err != nil {
		return failed(e, err)
	}
	reply := replyTo(m, c.RemoteAddr(), far.Now())
	if _, err := c.Write(reply.Append(append(bytes.Clone(screenConnectToken), 4), keys)); err != nil {
		return failed(e, err)
	}
	serveCarry(c, keys, reply, &e)
	return []wire.Event{e}
}

// provenMessage reads a request of exactly MessageSize bytes and proves it. It
// fills in whose it claims to be and, when it fails, what came instead.
func provenMessage(c net.Conn, far Far, e *wire.Event) (wire.Message, *wire.Keys, error) {
	p := make([]byte, wire.MessageSize)
	n, err := io.ReadFull(c, p)
	if err != nil {
		e.BytesIn, e.Digest = int64(n), digest(p[:n])
		return wire.Message{}, nil, err
	}
	m, keys, err := far.Prove(p, c.RemoteAddr())
	e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	if err == nil && m.Kind != wire.Request {
		err = wire.ErrAltered
	}
	if err != nil {
		e.Digest = digest(p)
	}
	return m, keys, err
}
