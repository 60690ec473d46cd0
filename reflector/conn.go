package reflector

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/relay"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// firstBytes is how long a connection may stay silent before it is dropped, and
// greetAfter how long before the far end speaks first on ports where that is
// its part: whoever wants something else of such a port has spoken by then.
// lastBytes is how long a near end may take nothing before it is not waited for
// any more.
const (
	firstBytes = 10 * time.Second
	greetAfter = 100 * time.Millisecond
	lastBytes  = 10 * time.Second
)

// Conn serves one accepted connection; its local address is what the peer
// aimed at. What is spoken is told from the first bytes, so every port can
// carry control, TLS, STUN and the plain exchange.
func (r *Reflector) Conn(c net.Conn) {
	defer c.Close()
	from := protocol.AddrPort(c.RemoteAddr())
	if !r.conns.enter(from.Addr()) {
		return
	}
	defer r.conns.leave(from.Addr())
	c = protocol.Patient(c, false)
	if r.converse(c, from) {
		protocol.Part(r.ctx, c, lastBytes) // the near end may still have most of what was sent before it
	}
}

// converse serves a connection and keeps what it leaves; done tells that a near
// end had all that it asked for.
func (r *Reflector) converse(c net.Conn, from netip.AddrPort) (done bool) {
	seen := protocol.GotSYN(c)
	told, ends := new(told), tuple{from, protocol.AddrPort(c.LocalAddr())}
	defer r.unproven.remove(ends)
	defer told.left(ends)
	for _, e := range r.guarded(context.WithValue(r.ctx, toldKey{}, told), c) {
		e.TCP = seen
		if r.ctx.Err() != nil && e.Fault == protocol.FaultTimeout {
			e.Fault, e.Unfinished = "", true // this end gave up, the path did not
		}
		r.note(e)
		done = done || e.Answered && e.Stage == protocol.StageDone && e.Fault == ""
	}
	return done
}

// Inner serves what is spoken inside TLS.
func (r *Reflector) Inner(ctx context.Context, c net.Conn) []wire.Event {
	return r.stream(ctx, c, true)
}

func (r *Reflector) stream(ctx context.Context, c net.Conn, inTLS bool) []wire.Event {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := protocol.Arrived(c, r.now())
	u := r.underWay(ctx, e, protocol.StageConnect)
	if !inTLS {
		u.Tell(nil)
	}
	p := &peeked{Conn: c, r: bufio.NewReaderSize(c, 512)}
	greeter := r.greeter(c, inTLS)
	wait := firstBytes
	if greeter != nil {
		wait = greetAfter
	}
	c.SetReadDeadline(time.Now().Add(wait))
	head, err := p.r.Peek(4)
	if len(head) == 0 && greeter != nil && protocol.FaultOf(err) == protocol.FaultTimeout && ctx.Err() == nil {
		c.SetReadDeadline(time.Time{})
		return greeter.TCP.Serve(ctx, p, u.in(protocol.StageBanner))
	}
	if err != nil {
		e.Fault = protocol.FaultOf(err)
		if rest, _ := p.r.Peek(p.r.Buffered()); len(rest) > 0 {
			e.BytesIn, e.Digest = int64(len(rest)), digest(rest)
		}
		return []wire.Event{e}
	}
	c.SetReadDeadline(time.Time{})
	if known := protocol.Claim(p.peek, inTLS); known != nil {
		return known.TCP.Serve(ctx, p, u.in(protocol.StageToken))
	}
	if head[0] < 2 && r.isSTUN(p) {
		u.claim(nil) // of what it is used for the relay tells
		from := protocol.AddrPort(c.RemoteAddr())
		r.inside.Store(from, protocol.Inside(ctx))
		defer r.inside.Delete(from)
		first, _ := p.r.Peek(p.r.Buffered())
		e.BytesIn, e.Digest = int64(len(first)), digest(first)
		if errors.Is(r.relay.Conn(p), relay.ErrFrame) {
			return r.brokenFrame(e)
		}
		return nil
	}
	if greeter != nil { // one who did not wait for the greeting
		return greeter.TCP.Serve(ctx, p, u.in(protocol.StageBanner))
	}
	return r.unknown(p, e)
}

// greeter is the protocol in which the far end speaks first on the port that a
// connection was aimed at, nil when there is none.
func (r *Reflector) greeter(c net.Conn, inTLS bool) *protocol.Protocol {
	at := protocol.AddrPort(c.LocalAddr()).Port()
	return protocol.Named(r.cfg.Speaks[protocol.Port{Transport: scenarios.TCP, Number: at, Inside: inTLS}])
}

// isSTUN looks for the magic cookie (RFC 8489 section 5).
func (r *Reflector) isSTUN(p *peeked) bool {
	b := p.peek(8)
	return len(b) == 8 && binary.BigEndian.Uint32(b[4:]) == 0x2112A442
}

// brokenFrame keeps a stream that began as STUN and went on as something else;
// whose it is, what was proven on it before tells.
func (r *Reflector) brokenFrame(e wire.Event) []wire.Event {
	e.Stage, e.Fault = protocol.StageToken, protocol.FaultForeign
	for _, s := range r.sessions.of(e.Remote.Addr()) {
		if n := s.labelled(e.Remote); n != 0 {
			e.Session, e.Probe, e.Fault, e.Digest = s.id, n, protocol.FaultAltered, ""
		}
	}
	return []wire.Event{e}
}

// unknown keeps what nobody here understands.
func (r *Reflector) unknown(p *peeked, e wire.Event) []wire.Event {
	b, _ := p.r.Peek(p.r.Buffered())
	e.Stage, e.Fault = protocol.StageToken, protocol.FaultForeign
	e.BytesIn, e.Digest = int64(len(b)), digest(b)
	return []wire.Event{e}
}

// note puts an event where it belongs: to its probe when a token proved it,
// else to the session that it claims and those that came from that address.
func (r *Reflector) note(e wire.Event) {
	e.Bound()
	claimed := r.sessions.find(e.Session)
	if e.Answered {
		if claimed != nil {
			r.sessions.touch(claimed, e.Remote.Addr()) // a long silence is no absence
			claimed.event(e)
		}
		return
	}
	if claimed != nil {
		claimed.stray(e)
	}
	for _, s := range r.sessions.of(e.Remote.Addr()) {
		if s != claimed {
			s.stray(e)
		}
	}
	r.recent.add(e)
	r.journal.stray(e)
}

// Prove is protocol.Far.
func (r *Reflector) Prove(p []byte, from net.Addr) (wire.Message, *wire.Keys, error) {
	m, s, err := r.sessions.prove(p)
	if err != nil {
		return m, nil, err
	}
	if from := protocol.AddrPort(from); from.IsValid() && m.Kind == wire.Request {
		r.sessions.touch(s, from.Addr())
	}
	return m, s.keysFor(m), nil
}

// Tell and Shake are protocol.Far where there is no connection that could go on.
func (r *Reflector) Tell(*wire.Transcript) {}
func (r *Reflector) Shake(wire.TLSSeen)    {}

// Certificate is protocol.Far.
func (r *Reflector) Certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return r.ca.certificate(h, r.now())
}

// maxData bounds the ports of its own that wait for a data connection.
const maxData = 1024

// Listen is protocol.Far.
func (r *Reflector) Listen(at netip.Addr) (net.Listener, error) {
	select {
	case r.data <- struct{}{}:
	default:
		return nil, errors.New("too many ports wait for data connections")
	}
	giveBack := sync.OnceFunc(func() { <-r.data })
	l, err := r.listenData(at)
	if err != nil {
		giveBack()
		return nil, err
	}
	return &dataListener{l, giveBack}, nil
}

// A dataListener gives its place back when it is closed.
type dataListener struct {
	*net.TCPListener
	giveBack func()
}

// Close is net.Listener.
func (l *dataListener) Close() error {
	defer l.giveBack()
	return l.TCPListener.Close()
}

// listenData draws ports until one is not served.
func (r *Reflector) listenData(at netip.Addr) (*net.TCPListener, error) {
	tcp, _ := r.set.Served()
	lc := plaintcp.ListenConfig()
	for range 64 {
		l, err := lc.Listen(r.ctx, "tcp", netip.AddrPortFrom(at, 0).String())
		if err != nil {
			return nil, err
		}
		if a, ok := l.Addr().(*net.TCPAddr); ok && !tcp.Contains(uint16(a.Port)) {
			return l.(*net.TCPListener), nil // steered ports never reach a socket of their own
		}
		l.Close()
	}
	return nil, errors.New("no free port that is not served already")
}

// Dial is protocol.Far.
func (r *Reflector) Dial(ctx context.Context, m wire.Message, from, to netip.AddrPort) (net.Conn, error) {
	s := r.sessions.find(m.Session)
	switch {
	case !r.cfg.Inward:
		return nil, errors.New("the reflector does not call back: start it with --inward")
	case s == nil || !slices.Contains(s.allSources(), to.Addr().Unmap()):
		return nil, fmt.Errorf("%s is not an address that this session came from", to.Addr())
	case to.Port() < 1024:
		return nil, fmt.Errorf("port %d is not one that a client has for data", to.Port())
	}
	d := plaintcp.Dialer()
	d.LocalAddr, d.Control = net.TCPAddrFromAddrPort(from), shared
	return d.DialContext(ctx, "tcp", to.String())
}

// Now is protocol.Far.
func (r *Reflector) Now() time.Time { return r.now() }

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

// peek is protocol.Peek.
func (p *peeked) peek(n int) []byte {
	if p.r.Buffered() < n {
		p.Conn.SetReadDeadline(time.Now().Add(firstBytes))
		defer p.Conn.SetReadDeadline(time.Time{})
	}
	b, _ := p.r.Peek(n)
	return b
}

// SyscallConn is syscall.Conn, for options of the socket.
func (p *peeked) SyscallConn() (syscall.RawConn, error) {
	c, ok := p.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return c.SyscallConn()
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func digest(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
