package client

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
)

// tellMarks asks for the header fields of what arrives. Where that is refused,
// readMarked does not know them.
func tellMarks(c *net.UDPConn, v4 bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if v4 {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
			return
		}
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	})
}

// readMarked reads a datagram with its time to live and its traffic class; a time
// to live of 0 is not known.
func readMarked(c *net.UDPConn, b []byte) (n int, ttl, tos uint8, err error) {
	oob := make([]byte, 128)
	n, oobn, _, _, err := c.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return n, 0, 0, err
	}
	for oob = oob[:oobn]; len(oob) > 0; {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) > 0:
			tos = data[0]
		case len(data) < 4:
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL, h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT:
			ttl = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS:
			tos = uint8(binary.NativeEndian.Uint32(data))
		}
	}
	return n, ttl, tos, nil
}

// dialMarked connects with a SYN that has a traffic class. The ECN bits of TCP
// are the system's own.
func dialMarked(ctx context.Context, to netip.AddrPort, tos uint8) (net.Conn, error) {
	d := plaintcp.Dialer()
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		var err error
		failed := raw.Control(func(fd uintptr) {
			level, name := unix.IPPROTO_IPV6, unix.IPV6_TCLASS
			if to.Addr().Is4() {
				level, name = unix.IPPROTO_IP, unix.IP_TOS
			}
			err = unix.SetsockoptInt(int(fd), level, name, int(tos))
		})
		if failed != nil {
			return failed
		}
		return err
	}
	return d.DialContext(ctx, "tcp", to.String())
}
