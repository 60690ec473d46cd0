package reflector

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Bounds of QUIC on all ports together.
const (
	maxQUIC          = 1024 // connections
	maxQUICPerSource = 64
	quicQueue        = 512  // packets that wait for the library
	quicLongest      = 1500 // bytes of a packet
	quicShortest     = 21   // what header protection needs (RFC 9001 section 5.4.2)
	quicInitial      = 1200 // least size of a datagram with an Initial (RFC 9000 section 14.1)
	quicTokenAge     = time.Minute
)

var (
	errQUICFull     = errors.New("too many QUIC connections")
	errQUICUnproven = errors.New("the source address was not validated")
)

// A quicPort serves QUIC on every UDP port at once: what looks like it comes
// from the port sharing and goes to one transport of the library, as if all came
// from one socket. It is safe for concurrent use.
//
// Whoever has no connection gets at most as many bytes as it sent: each packet
// brings its own credit, which all that is answered to it is taken from. A
// connection begins with a Retry (RFC 9000 section 8.1.2), which proves its
// address. Stateless resets are never sent.
type quicPort struct {
	r    *Reflector
	send func(b []byte, local, remote netip.AddrPort) error
	in   chan quicDatagram
	wake chan struct{}

	withheld atomic.Int64 // packets that the library would have sent, for want of credit
	flows    quicFlows

	mu     sync.Mutex
	total  int
	source map[netip.Addr]int     // connections of each source
	addr   map[netip.Addr]int     // connections of each address
	tuple  map[netip.AddrPort]int // connections of each remote end
}

type quicDatagram struct {
	peer    *quicPeer
	payload []byte
}

// A quicPeer is the sender of one packet, with the port that it was aimed at.
// The library keeps that of a connection's first packet.
type quicPeer struct {
	remote, local netip.AddrPort
	credit        atomic.Int64 // bytes that may be sent because of this packet
}

// Network and String are those of the remote end: by them the library tells
// whether a peer moved.
func (p *quicPeer) Network() string { return "udp" }
func (p *quicPeer) String() string  { return p.remote.String() }

func newQUICPort(r *Reflector) *quicPort {
	return &quicPort{
		r: r, send: r.set.WriteTo, in: make(chan quicDatagram, quicQueue), wake: make(chan struct{}, 1),
		source: make(map[netip.Addr]int), addr: make(map[netip.Addr]int), tuple: make(map[netip.AddrPort]int),
	}
}

// looksLikeQUIC goes by the first byte (RFC 9443 section 3) and the length.
func looksLikeQUIC(b []byte) bool {
	return len(b) >= quicShortest && len(b) <= quicLongest && b[0]&0x40 != 0
}

// take takes over a datagram that looks like QUIC. What comes from nobody known
// is noted as a stray; a first Initial is one without a fault, because it is
// evidence that a handshake began. The print of a datagram is kept whatever it
// looks like, for QUIC that was changed on the way may look like anything.
func (q *quicPort) take(d *steer.Datagram) bool {
	isQUIC, kind := looksLikeQUIC(d.Payload), kindOfQUIC(d.Payload)
	q.flows.heard(d.Remote, d.Local, d.Payload, q.r.now(), !isQUIC || kind == quicFirst || kind == quicUnknown)
	if !isQUIC {
		return false
	}
	known, any := q.knows(d.Remote)
	e := wire.Event{Time: q.r.now(), Transport: scenarios.UDP, Remote: d.Remote, Local: d.Local,
		Stage: protocol.StageTLS, Length: len(d.Payload), TTL: d.TTL, TOS: d.TOS}
	switch kind {
	case quicFirst:
		q.r.note(e)
	case quicUnknown:
		e.Fault = protocol.FaultVersion
		q.r.note(e)
	case quicOther:
		if !known {
			q.r.strayDatagram(d, wire.SessionID{}, protocol.FaultForeign)
		}
	}
	if d.Payload[0]&0x80 == 0 && !any {
		return true // of a connection, and there is none
	}
	peer := &quicPeer{remote: d.Remote, local: d.Local}
	peer.credit.Store(int64(len(d.Payload)))
	select {
	case q.in <- quicDatagram{peer, append([]byte(nil), d.Payload...)}:
	default: // the library is behind: who does not get an answer sends again
	}
	return true
}

// knows tells whether a remote end has a connection, and whether any has.
func (q *quicPort) knows(a netip.AddrPort) (known, any bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tuple[a] > 0, q.total > 0
}

// The kinds of packets that matter here.
const (
	quicOther   = iota
	quicFirst   // an Initial without a token: a handshake begins
	quicRetried // an Initial with a token
	quicUnknown // of a version that is answered with Version Negotiation
)

// kindOfQUIC looks at the header of a packet of version 1 or 2 (RFC 9000 section
// 17.2.2, RFC 9369 section 3.2) or of another one (RFC 8999).
func kindOfQUIC(b []byte) int {
	if len(b) < quicInitial || b[0]&0xc0 != 0xc0 {
		return quicOther
	}
	var initial byte
	switch binary.BigEndian.Uint32(b[1:]) {
	case 0:
		return quicOther
	case 1:
	case 0x6b3343cf:
		initial = 0x10
	default:
		return quicUnknown
	}
	if b[0]&0x30 != initial {
		return quicOther
	}
	b = b[5:]
	for range 2 { // connection ids
		n := int(b[0])
		if n > 20 {
			return quicOther
		}
		b = b[1+n:]
	}
	if b[0] == 0 { // a token's length of 0 is this one byte
		return quicFirst
	}
	return quicRetried
}

// run serves until ctx ends.
func (q *quicPort) run(ctx context.Context) error {
	tr := &quic.Transport{
		Conn:                quicConn{q},
		ConnectionIDLength:  8,
		VerifySourceAddress: func(net.Addr) bool { return true },
		MaxTokenAge:         quicTokenAge,
		ConnContext:         q.admit,
	}
	ln, err := tr.Listen(q.tls(), protocol.FarQUIC())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for {
		conn, err := ln.Accept(ctx)
		if err != nil {
			ln.Close()
			wg.Wait()
			tr.Close()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() { q.serve(ctx, conn) })
	}
}

type quicKey struct{}

// A quicArrival is a connection from its validated first packet on.
type quicArrival struct {
	peer     *quicPeer
	tls      wire.TLSSeen
	accepted atomic.Bool
}

// admit counts a connection, unless there are too many.
func (q *quicPort) admit(ctx context.Context, info *quic.ClientInfo) (_ context.Context, err error) {
	peer, ok := info.RemoteAddr.(*quicPeer)
	if !ok || !info.AddrVerified {
		return nil, errQUICUnproven
	}
	defer q.r.guardErr("QUIC connection", peer.remote, &err)
	if !q.count(peer.remote, 1) {
		return nil, errQUICFull
	}
	a := &quicArrival{peer: peer}
	context.AfterFunc(ctx, func() {
		defer q.r.guard("QUIC connection", peer.remote)
		q.count(peer.remote, -1)
		if !a.accepted.Swap(true) {
			seen := a.tls
			protocol.Hear(&seen, q.flows.hello(peer.remote, peer.local))
			q.r.note(wire.Event{Time: q.r.now(), Transport: scenarios.UDP, Remote: peer.remote, Local: peer.local,
				Stage: protocol.StageTLS, Fault: protocol.FaultTimeout, TLS: &seen})
		}
	})
	return context.WithValue(ctx, quicKey{}, a), nil
}

// count adds connections of a remote end; it is false when that is one too many.
func (q *quicPort) count(remote netip.AddrPort, n int) bool {
	source := sourceOf(remote.Addr())
	q.mu.Lock()
	defer q.mu.Unlock()
	if n > 0 && (q.total >= maxQUIC || q.source[source] >= maxQUICPerSource) {
		return false
	}
	q.total += n
	add(q.source, source, n)
	add(q.addr, remote.Addr(), n)
	add(q.tuple, remote, n)
	return true
}

func add[K comparable](m map[K]int, k K, n int) {
	if m[k] += n; m[k] == 0 {
		delete(m, k)
	}
}

// tls is the far end's side of the handshake; it notes what it sees of it.
func (q *quicPort) tls() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{http3.NextProtoH3}}
	config.GetCertificate = func(h *tls.ClientHelloInfo) (cert *tls.Certificate, err error) {
		defer q.r.guardErr("QUIC handshake", helloFrom(h), &err)
		cert, err = q.r.Certificate(h)
		if a, ok := h.Context().Value(quicKey{}).(*quicArrival); ok && err == nil {
			protocol.Served(&a.tls, cert)
		}
		return cert, err
	}
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (_ *tls.Config, err error) {
		defer q.r.guardErr("QUIC handshake", helloFrom(h), &err)
		if a, ok := h.Context().Value(quicKey{}).(*quicArrival); ok {
			a.tls.ServerName, a.tls.Offered = h.ServerName, h.SupportedProtos
		}
		return nil, nil
	}
	return config
}

// helloFrom is who a ClientHello is from.
func helloFrom(h *tls.ClientHelloInfo) (from netip.AddrPort) {
	if a, ok := h.Context().Value(quicKey{}).(*quicArrival); ok {
		from = a.peer.remote
	}
	return from
}

// serve serves one connection whose handshake is done.
func (q *quicPort) serve(ctx context.Context, conn *quic.Conn) {
	defer conn.CloseWithError(0, "") // nothing when it is closed
	a, ok := conn.Context().Value(quicKey{}).(*quicArrival)
	if !ok || a.accepted.Swap(true) {
		conn.CloseWithError(0, "") // it ended meanwhile
		return
	}
	defer q.broken(a.peer)
	seen := a.tls
	told := new(told)
	defer told.left(tuple{unmap(a.peer.remote), unmap(a.peer.local)})
	protocol.ServeQUIC(ctx, protocol.ArrivedQUIC{
		Conn: conn, Remote: a.peer.remote, Local: a.peer.local, TLS: &seen,
		Hello: q.flows.hello(a.peer.remote, a.peer.local),
		Note: func(e wire.Event) {
			if ctx.Err() != nil && e.Fault == protocol.FaultTimeout {
				e.Fault, e.Unfinished = "", true // this end gave up, the path did not
			}
			q.r.note(e)
		},
	}, quicFar{q.r, a.peer, told})
}

// broken is guard with the panic as an event.
func (q *quicPort) broken(peer *quicPeer) {
	if v := recover(); v != nil {
		q.r.panicked("QUIC connection", peer.remote, v)
		q.r.note(wire.Event{Time: q.r.now(), Transport: scenarios.UDP, Remote: peer.remote, Local: peer.local, Stage: protocol.StageToken, Fault: FaultPanic})
	}
}

// quicFar is protocol.Far for one connection: from its proof on the session's
// ledger tells of it.
type quicFar struct {
	*Reflector
	peer *quicPeer
	told *told
}

// Prove is protocol.Far.
func (f quicFar) Prove(p []byte, from net.Addr) (wire.Message, *wire.Keys, error) {
	m, keys, err := f.Reflector.Prove(p, from)
	if s := f.sessions.find(m.Session); err == nil && m.Kind == wire.Request && s != nil {
		f.told.add(s)
		s.begin(open{event: wire.Event{Time: f.now(), Transport: scenarios.UDP, Remote: f.peer.remote, Local: f.peer.local, Session: m.Session,
			Probe: m.Probe, Attempt: m.Attempt, Stage: protocol.StageToken, Unfinished: true}})
	}
	return m, keys, err
}

// quicConn is the port as the library wants it. That it has the methods for
// buffer sizes, which do nothing, keeps the library from writing to standard
// error about buffers: those of the sockets are the port sharing's matter.
type quicConn struct{ *quicPort }

func (c quicConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(b, d.payload), d.peer, nil
	case <-c.wake:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo sends from where the peer aimed at, unless it has no connection and
// no credit left.
func (c quicConn) WriteTo(b []byte, to net.Addr) (_ int, err error) {
	peer, ok := to.(*quicPeer)
	if !ok {
		return 0, fmt.Errorf("send to %v: not a peer", to)
	}
	defer c.r.guardErr("QUIC packet", peer.remote, &err)
	c.mu.Lock()
	proven := c.addr[peer.remote.Addr()] > 0
	c.mu.Unlock()
	if !proven && peer.credit.Add(-int64(len(b))) < 0 {
		c.withheld.Add(1)
		return len(b), nil
	}
	c.flows.sent(peer.remote, peer.local, b)
	return len(b), c.send(b, peer.local, peer.remote)
}

func (quicConn) Close() error        { return nil }
func (quicConn) LocalAddr() net.Addr { return &net.UDPAddr{} }

// SetReadDeadline wakes a reader when the time is over already; the library
// knows no other.
func (c quicConn) SetReadDeadline(t time.Time) error {
	if t.IsZero() || t.After(time.Now()) {
		return nil
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

func (c quicConn) SetDeadline(t time.Time) error  { return c.SetReadDeadline(t) }
func (quicConn) SetWriteDeadline(time.Time) error { return nil }
func (quicConn) SetReadBuffer(int) error          { return nil }
func (quicConn) SetWriteBuffer(int) error         { return nil }
