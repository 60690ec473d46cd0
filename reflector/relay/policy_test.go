package relay

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/internal/need"
)

// skip skips a test for want of something, except where all must run.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	need.Missing(t, fmt.Sprintf(format, args...))
}

// inner are IPv4 addresses that must be refused however they are written.
var inner = map[string]string{
	"0.0.0.0": "unspecified", "0.1.2.3": "unspecified", "10.0.0.1": "private",
	"100.64.0.1": "carrier-grade NAT", "100.127.255.255": "carrier-grade NAT",
	"127.0.0.1": "loopback", "127.255.255.254": "loopback",
	"169.254.169.254": "link-local", "168.63.129.16": "cloud metadata",
	"172.16.0.1": "private", "172.31.255.255": "private", "192.0.0.192": "protocol assignment",
	"192.88.99.1": "6to4 relay", "192.168.1.1": "private", "198.18.0.1": "benchmark",
	"198.19.255.255": "benchmark", "224.0.0.1": "multicast", "239.255.255.255": "multicast",
	"240.0.0.1": "reserved", "255.255.255.254": "reserved", "255.255.255.255": "broadcast",
}

func TestInnerIPv4AddressesAreForbiddenInEverySpelling(t *testing.T) {
	for text, reason := range inner {
		a := netip.MustParseAddr(text)
		b := a.As4()
		hex := fmt.Sprintf("%02x%02x:%02x%02x", b[0], b[1], b[2], b[3])
		inverse := fmt.Sprintf("%02x%02x:%02x%02x", ^b[0], ^b[1], ^b[2], ^b[3])
		got := map[string]string{}
		want := map[string]string{text: reason, "::ffff:" + hex: reason}
		for _, s := range []string{
			"64:ff9b::" + hex, "::ffff:0:" + hex, "2002:" + hex + "::1", "2001:0:" + hex + "::f7f7:f7f7",
			"2001:0:808:808::" + inverse, "2001:db8::5efe:" + hex, "2001:db8::200:5efe:" + hex,
		} {
			want[s] = "embedded " + reason
		}
		for s := range want {
			got[s], _ = Forbidden(netip.MustParseAddr(s))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		for _, s := range []string{"::" + hex, "64:ff9b:1::" + hex} {
			if _, bad := Forbidden(netip.MustParseAddr(s)); !bad {
				t.Errorf("%s is let through", s)
			}
		}
	}
}

func TestInnerIPv6AddressesAreForbidden(t *testing.T) {
	want := map[string]string{
		"::": "unspecified", "::1": "loopback", "::8.8.8.8": "not global unicast",
		"fc00::1": "unique local", "fd00:ec2::254": "unique local", "fe80::1": "link-local",
		"fe80::1%eth0": "link-local", "fec0::1": "site-local", "ff02::1": "multicast", "ff0e::1": "multicast",
		"64:ff9b:1::808:808": "local NAT64", "64:ff9b:1:808:8:800::": "local NAT64",
		"100::1": "not global unicast", "4000::1": "not global unicast", "2001:2::1": "benchmark",
		"2001:10::1": "protocol assignment", "::ffff:0:8.8.8.8": "not global unicast",
	}
	got := map[string]string{}
	for s := range want {
		got[s], _ = Forbidden(netip.MustParseAddr(s))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, bad := Forbidden(netip.Addr{}); !bad {
		t.Error("no address at all is let through")
	}
}

func TestPublicAddressesAreNotForbidden(t *testing.T) {
	for _, s := range []string{
		"8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "192.0.2.1",
		"198.51.100.10", "203.0.113.7", "198.20.0.1", "223.255.255.255", "::ffff:8.8.8.8",
		"2001:4860:4864:4:8000::", "2a00:1450::1", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:db8::1",
	} {
		if reason, bad := Forbidden(netip.MustParseAddr(s)); bad {
			t.Errorf("%s: %s", s, reason)
		}
	}
}

func TestOnlyPrivatePeersCanBeLifted(t *testing.T) {
	declared := map[netip.AddrPort]bool{}
	s := New(Config{AllowPrivatePeers: true, PeerAllowed: func(session string, p netip.AddrPort) bool {
		return session == "a" && declared[p]
	}})
	got := map[string]string{}
	for _, text := range []string{"10.0.0.1:9", "[fd00::1]:9", "100.64.0.1:9", "127.0.0.1:9", "169.254.169.254:9",
		"224.0.0.1:9", "[64:ff9b::a00:1]:9", "8.8.8.8:9"} {
		declared[netip.MustParseAddrPort(text)] = true
	}
	for _, text := range []string{"10.0.0.1:9", "[fd00::1]:9", "100.64.0.1:9", "10.0.0.2:9", "10.0.0.1:10",
		"127.0.0.1:9", "169.254.169.254:9", "224.0.0.1:9", "[64:ff9b::a00:1]:9", "8.8.8.8:9"} {
		got[text], _ = (&allocation{s: s, session: "a"}).peer(netip.MustParseAddrPort(text))
	}
	undeclared := "not a peer of the session"
	want := map[string]string{
		"10.0.0.1:9": "", "[fd00::1]:9": "", "100.64.0.1:9": "", "10.0.0.2:9": undeclared, "10.0.0.1:10": undeclared,
		"127.0.0.1:9": "loopback", "169.254.169.254:9": "link-local", "224.0.0.1:9": "multicast",
		"[64:ff9b::a00:1]:9": "embedded private", "8.8.8.8:9": "",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, ok := (&allocation{s: s, session: "b"}).peer(netip.MustParseAddrPort("10.0.0.1:9")); ok {
		t.Error("another session's peer is allowed")
	}
}
