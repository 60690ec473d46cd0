package relay

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

func TestAllocationEndsWhenItsLifetimeRunsOut(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	if code, _ := u.ask(refreshType, attr(stun.AttrLifetime, 0, 0, 0, 1)); code != 0 {
		t.Fatal(code)
	}
	w.until("the allocation ends", func() bool { return w.s.Stats() == Stats{} })
	u.allocate()
}

func TestRetransmittedAllocateGetsTheSameRelay(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	b := u.sign(allocateType, udpTransport)
	var got []netip.AddrPort
	for range 2 {
		w.s.Datagram(b, u.local, u.remote)
		got = append(got, relayed(t, decode(t, w.next().b)))
	}
	if got[0] != got[1] || w.s.Stats().Allocations != 1 {
		t.Errorf("relays %v", got)
	}
	if code, _ := u.ask(allocateType, udpTransport); code != stun.CodeAllocMismatch {
		t.Errorf("a second allocation on the 5-tuple: %v", code)
	}
}

// A Binding from a 5-tuple does not make its session liable for all that is sent
// in its name afterwards.
func TestChallengesAreToldAFewTimesOfKnownTuplesAlone(t *testing.T) {
	w := newWorld(t)
	ask := func() { w.s.Datagram(build(t, allocateType, udpTransport), localAddr, remoteAddr) }
	ask()
	if got := w.kinds(); got != nil {
		t.Fatalf("of a stranger: %v", got)
	}
	for range 3 * maxTold {
		w.pay("wp-a", localAddr, remoteAddr)
		ask()
		w.next()
	}
	var want []string
	for range maxTold {
		want = append(want, "a challenge ok")
	}
	if d := cmp.Diff(want, w.kinds()); d != "" {
		t.Error(d)
	}
	e := w.events[0]
	if asked, said := decode(t, e.Request), decode(t, e.Answer); asked.Type != allocateType || asked.TransactionID != said.TransactionID || codeOf(said) != 401 {
		t.Errorf("%v answered by %v", asked, said)
	}
}

func TestSessionsDoingsAreToldInOrder(t *testing.T) {
	peer, peerAddr := newPeer(t)
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	one, two := attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), attr(stun.AttrChannelNumber, 0x40, 2, 0, 0)
	u.ask(permissionType, xorPeer(netip.MustParseAddrPort("10.0.0.1:1")))
	u.ask(permissionType, xorPeer(peerAddr))
	u.ask(channelType, one, xorPeer(peerAddr))
	u.ask(channelType, two, xorPeer(peerAddr))
	w.s.Datagram([]byte{0x40, 1, 0, 2, 'h', 'i', 0, 0}, u.local, u.remote)
	buf := make([]byte, 100)
	if n, err := peer.Read(buf); err != nil || string(buf[:n]) != "hi" {
		t.Fatalf("peer got %q, %v", buf[:n], err)
	}
	peer.WriteToUDPAddrPort([]byte("hello"), relay)
	if d := cmp.Diff("@\x01\x00\x05hello\x00\x00\x00", string(w.next().b)); d != "" {
		t.Error(d)
	}
	u.ask(refreshType, attr(stun.AttrLifetime, 0, 0, 0, 0))
	w.stop()
	got := w.kinds()
	if len(got) != 10 {
		t.Fatal(got)
	}
	slices.Sort(got[6:8]) // the peer may answer before its packet is told of
	want := []string{
		"a challenge ok", "a allocate ok", "a permission 403 peer 10.0.0.1:1: private", "a permission ok", "a channel ok",
		"a channel 400 by the relay", "a data from peer", "a data to peer", "a end ended", "a refresh ok",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	for _, e := range w.events {
		if e.Local != localAddr || e.Remote != remoteAddr || e.Kind == KindEnd && (e.ToPeer != 2 || e.FromPeer != 5 || e.Peer != relay) {
			t.Errorf("%+v", e)
		}
	}
}

func TestPeerThatIsNoLongerAllowedIsCutOffAtOnce(t *testing.T) {
	peer, peerAddr := newPeer(t)
	var revoked atomic.Bool
	w := newWorld(t, loopbackRelay, func(cfg *Config) {
		cfg.PeerAllowed = func(string, netip.AddrPort) bool { return !revoked.Load() }
	})
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(peerAddr)); code != 0 {
		t.Fatal(code)
	}
	revoked.Store(true)
	w.s.Datagram([]byte{0x40, 1, 0, 2, 'n', 'o'}, u.local, u.remote)
	peer.WriteToUDPAddrPort([]byte("no"), relay)
	w.until("both are refused", func() bool { return w.count("turn-peer") == 2 })
	revoked.Store(false)
	w.s.Datagram([]byte{0x40, 1, 0, 3, 'y', 'e', 's'}, u.local, u.remote)
	buf := make([]byte, 100)
	if n, err := peer.Read(buf); err != nil || string(buf[:n]) != "yes" {
		t.Errorf("peer got %q, %v", buf[:n], err)
	}
}

func TestOversizeAndOverflowingMessagesAreDropped(t *testing.T) {
	peer, peerAddr := newPeer(t)
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	relay := u.allocate()
	if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(peerAddr)); code != 0 {
		t.Fatal(code)
	}
	w.s.Datagram(append([]byte{0x40, 1, 0x20, 0}, make([]byte, 0x2000)...), u.local, u.remote)
	peer.WriteToUDPAddrPort(make([]byte, 1600), relay) // more than pion has room for
	w.until("both are dropped", func() bool { return w.count("turn-oversize") == 2 })
	peer.WriteToUDPAddrPort(make([]byte, 1599), relay)
	if got := len(w.next().b); got != 1604 {
		t.Errorf("1599 bytes became %d", got)
	}

	// A relay that nobody empties: Datagram must go on at once.
	full := &allocation{s: w.s, queue: make(chan job, 1), done: make(chan struct{})}
	for range 3 {
		w.s.channelData(full, []byte{0x40, 1, 0, 0})
	}
	if got := w.count("turn-overflow"); got != 2 {
		t.Errorf("%d dropped", got)
	}
}

func TestRequestWithHalfItsCredentialsIsABadRequest(t *testing.T) {
	w := newWorld(t)
	w.pay("wp-a", localAddr, remoteAddr)
	key := stun.NewShortTermIntegrity("x")
	for _, attrs := range [][]stun.Setter{
		{key}, {stun.NewUsername("wp-a"), key}, {stun.NewUsername("wp-a"), stun.NewRealm("r"), key},
	} {
		w.s.Datagram(build(t, allocateType, attrs...), localAddr, remoteAddr)
		if code := codeOf(decode(t, w.next().b)); code != stun.CodeBadRequest {
			t.Error(code)
		}
	}
}

func TestUnheardOfAttributeInABindingIsNamed(t *testing.T) {
	w := newWorld(t)
	key := stun.NewShortTermIntegrity("secret of wp-a")
	changeRequest := attr(stun.AttrChangeRequest, 0, 0, 0, 6)
	w.s.Datagram(build(t, stun.BindingRequest, changeRequest, padding(80)), localAddr, remoteAddr)
	if out := w.drain(); len(out) > 0 {
		t.Errorf("a stranger gets %x", out[0].b)
	}
	w.s.Datagram(build(t, stun.BindingRequest, stun.NewUsername("wp-a"), changeRequest, padding(80), key), localAddr, remoteAddr)
	m := decode(t, w.next().b)
	// Two bytes each, RFC 8489 section 14.13; pion/stun v0.6.1 wants four.
	unknown, err := m.Get(stun.AttrUnknownAttributes)
	if d := cmp.Diff([]byte{0, 3}, unknown); d != "" || err != nil || codeOf(m) != stun.CodeUnknownAttribute {
		t.Errorf("%v: %v %s", m, err, d)
	}
}

func TestZeroConfigServesNobody(t *testing.T) {
	s := New(Config{})
	req, _, err := protocol.Binding("wp-a", "x", "")
	if err != nil {
		t.Fatal(err)
	}
	s.Datagram(req, localAddr, remoteAddr)
	s.Datagram(build(t, stun.BindingRequest, padding(20)), localAddr, remoteAddr)
	near, far := net.Pipe()
	defer far.Close()
	s.Conn(near)
	if _, ok := (&allocation{s: s}).peer(netip.MustParseAddrPort("8.8.8.8:53")); ok || s.Stats() != (Stats{}) {
		t.Errorf("a peer is allowed: %v; %+v", ok, s.Stats())
	}
}
