//go:build !linux

package steer

import (
	"fmt"
	"net"
	"net/netip"
)

// Borrow gives a UDP socket of its own on an address and port, 0 for any. A
// port that the Set serves is not to be had on this system. giveBack closes
// the socket; it may be called again.
func (s *Set) Borrow(at netip.AddrPort) (c *net.UDPConn, giveBack func(), err error) {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, nil, fmt.Errorf("borrow %s: %w", at, cause(err))
	}
	return c, func() { c.Close() }, nil
}
