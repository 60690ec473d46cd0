package protocol

import (
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/wire"
)

// timestampRoom is what the timestamps option takes of every segment (RFC 7323
// appendix A); the kernel's figures have it subtracted.
const timestampRoom = 12

// halfWindow: the kernel sends no more at once than half of the peer's window,
// which in a SYN-ACK is 64 KiB at the most; below this it is not the window.
const halfWindow = 1 << 14

// SentSYN tells of the SYN of an established connection as this end sent it,
// and of the answer as it arrived; nil when the system does not say.
func SentSYN(c net.Conn) *wire.TCPSeen {
	var s *wire.TCPSeen
	control(c, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		s = &wire.TCPSeen{MSS: int(info.Advmss), Back: int(info.Snd_mss)}
		headers := 40
		if v6(fd) {
			headers = 60
			s.TTL, s.TOS = option(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS), option(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS)
		} else {
			s.TTL, s.TOS = option(fd, unix.IPPROTO_IP, unix.IP_TTL), option(fd, unix.IPPROTO_IP, unix.IP_TOS)
		}
		const timestamps = 1 // TCPI_OPT_TIMESTAMPS
		if info.Options&timestamps != 0 {
			s.MSS += timestampRoom
			s.Back += timestampRoom
			if now, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP); err == nil {
				s.Timestamp = uint32(now)
			}
		}
		s.AtLeast = s.Back >= int(info.Pmtu)-headers || s.Back >= halfWindow
	})
	return s
}

// GotSYN tells of the SYN of an accepted connection as it arrived, and of the
// answer as it was sent. The kernel gives the SYN once, and only where the
// listener asked it to (TCP_SAVE_SYN).
func GotSYN(c net.Conn) *wire.TCPSeen {
	var s *wire.TCPSeen
	control(c, func(fd int) {
		p := make([]byte, 256)
		size := uint32(len(p))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_SAVED_SYN,
			uintptr(unsafe.Pointer(&p[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 || int(size) > len(p) {
			return
		}
		seen, ok := wire.ParseSYN(p[:size])
		if !ok {
			return
		}
		s = &seen
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			s.Back = int(info.Advmss)
			if s.Timestamp != 0 {
				s.Back += timestampRoom
			}
		}
	})
	return s
}

func control(c net.Conn, fn func(fd int)) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { fn(int(fd)) })
	}
}

func v6(fd int) bool {
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return domain == unix.AF_INET6
}

// option is a small one, 0 when it cannot be had.
func option(fd, level, name int) uint8 {
	v, err := unix.GetsockoptInt(fd, level, name)
	if err != nil || v < 0 {
		return 0
	}
	return uint8(v)
}
