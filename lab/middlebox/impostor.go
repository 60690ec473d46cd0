package middlebox

import (
	"fmt"
	"io"
	"net"
)

// Portal answers like a captive portal: whatever is asked is to be found
// elsewhere (HTTP 302).
func Portal(location string) func(net.Conn) {
	return func(c net.Conn) {
		buf := make([]byte, 4096)
		if _, err := c.Read(buf); err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", location)
	}
}

// Hangup accepts a connection and closes it at once.
func Hangup(net.Conn) {}

// Echo sends everything back.
func Echo(c net.Conn) {
	_, _ = io.Copy(c, c)
}

// EchoDatagram sends a datagram back.
func EchoDatagram(b []byte) []byte { return b }

// FixedDatagram answers every datagram with the same bytes.
func FixedDatagram(reply []byte) func([]byte) []byte {
	return func([]byte) []byte { return reply }
}
