package reflector

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

var proxy = netip.MustParseAddrPort("192.0.2.99:7000")

// strayAt is an arrival at a port without a token that verifies.
func strayAt(b *bench, from netip.AddrPort, port uint16, claimed wire.SessionID) wire.Event {
	return wire.Event{Time: b.now(), Transport: scenarios.TCP, Remote: from, Local: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.10"), port),
		Session: claimed, Stage: protocol.StageToken, Fault: protocol.FaultAltered}
}

func portsOf(strays []wire.Event) string {
	text := ""
	for _, e := range strays {
		text += fmt.Sprintf("%d ", e.Local.Port())
	}
	return text
}

func TestStraysOfAnAddressAreTiedToTheSessionThatComesFromIt(t *testing.T) {
	b := newBench(t, Config{})
	b.deliver(near, b.request(testID, nil))
	other := wire.SessionID{9}
	b.deliver(netip.MustParseAddrPort("192.0.2.50:1"), b.request(other, nil))
	b.note(strayAt(b, proxy, 1, wire.SessionID{})) // nobody's yet
	b.note(strayAt(b, proxy, 2, other))            // another session's
	b.note(strayAt(b, netip.MustParseAddrPort("192.0.2.100:1"), 3, wire.SessionID{}))
	if diff := cmp.Diff("", portsOf(b.taken(t, testID).Strays)); diff != "" {
		t.Errorf("before the address is known (-want +got):\n%s", diff)
	}
	b.note(strayAt(b, proxy, 4, testID)) // changed, but it still names the session
	if diff := cmp.Diff("4 1 ", portsOf(b.taken(t, testID).Strays)); diff != "" {
		t.Errorf("by a claim (-want +got):\n%s", diff)
	}
	// The other session was named from the same address: what names neither may be its own as well.
	if diff := cmp.Diff("2 1 ", portsOf(b.taken(t, other).Strays)); diff != "" {
		t.Errorf("of the other session (-want +got):\n%s", diff)
	}
}

func TestStraysAreTiedOnceASourceIsProven(t *testing.T) {
	b := newBench(t, Config{})
	b.note(strayAt(b, proxy, 1, wire.SessionID{}))
	b.clock.pass(time.Minute)
	b.deliver(near, b.request(testID, nil))
	b.note(strayAt(b, proxy, 2, wire.SessionID{}))
	b.deliver(proxy, b.request(testID, func(m *wire.Message) { m.Attempt = 1 }))
	b.note(strayAt(b, proxy, 3, wire.SessionID{}))
	if diff := cmp.Diff("3 2 ", portsOf(b.taken(t, testID).Strays)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A round comes seconds after the one before, whose session has ended by then.
func TestStraysOfASessionThatEndedAreNotTheNextOnes(t *testing.T) {
	b := newBench(t, Config{})
	ended := wire.SessionID{9}
	b.deliver(near, b.request(ended, nil))
	b.sessions.end(ended)
	b.note(strayAt(b, proxy, 1, ended))
	b.note(strayAt(b, proxy, 2, wire.SessionID{}))
	b.deliver(proxy, b.request(testID, nil))
	if diff := cmp.Diff("2 ", portsOf(b.taken(t, testID).Strays)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRememberedArrivalsAreBounded(t *testing.T) {
	var r recent
	for i := range maxRecent + 10 {
		r.add(wire.Event{Time: time.Unix(int64(i), 0), Remote: proxy})
	}
	got := r.from([]netip.Addr{proxy.Addr()}, time.Time{})
	if len(got) != maxRecent || got[0].Time.Unix() != 10 || got[maxRecent-1].Time.Unix() != maxRecent+9 {
		t.Errorf("%d arrivals from %v to %v", len(got), got[0].Time.Unix(), got[len(got)-1].Time.Unix())
	}
}
