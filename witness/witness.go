// Package witness sees the TCP SYNs that arrive at this machine, whether or not
// a connection comes of them: so a SYN that was lost is told from an answer to
// it that was lost. With CAP_NET_RAW [Packets] sees each; without it [HalfOpen]
// lists those that have been answered and wait for the handshake's end. Linux
// only; elsewhere the errors wrap errors.ErrUnsupported.
package witness

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
