package lab

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

// attr is one attribute as the kernel writes it.
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// traceMessage is an event of a rule that drops a packet to UDP port 53.
func traceMessage() []byte {
	network, _ := hex.DecodeString("450000200001000040110000" + "0a4d0102" + "c633640a")
	verdict := attr(attrVerdictCode, be32(0))
	return bytes.Join([][]byte{
		{1, 0, 0, 0}, attr(attrTable, []byte("filter\x00")), attr(attrChain, []byte("forward\x00")),
		attr(attrHandle, binary.BigEndian.AppendUint64(nil, 7)), attr(attrKind, be32(traceRule)), attr(attrPacket, be32(0xfeedbeef)),
		attr(attrVerdict|0x8000, verdict), attr(attrNetwork, network), attr(attrTransport, []byte{0x4e, 0x20, 0, 53, 0, 12, 0, 0}),
	}, nil)
}

func TestTraceIsReadAsTheKernelWritesIt(t *testing.T) {
	got, err := parseTrace(traceMessage())
	if err != nil {
		t.Fatal(err)
	}
	want := traceEvent{
		packet: 0xfeedbeef, chain: chainID{"inet", "filter", "forward"}, handle: 7, kind: traceRule, verdict: verdictDrop,
		header: packetHeader{scenarios.UDP, netip.MustParseAddrPort("10.77.1.2:20000"), netip.MustParseAddrPort("198.51.100.10:53")},
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range [][]byte{nil, {1, 0, 0}, {1, 0, 0, 0, 3, 0, 1, 0}, {1, 0, 0, 0, 9, 0, 1, 0, 0}, append([]byte{1, 0, 0, 0}, attr(attrKind, []byte{1, 2})...)} {
		if e, err := parseTrace(bad); err == nil {
			t.Errorf("%x: %+v", bad, e)
		}
	}
}

// What the kernel says is read without harm, and what is read is in it.
func FuzzParseTrace(f *testing.F) {
	f.Add(traceMessage())
	f.Add([]byte{10, 0, 0, 0, 4, 0, 5, 0})
	f.Add([]byte{1, 0, 0, 0, 8, 0, 1, 0, 't', 0, 0, 0, 12, 0, 5, 128, 8, 0, 1, 0, 0, 0, 0, 0})
	f.Add(append([]byte{2, 0, 0, 0}, attr(attrNetwork, make([]byte, 40))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseTrace(b)
		if err != nil {
			return
		}
		for _, s := range e.chain[1:] {
			if !bytes.Contains(b, []byte(s)) {
				t.Errorf("%q is not in the message", s)
			}
		}
		if e.header.transport == "" && e.header != (packetHeader{}) {
			t.Errorf("half a header: %+v", e.header)
		}
	})
}

// A packet's course through two chains that forward, one of them by way of
// another, and one elsewhere.
func TestCourseNamesTheRuleThatDecided(t *testing.T) {
	const accept, goOn, jump = verdictAccept, -1, -3
	first, second, side, nat := chainID{"inet", "a", "first"}, chainID{"inet", "b", "second"}, chainID{"inet", "b", "side"}, chainID{"ip", "n", "post"}
	dnat := chainID{"ip", "n", "pre"}
	chains := map[chainID]Chain{first: {Type: "filter", Hook: "forward"}, second: {Type: "filter", Hook: "forward"},
		nat: {Type: "nat", Hook: "postrouting"}, dnat: {Type: "nat", Hook: "prerouting"}, side: {}}
	rule := func(c chainID, handle uint64, verdict int32) traceEvent {
		return traceEvent{chain: c, handle: handle, kind: traceRule, verdict: verdict}
	}
	policy := func(c chainID, p uint32) traceEvent { return traceEvent{chain: c, kind: tracePolicy, policy: p} }
	for name, x := range map[string]struct {
		events       []traceEvent
		dropped, let ruleRef
		translated   ruleRef
	}{
		"a rule drops":                    {[]traceEvent{rule(first, 1, goOn), rule(first, 2, 0)}, ruleRef{first, 2}, ruleRef{}, ruleRef{}},
		"a policy drops":                  {[]traceEvent{rule(first, 1, goOn), policy(first, 0)}, ruleRef{chain: first}, ruleRef{}, ruleRef{}},
		"a rule accepts, then a policy":   {[]traceEvent{rule(first, 3, accept), policy(second, 1)}, ruleRef{}, ruleRef{first, 3}, ruleRef{}},
		"a policy accepts, then a rule":   {[]traceEvent{policy(first, 1), rule(second, 4, jump), rule(side, 5, accept)}, ruleRef{}, ruleRef{side, 5}, ruleRef{}},
		"two rules accept":                {[]traceEvent{rule(first, 3, accept), rule(second, 4, accept)}, ruleRef{}, ruleRef{second, 4}, ruleRef{}},
		"two policies accept":             {[]traceEvent{policy(first, 1), policy(second, 1)}, ruleRef{}, ruleRef{chain: second}, ruleRef{}},
		"accepted, and then dropped":      {[]traceEvent{rule(first, 3, accept), rule(second, 4, 0)}, ruleRef{second, 4}, ruleRef{first, 3}, ruleRef{}},
		"what translates the source":      {[]traceEvent{policy(first, 1), rule(nat, 9, accept)}, ruleRef{}, ruleRef{chain: first}, ruleRef{}},
		"what translates the destination": {[]traceEvent{rule(dnat, 9, accept), policy(first, 1)}, ruleRef{}, ruleRef{chain: first}, ruleRef{dnat, 9}},
		"a chain without a word at last":  {[]traceEvent{rule(first, 0, goOn)}, ruleRef{}, ruleRef{}, ruleRef{}},
		"a queue says nothing of its own": {[]traceEvent{rule(first, 6, 3)}, ruleRef{}, ruleRef{}, ruleRef{}},
	} {
		c := course{begun: true}
		for _, e := range x.events {
			c.step(e, func(id chainID) Chain { return chains[id] })
		}
		if c.dropped != x.dropped || c.let != x.let || c.translated != x.translated {
			t.Errorf("%s: dropped by %v, let by %v, translated by %v; want %v, %v, %v", name, c.dropped, c.let, c.translated, x.dropped, x.let, x.translated)
		}
	}
}

func TestNamedPortsAreThoseOfTheRulesAndTheirNeighbours(t *testing.T) {
	got := namedPorts([]byte("udp dport 40000-65535 counter packets 7 bytes 9 drop # handle 12\nip saddr 10.0.0.1 tcp dport 0x50 accept\n"))
	want := []uint16{1, 2, 9, 10, 11, 39999, 40000, 40001, 65534, 65535}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
