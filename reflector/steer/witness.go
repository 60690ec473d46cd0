package steer

import (
	"net/netip"
	"time"
)

// A SYN is a TCP connection attempt that reached this machine, whether or not
// anything could answer it.
type SYN struct {
	Time         time.Time // of arrival in the kernel
	Source, Dest netip.AddrPort
	TTL, TOS     uint8 // as received; IPv6: hop limit and traffic class
}
