package steer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// States of include/net/tcp_states.h; an unconnected UDP socket is in
// stateClose.
const (
	stateSynRecv = 3
	stateClose   = 7
	stateListen  = 10
)

// Sizes and numbers of include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56
	diagMessageSize  = 72
	diagV6Only       = 11 // attribute INET_DIAG_SKV6ONLY
)

// A diagSocket is one socket of this network namespace.
type diagSocket struct {
	local, remote netip.AddrPort
	v6only        bool
}

// overlaps tells whether s has its port at address a too.
func (s diagSocket) overlaps(a netip.Addr) bool {
	own := s.local.Addr()
	switch {
	case own.Is4() != a.Is4():
		return own.Is6() && own.IsUnspecified() && !s.v6only
	case own.IsUnspecified(), a.IsUnspecified():
		return true
	}
	return own == a.WithZone("")
}

// held returns the ports that sockets of other programs, or other sockets of
// this one, have at one of the addresses: TCP listeners and unconnected UDP
// sockets.
func held(t scenarios.Transport, addrs []netip.Addr) (scenarios.PortSet, error) {
	protocol, state := uint8(unix.IPPROTO_TCP), stateListen
	if t == scenarios.UDP {
		protocol, state = unix.IPPROTO_UDP, stateClose
	}
	ports := new(portMap)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		socks, err := diag(family, protocol, state)
		if err != nil {
			return nil, fmt.Errorf("list %s sockets: %w", t, err)
		}
		for _, s := range socks {
			for _, a := range addrs {
				if s.overlaps(a) {
					ports.set(s.local.Port())
				}
			}
		}
	}
	return ports.ports(), nil
}

// HalfOpen lists the TCP connections whose SYN has been answered but whose
// handshake is not complete. It needs no privilege. Time is the time of the
// call; TTL and TOS are not known. Connections answered with a SYN cookie
// leave no trace.
func HalfOpen() ([]SYN, error) {
	now := time.Now()
	var out []SYN
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		socks, err := diag(family, unix.IPPROTO_TCP, stateSynRecv)
		if err != nil {
			return nil, fmt.Errorf("list half-open connections: %w", err)
		}
		for _, s := range socks {
			out = append(out, SYN{Time: now, Source: s.remote, Dest: s.local})
		}
	}
	return out, nil
}

// diag asks the kernel for the sockets of one family, protocol and state
// (sock_diag(7)).
func diag(family, protocol uint8, state int) ([]diagSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	tv := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	b := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+diagRequestSize)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = append(b, make([]byte, 8)...) // sequence, port id
	b = append(b, family, protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 1<<state)
	b = append(b, make([]byte, unix.SizeofNlMsghdr+diagRequestSize-len(b))...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	return readDiag(fd)
}

func readDiag(fd int) ([]diagSocket, error) {
	var out []diagSocket
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return nil, fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
			}
			body := b[unix.SizeofNlMsghdr:size]
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return out, nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return nil, fmt.Errorf("netlink error of %d bytes", len(body))
				}
				return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			case sockDiagByFamily:
				if s, ok := parseDiag(body); ok {
					out = append(out, s)
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// parseDiag reads a struct inet_diag_msg and the attributes after it.
func parseDiag(b []byte) (diagSocket, bool) {
	if len(b) < diagMessageSize {
		return diagSocket{}, false
	}
	addr := func(b []byte, family byte) netip.Addr {
		if family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b))
		}
		return netip.AddrFrom16([16]byte(b)).Unmap()
	}
	s := diagSocket{
		local:  netip.AddrPortFrom(addr(b[8:], b[0]), binary.BigEndian.Uint16(b[4:])),
		remote: netip.AddrPortFrom(addr(b[24:], b[0]), binary.BigEndian.Uint16(b[6:])),
	}
	for a := b[diagMessageSize:]; len(a) >= 4; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < 4 || size > len(a) {
			break
		}
		if binary.NativeEndian.Uint16(a[2:]) == diagV6Only && size >= 5 {
			s.v6only = a[4] != 0
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s, true
}
