//go:build !linux

package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/scenarios"
)

// descriptorBudget is the number of sockets that systems without steering get.
const descriptorBudget = 4096

// A Set is everything that listens. Make one with Listen.
type Set struct {
	mechanism string
	tcp, udp  scenarios.PortSet
	unserved  []Unbound
	count     counters
	conns     connTable

	listeners []net.Listener
	packets   []*net.UDPConn
	own       map[netip.AddrPort]*net.UDPConn

	mu      sync.Mutex
	serving sync.WaitGroup
	busy    bool
	closed  bool
	end     context.CancelFunc
}

// Listen binds every port of cfg, all or nothing: what cannot be bound is told
// in one *BindError, unless cfg.AllowUnbound. Ports beyond the descriptor
// budget are never an error but reported by Unserved. It starts no goroutine.
func Listen(cfg Config) (*Set, error) {
	if cfg.Mode != Auto && cfg.Mode != Sockets {
		return nil, fmt.Errorf("listen: %s: Linux only: %w", cfg.Mode, errors.ErrUnsupported)
	}
	addrs, err := listenAddrs(cfg.Addrs)
	if err != nil {
		return nil, err
	}
	s := &Set{own: make(map[netip.AddrPort]*net.UDPConn)}
	var failed failures
	failed.add(scenarios.UDP, both(cfg.UDP, cfg.Reserved), ErrReserved)
	bound := map[scenarios.Transport]*portMap{scenarios.TCP: {}, scenarios.UDP: {}}
	for _, k := range fit(Ports{scenarios.Union(cfg.TCP), cfg.UDP.Without(cfg.Reserved)}, cfg.First, len(addrs), descriptorBudget, &failed) {
		if err := s.bindPort(k, addrs); err != nil {
			failed.add(k.transport, scenarios.PortSet{{First: k.port, Last: k.port}}, err)
			continue
		}
		bound[k.transport].set(k.port)
	}
	if bad := failed.fatal(); len(bad) > 0 && !cfg.AllowUnbound {
		s.release()
		return nil, &BindError{bad}
	}
	s.tcp, s.udp, s.unserved = bound[scenarios.TCP].ports(), bound[scenarios.UDP].ports(), failed.unbound()
	s.conns.max = cfg.MaxConns
	if s.conns.max == 0 {
		s.conns.max = DefaultMaxConns
	}
	s.mechanism = fmt.Sprintf("one socket for every port: %s ports on %s descriptors (steering needs Linux)",
		group(s.tcp.Len()+s.udp.Len()), group(s.Descriptors()))
	return s, nil
}

// bindPort binds one port at every address or at none.
func (s *Set) bindPort(k portKey, addrs []netip.Addr) error {
	listeners, packets := len(s.listeners), len(s.packets)
	for _, a := range addrs {
		if err := s.bindOne(k.transport, netip.AddrPortFrom(a, k.port)); err != nil {
			for _, l := range s.listeners[listeners:] {
				l.Close()
			}
			for _, p := range s.packets[packets:] {
				delete(s.own, p.LocalAddr().(*net.UDPAddr).AddrPort())
				p.Close()
			}
			s.listeners, s.packets = s.listeners[:listeners], s.packets[:packets]
			return fmt.Errorf("bind %s: %w", a, cause(err))
		}
	}
	return nil
}

func (s *Set) bindOne(t scenarios.Transport, at netip.AddrPort) error {
	family := "6"
	if at.Addr().Is4() {
		family = "4"
	}
	if t == scenarios.TCP {
		l, err := plaintcp.ListenConfig().Listen(context.Background(), "tcp"+family, at.String())
		if err == nil {
			s.listeners = append(s.listeners, l)
		}
		return err
	}
	p, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
	if err == nil {
		s.packets = append(s.packets, p)
		s.own[p.LocalAddr().(*net.UDPAddr).AddrPort()] = p
	}
	return err
}

// cause is the system's error, which unlike the one around it names no port;
// Windows has numbers of its own for the two that matter.
func cause(err error) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	switch {
	case !ok:
		return err
	case errno == 10048: // WSAEADDRINUSE
		return syscall.EADDRINUSE
	case errno == 10013: // WSAEACCES
		return syscall.EACCES
	}
	return errno
}

// Descriptors is the number of descriptors that the Set holds, without those
// of accepted connections.
func (s *Set) Descriptors() int { return len(s.listeners) + len(s.packets) }

// Serve runs until ctx ends or the Set is closed, closes the connections that
// are left, and returns when everything it started has returned. On this
// system its end closes the Set.
func (s *Set) Serve(ctx context.Context, h Handler) error {
	s.mu.Lock()
	if s.closed || s.busy {
		s.mu.Unlock()
		return fmt.Errorf("serve: %w", net.ErrClosed)
	}
	ctx, s.end = context.WithCancel(ctx)
	s.busy = true
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	defer s.end()

	var loops sync.WaitGroup
	for _, l := range s.listeners {
		loops.Go(func() { _ = s.conns.accept(ctx, l, func(net.Conn) bool { return true }, &s.count, h) })
	}
	for _, p := range s.packets {
		loops.Go(func() { s.readLoop(ctx, p, h) })
	}
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.release()
	loops.Wait()
	s.conns.shutdown()
	return nil
}

// readLoop gives the socket's address as the one aimed at, which for an
// unspecified address is all that is known.
func (s *Set) readLoop(ctx context.Context, p *net.UDPConn, h Handler) {
	buf := make([]byte, 1<<16)
	local := p.LocalAddr().(*net.UDPAddr).AddrPort()
	reply := func(ds []Datagram) {
		for _, d := range ds {
			_ = s.send(p, d.Payload, d.Remote)
		}
	}
	for ctx.Err() == nil {
		n, remote, err := p.ReadFromUDPAddrPort(buf)
		if err != nil {
			// Windows tells here of ports that answers did not reach.
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		s.count.received.Add(1)
		h.Datagrams([]Datagram{{Local: local, Remote: remote, Payload: buf[:n], Time: time.Now()}}, reply)
	}
}

func (s *Set) send(p *net.UDPConn, b []byte, to netip.AddrPort) error {
	if _, err := p.WriteToUDPAddrPort(b, to); err != nil {
		s.count.unsent.Add(1)
		return err
	}
	s.count.sent.Add(1)
	return nil
}

// WriteTo sends one datagram from an address and port that is served. Safe for
// concurrent use.
func (s *Set) WriteTo(b []byte, from, to netip.AddrPort) error {
	all := netip.IPv6Unspecified()
	if from.Addr().Is4() {
		all = netip.IPv4Unspecified()
	}
	p, ok := s.own[from]
	if !ok {
		p, ok = s.own[netip.AddrPortFrom(all, from.Port())]
	}
	if !ok {
		return fmt.Errorf("send from %s: %w", from, syscall.EADDRNOTAVAIL)
	}
	return s.send(p, b, to)
}

// Close ends Serve if it runs, waits for it and closes every socket. It may be
// called again, but not by the Handler.
func (s *Set) Close() error {
	s.mu.Lock()
	if s.end != nil {
		s.end()
	}
	done := s.closed || s.busy
	s.closed = true
	s.mu.Unlock()
	s.serving.Wait()
	if done {
		return nil
	}
	return s.release()
}

func (s *Set) release() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	for _, p := range s.packets {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
