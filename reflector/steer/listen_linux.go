package steer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A Set is everything that listens. Make one with Listen.
type Set struct {
	mechanism string
	tcp, udp  scenarios.PortSet
	unserved  []Unbound
	count     counters
	conns     connTable

	addrs   []netip.Addr
	socks   []*socket
	own     map[netip.AddrPort]int // bound UDP sockets that are not steered
	raw     [2]int                 // sockets for IPv4 and IPv6 answers; -1 is none
	tcpMap  *portMap
	udpMap  *portMap
	steerer interface{ close() error }
	extra   int // descriptors of the steerer
	epoll   int // of the UDP sockets
	wake    waker

	mu      sync.RWMutex
	serving sync.WaitGroup
	busy    bool
	closed  bool
	end     context.CancelFunc // of Serve
	lent    map[uint16]int     // UDP ports that others have for a while, and how many of them
}

// Listen binds every port of cfg, all or nothing: what cannot be bound is told
// in one *BindError, unless cfg.AllowUnbound. Ports beyond the descriptor
// limit are never an error but reported by Unserved. It starts no goroutine.
func Listen(cfg Config) (*Set, error) {
	// Sockets, BPF links and nft all act on the network namespace of the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	addrs, err := listenAddrs(cfg.Addrs)
	if err != nil {
		return nil, err
	}
	if len(cfg.Addrs) == 0 && !hasIPv6() {
		addrs = addrs[:1]
	}
	for _, a := range addrs {
		if err := checkLocal(a); err != nil {
			return nil, fmt.Errorf("listen address %s: %w", a, err)
		}
	}
	var lacks []string
	for _, m := range modes(cfg) {
		s := &Set{addrs: addrs, raw: [2]int{-1, -1}, epoll: -1, wake: -1}
		err := s.listen(cfg, m)
		if err == nil {
			s.describe(m, lacks)
			return s, nil
		}
		s.release()
		if _, ok := errors.AsType[*BindError](err); ok || cfg.Mode != Auto || m == Sockets {
			return nil, err
		}
		lacks = append(lacks, fmt.Sprintf("no %s: %v", mechanisms[m], err))
	}
	return nil, fmt.Errorf("listen: %s", cfg.Mode)
}

var mechanisms = map[Mode]string{BPF: "BPF sk_lookup", TPROXY: "TPROXY by nft", Sockets: "one socket for every port"}

// wide is the length from which a range is worth steering.
const wide = 64

func hasWide(set scenarios.PortSet) bool {
	return slices.ContainsFunc(set, func(r scenarios.PortRange) bool { return int(r.Last)-int(r.First)+1 >= wide })
}

// modes lists what to try, best first.
func modes(cfg Config) []Mode {
	switch {
	case cfg.Mode != Auto:
		return []Mode{cfg.Mode}
	case hasWide(cfg.TCP) || hasWide(cfg.UDP.Without(cfg.Reserved)):
		return []Mode{BPF, TPROXY, Sockets}
	}
	return []Mode{Sockets}
}

// checkLocal tells why sockets cannot have an address.
func checkLocal(a netip.Addr) error {
	fd, err := newSocket(a, unix.SOCK_DGRAM, unix.IPPROTO_UDP, nil)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, 0)))
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("not an address of this machine: %w", err)
	}
	return err
}

func hasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func (s *Set) listen(cfg Config, m Mode) error {
	var failed failures
	failed.add(scenarios.UDP, both(cfg.UDP, cfg.Reserved), ErrReserved)
	tcp, udp := scenarios.Union(cfg.TCP), cfg.UDP.Without(cfg.Reserved)
	others, err := foreign(s.addrs, tcp)
	if err != nil {
		return err
	}
	failed.add(scenarios.TCP, others, unix.EADDRINUSE)
	tcp = tcp.Without(others)
	switch m {
	case BPF, TPROXY:
		err = s.steer(cfg, m, tcp, udp, &failed)
	case Sockets:
		err = s.bindEach(cfg, tcp, udp, &failed)
	default:
		err = fmt.Errorf("listen: %s does not exist", m)
	}
	if err != nil {
		return err
	}
	s.unserved = failed.unbound()
	if s.wake, err = newWaker(); err != nil {
		return err
	}
	if s.epoll, err = s.poll(); err != nil {
		return err
	}
	s.conns.max = cfg.MaxConns
	if s.conns.max == 0 {
		s.conns.max = DefaultMaxConns
	}
	// Spare: the standard streams, files, the lookups and sockets of others.
	s.conns.max = max(1, min(s.conns.max, descriptorLimit()-s.Descriptors()-64))
	return nil
}

// steer binds one socket for each transport and family and has the ports
// steered to it. The sockets stand on loopback, where nobody else reaches the
// ports that are theirs.
func (s *Set) steer(cfg Config, m Mode, tcp, udp scenarios.PortSet, failed *failures) error {
	tcp, err := s.untaken(scenarios.TCP, tcp, failed)
	if err != nil {
		return err
	}
	if udp, err = s.untaken(scenarios.UDP, udp, failed); err != nil {
		return err
	}
	s.setPorts(tcp, udp)
	for _, t := range []scenarios.Transport{scenarios.TCP, scenarios.UDP} {
		for _, at := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
			if !slices.ContainsFunc(s.addrs, func(a netip.Addr) bool { return a.Is4() == at.Is4() }) {
				continue
			}
			opts := []sockOpt{freebind(at.Is4())}
			if m == TPROXY {
				opts = append(opts, transparent(at.Is4()))
			}
			sock, err := bind(t, netip.AddrPortFrom(at, 0), true, opts...)
			if err != nil {
				if m == TPROXY && errors.Is(err, unix.EPERM) {
					return fmt.Errorf("needs CAP_NET_ADMIN: %w", unix.EPERM)
				}
				return fmt.Errorf("%s: %w", t, err)
			}
			s.socks = append(s.socks, sock)
		}
	}
	start, err := s.prepare(m)
	if err != nil {
		return err
	}
	// Not before it is known that this mechanism works: others fail for other ports.
	if bad := failed.fatal(); len(bad) > 0 && !cfg.AllowUnbound {
		return &BindError{bad}
	}
	if err := start(); err != nil {
		return err
	}
	for i := range s.raw {
		if fd, err := rawSocket(i == 0); err == nil {
			s.raw[i] = fd
		}
	}
	return nil
}

// untaken returns the ports that no other socket has.
func (s *Set) untaken(t scenarios.Transport, ports scenarios.PortSet, failed *failures) (scenarios.PortSet, error) {
	taken, err := held(t, s.addrs)
	if err != nil {
		return nil, err
	}
	failed.add(t, both(ports, taken), unix.EADDRINUSE)
	return ports.Without(taken), nil
}

// prepare finds out whether a mechanism works, and returns what starts it.
func (s *Set) prepare(m Mode) (start func() error, err error) {
	if m == BPF {
		b, err := loadBPF(s.addrs, s.tcpMap, s.udpMap, s.socks)
		if err != nil {
			return nil, err
		}
		s.steerer, s.extra = b, bpfDescriptors
		return b.attach, nil
	}
	t, err := planTPROXY(s.addrs, s.tcp, s.udp, s.socks)
	if err != nil {
		return nil, err
	}
	s.steerer = t
	return t.attach, nil
}

func (s *Set) setPorts(tcp, udp scenarios.PortSet) {
	s.tcp, s.udp, s.tcpMap, s.udpMap = tcp, udp, newPortMap(tcp), newPortMap(udp)
}

// descriptorLimit is the number of descriptors that this process may have.
func descriptorLimit() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 1024
	}
	return int(min(lim.Cur, 1<<30))
}

// bindEach binds a socket for every port and address, as far as nine tenths of
// the descriptors go; a port is served at every address or not at all.
func (s *Set) bindEach(cfg Config, tcp, udp scenarios.PortSet, failed *failures) error {
	limit := descriptorLimit()
	budget := limit - max(256, limit/10)
	bound := map[scenarios.Transport]*portMap{scenarios.TCP: {}, scenarios.UDP: {}}
	s.own = make(map[netip.AddrPort]int)
	for _, k := range fit(Ports{tcp, udp}, cfg.First, len(s.addrs), budget, failed) {
		if err := s.bindPort(k); err != nil {
			failed.add(k.transport, scenarios.PortSet{{First: k.port, Last: k.port}}, err)
			continue
		}
		bound[k.transport].set(k.port)
	}
	if bad := failed.fatal(); len(bad) > 0 && !cfg.AllowUnbound {
		return &BindError{bad}
	}
	s.setPorts(bound[scenarios.TCP].ports(), bound[scenarios.UDP].ports())
	return nil
}

func (s *Set) bindPort(k portKey) error {
	start := len(s.socks)
	for _, a := range s.addrs {
		sock, err := bind(k.transport, netip.AddrPortFrom(a, k.port), false)
		if err != nil {
			for _, b := range s.socks[start:] {
				b.close()
				delete(s.own, b.local)
			}
			s.socks = s.socks[:start]
			return err
		}
		s.socks = append(s.socks, sock)
		if k.transport == scenarios.UDP {
			s.own[sock.local] = sock.fd
		}
	}
	return nil
}

func (s *Set) describe(m Mode, lacks []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s ports on %s descriptors", mechanisms[m], group(s.tcp.Len()+s.udp.Len()), group(s.Descriptors()))
	if t, ok := s.steerer.(*tproxySteer); ok {
		fmt.Fprintf(&b, ", table inet %s", t.table)
	}
	if m != Sockets && s.raw[0] < 0 && s.raw[1] < 0 {
		b.WriteString(", a socket for every UDP answer (raw sockets need CAP_NET_RAW)")
	}
	if len(lacks) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(lacks, "; "))
	}
	s.mechanism = b.String()
}

// Descriptors is the number of descriptors that the Set holds, without those
// of accepted connections.
func (s *Set) Descriptors() int {
	n := len(s.socks) + s.extra
	for _, fd := range []int{s.raw[0], s.raw[1], s.epoll, int(s.wake)} {
		if fd >= 0 {
			n++
		}
	}
	return n
}

// Close ends Serve if it runs, waits for it, removes what steers and closes
// every socket. It may be called again, but not by the Handler.
func (s *Set) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.end != nil {
		s.end()
	}
	s.mu.Unlock()
	s.serving.Wait()
	return s.release()
}

// release undoes whatever listen has done.
func (s *Set) release() error {
	var err error
	if s.steerer != nil {
		if err = s.steerer.close(); err != nil {
			err = fmt.Errorf("end steering: %w", err)
		}
	}
	for _, sock := range s.socks {
		sock.close()
	}
	for _, fd := range []int{s.raw[0], s.raw[1], s.epoll, int(s.wake)} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return err
}
