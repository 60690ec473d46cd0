// Package sockdiag lists the sockets of this network namespace, as sock_diag(7)
// tells them to anybody: it needs no privilege. Linux only.
package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// States of include/net/tcp_states.h; an unconnected UDP socket is in Close.
const (
	SynRecv = 3
	Close   = 7
	Listen  = 10
)

// Sizes and numbers of include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	byFamily    = 20
	requestSize = 56
	messageSize = 72
	v6Only      = 11 // attribute INET_DIAG_SKV6ONLY
)

// A Socket is one socket of this network namespace.
type Socket struct {
	Local, Remote netip.AddrPort
	V6Only        bool
}

// List asks for the sockets of one family, such as unix.AF_INET, one protocol,
// such as unix.IPPROTO_TCP, and one state.
func List(family, protocol uint8, state int) ([]Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	tv := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	b := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+requestSize)
	b = binary.NativeEndian.AppendUint16(b, byFamily)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = append(b, make([]byte, 8)...) // sequence, port id
	b = append(b, family, protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 1<<state)
	b = append(b, make([]byte, unix.SizeofNlMsghdr+requestSize-len(b))...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	return read(fd)
}

func read(fd int) ([]Socket, error) {
	var out []Socket
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
			case byFamily:
				if s, ok := parse(body); ok {
					out = append(out, s)
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// parse reads a struct inet_diag_msg and the attributes after it.
func parse(b []byte) (Socket, bool) {
	if len(b) < messageSize {
		return Socket{}, false
	}
	addr := func(b []byte, family byte) netip.Addr {
		if family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b))
		}
		return netip.AddrFrom16([16]byte(b)).Unmap()
	}
	s := Socket{
		Local:  netip.AddrPortFrom(addr(b[8:], b[0]), binary.BigEndian.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(addr(b[24:], b[0]), binary.BigEndian.Uint16(b[6:])),
	}
	for a := b[messageSize:]; len(a) >= 4; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < 4 || size > len(a) {
			break
		}
		if binary.NativeEndian.Uint16(a[2:]) == v6Only && size >= 5 {
			s.V6Only = a[4] != 0
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s, true
}
