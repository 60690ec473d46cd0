package relay

import "net/netip"

// block is a prefix that no relayed packet may ever go to.
type block struct {
	prefix netip.Prefix
	reason string
}

// The reasons an operator may lift for a declared peer, see
// [Config.AllowPrivatePeers]. Every other reason is final.
const (
	reasonPrivate = "private"
	reasonCGN     = "carrier-grade NAT"
	reasonULA     = "unique local"
)

// blocks4 is the part of the IANA IPv4 special-purpose registry that leads
// into the reflector's own neighbourhood or to many receivers at once. The
// documentation networks are left out: they lead nowhere on the internet,
// and the lab lives in them.
var blocks4 = blocks(
	"0.0.0.0/8", "unspecified",
	"10.0.0.0/8", reasonPrivate,
	"100.64.0.0/10", reasonCGN,
	"127.0.0.0/8", "loopback",
	"168.63.129.16/32", "cloud metadata",
	"169.254.0.0/16", "link-local",
	"172.16.0.0/12", reasonPrivate,
	"192.0.0.0/24", "protocol assignment",
	"192.88.99.0/24", "6to4 relay",
	"192.168.0.0/16", reasonPrivate,
	"198.18.0.0/15", "benchmark",
	"224.0.0.0/4", "multicast",
	"255.255.255.255/32", "broadcast",
	"240.0.0.0/4", "reserved",
)

// blocks6 lists what lies inside 2000::/3 or deserves its own reason; all
// that is outside 2000::/3 and 64:ff9b::/96 is refused anyway.
var blocks6 = blocks(
	"::/128", "unspecified",
	"::1/128", "loopback",
	"64:ff9b:1::/48", "local NAT64",
	"2001:2::/48", "benchmark",
	"fc00::/7", reasonULA,
	"fe80::/10", "link-local",
	"fec0::/10", "site-local",
	"ff00::/8", "multicast",
)

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	ietf6         = netip.MustParsePrefix("2001::/23")
	teredo        = netip.MustParsePrefix("2001::/32")
	sixToFour     = netip.MustParsePrefix("2002::/16")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	compatible    = netip.MustParsePrefix("::/96")
	translated    = netip.MustParsePrefix("::ffff:0:0:0/96")
)

func blocks(pairs ...string) []block {
	var out []block
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, block{netip.MustParsePrefix(pairs[i]), pairs[i+1]})
	}
	return out
}

// Forbidden reports whether a may never be a relay's peer, and why. It judges
// every IPv4 address hidden in an IPv6 one as well: IPv4-mapped and
// -compatible (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052, RFC 8215),
// 6to4 (RFC 3056), Teredo (RFC 4380) and ISATAP (RFC 5214). It knows nothing
// of the network it runs in, so its answer is the same everywhere.
func Forbidden(a netip.Addr) (reason string, bad bool) {
	if !a.IsValid() {
		return "invalid", true
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return listed(a, blocks4)
	}
	if reason, bad = listed(a, blocks6); bad {
		return reason, true
	}
	for _, e := range embedded(a) {
		if reason, bad = listed(e, blocks4); bad {
			return "embedded " + reason, true
		}
	}
	switch {
	case ietf6.Contains(a) && !teredo.Contains(a):
		return "protocol assignment", true
	case !globalUnicast.Contains(a) && !nat64.Contains(a):
		return "not global unicast", true
	}
	return "", false
}

func listed(a netip.Addr, list []block) (string, bool) {
	for _, b := range list {
		if b.prefix.Contains(a) {
			return b.reason, true
		}
	}
	return "", false
}

// embedded returns the IPv4 addresses that a translator or tunnel would take
// out of the IPv6 address a.
func embedded(a netip.Addr) []netip.Addr {
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case nat64.Contains(a), compatible.Contains(a), translated.Contains(a):
		return []netip.Addr{at(12)}
	case sixToFour.Contains(a):
		return []netip.Addr{at(2)}
	case teredo.Contains(a):
		client := [4]byte{^b[12], ^b[13], ^b[14], ^b[15]}
		return []netip.Addr{at(4), netip.AddrFrom4(client)}
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return []netip.Addr{at(12)} // ISATAP
	}
	return nil
}

// liftable reports whether an operator may lift reason for a declared peer.
func liftable(reason string) bool {
	return reason == reasonPrivate || reason == reasonCGN || reason == reasonULA
}
