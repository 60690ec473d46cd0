//go:build !linux

package survey

import "net"

// QueueErrors has the system keep the ICMP errors that come to a connected
// socket, for Explain; only Linux can.
func QueueErrors(*net.UDPConn) error { return nil }

// Explain says what an error of a read or a write on a connected socket means:
// Fault, ICMP and Err of the answer are set.
func Explain(_ *net.UDPConn, errno error) Answer {
	var a Answer
	a.note(refused(errno))
	return a
}
