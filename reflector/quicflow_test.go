package reflector

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

func flowsFrom(list []wire.Flow) (remotes []uint16) {
	for _, f := range list {
		remotes = append(remotes, f.Remote.Port())
	}
	return remotes
}

func TestAFlowGivesWayToAnotherOnlyWhenItIsIdle(t *testing.T) {
	var q quicFlows
	now := time.Unix(1000, 0)
	a := netip.MustParseAddr("2001:db8::1")
	add := func(from netip.Addr, port int) {
		q.heard(netip.AddrPortFrom(from, uint16(port)), local, []byte{1}, now, true)
	}
	for i := range maxFlowsPerSource + 5 {
		add(a, 1+i)
	}
	if got := q.of([]netip.Addr{a}); len(got) != maxFlowsPerSource || got[0].Remote.Port() != 1 {
		t.Errorf("of one source %d flows are kept, from %v on", len(got), flowsFrom(got))
	}
	now = now.Add(flowIdle + 1)
	add(a, 2)    // no longer idle
	add(a, 9000) // in place of the first
	if got := flowsFrom(q.of([]netip.Addr{a})); got[0] != 2 || got[1] != 4 && got[1] != 3 || got[len(got)-1] != 9000 {
		t.Errorf("flows %v", got)
	}
	for i := range maxFlows {
		add(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1)
	}
	if len(q.list) != maxFlows || len(q.at) != maxFlows {
		t.Errorf("%d flows are kept, and %d found", len(q.list), len(q.at))
	}
	for k, f := range q.at {
		if f.key != k {
			t.Errorf("%v is found as %v", f.key, k)
		}
	}
}

// What is kept of a flow is kept from its beginning: of one whose beginning is
// not known, what was sent before would look like never sent.
func TestAFlowIsKeptFromItsBeginning(t *testing.T) {
	b := newBench(t, Config{})
	rng := rand.New(rand.NewPCG(1, 1))
	retried, first := initial(rng, 1200, 77), initial(rng, 1200, 0)
	from := netip.AddrPortFrom(loopback, 50001)
	b.deliver(from, retried)
	b.deliver(from, append([]byte{0x40}, make([]byte, 30)...))
	if got := b.quic.flows.of([]netip.Addr{loopback}); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	for _, p := range [][]byte{first, retried} {
		b.deliver(from, p)
	}
	changed := append([]byte{first[0] ^ 0xff}, first[1:]...)
	b.deliver(netip.AddrPortFrom(loopback, 50002), changed)
	b.quic.flows.sent(from, local, []byte("answer"))
	got := b.quic.flows.of([]netip.Addr{loopback})
	if len(got) != 2 || got[0].Heard.N != 2 || got[0].Heard.First[1] != wire.PrintOf(retried) || got[0].Sent.First[0] != wire.PrintOf([]byte("answer")) ||
		got[1].Heard.First[0] != wire.PrintOf(changed) {
		t.Errorf("%+v", got)
	}
	if got := b.quic.flows.of([]netip.Addr{netip.MustParseAddr("192.0.2.1")}); len(got) != 0 {
		t.Errorf("somebody else is told of %+v", got)
	}
}
