package relay

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

func from(i int) netip.AddrPort {
	return netip.AddrPortFrom(remoteAddr.Addr(), uint16(10000+i))
}

func padding(n int) stun.RawAttribute { return attr(stun.AttrPadding, make([]byte, n)...) }

// Attack 1.
func TestSpoofedRequestsNeverGetMoreThanTheySent(t *testing.T) {
	w := newWorld(t)
	var in, out, answers int
	for _, typ := range []stun.MessageType{stun.BindingRequest, allocateType, refreshType, permissionType, channelType} {
		for pad := 0; pad <= 100; pad += 4 {
			for _, remote := range []string{"203.0.113.7:53", "[2001:db8::53]:53"} {
				b := build(t, typ, padding(pad))
				w.s.Datagram(b, localAddr, netip.MustParseAddrPort(remote))
				in += len(b)
				for _, s := range w.drain() {
					answers++
					if out += len(s.b); len(s.b) > len(b) {
						t.Errorf("%v: %d bytes answered with %d", typ, len(b), len(s.b))
					}
				}
			}
			w.pass(time.Second)
		}
	}
	if answers == 0 || out > in {
		t.Errorf("%d answers, %d bytes for %d", answers, out, in)
	}
}

func TestChallengesAreLimitedPerSource(t *testing.T) {
	w := newWorld(t)
	flood := func(remote netip.AddrPort) int {
		for range 100 {
			w.s.Datagram(build(t, allocateType, udpTransport, padding(60)), localAddr, remote)
		}
		return len(w.drain())
	}
	got := []int{flood(from(1)), flood(from(2)), flood(netip.MustParseAddrPort("203.0.113.10:1"))}
	w.pass(time.Second)
	got = append(got, flood(from(3)))
	if d := cmp.Diff([]int{40, 0, 40, 20}, got); d != "" {
		t.Error("challenges in the burst, from its neighbour port, from elsewhere, a second later:\n", d)
	}
}

// A MAC does not tell where a packet came from: the recorded Binding of a
// session, replayed in a victim's name, must not buy the victim a flood.
func TestReplayedBindingsBuyNoAmplification(t *testing.T) {
	w := newWorld(t)
	recorded, _, _ := protocol.Binding("wp-a", "secret of wp-a", "")
	bare := build(t, allocateType, udpTransport)
	var in, out int
	send := func(b []byte) {
		w.s.Datagram(b, localAddr, remoteAddr)
		in += len(b)
		for _, s := range w.drain() {
			out += len(s.b)
		}
		if out > in {
			t.Fatalf("%d bytes out for %d in", out, in)
		}
	}
	send(recorded)
	before := out
	for range 100 {
		send(bare)
		w.pass(100 * time.Millisecond)
	}
	if out == before {
		t.Error("a Binding does not pay for a challenge")
	}
}

func TestPlainSTUNIsOffUnlessAskedForAndThenLimited(t *testing.T) {
	answers := func(plain bool) []int {
		w := newWorld(t, func(cfg *Config) { cfg.PlainSTUN = plain; cfg.Limits = Limits{Plain: 5, PlainTotal: 20} })
		var got []int
		for _, sources := range []int{1, 100} {
			w.pass(time.Hour)
			for i := range sources {
				remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 53)
				for range 100 {
					w.s.Datagram(build(t, stun.BindingRequest), localAddr, remote)
				}
			}
			got = append(got, len(w.drain()))
		}
		return got
	}
	want := map[bool][]int{false: {0, 0}, true: {10, 40}}
	if d := cmp.Diff(want, map[bool][]int{false: answers(false), true: answers(true)}); d != "" {
		t.Error(d)
	}
}

func TestPlainChallengeIsGivenWherePlainSTUNIsOn(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.PlainSTUN = true })
	w.s.Datagram(build(t, allocateType, udpTransport), localAddr, remoteAddr)
	if code := codeOf(decode(t, w.next().b)); code != stun.CodeUnauthorized {
		t.Error(code)
	}
}

func TestPaddedPlainBindingIsAnswered(t *testing.T) {
	w := newWorld(t)
	w.s.Datagram(build(t, stun.BindingRequest, padding(20)), localAddr, remoteAddr)
	var got stun.XORMappedAddress
	if err := got.GetFrom(decode(t, w.next().b)); err != nil || got.String() != remoteAddr.String() {
		t.Errorf("%v, %v", got, err)
	}
}

// Attack 2.
func TestDatagramsWithoutCredentialsAreMetWithSilence(t *testing.T) {
	w := newWorld(t)
	wrong, _, _ := protocol.Binding("wp-a", "not the secret", "1")
	unknown, _, _ := protocol.Binding("stranger", "secret of stranger", "1")
	anonymous := build(t, stun.BindingRequest, padding(60), stun.NewShortTermIntegrity("secret of wp-a"))
	altered, _, _ := protocol.Binding("wp-a", "secret of wp-a", "1")
	altered[40] ^= 1
	for name, b := range map[string][]byte{
		"empty": {}, "zeros": make([]byte, 64), "text": []byte("GET / HTTP/1.1\r\n\r\n"),
		"plain binding": build(t, stun.BindingRequest), "with fingerprint": build(t, stun.BindingRequest, stun.Fingerprint),
		"wrong password": wrong, "unknown user": unknown, "no username": anonymous, "altered": altered,
		"bare allocate": build(t, allocateType, udpTransport), "channel data": {0x40, 0, 0, 4, 1, 2, 3, 4},
		"send indication":    build(t, sendIndication, xorPeer(remoteAddr), attr(stun.AttrData, 1)),
		"binding indication": build(t, stun.NewType(stun.MethodBinding, stun.ClassIndication), padding(100)),
		"unknown method":     build(t, stun.NewType(0x123, stun.ClassRequest), padding(100)),
	} {
		w.s.Datagram(b, localAddr, remoteAddr)
		if out := w.drain(); len(out) > 0 {
			t.Errorf("%s is answered: %x", name, out[0].b)
		}
	}
	if len(w.kinds()) > 0 {
		t.Errorf("strangers cause events: %v", w.kinds())
	}
}

// Attacks 3, 4 and 5.
func TestForbiddenPeersAreRefusedByEveryRequest(t *testing.T) {
	for _, family := range []string{"127.0.0.1", "::1"} {
		t.Run(family, func(t *testing.T) {
			w := newWorld(t, func(cfg *Config) {
				cfg.RelayAddr = func(netip.Addr) (netip.Addr, bool) { return netip.MustParseAddr(family), true }
				cfg.PeerAllowed = func(string, netip.AddrPort) bool { return true }
			})
			u := w.newUser("wp-a", remoteAddr)
			if code, _ := u.ask(allocateType, udpTransport); code != 0 {
				skip(t, "no relay on %s: %v", family, code)
			}
			peers := []string{"::", "::1", "fe80::1", "fd00::1", "ff02::1", "fec0::1", "64:ff9b:1::1"}
			for v4 := range inner {
				b := netip.MustParseAddr(v4).As4()
				hex := fmt.Sprintf("%02x%02x:%02x%02x", b[0], b[1], b[2], b[3])
				peers = append(peers, v4, "::ffff:"+hex, "::"+hex, "64:ff9b::"+hex, "2002:"+hex+"::1")
			}
			refused := 0
			for _, text := range peers {
				p := xorPeer(netip.AddrPortFrom(netip.MustParseAddr(text), 80))
				for typ, attrs := range map[stun.MessageType][]stun.Setter{
					permissionType: {p}, channelType: {attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), p},
				} {
					if code, _ := u.ask(typ, attrs...); code != stun.CodeForbidden {
						t.Errorf("%v of %s: %v", typ, text, code)
					}
				}
				w.s.Datagram(build(t, sendIndication, p, attr(stun.AttrData, 1)), u.local, u.remote)
				refused += 3
			}
			if got := w.count("turn-peer"); got != refused {
				t.Errorf("%d refused of %d", got, refused)
			}
			if a := w.s.lookup(tuple{local: localAddr, remote: remoteAddr}); len(a.peers) != 0 || a.toPeer.Load() != 0 {
				t.Errorf("peers %v, %d bytes sent", a.peers, a.toPeer.Load())
			}
		})
	}
}

// Attack 6. A permission is for an address, so the port must be judged with
// every packet.
func TestOwnPortsAreNeverReachedThroughARelay(t *testing.T) {
	open, openAddr := newPeer(t)
	control, controlAddr := newPeer(t)
	w := newWorld(t, loopbackRelay, func(cfg *Config) {
		cfg.PeerAllowed = func(_ string, p netip.AddrPort) bool { return p == openAddr }
	})
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	number := attr(stun.AttrChannelNumber, 0x40, 1, 0, 0)
	if code, _ := u.ask(permissionType, xorPeer(controlAddr)); code != stun.CodeForbidden {
		t.Errorf("permission for the control port: %v", code)
	}
	if code, _ := u.ask(channelType, number, xorPeer(controlAddr)); code != stun.CodeForbidden {
		t.Errorf("channel to the control port: %v", code)
	}
	if code, _ := u.ask(channelType, number, xorPeer(openAddr)); code != 0 {
		t.Fatalf("channel to the open port: %v", code)
	}
	w.s.Datagram(build(t, sendIndication, xorPeer(controlAddr), attr(stun.AttrData, 'x')), u.local, u.remote)
	if got := w.count("turn-peer"); got != 3 {
		t.Errorf("%d of 3 attempts were refused", got)
	}
	w.s.Datagram([]byte{0x40, 1, 0, 2, 'o', 'k'}, u.local, u.remote)
	buf := make([]byte, 100)
	if n, err := open.Read(buf); err != nil || string(buf[:n]) != "ok" {
		t.Errorf("the open port got %q, %v", buf[:n], err)
	}
	control.SetReadDeadline(time.Now())
	if n, err := control.Read(buf); err == nil {
		t.Errorf("the control port got %q", buf[:n])
	}
	control.WriteToUDPAddrPort([]byte("from the control port"), relay)
	w.until("the control port's packet is refused", func() bool { return w.count("turn-peer") == 4 })
	if out := w.drain(); len(out) > 0 {
		t.Errorf("relayed from the control port: %x", out[0].b)
	}
}

func TestAllocationsOfTwoSessionsCannotFeedEachOther(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	a, b, other := w.newUser("wp-a", from(1)), w.newUser("wp-a", from(2)), w.newUser("wp-b", from(3))
	relayA, relayB, relayOther := a.allocate(), b.allocate(), other.allocate()
	got := map[string]stun.ErrorCode{}
	for name, p := range map[string]netip.AddrPort{
		"its own relay": relayA, "another session's": relayOther, "its session's other": relayB,
	} {
		got[name], _ = a.ask(permissionType, xorPeer(p))
	}
	want := map[string]stun.ErrorCode{"its own relay": stun.CodeForbidden, "another session's": stun.CodeForbidden, "its session's other": 0}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// The permission is for an address; the other session's port stays shut.
	refused := w.count("turn-peer")
	w.s.Datagram(build(t, sendIndication, xorPeer(relayOther), attr(stun.AttrData, 'x')), a.local, a.remote)
	if n := w.count("turn-peer"); n != refused+1 {
		t.Errorf("%d packets to another session's relay were refused", n-refused)
	}
	w.s.Datagram(build(t, allocateType, udpTransport, padding(100)), localAddr, relayA)
	if out := w.drain(); len(out) > 0 || w.count("turn-loop") != 1 {
		t.Errorf("allocate through a relay: %d answers, %d refused", len(out), w.count("turn-loop"))
	}
}

// A packet that goes from one relay of a session to another ends there: one in, one out.
func TestPacketBetweenRelaysOfASessionComesOutOnce(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	a, b := w.newUser("wp-a", from(1)), w.newUser("wp-a", from(2))
	relayA, relayB := a.allocate(), b.allocate()
	number := attr(stun.AttrChannelNumber, 0x40, 1, 0, 0)
	if code, _ := a.ask(channelType, number, xorPeer(relayB)); code != 0 {
		t.Fatal(code)
	}
	if code, _ := b.ask(channelType, number, xorPeer(relayA)); code != 0 {
		t.Fatal(code)
	}
	packet := []byte{0x40, 1, 0, 4, 'r', 'o', 'u', 'n'}
	w.s.Datagram(packet, a.local, a.remote)
	got := w.next()
	if d := cmp.Diff(string(packet), string(got.b)); d != "" || got.remote != b.remote {
		t.Errorf("to %v: %s", got.remote, d)
	}
	w.s.Datagram(packet, a.local, a.remote) // whatever the first one caused comes before what the second does
	w.next()
	w.stop()
	if out := w.drain(); len(out) > 0 {
		t.Errorf("%d more packets for one", len(out))
	}
}

// echoing gives a world the peer inside the service; it answers "ask" alone.
func echoing(asked *atomic.Int64) func(*Config) {
	return func(cfg *Config) {
		loopbackRelay(cfg)
		cfg.EchoPort = 7
		cfg.PeerAllowed = func(string, netip.AddrPort) bool { return false }
		cfg.Echo = func(session string, p []byte, _ netip.AddrPort) []byte {
			asked.Add(1)
			switch {
			case session == "a" && string(p) == "ask":
				return []byte("ans")
			case string(p) == "more":
				return []byte("more than was sent")
			}
			return nil
		}
	}
}

func TestEchoPeerAnswersInsideTheServiceAndNeverWithMore(t *testing.T) {
	var asked atomic.Int64
	w := newWorld(t, echoing(&asked))
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	echo := netip.AddrPortFrom(relay.Addr(), 7)
	data := func(s string) { w.s.Datagram(append([]byte{0x40, 1, 0, byte(len(s))}, s...), u.local, u.remote) }
	if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(echo)); code != 0 {
		t.Fatal(code)
	}
	for range 3 {
		data("ask")
		if d := cmp.Diff("@\x01\x00\x03ans\x00", string(w.next().b)); d != "" {
			t.Error(d)
		}
	}
	data("else")
	data("more")
	data("ans") // its own answer fed back
	w.until("all are seen", func() bool { return asked.Load() == 6 && w.count("turn-echo") == 3 })
	data("ask")
	w.next()
	w.stop()
	if out := w.drain(); len(out) > 0 {
		t.Errorf("answered: %x", out[0].b)
	}
}

// pion serves each allocation in goroutines of its own.
func TestPanicInWhatPionCallsEndsOneAllocationAlone(t *testing.T) {
	var asked, broken atomic.Int64
	w := newWorld(t, echoing(&asked), func(cfg *Config) {
		echo := cfg.Echo
		cfg.Echo = func(session string, p []byte, at netip.AddrPort) []byte {
			if string(p) == "bad" {
				panic("an error in wallprobe")
			}
			return echo(session, p, at)
		}
		cfg.Panicked = func(remote netip.AddrPort, v any) {
			if remote == remoteAddr && v == "an error in wallprobe" {
				broken.Add(1)
			}
		}
	})
	u := w.newUser("wp-a", remoteAddr)
	other := w.newUser("wp-a", netip.AddrPortFrom(remoteAddr.Addr(), remoteAddr.Port()+1))
	for _, u := range []*client{u, other} {
		echo := netip.AddrPortFrom(u.allocate().Addr(), 7)
		if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(echo)); code != 0 {
			t.Fatal(code)
		}
	}
	say := func(u *client, s string) {
		w.s.Datagram(append([]byte{0x40, 1, 0, byte(len(s))}, s...), u.local, u.remote)
	}
	say(u, "bad")
	w.until("the allocation has ended", func() bool { w.s.mu.Lock(); defer w.s.mu.Unlock(); return broken.Load() == 1 && len(w.s.allocs) == 1 })
	w.drain()
	say(other, "ask")
	if d := cmp.Diff("@\x01\x00\x03ans\x00", string(w.next().b)); d != "" {
		t.Error(d)
	}
	w.stop()
}

func TestEchoPeerOpensNoOtherPortAndNoAddress(t *testing.T) {
	var asked atomic.Int64
	control, controlAddr := newPeer(t)
	w := newWorld(t, echoing(&asked))
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	echo := netip.AddrPortFrom(relay.Addr(), 7)
	if code, _ := u.ask(permissionType, xorPeer(echo)); code != 0 {
		t.Fatal(code)
	}
	got := map[string]stun.ErrorCode{}
	for name, p := range map[string]netip.AddrPort{
		"another port": controlAddr, "port 6": netip.AddrPortFrom(relay.Addr(), 6), "another address": netip.MustParseAddrPort("127.0.0.2:7"),
		"elsewhere": netip.MustParseAddrPort("203.0.113.1:7"),
	} {
		got[name], _ = u.ask(permissionType, xorPeer(p))
	}
	want := map[string]stun.ErrorCode{"another port": 403, "port 6": 403, "another address": 403, "elsewhere": 403}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// The permission is for the address: a packet for another port must not leave.
	w.s.Datagram(build(t, sendIndication, xorPeer(controlAddr), attr(stun.AttrData, 'x')), u.local, u.remote)
	control.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := control.Read(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes reached another port", n)
	}
	if asked.Load() != 0 {
		t.Errorf("the echo peer was asked %d times", asked.Load())
	}
}

func TestNobodyOnTheNetworkIsTheEchoPeer(t *testing.T) {
	var asked atomic.Int64
	impostor, at := newPeer(t)
	w := newWorld(t, echoing(&asked), func(cfg *Config) { cfg.EchoPort = at.Port() })
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(at)); code != 0 {
		t.Fatal(code)
	}
	const flood = 2 * maxReadFailures // must not end the allocation either
	for range flood {
		impostor.WriteToUDPAddrPort([]byte("ans"), relay)
	}
	w.until("all are refused", func() bool { return w.count("turn-peer") == flood })
	w.s.Datagram([]byte{0x40, 1, 0, 3, 'a', 's', 'k'}, u.local, u.remote)
	w.next()
	w.stop()
	if out := w.drain(); len(out) > 0 {
		t.Errorf("relayed: %x", out[0].b)
	}
}

// What is served on a relay's port for others is theirs before it is a peer's.
func TestSharedDatagramsAreNotRelayed(t *testing.T) {
	peer, peerAddr := newPeer(t)
	var taken atomic.Int64
	w := newWorld(t, loopbackRelay, func(cfg *Config) {
		cfg.Shared = func(b []byte, local, remote netip.AddrPort) bool {
			if string(b) != "probe" || remote != peerAddr {
				return false
			}
			taken.Add(1)
			return true
		}
	})
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(peerAddr)); code != 0 {
		t.Fatal(code)
	}
	for range 2 * maxReadFailures { // none of them counts as a failure
		peer.WriteToUDPAddrPort([]byte("probe"), relay)
	}
	peer.WriteToUDPAddrPort([]byte("data"), relay)
	if d := cmp.Diff("@\x01\x00\x04data", string(w.next().b)); d != "" || taken.Load() == 0 {
		t.Errorf("%d taken: %s", taken.Load(), d)
	}
}

// Attack 7.
func TestPermissionForOneDeniedPeerIsGivenForNone(t *testing.T) {
	_, peerAddr := newPeer(t)
	good, bad := xorPeer(peerAddr), xorPeer(netip.MustParseAddrPort("169.254.169.254:80"))
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	for _, peers := range [][]stun.Setter{{good, bad}, {bad, good}} {
		if code, _ := u.ask(permissionType, peers...); code != stun.CodeForbidden {
			t.Error(code)
		}
		a := w.s.lookup(tuple{local: localAddr, remote: remoteAddr})
		if a.vouched(net.IPv4(127, 0, 0, 1)) {
			t.Error("the allowed peer has a permission")
		}
	}
	number := attr(stun.AttrChannelNumber, 0x40, 1, 0, 0)
	if code, _ := u.ask(channelType, number, good, bad); code != stun.CodeForbidden {
		t.Error(code)
	}
	if code, _ := u.ask(channelType, number, good, good); code != stun.CodeBadRequest {
		t.Error(code)
	}
	if code, _ := u.ask(permissionType, good, good); code != 0 {
		t.Error(code)
	}
}

// Attack 11.
func TestNonceIsGoodFromItsOwn5TupleOnlyAndForAnHour(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	stale := func(why string) {
		t.Helper()
		if code, _ := u.ask(allocateType, udpTransport); code != stun.CodeStaleNonce {
			t.Errorf("%s: %v", why, code)
		}
	}
	mine := slices.Clone(u.nonce)
	u.remote = from(1)
	stale("from another port")
	u.remote = netip.MustParseAddrPort("203.0.113.10:40001")
	stale("from another address")
	u.remote, u.local = remoteAddr, netip.MustParseAddrPort("192.0.2.1:3479")
	stale("to another port")
	u.local = localAddr
	for i := range u.nonce {
		u.nonce = slices.Clone(mine)
		u.nonce[i] ^= 4
		stale(fmt.Sprintf("altered in byte %d", i))
		w.pass(100 * time.Millisecond)
	}
	u.nonce = mine[:len(mine)-1]
	stale("cut short")
	u.nonce = mine
	u.allocate()
	w.pass(nonceLifetime)
	stale("an hour later")
}

func TestUserCannotActOnAnothersAllocation(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	u.name = "wp-b"
	for _, typ := range []stun.MessageType{allocateType, refreshType, permissionType, channelType} {
		if code, _ := u.ask(typ, udpTransport); code != stun.CodeWrongCredentials {
			t.Errorf("%v: %v", typ, code)
		}
	}
	u.name = "wp-a"
	if code, _ := u.ask(refreshType); code != 0 {
		t.Errorf("the owner's refresh: %v", code)
	}
	elsewhere := w.newUser("wp-a", from(1))
	if code, _ := elsewhere.ask(refreshType); code != stun.CodeAllocMismatch {
		t.Errorf("refresh without an allocation: %v", code)
	}
}

// Attack 12.
func TestExpiredCredentialsServeNothing(t *testing.T) {
	expires := time.Unix(1_800_000_100, 0)
	w := newWorld(t, loopbackRelay, func(cfg *Config) {
		cfg.Credentials = func(u string, now time.Time) (string, string, bool) {
			return "secret of " + u, "a", now.Before(expires)
		}
	})
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	w.pass(100 * time.Second)
	if code, _ := u.ask(refreshType); code != stun.CodeUnauthorized {
		t.Errorf("refresh: %v", code)
	}
	req, _, _ := protocol.Binding("wp-a", "secret of wp-a", "")
	w.s.Datagram(req, localAddr, from(1))
	if out := w.drain(); len(out) > 0 {
		t.Errorf("binding: %v", out)
	}
}

func TestEmptyPasswordIsNoPassword(t *testing.T) {
	w := newWorld(t, func(cfg *Config) {
		cfg.Credentials = func(string, time.Time) (string, string, bool) { return "", "a", true }
	})
	req, _, _ := protocol.Binding("wp-a", "", "")
	w.s.Datagram(req, localAddr, remoteAddr)
	if out := w.drain(); len(out) > 0 || len(w.kinds()) > 0 {
		t.Errorf("%v %v", out, w.kinds())
	}
}

func TestLifetimeIsCappedHoweverLargeTheWish(t *testing.T) {
	w := newWorld(t, loopbackRelay, func(cfg *Config) { cfg.Limits = Limits{Lifetime: 300 * time.Second} })
	u := w.newUser("wp-a", remoteAddr)
	want := map[string]uint32{"allocate 0": 300, "refresh 4294967295": 300, "refresh 2147483648": 300,
		"refresh 3600": 300, "refresh 60": 60, "refresh nothing": 300, "refresh 0": 0}
	got := map[string]uint32{}
	ask := func(name string, typ stun.MessageType, attrs ...stun.Setter) {
		code, res := u.ask(typ, attrs...)
		if v, err := res.Get(stun.AttrLifetime); code != 0 || err != nil {
			t.Errorf("%s: %v, %v", name, code, err)
		} else {
			got[name] = binary.BigEndian.Uint32(v)
		}
	}
	lifetime := func(n uint32) stun.Setter { return attr(stun.AttrLifetime, binary.BigEndian.AppendUint32(nil, n)...) }
	ask("allocate 0", allocateType, udpTransport, lifetime(0))
	for _, n := range []uint32{math.MaxUint32, 1 << 31, 3600, 60} {
		ask(fmt.Sprintf("refresh %d", n), refreshType, lifetime(n))
	}
	ask("refresh nothing", refreshType)
	ask("refresh 0", refreshType, lifetime(0))
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSecretsAreInNoEventAndNoAnswer(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	_, allocated := u.ask(allocateType, udpTransport)
	_, permitted := u.ask(permissionType, xorPeer(netip.MustParseAddrPort("203.0.113.1:1")))
	_, denied := u.ask(permissionType, xorPeer(netip.MustParseAddrPort("127.0.0.2:1")))
	req, _, _ := protocol.Binding("wp-a", "secret of wp-a", "17")
	w.s.Datagram(req, localAddr, remoteAddr)
	w.stop()
	text := fmt.Sprintf("%+v %+v %s %s %s", w.events, w.counts, allocated.Raw, permitted.Raw, denied.Raw)
	for _, s := range w.drain() {
		text += string(s.b)
	}
	if len(w.events) < 4 || strings.Contains(text, "secret of") {
		t.Errorf("%d events; a secret is told: %v", len(w.events), strings.Contains(text, "secret of"))
	}
}

// Attack 15, and the loop of two reflectors.
func TestAnswersFedBackAreNotAnswered(t *testing.T) {
	w := newWorld(t, loopbackRelay, func(cfg *Config) { cfg.PlainSTUN = true })
	req, _, _ := protocol.Binding("wp-a", "secret of wp-a", "")
	w.s.Datagram(req, localAddr, remoteAddr)
	w.s.Datagram(build(t, stun.BindingRequest), localAddr, remoteAddr)
	w.s.Datagram(build(t, allocateType, udpTransport), localAddr, remoteAddr)
	answers := w.drain()
	if len(answers) != 3 {
		t.Fatalf("%d answers", len(answers))
	}
	for _, a := range answers {
		w.s.Datagram(a.b, localAddr, remoteAddr)
	}
	if out := w.drain(); len(out) > 0 {
		t.Errorf("an answer is answered: %x", out[0].b)
	}
}

func TestOnlyUDPRelaysAreOffered(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	got := map[string]stun.ErrorCode{}
	for name, attrs := range map[string][]stun.Setter{
		"tcp": {tcpTransport}, "none": {}, "short": {attr(stun.AttrRequestedTransport, 17)},
		"even port": {udpTransport, attr(stun.AttrEvenPort, 0x80)}, "token": {udpTransport, attr(stun.AttrReservationToken, 1, 2, 3, 4, 5, 6, 7, 8)},
		"don't fragment": {udpTransport, attr(stun.AttrDontFragment)}, "unheard-of": {udpTransport, attr(0x7777)},
	} {
		got[name], _ = u.ask(allocateType, attrs...)
	}
	want := map[string]stun.ErrorCode{"tcp": stun.CodeUnsupportedTransProto, "none": stun.CodeBadRequest, "short": stun.CodeBadRequest,
		"even port": stun.CodeInsufficientCapacity, "token": stun.CodeInsufficientCapacity,
		"don't fragment": stun.CodeUnknownAttribute, "unheard-of": stun.CodeUnknownAttribute}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if n := w.s.Stats().Allocations; n != 0 {
		t.Errorf("%d allocations", n)
	}
}
