package steer

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/sockdiag"
	"github.com/wallprobe/wallprobe/scenarios"
)

// overlaps tells whether s has its port at address a too.
func overlaps(s sockdiag.Socket, a netip.Addr) bool {
	own := s.Local.Addr()
	switch {
	case own.Is4() != a.Is4():
		return own.Is6() && own.IsUnspecified() && !s.V6Only
	case own.IsUnspecified(), a.IsUnspecified():
		return true
	}
	return own == a.WithZone("")
}

// held returns the ports that sockets of other programs, or other sockets of
// this one, have at one of the addresses: TCP listeners and unconnected UDP
// sockets.
func held(t scenarios.Transport, addrs []netip.Addr) (scenarios.PortSet, error) {
	protocol, state := uint8(unix.IPPROTO_TCP), sockdiag.Listen
	if t == scenarios.UDP {
		protocol, state = unix.IPPROTO_UDP, sockdiag.Close
	}
	ports := new(portMap)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		socks, err := sockdiag.List(family, protocol, state)
		if err != nil {
			return nil, fmt.Errorf("list %s sockets: %w", t, err)
		}
		for _, s := range socks {
			for _, a := range addrs {
				if overlaps(s, a) {
					ports.set(s.Local.Port())
				}
			}
		}
	}
	return ports.ports(), nil
}
