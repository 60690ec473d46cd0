package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/pion/logging"
	"github.com/pion/stun"
	"github.com/pion/turn/v2"
)

// pionNonce is how long one of pion's nonces is used; pion takes it for an
// hour of the real clock.
const pionNonce = 50 * time.Minute

// link is the packet connection between the filter and an allocation's pion
// server. pion reads, handles and answers one message after the other, so
// whatever answer it writes belongs to the job it read last.
//
// pion insists on a nonce of its own making, which is good from any 5-tuple.
// It never leaves the process: link asks pion for one with a bare Allocate
// and signs the filter's requests with it.
type link struct {
	a             *allocation
	local, remote net.Addr
	closed        sync.Once

	// The rest belongs to pion's reading goroutine.
	nonce       []byte
	nonceAt     time.Time
	asking      bool
	current     job
	established bool
}

// serve starts a pion server on a new link.
func (a *allocation) serve() error {
	l := &link{a: a, local: net.UDPAddrFromAddrPort(a.o.local), remote: net.UDPAddrFromAddrPort(a.o.remote)}
	a.s.wg.Add(1) // until ReadFrom has failed
	_, err := turn.NewServer(turn.ServerConfig{
		Realm:         a.s.cfg.Realm,
		AuthHandler:   func(string, string, net.Addr) ([]byte, bool) { return l.current.user.key, true },
		LoggerFactory: &logging.DefaultLoggerFactory{Writer: io.Discard},
		InboundMTU:    maxFrame + 1024, // room for the credentials that ReadFrom adds
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn:            l,
			RelayAddressGenerator: &generator{a: a},
			PermissionHandler:     l.permit,
		}},
	})
	if err != nil {
		a.s.wg.Done()
		return fmt.Errorf("turn server for %v: %w", a.o.remote, err)
	}
	return nil
}

// permit is pion's question about a peer.
func (l *link) permit(_ net.Addr, ip net.IP) (ok bool) {
	var err error
	defer l.a.guard(&err)
	return l.a.vouched(ip)
}

// ReadFrom gives pion the next message.
func (l *link) ReadFrom(p []byte) (_ int, _ net.Addr, err error) {
	defer func() {
		if err != nil {
			l.closed.Do(l.a.s.wg.Done)
		}
	}()
	defer l.a.guard(&err)
	select {
	case <-l.a.done:
		return l.fail()
	default:
	}
	if time.Since(l.nonceAt) > pionNonce {
		l.asking, l.nonceAt = true, time.Now()
		var m stun.Message
		begin(&m, stun.NewType(stun.MethodAllocate, stun.ClassRequest), stun.NewTransactionID())
		return copy(p, m.Raw), l.remote, nil
	}
	select {
	case <-l.a.done:
		return l.fail()
	case l.current = <-l.a.queue:
	}
	if l.current.req == nil {
		return copy(p, l.current.b), l.remote, nil
	}
	m, u := l.current.req, l.current.user
	m.Add(stun.AttrUsername, []byte(u.name))
	m.Add(stun.AttrRealm, []byte(l.a.s.cfg.Realm))
	m.Add(stun.AttrNonce, l.nonce)
	if err := u.key.AddTo(m); err != nil {
		l.a.end()
		return l.fail()
	}
	return copy(p, m.Raw), l.remote, nil
}

func (l *link) fail() (int, net.Addr, error) { return 0, nil, net.ErrClosed }

// WriteTo takes what pion has for the client.
func (l *link) WriteTo(p []byte, _ net.Addr) (_ int, err error) {
	defer l.a.guard(&err)
	var typ stun.MessageType
	if looksLikeSTUN(p) {
		typ.ReadValue(uint16(p[0])<<8 | uint16(p[1]))
	}
	answer := typ.Class == stun.ClassSuccessResponse || typ.Class == stun.ClassErrorResponse
	if answer && l.asking {
		return len(p), l.learn(p)
	}
	if answer {
		l.note(typ, p) // before the client can know of it
	}
	if err := l.a.s.send(l.a.o, p); err != nil {
		l.a.s.cfg.Count("stun-send")
	}
	if answer && !l.established {
		l.a.end()
	}
	return len(p), nil // a lost packet is the client's to notice, not pion's
}

// learn keeps the nonce of pion's challenge, which goes nowhere else.
func (l *link) learn(p []byte) error {
	l.asking = false
	var m stun.Message
	if err := stun.Decode(p, &m); err != nil {
		return err
	}
	nonce, err := m.Get(stun.AttrNonce)
	l.nonce = nonce
	return err
}

// note tells of pion's answer.
func (l *link) note(typ stun.MessageType, p []byte) {
	ev := l.a.event(turnKinds[typ.Method], "ok")
	ev.Peer, ev.Request, ev.Answer = l.current.peer, l.current.raw, p
	copy(ev.ID[:], p[8:])
	refused := typ.Class == stun.ClassErrorResponse
	if refused {
		ev.Result = "refused"
		var m stun.Message
		var code stun.ErrorCodeAttribute
		if stun.Decode(p, &m) == nil && code.GetFrom(&m) == nil {
			ev.Result = fmt.Sprintf("%d by the relay", code.Code)
		}
	}
	if typ.Method == stun.MethodAllocate {
		l.established = l.established || !refused
		ev.Peer = l.a.sock.addr
	}
	l.a.s.cfg.Event(ev)
}

// Close is part of net.PacketConn; pion calls it only from Server.Close.
func (l *link) Close() error { l.a.end(); return nil }

// LocalAddr returns the address that the client sent to.
func (l *link) LocalAddr() net.Addr { return l.local }

// SetDeadline and its like are part of net.PacketConn; pion never calls them.
func (l *link) SetDeadline(time.Time) error      { return nil }
func (l *link) SetReadDeadline(time.Time) error  { return nil }
func (l *link) SetWriteDeadline(time.Time) error { return nil }

// generator gives pion the one relay socket that was opened for it.
type generator struct {
	a    *allocation
	used bool
}

// Validate is part of turn.RelayAddressGenerator.
func (g *generator) Validate() error { return nil }

// AllocatePacketConn returns the allocation's relay socket, once.
func (g *generator) AllocatePacketConn(string, int) (net.PacketConn, net.Addr, error) {
	if g.used {
		return nil, nil, errors.New("one relay socket for each allocation")
	}
	g.used = true
	g.a.s.wg.Add(1) // until relaySocket.ReadFrom has failed
	return g.a.sock, g.a.sock.LocalAddr(), nil
}

// AllocateConn refuses: TCP relays (RFC 6062) are not offered.
func (g *generator) AllocateConn(string, int) (net.Conn, net.Addr, error) {
	return nil, nil, errors.New("no tcp relays")
}
