// Package relay is the reflector's STUN and TURN service (RFC 8489, RFC
// 8656), made to stand on the open internet.
//
// It owns no listening sockets. The reflector feeds it datagrams with
// [Server.Datagram] and connections with [Server.Conn], and sends for it
// through [Config.Send]. A filter of its own checks form, credentials,
// nonces, quotas and peers of every message; github.com/pion/turn/v2 runs
// behind it, one instance for each allocation, and sees only messages that
// the filter wrote anew. Nothing is answered with more bytes than came in,
// unless the sender has shown that it is where it says it is.
package relay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"
)

// Config says what the service serves and for whom. Credentials, PeerAllowed,
// Count, Event, Unproven and Send are called from several goroutines at once,
// must not block, and must not keep the bytes they are given.
type Config struct {
	// Realm is announced in challenges; short, since it counts against their
	// length. Empty means "wallprobe".
	Realm string
	// Credentials returns the password of a session's TURN username and the
	// session it belongs to. ok is false when it is unknown or has expired.
	// Usernames hold no colon. Nil knows nobody.
	Credentials func(username string, now time.Time) (password, session string, ok bool)
	// Now is the clock for nonces, rates and permissions; nil is time.Now.
	Now func() time.Time
	// RelayAddr returns the address to open a relay socket on for an
	// allocation that arrived at local. Nil is local itself.
	RelayAddr func(local netip.Addr) (netip.Addr, bool)
	// ListenRelay opens a relay socket on an address, on a port of its
	// choice; done closes it. Nil opens one on a port of the kernel's choice.
	ListenRelay func(a netip.Addr) (c *net.UDPConn, done func(), err error)
	// PeerAllowed reports whether a session may relay to and from peer: one
	// of its declared peers, or a probe socket of the reflector. It is asked
	// about every permission and every packet, after the fixed denials, and
	// decides alone about the reflector's own control and TURN ports. Nil
	// allows no peer. A session's own relayed addresses are its peers without
	// being asked about, those of others never are.
	PeerAllowed func(session string, peer netip.AddrPort) bool
	// Echo is the peer inside the service: what a session sends through a relay
	// to EchoPort of the relay's own address goes here instead of into the
	// network, and what it returns, unless it is nil, comes back from there. The
	// answer must not be longer than p. Nil is no such peer.
	Echo func(session string, p []byte, relay netip.AddrPort) []byte
	// EchoPort is the echo peer's port.
	EchoPort uint16
	// Shared sees every datagram that reaches a relay socket before it is taken
	// for a peer's, and says whether it was its own: relay sockets may stand on
	// ports that are served for others. Nil takes none.
	Shared func(b []byte, local, remote netip.AddrPort) bool
	// AllowPrivatePeers lets PeerAllowed admit private, unique local and
	// carrier-grade NAT addresses, for a lab made of such. All other denials
	// of [Forbidden] stand.
	AllowPrivatePeers bool
	// Forbidden replaces [Forbidden] in tests, which have only loopback.
	Forbidden func(netip.Addr) (reason string, bad bool)
	// Limits bound all that is held and sent; zero fields take defaults.
	Limits Limits
	// PlainSTUN also answers Bindings without credentials and challenges bare
	// Allocates where the answer is longer than the request, within
	// Limits.Plain and Limits.PlainTotal.
	PlainSTUN bool
	// Count is told of everything refused, by a short constant name such as
	// "stun-malformed" or "turn-quota". Nil discards.
	Count func(event string)
	// Event is told what sessions did; strangers cannot cause events. Nil
	// discards.
	Event func(Event)
	// Unproven is told of datagrams that are STUN but neither verify nor are
	// anything that strangers may send: what is left of a session's own after a
	// change on the way looks like that. Nil discards.
	Unproven func(b []byte, local, remote netip.AddrPort)
	// Panicked is told of a panic in what serves an allocation, which it ended.
	// Nil lets it end the program, as pion calls it in goroutines of its own.
	Panicked func(remote netip.AddrPort, v any)
	// Send sends a datagram from exactly local to remote. Both are never in
	// IPv4-mapped form.
	Send func(b []byte, local, remote netip.AddrPort) error
}

// Kind is what an [Event] tells of.
type Kind string

// The kinds of events. KindData is told of the first packet in each
// direction, KindEnd of the end of an allocation. KindChallenge and KindUnproven
// prove nothing by themselves: they are told, a few times, of a 5-tuple that a
// session's Binding came from.
const (
	KindBinding    Kind = "binding"
	KindAllocate   Kind = "allocate"
	KindRefresh    Kind = "refresh"
	KindPermission Kind = "permission"
	KindChannel    Kind = "channel"
	KindData       Kind = "data"
	KindEnd        Kind = "end"
	KindChallenge  Kind = "challenge" // an answer to what nobody has signed for
	KindUnproven   Kind = "unproven"  // a message that was a session's once, or nobody's
)

// Event is one thing that an authenticated session did.
type Event struct {
	Time          time.Time
	Session       string
	Label         string // what followed the colon in a Binding's username
	ID            [stun.TransactionIDSize]byte
	TCP           bool
	Local, Remote netip.AddrPort // the client's 5-tuple, never IPv4-mapped
	Kind          Kind
	Result        string         // "ok", or the error code and its reason; for KindData "to peer" or "from peer"
	Peer          netip.AddrPort // the peer asked for, or the relayed address of KindAllocate
	ToPeer        int64          // KindEnd: bytes of payload relayed to peers
	FromPeer      int64          // KindEnd: bytes of payload relayed from peers
	// Request and Answer are the messages as they came and went, where there are
	// some; only valid during the call.
	Request, Answer []byte
}

// Stats is what the service holds at this moment.
type Stats struct {
	Allocations int
	Conns       int // TCP and TLS connections
}

// tuple is a client's 5-tuple; TLS counts as TCP.
type tuple struct {
	local, remote netip.AddrPort
	tcp           bool
}

// Server is the service. Make one with [New].
type Server struct {
	cfg    Config
	secret [32]byte // of the nonces

	mu         sync.Mutex // guards what follows
	running    bool
	ran        bool
	allocs     map[tuple]*allocation
	relays     map[netip.AddrPort]*allocation // by relayed address
	conns      map[*conn]bool
	challenges rate
	plain      rate
	plainAll   rate
	proofs     proofs
	seen       seen

	wg sync.WaitGroup // allocations' and connections' goroutines
}

// New makes a service. It starts nothing: authenticated Bindings are
// answered at once, allocations and connections only while [Server.Run] runs.
func New(cfg Config) *Server {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Realm == "" {
		cfg.Realm = "wallprobe"
	}
	if cfg.Credentials == nil {
		cfg.Credentials = func(string, time.Time) (string, string, bool) { return "", "", false }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.RelayAddr == nil {
		cfg.RelayAddr = func(local netip.Addr) (netip.Addr, bool) { return local, true }
	}
	if cfg.ListenRelay == nil {
		cfg.ListenRelay = func(a netip.Addr) (*net.UDPConn, func(), error) {
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
			return c, func() { c.Close() }, err
		}
	}
	if cfg.Shared == nil {
		cfg.Shared = func([]byte, netip.AddrPort, netip.AddrPort) bool { return false }
	}
	if cfg.PeerAllowed == nil {
		cfg.PeerAllowed = func(string, netip.AddrPort) bool { return false }
	}
	if cfg.Forbidden == nil {
		cfg.Forbidden = Forbidden
	}
	if cfg.Count == nil {
		cfg.Count = func(string) {}
	}
	if cfg.Event == nil {
		cfg.Event = func(Event) {}
	}
	if cfg.Unproven == nil {
		cfg.Unproven = func([]byte, netip.AddrPort, netip.AddrPort) {}
	}
	if cfg.Send == nil {
		cfg.Send = func([]byte, netip.AddrPort, netip.AddrPort) error { return nil }
	}
	l := cfg.Limits
	s := &Server{
		cfg: cfg, allocs: map[tuple]*allocation{}, relays: map[netip.AddrPort]*allocation{},
		conns:      map[*conn]bool{},
		challenges: rate{perSecond: l.Challenges, sources: l.Sources},
		plain:      rate{perSecond: l.Plain, sources: l.Sources},
		plainAll:   rate{perSecond: l.PlainTotal, sources: 1},
		proofs:     proofs{tuples: l.Sources},
	}
	rand.Read(s.secret[:])
	return s
}

// Run lets the service hold allocations and connections until ctx is done,
// then ends them all and returns nil when everything it started has ended.
// It can be called once.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.ran {
		s.mu.Unlock()
		return errors.New("relay: run called twice")
	}
	s.ran, s.running = true, true
	s.mu.Unlock()

	<-ctx.Done()

	s.mu.Lock()
	s.running = false
	var conns []*conn
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.c.Close()
	}
	s.endAll(func(*allocation) bool { return true })
	s.wg.Wait()
	return nil
}

// End ends a session's allocations. The session's credentials must be gone
// by then, or it can make new ones.
func (s *Server) End(session string) {
	s.endAll(func(a *allocation) bool { return a.session == session })
}

func (s *Server) endAll(match func(*allocation) bool) {
	s.mu.Lock()
	var ending []*allocation
	for _, a := range s.allocs {
		if match(a) {
			ending = append(ending, a)
		}
	}
	s.mu.Unlock()
	for _, a := range ending {
		a.end()
	}
}

// Stats returns what is held at this moment.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Allocations: len(s.allocs), Conns: len(s.conns)}
}

// Datagram takes one UDP datagram that arrived at local from remote. It
// reports whether the datagram was STUN (first byte 0 to 3 and the magic
// cookie) or ChannelData (64 to 79) of a 5-tuple with an allocation, as RFC
// 9443 divides a shared port, or ChannelData of RFC 5766 (64 to 127) in a
// channel that is bound; if not, it may be another protocol's. It never blocks
// and does not keep b.
func (s *Server) Datagram(b []byte, local, remote netip.AddrPort) (handled bool) {
	o := origin{tuple: tuple{local: unmap(local), remote: unmap(remote)}}
	switch {
	case looksLikeSTUN(b):
		if v := s.message(o, b); (v == malformed || v == unproven) && !s.tell(o, KindUnproven, b, nil) {
			s.cfg.Unproven(b, o.tuple.local, o.tuple.remote)
		}
		return true
	case len(b) >= 4 && b[0]>>6 == 1:
		a := s.lookup(o.tuple)
		if a == nil || b[0] > 79 && !a.hasChannel(binary.BigEndian.Uint16(b)) {
			return false
		}
		s.channelData(a, b)
		return true
	}
	return false
}

func (s *Server) lookup(t tuple) *allocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allocs[t]
}

// peer judges one peer of one allocation. It is the only place that does.
func (a *allocation) peer(p netip.AddrPort) (reason string, ok bool) {
	s := a.s
	if a.isEcho(p) {
		return "", true // what goes there never leaves this process
	}
	reason, bad := s.cfg.Forbidden(p.Addr())
	if bad && !(s.cfg.AllowPrivatePeers && liftable(reason)) {
		return reason, false
	}
	if session, relay := s.relayOf(p); relay {
		// Two allocations of one session relay between each other: what arrives
		// at one goes to the client alone, so nothing goes round by itself.
		if session != a.session || p == a.relayed() {
			return "a relayed address", false
		}
		return "", true
	}
	if !s.cfg.PeerAllowed(a.session, p) {
		return "not a peer of the session", false
	}
	return "", true
}

// isEcho reports whether p is the peer inside the service.
func (a *allocation) isEcho(p netip.AddrPort) bool {
	return a.s.cfg.Echo != nil && p == netip.AddrPortFrom(a.addr, a.s.cfg.EchoPort)
}

// relayOf gives the session whose relayed address ap is.
func (s *Server) relayOf(ap netip.AddrPort) (session string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.relays[ap]
	if a == nil {
		return "", false
	}
	return a.session, true
}

// isRelay reports whether ap is the relayed address of an allocation here.
func (s *Server) isRelay(ap netip.AddrPort) bool {
	_, ok := s.relayOf(ap)
	return ok
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// origin is where a message came from and where its answer goes.
type origin struct {
	tuple
	conn *conn // nil for UDP
}

func (s *Server) send(o origin, b []byte) error {
	if o.conn != nil {
		return o.conn.write(b)
	}
	if err := s.cfg.Send(b, o.local, o.remote); err != nil {
		return fmt.Errorf("send from %v to %v: %w", o.local, o.remote, err)
	}
	return nil
}
