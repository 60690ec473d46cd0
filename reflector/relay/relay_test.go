package relay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/logging"
	"github.com/pion/stun"
	"github.com/pion/turn/v2"

	"github.com/wallprobe/wallprobe/protocol"
)

func TestAuthenticatedBindingIsAnsweredAndReported(t *testing.T) {
	w := newWorld(t)
	req, id, err := protocol.Binding("wp-a", "secret of wp-a", "17")
	if err != nil {
		t.Fatal(err)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(remoteAddr.Addr().As16()), remoteAddr.Port())
	if !w.s.Datagram(req, localAddr, mapped) {
		t.Fatal("not handled")
	}
	got := w.next()
	if got.local != localAddr || got.remote != remoteAddr || len(got.b) > len(req) {
		t.Errorf("sent %d bytes from %v to %v", len(got.b), got.local, got.remote)
	}
	seen, err := protocol.ParseBinding(got.b, "secret of wp-a", id)
	if err != nil || seen != remoteAddr {
		t.Errorf("answer says %v, %v", seen, err)
	}
	want := []Event{{Time: w.clock, Session: "a", Label: "17", ID: id, Local: localAddr, Remote: remoteAddr,
		Kind: KindBinding, Result: "ok"}}
	if d := cmp.Diff(want, w.events, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

func TestBindingShorterThanItsAnswerIsReportedButNotAnswered(t *testing.T) {
	w := newWorld(t)
	v6 := netip.MustParseAddrPort("[2001:db8::9]:40001")
	key := stun.NewShortTermIntegrity("secret of wp-a")
	w.s.Datagram(build(t, stun.BindingRequest, stun.NewUsername("wp-a"), key), localAddr, v6)
	if out := w.drain(); len(out) != 0 {
		t.Errorf("sent %v", out)
	}
	if d := cmp.Diff([]string{"a binding not answered: shorter than its answer"}, w.kinds()); d != "" {
		t.Error(d)
	}
}

// network joins a world's UDP side to a real socket.
func network(t *testing.T, change ...func(*Config)) (*world, *net.UDPConn) {
	t.Helper()
	c, addr := newPeer(t)
	c.SetDeadline(time.Time{})
	w := newWorld(t, append([]func(*Config){loopbackRelay, func(cfg *Config) {
		cfg.Send = func(b []byte, _, remote netip.AddrPort) error {
			_, err := c.WriteToUDPAddrPort(b, remote)
			return err
		}
	}}, change...)...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			w.s.Datagram(buf[:n], addr, from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return w, c
}

// bind makes an authenticated Binding from c, which pays for the challenge
// that a turn.Client needs.
func bind(t *testing.T, c net.PacketConn, server net.Addr) {
	t.Helper()
	req, id, err := protocol.Binding("wp-a", "secret of wp-a", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo(req, server); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, _, err := c.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := protocol.ParseBinding(buf[:n], "secret of wp-a", id); err != nil {
		t.Fatal(err)
	}
}

// relayBothWays allocates with pion's client on c and sends to a peer and
// back, first by Send and Data indications, then by ChannelData.
func relayBothWays(t *testing.T, w *world, c net.PacketConn, server net.Addr) {
	t.Helper()
	tc, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr: server.String(), TURNServerAddr: server.String(), Conn: c,
		Username: "wp-a", Password: "secret of wp-a", Realm: "r",
		LoggerFactory: &logging.DefaultLoggerFactory{Writer: t.Output()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	if err := tc.Listen(); err != nil {
		t.Fatal(err)
	}
	conn, err := tc.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	peer, peerAddr := newPeer(t)
	conn.SetReadDeadline(time.Now().Add(patience))
	exchange := func(text string) {
		t.Helper()
		if _, err := conn.WriteTo([]byte(text), net.UDPAddrFromAddrPort(peerAddr)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1500)
		n, from, err := peer.ReadFrom(buf)
		if err != nil || string(buf[:n]) != text || from.String() != conn.LocalAddr().String() {
			t.Fatalf("peer got %q from %v, %v", buf[:n], from, err)
		}
		if _, err := peer.WriteTo([]byte("re: "+text), from); err != nil {
			t.Fatal(err)
		}
		n, from, err = conn.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "re: "+text || from.String() != peerAddr.String() {
			t.Fatalf("client got %q from %v, %v", buf[:n], from, err)
		}
	}
	exchange("one")
	bound := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, e := range w.events {
			if e.Kind == KindChannel && e.Result == "ok" {
				return true
			}
		}
		return false
	}
	w.until("the channel is bound", bound)
	exchange("two")
	exchange("three")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	w.until("the allocation ends", func() bool { return w.s.Stats().Allocations == 0 })
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Kind == KindEnd && (e.ToPeer != 11 || e.FromPeer != 23) {
			t.Errorf("ended with %d bytes to peers and %d from peers", e.ToPeer, e.FromPeer)
		}
	}
}

func TestDataIsRelayedBothWaysOverUDP(t *testing.T) {
	w, srv := network(t)
	c, _ := newPeer(t)
	bind(t, c, srv.LocalAddr())
	relayBothWays(t, w, c, srv.LocalAddr())
}

// listen joins the service to a real TCP listener.
func listen(t *testing.T, w *world) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go w.s.Conn(c)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr()
}

func dial(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestDataIsRelayedBothWaysOverTCP(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	addr := listen(t, w)
	c := dial(t, addr)
	relayBothWays(t, w, turn.NewSTUNConn(c), addr)
}

func TestDataIsRelayedOnIPv6(t *testing.T) {
	peer, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		skip(t, "no IPv6 loopback: %v", err)
	}
	defer peer.Close()
	peer.SetDeadline(time.Now().Add(patience))
	w := newWorld(t, loopbackRelay, func(cfg *Config) {
		cfg.RelayAddr = func(netip.Addr) (netip.Addr, bool) { return netip.IPv6Loopback(), true }
	})
	u := w.newUser("wp-a", remoteAddr)
	if code, _ := u.ask(allocateType, udpTransport, attr(stun.AttrRequestedAddressFamily, 1, 0, 0, 0)); code != stun.CodeAddrFamilyNotSupported {
		t.Errorf("an IPv4 relay on an IPv6 reflector: %v", code)
	}
	code, res := u.ask(allocateType, udpTransport, attr(stun.AttrRequestedAddressFamily, 2, 0, 0, 0))
	if code != 0 {
		t.Fatal(code)
	}
	relay := relayed(t, res)
	peerAddr := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	if code, _ := u.ask(permissionType, xorPeer(netip.MustParseAddrPort("127.0.0.1:9"))); code != stun.CodePeerAddrFamilyMismatch {
		t.Errorf("an IPv4 peer of an IPv6 relay: %v", code)
	}
	if code, _ := u.ask(permissionType, xorPeer(peerAddr)); code != 0 {
		t.Fatal(code)
	}
	w.s.Datagram(build(t, sendIndication, xorPeer(peerAddr), attr(stun.AttrData, 'h', 'i')), u.local, u.remote)
	buf := make([]byte, 100)
	n, from, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "hi" || from != relay {
		t.Errorf("peer got %q from %v, %v", buf[:n], from, err)
	}
}

func TestNothingIsServedBeforeRunAndAfterIt(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	w.stop()
	if got := w.s.Stats(); got != (Stats{}) {
		t.Errorf("left behind: %+v", got)
	}
	if code, _ := u.ask(allocateType, udpTransport); code != stun.CodeInsufficientCapacity {
		t.Errorf("allocate after the end: %v", code)
	}
	if err := w.s.Run(t.Context()); err == nil {
		t.Error("run a second time")
	}
}

func TestEndingASessionEndsItsAllocationsOnly(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	for i, name := range []string{"wp-a", "wp-b", "wp-a"} {
		w.newUser(name, netip.AddrPortFrom(remoteAddr.Addr(), uint16(5000+i))).allocate()
	}
	w.s.End("a")
	if got := w.s.Stats(); got != (Stats{Allocations: 1}) {
		t.Errorf("left: %+v", got)
	}
}
