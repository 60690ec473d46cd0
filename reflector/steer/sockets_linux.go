package steer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Receive buffers in bytes. The kernel cuts them to net.core.rmem_max where
// the privilege to go beyond is missing.
const (
	steeredBuffer = 32 << 20
	singleBuffer  = 1 << 20
)

// sendTimeout bounds how long a full device queue may hold up a read loop.
const sendTimeout = 100_000 // microseconds

// A socket listens for TCP connections or receives UDP datagrams.
type socket struct {
	fd        int
	transport scenarios.Transport
	local     netip.AddrPort
	steered   bool             // gets what is aimed at other ports than its own
	drops     uint32           // what the kernel counted when it last told
	listener  *net.TCPListener // of TCP; it owns the descriptor
}

func (s *socket) close() {
	if s.listener != nil {
		s.listener.Close()
		return
	}
	unix.Close(s.fd)
}

// A sockOpt is a socket option with a whole number.
type sockOpt struct{ level, name, value int }

// receiveOpts make every datagram come with what it was aimed at, its TTL, its
// TOS, its time and the number of datagrams lost.
func receiveOpts(v4 bool) []sockOpt {
	opts := []sockOpt{
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
		{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1},
	}
	if v4 {
		return append(opts,
			sockOpt{unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1},
			sockOpt{unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
			sockOpt{unix.IPPROTO_IP, unix.IP_RECVTOS, 1})
	}
	return append(opts,
		sockOpt{unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, 1},
		sockOpt{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
		sockOpt{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1})
}

// freebind lets a socket have an address that no interface carries, such as
// one that is local by a route.
func freebind(v4 bool) sockOpt {
	if v4 {
		return sockOpt{unix.IPPROTO_IP, unix.IP_FREEBIND, 1}
	}
	return sockOpt{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1}
}

// transparent lets a socket be the target of TPROXY.
func transparent(v4 bool) sockOpt {
	if v4 {
		return sockOpt{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1}
	}
	return sockOpt{unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1}
}

// newSocket makes a socket of typ for a's family.
func newSocket(a netip.Addr, typ, protocol int, opts []sockOpt) (int, error) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	} else if typ != unix.SOCK_RAW { // raw(7) sockets have no such option
		opts = append([]sockOpt{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}}, opts...)
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := setAll(fd, opts); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setAll(fd int, opts []sockOpt) error {
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	return nil
}

// bind makes a listening TCP socket or a UDP socket. Its errors do not name
// the port, so that they can be told together.
func bind(t scenarios.Transport, at netip.AddrPort, steered bool, opts ...sockOpt) (*socket, error) {
	s := &socket{transport: t, steered: steered}
	do := s.receive
	if t == scenarios.TCP {
		do = s.listen
	}
	if err := do(at, opts); err != nil {
		return nil, err
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	s.local = addrPort(name)
	return s, nil
}

// listen makes a listening TCP socket, whose connections Go accepts.
func (s *socket) listen(at netip.AddrPort, opts []sockOpt) error {
	lc := plaintcp.ListenConfig()
	lc.Control = func(_, _ string, raw syscall.RawConn) (err error) {
		failed := raw.Control(func(fd uintptr) {
			s.fd = int(fd)
			err = setAll(s.fd, opts)
			_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1) // older kernels do not tell how a SYN arrived
		})
		return cmp.Or(failed, err)
	}
	family := "tcp6"
	if at.Addr().Is4() {
		family = "tcp4"
	}
	l, err := lc.Listen(context.Background(), family, at.String())
	if err != nil {
		if call, ok := errors.AsType[*os.SyscallError](err); ok {
			return fmt.Errorf("%s %s: %w", call.Syscall, at.Addr(), call.Err)
		}
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return err
	}
	s.listener = l.(*net.TCPListener)
	// Acknowledgements ride on answers, from the first one on (tcp(7)). Listening
	// would forget it.
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	// From now on calls may leave from this port, as an FTP server's do; not
	// before, when it would let a second reflector have the port as well.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	return nil
}

// receive makes a UDP socket.
func (s *socket) receive(at netip.AddrPort, opts []sockOpt) (err error) {
	opts = append(opts, receiveOpts(at.Addr().Is4())...)
	if at.Addr().IsUnspecified() {
		opts = append(opts, freebind(at.Addr().Is4())) // for answers from what is local by a route
	}
	// Blocking: reads ask not to wait, writes wait for the send timeout.
	if s.fd, err = newSocket(at.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP, opts); err != nil {
		return err
	}
	if err := unix.Bind(s.fd, sockaddr(at)); err != nil {
		unix.Close(s.fd)
		return fmt.Errorf("bind %s: %w", at.Addr(), err)
	}
	size := singleBuffer
	if s.steered {
		size = steeredBuffer
	}
	receiveBuffer(s.fd, size)
	setSendTimeout(s.fd)
	return nil
}

// receiveBuffer asks for a large buffer; a smaller one works too.
func receiveBuffer(fd, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
}

func setSendTimeout(fd int) {
	tv := unix.Timeval{Usec: sendTimeout}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), ZoneId: zoneIndex(a.Addr().Zone()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// zoneIndex reads a zone, an interface's number or name; 0 is none.
func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}
