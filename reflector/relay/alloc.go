package relay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun"
)

const (
	queueLen           = 256              // messages waiting for an allocation
	maxFrame           = 4096             // bytes of the longest message taken for one
	permissionLifetime = 5 * time.Minute  // RFC 8656 section 9
	channelLifetime    = 10 * time.Minute // RFC 8656 section 12
)

var errEnded = errors.New("allocation has ended")

// allocation is one client's allocation and the pion server that runs it
// alone. With a server each, the 5-tuple, the session and the relay socket
// are known wherever pion asks, and closing one touches no other.
type allocation struct {
	s                 *Server
	o                 origin
	username, session string
	addr              netip.Addr // of the relay socket
	even              bool       // the client wants an even port
	queue             chan job
	done              chan struct{}

	toPeer, fromPeer atomic.Int64 // bytes of payload
	spoke, heard     atomic.Bool  // a packet went to, came from a peer

	mu       sync.Mutex // taken before Server.mu
	ended    bool
	sock     *relaySocket
	peers    map[netip.Addr]time.Time // peers vouched for, and until when
	channels map[uint16]time.Time
}

// job is one message for pion: a request without its credentials, which
// [link.ReadFrom] adds, or bytes that pass as they are.
type job struct {
	b    []byte
	req  *stun.Message
	raw  []byte // the request as it came, for the event
	user user
	peer netip.AddrPort // for the event
}

// admit enters a new allocation within the quotas. The caller must start it.
func (s *Server) admit(o origin, u user, addr netip.Addr) (*allocation, stun.ErrorCode, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.allocs[o.tuple]; a != nil {
		return nil, stun.CodeAllocMismatch, "allocation already there"
	}
	l := s.cfg.Limits
	var ofSession, ofSource int
	for t, a := range s.allocs {
		if a.session == u.session {
			ofSession++
		}
		if source(t.remote.Addr()) == source(o.remote.Addr()) {
			ofSource++
		}
	}
	switch {
	case !s.running:
		return nil, stun.CodeInsufficientCapacity, "not running"
	case ofSession >= l.PerSession:
		return nil, stun.CodeAllocQuotaReached, "allocations of the session"
	case ofSource >= l.PerSource:
		return nil, stun.CodeAllocQuotaReached, "allocations of the address"
	case len(s.allocs) >= l.Allocations:
		return nil, stun.CodeInsufficientCapacity, "allocations in all"
	}
	a := &allocation{
		s: s, o: o, username: u.name, session: u.session, addr: addr,
		queue: make(chan job, queueLen), done: make(chan struct{}),
		peers: map[netip.Addr]time.Time{}, channels: map[uint16]time.Time{},
	}
	s.allocs[o.tuple] = a
	s.wg.Add(1) // until start returns
	return a, 0, ""
}

// start opens the relay socket and starts the pion server.
func (a *allocation) start() error {
	defer a.s.wg.Done()
	if err := a.open(); err != nil {
		a.end()
		return err
	}
	if err := a.serve(); err != nil {
		a.end()
		return err
	}
	return nil
}

func (a *allocation) open() error {
	c, done, err := a.listen()
	if err != nil {
		return fmt.Errorf("relay socket on %v: %w", a.addr, err)
	}
	bound := unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		done()
		return errEnded
	}
	a.sock = &relaySocket{a: a, c: c, done: done, addr: bound}
	a.s.mu.Lock()
	a.s.relays[bound] = a
	a.s.mu.Unlock()
	return nil
}

// evenTries is how many ports are drawn until one is even.
const evenTries = 24

func (a *allocation) listen() (c *net.UDPConn, done func(), err error) {
	for range evenTries {
		c, done, err = a.s.cfg.ListenRelay(a.addr)
		if err != nil || !a.even || c.LocalAddr().(*net.UDPAddr).Port%2 == 0 {
			return c, done, err
		}
		done()
	}
	return nil, nil, errors.New("no even port")
}

// hasChannel reports whether a channel was bound.
func (a *allocation) hasChannel(number uint16) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.channels[number]
	return ok
}

// relayed is the allocation's relayed address; zero while it has none.
func (a *allocation) relayed() netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sock == nil {
		return netip.AddrPort{}
	}
	return a.sock.addr
}

// end ends the allocation; pion's goroutines follow by themselves.
func (a *allocation) end() {
	a.mu.Lock()
	if a.ended {
		a.mu.Unlock()
		return
	}
	a.ended = true
	sock := a.sock
	a.mu.Unlock()

	close(a.done)
	s := a.s
	ev := a.event(KindEnd, "ended")
	s.mu.Lock()
	delete(s.allocs, a.o.tuple)
	if sock != nil {
		delete(s.relays, sock.addr)
		ev.Peer = sock.addr
	}
	s.mu.Unlock()
	if sock != nil {
		sock.done()
	}
	if a.o.conn != nil {
		a.o.conn.allocationEnded()
	}
	ev.ToPeer, ev.FromPeer = a.toPeer.Load(), a.fromPeer.Load()
	s.cfg.Event(ev)
}

// guard is deferred in what pion calls: a panic there ends the allocation alone.
func (a *allocation) guard(err *error) {
	v := recover()
	if v == nil {
		return
	}
	if a.s.cfg.Panicked == nil {
		panic(v)
	}
	*err = net.ErrClosed
	a.s.cfg.Panicked(a.o.remote, v)
	defer func() { _ = recover() }() // what is told of the end may be what panicked
	a.end()
}

func (a *allocation) event(k Kind, result string) Event {
	return Event{Time: a.s.cfg.Now(), Session: a.session, TCP: a.o.tcp,
		Local: a.o.local, Remote: a.o.remote, Kind: k, Result: result}
}

// submit writes a request anew with the attributes that build adds.
func (a *allocation) submit(req *stun.Message, u user, peer netip.AddrPort, build func(*stun.Message)) {
	m := new(stun.Message)
	begin(m, req.Type, req.TransactionID)
	build(m)
	a.push(job{b: m.Raw, req: m, raw: bytes.Clone(req.Raw), user: u, peer: peer})
}

// push hands a message to pion. Over UDP a full queue drops it; over TCP the
// connection waits.
func (a *allocation) push(j job) {
	if len(j.b) > maxFrame {
		a.s.cfg.Count("turn-oversize")
		return
	}
	if a.o.conn != nil {
		select {
		case a.queue <- j:
		case <-a.done:
		}
		return
	}
	select {
	case a.queue <- j:
	default:
		a.s.cfg.Count("turn-overflow")
	}
}

// vouch notes that these peers, and this channel unless it is 0, were
// allowed, and reports whether there is room for them.
func (a *allocation) vouch(peers []netip.AddrPort, channel uint16) bool {
	now := a.s.cfg.Now()
	limit := a.s.cfg.Limits.Permissions
	a.mu.Lock()
	defer a.mu.Unlock()
	forget(a.peers, now)
	forget(a.channels, now)
	added := map[netip.Addr]bool{}
	for _, p := range peers {
		if _, known := a.peers[p.Addr()]; !known {
			added[p.Addr()] = true
		}
	}
	_, known := a.channels[channel]
	newChannel := channel != 0 && !known
	if len(a.peers)+len(added) > limit || newChannel && len(a.channels) >= limit {
		return false
	}
	for _, p := range peers {
		a.peers[p.Addr()] = now.Add(permissionLifetime)
	}
	if channel != 0 {
		a.channels[channel] = now.Add(channelLifetime)
	}
	return true
}

func forget[K comparable](m map[K]time.Time, now time.Time) {
	for k, until := range m {
		if now.After(until) {
			delete(m, k)
		}
	}
}

func (a *allocation) vouched(ip net.IP) bool {
	addr, _ := netip.AddrFromSlice(ip)
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.peers[addr.Unmap()]
	return ok
}
