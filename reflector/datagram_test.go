package reflector

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func TestProvenDatagramIsAnsweredFromWhereItWasAimedAndNoted(t *testing.T) {
	b := newBench(t, Config{})
	out := b.deliver(near, b.request(testID, func(m *wire.Message) { m.Size = 1200; m.Attempt = 2 }))
	if len(out) != 1 || out[0].Local != local || out[0].Remote != near || len(out[0].Payload) != 1200 {
		t.Fatalf("%+v", out)
	}
	k := wire.Derive(testKey, testID, wire.Nonce{})
	got, err := wire.Parse(out[0].Payload, &k)
	if err != nil {
		t.Fatal(err)
	}
	want := wire.Message{Kind: wire.Reply, Offline: true, Port: local.Port(), Session: testID, Probe: 3, Attempt: 2, Size: 1200,
		Time: b.clock.now().Local(), Seen: near, TTL: 57, TOS: 0xb8}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
	e := wire.Event{Time: b.clock.now(), Transport: scenarios.UDP, Remote: near, Local: local, Session: testID, Probe: 3, Attempt: 2,
		Stage: protocol.StageToken, Length: 1200, TTL: 57, TOS: 0xb8, Answered: true}
	ledger := &wire.Ledger{Session: testID, Started: b.clock.now(), Taken: b.clock.now(), Sources: []netip.Addr{near.Addr()},
		Probes: []wire.ProbeRecord{{Probe: 3, Counts: []wire.Count{{Ports: ports(t, "3478"), Seen: 1, Answered: 1}}, Events: []wire.Event{e}}}}
	if diff := cmp.Diff(ledger, b.taken(t, testID), same); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
}

func TestProbeOfOwnPortsIsCountedByThem(t *testing.T) {
	b := newBench(t, Config{})
	for port := range uint16(100) {
		from := netip.AddrPortFrom(near.Addr(), 30000+port)
		translated := netip.AddrPortFrom(near.Addr(), 5) // by a NAT: the message says which it was
		b.deliver(translated, b.request(testID, func(m *wire.Message) { m.ByLocal = true; m.Seen = from }))
	}
	want := []wire.Count{{Ports: ports(t, "30000-30099"), Seen: 1, Answered: 1}}
	if diff := cmp.Diff(want, b.taken(t, testID).Probes[0].Counts, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Attack 2 of the fifteen: nothing unproven gets an answer, whatever it begins with.
func TestUnprovenDatagramOfAnyKindGetsNoAnswer(t *testing.T) {
	b := newBench(t, Config{})
	r := rand.New(rand.NewPCG(1, 2))
	for first := range 256 {
		for _, size := range []int{1, 4, 19, 20, 84, 256, 1200} {
			p := make([]byte, size)
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			p[0] = byte(first)
			if out := b.deliver(near, p); len(out) > 0 {
				t.Errorf("%x is answered with %x", p, out[0].Payload)
			}
		}
	}
	if out := b.deliver(near, nil); len(out) > 0 {
		t.Errorf("an empty datagram is answered with %x", out[0].Payload)
	}
	if len(b.sessions.all()) > 0 {
		t.Error("a session was made")
	}
}

// Attack 1: a bare Binding or Allocate may be answered, but never with more.
func TestBareSTUNIsNeverAnsweredWithMoreBytes(t *testing.T) {
	b := newBench(t, Config{})
	for _, method := range []stun.Method{stun.MethodBinding, stun.MethodAllocate, stun.MethodRefresh, stun.MethodSend, stun.MethodChannelBind, stun.MethodCreatePermission} {
		m := stun.MustBuild(stun.TransactionID, stun.NewType(method, stun.ClassRequest))
		n := 0
		for _, d := range b.deliver(near, m.Raw) {
			n += len(d.Payload)
		}
		if n > len(m.Raw) {
			t.Errorf("%v: %d bytes are answered with %d", method, len(m.Raw), n)
		}
	}
}

// Attack 15: forged, replayed and reflected probes.
func TestForgedAndReplayedProbesGetNoAnswer(t *testing.T) {
	b := newBench(t, Config{})
	good := b.request(testID, nil)
	reply := b.deliver(near, good)[0].Payload
	before := b.taken(t, testID)
	attacker := netip.MustParseAddrPort("203.0.113.66:1")
	forged := append([]byte(nil), good...)
	forged[30] ^= 0xff
	other := wire.Derive(wire.Key{9}, testID, wire.Nonce{})
	m := wire.Message{Kind: wire.Request, Offline: true, Session: testID, Time: b.clock.now()}
	for name, p := range map[string][]byte{
		"replayed":                         good,
		"its answer reflected":             reply,
		"forged":                           forged,
		"with another key":                 m.Append(nil, &other),
		"cut":                              good[:83],
		"lengthened":                       append(good[:84:84], 0),
		"an attempt too many":              b.request(testID, func(m *wire.Message) { m.Attempt = maxAttempts }),
		"a call":                           b.request(testID, func(m *wire.Message) { m.Kind = wire.Call; m.Attempt = 9 }),
		"a session nobody began":           b.request(wire.SessionID{5}, func(m *wire.Message) { m.Offline = false }),
		"of a session from another decade": b.request(wire.SessionID{6}, func(m *wire.Message) { m.Time = time.Unix(0, 0) }),
	} {
		for _, from := range []netip.AddrPort{near, attacker} {
			if out := b.deliver(from, p); len(out) > 0 {
				t.Errorf("%s from %v: answered with %x", name, from, out[0].Payload)
			}
		}
	}
	after := b.taken(t, testID)
	if len(after.Strays) == 0 {
		t.Error("the attack is not in the ledger")
	}
	after.Strays = nil
	if diff := cmp.Diff(before, after, same); diff != "" {
		t.Errorf("the attack changed what is proven (-before +after):\n%s", diff)
	}
	if len(b.sessions.all()) != 1 {
		t.Errorf("%d sessions", len(b.sessions.all()))
	}
}

func TestReplayAfterTheSessionsEndIsNotAnswered(t *testing.T) {
	b := newBench(t, Config{})
	good := b.request(testID, nil)
	if len(b.deliver(near, good)) != 1 {
		t.Fatal("the first must be answered")
	}
	b.sessions.end(testID)
	if out := b.deliver(netip.MustParseAddrPort("203.0.113.66:1"), good); len(out) > 0 || len(b.sessions.all()) > 0 {
		t.Errorf("answered with %v; %d sessions", out, len(b.sessions.all()))
	}
}

// Two reflectors that were made to send to each other fall silent at once.
func TestTwoReflectorsDoNotLoop(t *testing.T) {
	a, b := newBench(t, Config{}), newBench(t, Config{})
	out := a.deliver(near, a.request(testID, nil))
	for _, d := range out {
		if again := b.deliver(local, d.Payload); len(again) > 0 {
			t.Errorf("%x is answered with %x", d.Payload, again[0].Payload)
		}
		if again := a.deliver(local, d.Payload); len(again) > 0 {
			t.Errorf("%x is answered with %x by itself", d.Payload, again[0].Payload)
		}
	}
	if len(out) != 1 {
		t.Fatalf("%d answers", len(out))
	}
}

func TestAlteredDatagramIsKeptWithTheSessionThatItClaims(t *testing.T) {
	b := newBench(t, Config{})
	b.deliver(near, b.request(testID, nil))
	p := b.request(testID, func(m *wire.Message) { m.Attempt = 1 })
	p[68] ^= 1
	elsewhere := netip.MustParseAddrPort("203.0.113.1:9")
	b.deliver(elsewhere, p)
	b.deliver(near, []byte("hello"))      // from the session's address, claiming none
	b.deliver(elsewhere, []byte("hello")) // from nobody's
	stray := func(from netip.AddrPort, fault string, p []byte) wire.Event {
		return wire.Event{Time: b.clock.now(), Transport: scenarios.UDP, Remote: from, Local: local, Stage: protocol.StageToken,
			Fault: fault, Length: len(p), TTL: 57, TOS: 0xb8, Digest: digest(p)}
	}
	want := []wire.Event{stray(elsewhere, protocol.FaultAltered, p), stray(near, protocol.FaultForeign, []byte("hello"))}
	want[0].Session, want[0].Probe, want[0].Attempt = testID, 3, 1
	if diff := cmp.Diff(want, b.taken(t, testID).Strays, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSTUNWithASessionsCredentialsIsAnsweredAndNoted(t *testing.T) {
	b := newBench(t, Config{})
	user, pass := wire.TURN(testKey, testID, b.clock.now())
	msg, id, err := protocol.Binding(user, pass, "7")
	if err != nil {
		t.Fatal(err)
	}
	out := b.deliver(near, msg)
	if len(out) != 1 || len(out[0].Payload) > len(msg) {
		t.Fatalf("%v", out)
	}
	if seen, err := protocol.ParseBinding(out[0].Payload, pass, id); seen != near || err != nil {
		t.Errorf("%v, %v", seen, err)
	}
	e := wire.Event{Time: b.clock.now(), Transport: scenarios.UDP, Remote: near, Local: local, Session: testID, Probe: 7, Stage: protocol.StageToken, Answered: true}
	want := []wire.ProbeRecord{{Probe: 7, Events: []wire.Event{e}}}
	if diff := cmp.Diff(want, b.taken(t, testID).Probes, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]netip.Addr{near.Addr()}, b.taken(t, testID).Sources, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTURNCredentialsHoldForADay(t *testing.T) {
	b := newBench(t, Config{})
	user, pass := wire.TURN(testKey, testID, b.clock.now())
	for off, want := range map[time.Duration]bool{0: true, clockSkew - time.Minute: true, clockSkew + time.Minute: false, time.Minute - clockSkew: true, -clockSkew - time.Minute: false} {
		got, session, ok := b.turnCredentials(user, b.clock.now().Add(off))
		if ok != want || ok && (got != pass || session != testID.String()) || !ok && got != "" {
			t.Errorf("after %v: %q, %q, %v", off, got, session, ok)
		}
	}
	for _, name := range []string{"", "wp--", "admin", user + "-"} {
		if pass, session, ok := b.turnCredentials(name, b.clock.now()); ok || pass+session != "" {
			t.Errorf("%q is known", name)
		}
	}
}

func TestPeersOfARelayAreTheSessionsOwnAddressesAndNeverThisHost(t *testing.T) {
	b := newBench(t, Config{})
	b.deliver(near, b.request(testID, nil))
	s := b.sessions.find(testID)
	b.sessions.touch(s, loopback)
	for peer, want := range map[string]bool{"192.0.2.7:9": true, "[::ffff:192.0.2.7]:9": true, "192.0.2.8:9": false, "127.0.0.1:9": false, "[::ffff:127.0.0.1]:9": false} {
		if got := b.peerAllowed(testID.String(), netip.MustParseAddrPort(peer)); got != want {
			t.Errorf("%s: %v", peer, got)
		}
	}
	if b.peerAllowed(wire.SessionID{1}.String(), near) || b.peerAllowed("", near) {
		t.Error("an unknown session may relay")
	}
}

func TestLatePacketsAreBoundedAndStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l later
		ran := 0
		began := time.Now()
		l.schedule(time.Minute, func() { ran++ })
		time.Sleep(time.Minute)
		synctest.Wait()
		if ran != 1 || time.Since(began) != time.Minute {
			t.Errorf("%d ran", ran)
		}
		for range maxLate + 10 {
			l.schedule(time.Minute, func() { ran++ })
		}
		if len(l.waiting) != maxLate {
			t.Errorf("%d wait", len(l.waiting))
		}
		l.stop()
		l.schedule(0, func() { ran++ })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if ran != 1 {
			t.Errorf("%d ran after the stop", ran-1)
		}
		l.stop()
	})
}

func FuzzDatagram(f *testing.F) {
	b := newBench(f, Config{})
	f.Add([]byte{})
	f.Add(b.request(testID, nil)[:80])
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}).Raw)
	f.Add([]byte{0x40, 0, 0, 4, 1, 2, 3, 4})
	n := uint32(0)
	f.Fuzz(func(t *testing.T, p []byte) {
		n++ // a source that proved nothing before
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), uint16(n>>16)+1)
		var out int
		for _, d := range b.deliver(from, p) {
			out += len(d.Payload)
			if d.Local != local || d.Remote != from {
				t.Errorf("%x makes a datagram from %v to %v", p, d.Local, d.Remote)
			}
		}
		if out > len(p) {
			t.Errorf("%x: %d bytes make %d", p, len(p), out)
		}
	})
}

var _ steer.Handler = (*Reflector)(nil)
