package client

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func iceSession(won bool) *ICE {
	host := ICECandidate{Type: "host", Addr: netip.MustParseAddrPort("10.77.1.2:50123")}
	relay := ICECandidate{Type: "relay", Addr: netip.MustParseAddrPort("198.51.100.10:50001"), Via: "tcp 3478"}
	far := ICECandidate{Type: "host", Addr: netip.MustParseAddrPort("198.51.100.10:40123")}
	s := &ICE{Absent: []string{"relay over UDP 3478"}, Pairs: []ICEPair{{Local: host, Remote: far, State: "in-progress"}, {Local: relay, Remote: far, State: "succeeded"}}}
	if won {
		s.Won, s.Connect = &s.Pairs[1], 0.012
	}
	return s
}

func TestSessionIsToldByThePairThatWon(t *testing.T) {
	s := iceSession(true)
	got := []string{s.sentence(), s.Pairs[0].Local.String(), s.failed(), (&ICE{}).failed()}
	want := []string{"relay over TCP 3478 ↔ host 198.51.100.10:40123, 12 ms to connect", "host 10.77.1.2:50123",
		"host in-progress, relay over TCP 3478 succeeded, no relay over UDP 3478", "no candidates"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTURNAndICEAreJudgedByTheirStage(t *testing.T) {
	at := func(stage string) func(*wire.Ledger) {
		return func(l *wire.Ledger) {
			l.Probes = append(l.Probes, wire.ProbeRecord{Probe: 1, Events: []wire.Event{
				{Transport: scenarios.UDP, Local: netip.AddrPortFrom(farAddr, 443), Probe: 1, Stage: stage, Answered: true}}})
		}
	}
	turn := func(stage, fault, detail string) Observation {
		return Observation{Sent: 3, Answered: 3, Stage: stage, Fault: fault, Detail: detail}
	}
	session := func(stage, fault, detail string) Observation {
		return Observation{Sent: 1, Stage: stage, Fault: fault, Detail: detail, ICE: iceSession(stage == protocol.StageToken)}
	}
	failed := "host in-progress, relay over TCP 3478 succeeded, no relay over UDP 3478"
	for _, c := range []struct {
		name string
		near Observation
		far  *wire.Ledger
		want Verdict
		why  string
	}{
		{"no allocation, not seen", turn(protocol.StageAllocate, "timeout", ""), of(t, at("token")), Cut, "STUN is answered, but the allocation is not; the reflector saw nothing of it"},
		{"no allocation, seen", turn(protocol.StageAllocate, "timeout", ""), of(t, at("turn allocate")), Cut, "STUN is answered, but the allocation is not; the reflector answered it"},
		{"no allocation, no ledger", turn(protocol.StageAllocate, "timeout", ""), nil, Cut, "STUN is answered, but the allocation is not"},
		{"refused", turn(protocol.StageAllocate, "other", "the relay refuses with 486 Allocation Quota Reached"), of(t), Unmeasured,
			"stage turn allocate: the relay refuses with 486 Allocation Quota Reached"},
		{"channel data lost", turn(protocol.StageRelayed, "timeout", "in ChannelData, while indications pass: i/o timeout"), of(t, at("turn data")), Cut,
			"stage turn data: nothing more came in ChannelData, while indications pass"},
		{"data changed", turn(protocol.StageRelayed, "altered", "in indications: bytes altered on the way"), of(t), Altered,
			"stage turn data: what came back is not what the relay or its peer sent: in indications: bytes altered on the way"},
		{"no signalling", session(protocol.StageSignal, "other", "no port carries control"), of(t), Unmeasured, "the agents could not be introduced to each other: no port carries control"},
		{"no check arrives", session(protocol.StageChecks, "timeout", ""), of(t), RequestLost, "no check reached the reflector's agent: " + failed},
		{"checks arrive", session(protocol.StageChecks, "timeout", ""), of(t, at("ice checks")), ReplyLost, "checks reached the reflector's agent, its answers did not arrive: " + failed},
		{"checks, no ledger", session(protocol.StageChecks, "timeout", ""), nil, Silent, "no pair of candidates won, and the reflector's ledger could not be had: " + failed},
		{"pair without data", session(protocol.StageToken, "timeout", ""), of(t, at("ice checks")), Cut,
			"relay over TCP 3478 ↔ host 198.51.100.10:40123 was selected, but the message over it got no answer"},
	} {
		c.near.Probe, c.near.Addr, c.near.Target, c.near.Ports = 1, farAddr, farAddr.String(), ports(t, "443")
		got := judged(t, scenarios.UDP, []Observation{c.near}, c.far)
		if diff := cmp.Diff([]any{c.want, c.why}, []any{got.Verdict, got.Why}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestICESessionIsOneProbeOfAWideRange(t *testing.T) {
	s := &scenarios.Scenario{Roles: []scenarios.Role{{Name: "near", Site: "home"}, {Name: "far", Site: "net"}}}
	for _, name := range []string{protocol.ICE, "ice", protocol.TURN} {
		p := scenarios.Path{ID: name, From: []string{"near"}, To: []string{"far"}, Direction: scenarios.P2P, Transport: []scenarios.Transport{scenarios.UDP},
			Ports: ports(t, "32768-65535"), Protocol: name}
		if name == protocol.TURN {
			p.Ports = ports(t, "3478")
		}
		s.Paths = append(s.Paths, p)
	}
	plan := MakePlan(s, Setting{Role: "near", Reflector: farAddr})
	type short struct {
		Speak  string
		Sweeps bool
		Bytes  int64
	}
	var got []short
	for _, p := range plan.Probes {
		got = append(got, short{p.Speak, p.Sweeps(), p.Bytes})
	}
	want := []short{{protocol.ICE, false, 0}, {protocol.Datagram, true, 0}, {protocol.TURN, false, DefaultBytes}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if plan.Items[0].Spoken != "" {
		t.Errorf("spoken in its stead: %q", plan.Items[0].Spoken)
	}
}
