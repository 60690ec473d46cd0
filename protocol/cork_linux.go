package protocol

import (
	"net"

	"golang.org/x/sys/unix"
)

// cork holds back what is written from now on until the connection is closed,
// so that a last message and the end travel in one packet (tcp(7), TCP_CORK).
func cork(c net.Conn) {
	control(c, func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_CORK, 1) })
}
