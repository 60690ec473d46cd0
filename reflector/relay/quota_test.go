package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"
)

// Attack 8.
func TestAllocationFloodsEndAtTheirQuotas(t *testing.T) {
	limits := func(cfg *Config) {
		cfg.Limits = Limits{Allocations: 6, PerSession: 2, PerSource: 4, Challenges: 1000}
	}
	flood := func(session, address func(i int) string) map[stun.ErrorCode]int {
		w := newWorld(t, loopbackRelay, limits)
		got := map[stun.ErrorCode]int{}
		for i := range 20 {
			u := w.newUser("wp-"+session(i), netip.AddrPortFrom(netip.MustParseAddr(address(i)), uint16(1000+i)))
			code, _ := u.ask(allocateType, udpTransport)
			got[code]++
		}
		if n := w.s.Stats().Allocations; n != got[0] {
			t.Errorf("%d allocations, %d granted", n, got[0])
		}
		return got
	}
	one := func(s string) func(int) string { return func(int) string { return s } }
	letter := func(i int) string { return string(rune('a' + i)) }
	host := func(i int) string { return fmt.Sprintf("203.0.113.%d", i) }
	host6 := func(i int) string { return fmt.Sprintf("2001:db8::%x", i) }
	want := map[string]map[stun.ErrorCode]int{
		"one user, many addresses":    {0: 2, stun.CodeAllocQuotaReached: 18},
		"many users, one address":     {0: 4, stun.CodeAllocQuotaReached: 16},
		"many users, one IPv6 /64":    {0: 4, stun.CodeAllocQuotaReached: 16},
		"many users, many addresses":  {0: 6, stun.CodeInsufficientCapacity: 14},
		"one user, from one address":  {0: 2, stun.CodeAllocQuotaReached: 18},
		"given back and taken again ": {0: 20},
	}
	got := map[string]map[stun.ErrorCode]int{
		"one user, many addresses":    flood(one("a"), host),
		"many users, one address":     flood(letter, one("203.0.113.7")),
		"many users, one IPv6 /64":    flood(letter, host6),
		"many users, many addresses":  flood(letter, host),
		"one user, from one address":  flood(one("a"), one("203.0.113.7")),
		"given back and taken again ": {},
	}
	w := newWorld(t, loopbackRelay, limits)
	for i := range 20 {
		u := w.newUser("wp-a", from(i))
		code, _ := u.ask(allocateType, udpTransport)
		got["given back and taken again "][code]++
		u.ask(refreshType, attr(stun.AttrLifetime, 0, 0, 0, 0))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPermissionsAndChannelsOfAnAllocationAreLimited(t *testing.T) {
	w := newWorld(t, loopbackRelay, func(cfg *Config) { cfg.Limits = Limits{Permissions: 3} })
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	peer := func(i int) xorPeer {
		return xorPeer(netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 9))
	}
	permit := func(peers ...stun.Setter) stun.ErrorCode { code, _ := u.ask(permissionType, peers...); return code }
	bind := func(i int) stun.ErrorCode {
		code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, byte(i), 0, 0), peer(1+i%3))
		return code
	}
	full := stun.CodeInsufficientCapacity
	got := []stun.ErrorCode{permit(peer(1), peer(2)), permit(peer(3), peer(4)), permit(peer(2), peer(3)), permit(peer(4)), permit(peer(1)),
		bind(0), bind(1), bind(2), bind(3)}
	if d := cmp.Diff([]stun.ErrorCode{0, full, 0, full, 0, 0, 0, 0, full}, got); d != "" {
		t.Error(d)
	}
	w.pass(permissionLifetime + time.Second)
	if code := permit(peer(4)); code != 0 {
		t.Errorf("after the others ran out: %v", code)
	}
}

// Attack 9, the relay's part of it.
func TestExhaustedDescriptorsAreRefusedAndRecoveredFrom(t *testing.T) {
	fail := errors.New("too many open files")
	w := newWorld(t, loopbackRelay, func(cfg *Config) {
		cfg.ListenRelay = func(a netip.Addr) (*net.UDPConn, func(), error) {
			if fail != nil {
				return nil, nil, fail
			}
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
			return c, func() { c.Close() }, err
		}
	})
	u := w.newUser("wp-a", remoteAddr)
	for range 20 {
		if code, _ := u.ask(allocateType, udpTransport); code != stun.CodeInsufficientCapacity {
			t.Fatal(code)
		}
	}
	if got := w.s.Stats(); got != (Stats{}) {
		t.Errorf("left behind: %+v", got)
	}
	fail = nil
	u.allocate()
}

func TestFloodOfSourcesNeitherGrowsMemoryNorRenewsBuckets(t *testing.T) {
	r := rate{perSecond: 1, sources: 100}
	now := time.Unix(0, 0)
	key := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{8, byte(i >> 16), byte(i >> 8), byte(i)}) }
	allowed := 0
	for i := range 10000 {
		if r.allow(key(i), now) {
			allowed++
		}
	}
	if allowed != 100 || len(r.buckets) != 100 {
		t.Errorf("%d allowed, %d remembered", allowed, len(r.buckets))
	}
	if r.allow(key(0), now); r.allow(key(0), now) {
		t.Error("a known source got more than its share")
	}
	if !r.allow(key(20000), now.Add(3*time.Second)) || len(r.buckets) != 1 {
		t.Errorf("after three seconds %d are remembered", len(r.buckets))
	}
}

func TestProofsAreForgottenAfterAMinuteAndBounded(t *testing.T) {
	p := proofs{tuples: 10}
	now := time.Unix(0, 0)
	at := func(i int) tuple { return tuple{local: localAddr, remote: from(i)} }
	for i := range 100 {
		p.update(at(i), now, func(v *proof) { v.credit += 50 })
	}
	got := []bool{p.spend(at(0), 40, now), p.spend(at(0), 40, now), p.spend(at(0), 10, now), p.spend(at(50), 1, now),
		p.spend(at(1), 50, now), p.spend(at(2), 1, now.Add(proofLifetime+1)), len(p.known) == 10}
	if d := cmp.Diff([]bool{true, false, true, false, true, false, true}, got); d != "" {
		t.Error(d)
	}
	p.update(at(200), now.Add(proofLifetime+1), func(v *proof) { v.credit += 50 })
	if len(p.known) != 1 {
		t.Errorf("%d remembered", len(p.known))
	}
}
