package protocol

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledged tells how many bytes the other end has acknowledged, and when its
// last acknowledgment came (tcp(7), TCP_INFO).
func acknowledged(c *net.TCPConn) (n uint64, last time.Time) {
	control(c, func(fd int) {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n, last = info.Bytes_acked, time.Now().Add(-time.Duration(info.Last_ack_recv)*time.Millisecond)
		}
	})
	return n, last
}
