// Package plaintcp makes TCP connections that show a firewall nothing but what is said
// over them: no keep-alive probes, which would hold a flow open through the silence
// that is being measured, and no options of Multipath TCP.
package plaintcp

import (
	"net"
	"os"
	"time"
)

// keepAlive turns the probes off (net.Dialer.KeepAlive, net.ListenConfig.KeepAlive).
const keepAlive = time.Duration(-1)

// Dialer makes such connections.
func Dialer() *net.Dialer {
	d := &net.Dialer{KeepAlive: keepAlive}
	d.SetMultipathTCP(false)
	return d
}

// ListenConfig makes listeners that accept such connections.
func ListenConfig() *net.ListenConfig {
	lc := &net.ListenConfig{KeepAlive: keepAlive}
	lc.SetMultipathTCP(false)
	return lc
}

// FileConn is net.FileConn, which turns the probes on: it makes a connection of a
// copy of a connected socket.
func FileConn(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetKeepAlive(false) // it fails only where the connection is gone
	}
	return c, err
}
