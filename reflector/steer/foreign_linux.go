package steer

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// foreignWait bounds the wait for an answer of this machine itself, in
// milliseconds: only a rule of its own that drops packets makes it last.
const foreignWait = 200

// foreign returns the ranges of TCP ports that somebody serves though no socket
// has them: another reflector, which steers them. No bind would fail, and both
// would get a part of what comes. One port of each range is tried: steering
// takes ranges whole.
func foreign(addrs []netip.Addr, ports scenarios.PortSet) (scenarios.PortSet, error) {
	taken, err := held(scenarios.TCP, addrs)
	if err != nil {
		return nil, err
	}
	var out scenarios.PortSet
	at, err := reachable(addrs)
	if err != nil {
		return nil, err
	}
	for _, r := range ports.Without(taken) {
		if slices.ContainsFunc(at, func(a netip.Addr) bool { return answers(netip.AddrPortFrom(a, r.First)) }) {
			out = append(out, r)
		}
	}
	return out, nil
}

// mostOwn bounds how many addresses of a machine are tried.
const mostOwn = 16

// reachable are the addresses of this machine at which something that listens
// on addrs is reached.
func reachable(addrs []netip.Addr) (out []netip.Addr, err error) {
	for _, a := range addrs {
		if !a.IsUnspecified() {
			out = append(out, a)
			continue
		}
		own, err := net.InterfaceAddrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, o := range own {
			p, err := netip.ParsePrefix(o.String())
			if err == nil && p.Addr().Is4() == a.Is4() && !p.Addr().IsLinkLocalUnicast() && len(out) < mostOwn {
				out = append(out, p.Addr())
			}
		}
	}
	return out, nil
}

// answers tells whether a connection can be made. It is reset at once.
func answers(at netip.AddrPort) bool {
	fd, err := newSocket(at.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP, nil)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err := unix.SetNonblock(fd, true); err != nil {
		return false
	}
	if err := unix.Connect(fd, sockaddr(at)); err != nil && err != unix.EINPROGRESS {
		return false
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, foreignWait); n != 1 || err != nil {
		return false
	}
	if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 || err != nil {
		return false
	}
	// A source port that happens to be the port itself connects a socket to itself.
	own, err := unix.Getsockname(fd)
	return err == nil && portOf(own) != at.Port()
}

func portOf(sa unix.Sockaddr) uint16 {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	return 0
}
