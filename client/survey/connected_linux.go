package survey

import (
	"net"
	"net/netip"
)

// QueueErrors has the system keep the ICMP errors that come to a connected
// socket, for Explain.
func QueueErrors(c *net.UDPConn) error {
	remote, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = receiveErrors(int(fd), remote.Addr().Unmap(), 1) })
	if cerr != nil {
		return cerr
	}
	return err
}

// Explain says what an error of a read or a write on a connected socket means:
// Fault, ICMP and Err of the answer are set.
func Explain(c *net.UDPConn, errno error) Answer {
	var a Answer
	raw, err := c.SyscallConn()
	if err != nil {
		return a
	}
	_ = raw.Control(func(fd uintptr) { a.note(explain(int(fd), errno)) })
	return a
}
