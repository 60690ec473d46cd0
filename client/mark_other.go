//go:build !linux

package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// tellMarks has nothing to ask for here.
func tellMarks(*net.UDPConn, bool) {}

// readMarked reads a datagram; how its header was is not known here.
func readMarked(c *net.UDPConn, b []byte) (n int, ttl, tos uint8, err error) {
	n, err = c.Read(b)
	return n, 0, 0, err
}

// dialMarked is for systems on which the far end's answer tells of marks.
func dialMarked(context.Context, netip.AddrPort, uint8) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}
