package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// Borrow gives a UDP socket of its own on an address and port, 0 for any, also
// where the Set serves that port: until giveBack is called, what is aimed at
// the port there reaches the socket alone. Under BPF the port is meanwhile not
// steered, at any address; under TPROXY every socket gets what is its own;
// where each port has a socket, that very socket is lent, which may stand on
// the unspecified address. giveBack closes the socket; it may be called again.
func (s *Set) Borrow(at netip.AddrPort) (c *net.UDPConn, giveBack func(), err error) {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("borrow %s: %w", at, net.ErrClosed)
	}
	if i := s.boundAt(at); i >= 0 {
		return s.lendSocket(i)
	}
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, nil, fmt.Errorf("borrow %s: %w", at, err)
	}
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if err := s.lendPort(port); err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("borrow %s: %w", at, err)
	}
	var once sync.Once
	return c, func() {
		once.Do(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			c.Close()
			s.takeBack(port)
		})
	}, nil
}

// lendPort stops steering a port; several may have it, at several addresses.
func (s *Set) lendPort(port uint16) error {
	b, ok := s.steerer.(*bpfSteer)
	if !ok || !s.udpMap.has(port) {
		return nil
	}
	if s.lent == nil {
		s.lent = make(map[uint16]int)
	}
	s.lent[port]++
	if s.lent[port] > 1 {
		return nil
	}
	if err := b.write(s.tcpMap, s.steered()); err != nil {
		delete(s.lent, port)
		return err
	}
	return nil
}

// takeBack steers a port again. The map is written whole, so what one write
// failed to do the next one does.
func (s *Set) takeBack(port uint16) {
	b, ok := s.steerer.(*bpfSteer)
	if !ok || s.lent[port] == 0 {
		return
	}
	if s.lent[port]--; s.lent[port] > 0 {
		return
	}
	delete(s.lent, port)
	if !s.closed {
		_ = b.write(s.tcpMap, s.steered()) // fails only when the map is gone, and all steering with it
	}
}

// steered are the UDP ports that are served and not lent.
func (s *Set) steered() *portMap {
	m := *s.udpMap
	for port := range s.lent {
		m.clear(port)
	}
	return &m
}

// boundAt finds the Set's own socket of a UDP port, -1 when there is none.
func (s *Set) boundAt(at netip.AddrPort) int {
	if at.Port() == 0 {
		return -1
	}
	fd, raw := s.exit(at)
	if raw {
		return -1
	}
	for i, sock := range s.socks {
		if sock.fd == fd && sock.transport == scenarios.UDP {
			return i
		}
	}
	return -1
}

var errLent = errors.New("lent already")

// lendSocket takes a socket out of the read loop and gives a copy of it away.
func (s *Set) lendSocket(i int) (*net.UDPConn, func(), error) {
	sock := s.socks[i]
	at := sock.local
	if s.lent[at.Port()] > 0 {
		return nil, nil, fmt.Errorf("borrow %s: %w", at, errLent)
	}
	fd, err := unix.FcntlInt(uintptr(sock.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("borrow %s: %w", at, err)
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close()
	p, err := net.FilePacketConn(f) // makes the socket, and so the one that stays, non-blocking
	if err != nil {
		return nil, nil, fmt.Errorf("borrow %s: %w", at, err)
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, sock.fd, nil); err != nil {
		p.Close()
		return nil, nil, fmt.Errorf("borrow %s: %w", at, err)
	}
	if s.lent == nil {
		s.lent = make(map[uint16]int)
	}
	s.lent[at.Port()]++
	var once sync.Once
	return p.(*net.UDPConn), func() {
		once.Do(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			p.Close()
			if s.lent[at.Port()]--; s.lent[at.Port()] == 0 {
				delete(s.lent, at.Port())
			}
			if s.closed {
				return // the descriptor may be somebody else's by now
			}
			_ = unix.SetNonblock(sock.fd, false)
			_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, sock.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)})
		})
	}, nil
}
