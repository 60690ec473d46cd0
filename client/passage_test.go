package client

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func passagesOf(t *testing.T, tr scenarios.Transport, o Observation, far *wire.Ledger) []string {
	t.Helper()
	o.Probe, o.Addr, o.Target, o.Ports, o.Stage, o.Sent, o.Answered = 1, farAddr, farAddr.String(), ports(t, "443"), "done", 3, 3
	f := judged(t, tr, []Observation{o}, far)
	if f.Verdict != Open {
		t.Errorf("header fields make the path %s: %s", f.Verdict, f.Why)
	}
	var said []string
	for _, p := range f.Passage {
		mark := ""
		if p.Changed {
			mark = "! "
		}
		said = append(said, mark+p.String())
	}
	return said
}

func TestMarkedDatagramsTellOfRewrittenHeaders(t *testing.T) {
	mark := func(ttl, tos uint8, routed bool) Observation {
		return Observation{Routed: routed, Mark: &Mark{TTL: 64, TOS: wire.MarkTOS, Answered: true, SeenTTL: ttl, SeenTOS: tos}}
	}
	back := func(ttl, tos uint8) Observation {
		o := mark(63, wire.MarkTOS, true)
		o.Mark.Back, o.Mark.BackTTL, o.Mark.BackTOS = true, ttl, tos
		return o
	}
	lost := Observation{Mark: &Mark{TTL: 64, TOS: wire.MarkTOS}}
	unanswered := func(l *wire.Ledger) {
		l.Probes = append(l.Probes, wire.ProbeRecord{Probe: 1 + markStage, Events: []wire.Event{
			{Transport: scenarios.UDP, Local: netip.AddrPortFrom(farAddr, 443), Probe: 1 + markStage, TTL: 60, TOS: 46 << 2}}})
	}
	const dscp, ecn = "DSCP 46 arrived as 46", "ECN ECT(0) arrived as ECT(0)"
	for _, c := range []struct {
		name string
		near Observation
		far  *wire.Ledger
		want []string
	}{
		{"as sent", mark(63, wire.MarkTOS, true), of(t), []string{"TTL 64 arrived as 63: 1 hop", dscp, ecn}},
		{"as sent, to a neighbour", mark(64, wire.MarkTOS, false), of(t), []string{"TTL 64 arrived as 64", dscp, ecn}},
		{"as sent across a router", mark(64, wire.MarkTOS, true), of(t), []string{"! TTL 64 arrived as 64: rewritten, for a router lies between", dscp, ecn}},
		{"higher", mark(128, wire.MarkTOS, true), of(t), []string{"! TTL 64 arrived as 128: rewritten", dscp, ecn}},
		{"DSCP cleared", mark(60, 2, true), of(t), []string{"TTL 64 arrived as 60: 4 hops", "! DSCP 46 arrived as 0", ecn}},
		{"ECN bleached", mark(60, 46<<2, true), of(t), []string{"TTL 64 arrived as 60: 4 hops", dscp, "! ECN ECT(0) arrived as Not-ECT: bleached"}},
		{"congested", mark(60, wire.MarkTOS|3, true), of(t), []string{"TTL 64 arrived as 60: 4 hops", dscp, "! ECN ECT(0) arrived as CE: marked as congested"}},
		{"ECN set otherwise", mark(60, 46<<2|1, true), of(t), []string{"TTL 64 arrived as 60: 4 hops", dscp, "! ECN ECT(0) arrived as ECT(1): rewritten"}},
		{"the system does not tell", mark(0, 0, true), of(t), nil},
		{"answers lost", lost, of(t, unanswered), []string{"TTL 64 arrived as 60: 4 hops", dscp, "! ECN ECT(0) arrived as Not-ECT: bleached"}},
		{"lost", lost, of(t), []string{"! DSCP 46 arrived as nothing: marked datagrams are lost, others are not"}},
		{"lost, without a ledger", lost, nil, nil},
		{"lost, of another protocol's path", Observation{Mark: &Mark{TTL: 64, TOS: wire.MarkTOS, Plain: true}}, of(t), nil},
		{"back as sent", back(63, wire.MarkTOS), of(t), []string{"TTL 64 arrived as 63: 1 hop", dscp, ecn, "TTL 64 of the reflector arrived as 63: 1 hop", "DSCP 46 of the reflector arrived as 46", "ECN ECT(0) of the reflector arrived as ECT(0)"}},
		{"changed on the way back", back(128, 3), of(t), []string{"TTL 64 arrived as 63: 1 hop", dscp, ecn,
			"! TTL 64 of the reflector arrived as 128: rewritten", "! DSCP 46 of the reflector arrived as 0", "! ECN ECT(0) of the reflector arrived as CE: marked as congested"}},
		{"this system does not tell", back(0, 0), of(t), []string{"TTL 64 arrived as 63: 1 hop", dscp, ecn}},
		{"not sent", Observation{}, of(t), nil},
	} {
		if diff := cmp.Diff(c.want, passagesOf(t, scenarios.UDP, c.near, c.far)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestMarkedSYNTellsOfItsDSCP(t *testing.T) {
	near := func(answered bool) Observation {
		return Observation{TCP: &wire.TCPSeen{TTL: 64}, Mark: &Mark{TTL: 64, TOS: 46 << 2, Answered: answered}}
	}
	arrived := func(tos uint8) func(*wire.Ledger) {
		return func(l *wire.Ledger) {
			l.Probes = append(l.Probes, wire.ProbeRecord{Probe: 1 + markStage, Events: []wire.Event{
				{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 443), Probe: 1 + markStage, TCP: &wire.TCPSeen{TTL: 63, TOS: tos}}}})
		}
	}
	for _, c := range []struct {
		name string
		near Observation
		far  *wire.Ledger
		want []string
	}{
		{"as sent", near(true), of(t, arrived(46<<2)), []string{"DSCP 46 arrived as 46"}},
		{"cleared", near(true), of(t, arrived(0)), []string{"! DSCP 46 arrived as 0"}},
		{"lost", near(false), of(t), []string{"! DSCP 46 arrived as nothing: marked connections are lost, others are not"}},
		{"lost, without a ledger", near(false), nil, nil},
		{"the reflector does not tell", near(true), of(t), nil},
	} {
		if diff := cmp.Diff(c.want, passagesOf(t, scenarios.TCP, c.near, c.far)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestSYNsOfBothEndsAreCompared(t *testing.T) {
	const own, translated = "10.0.0.2:40000", "198.51.100.1:50000"
	near := func(change func(*wire.TCPSeen)) Observation {
		s := &wire.TCPSeen{TTL: 64, MSS: 1460, Timestamp: 1_000_500, Back: 1460}
		if change != nil {
			change(s)
		}
		return Observation{Routed: true, From: netip.MustParseAddrPort(own), TCP: s}
	}
	far := func(from string, change func(*wire.TCPSeen)) *wire.Ledger {
		s := &wire.TCPSeen{TTL: 63, MSS: 1460, Timestamp: 1_000_000, Back: 1460}
		if change != nil {
			change(s)
		}
		return of(t, arrival("done", "", func(e *wire.Event) { e.TCP, e.Remote = s, netip.MustParseAddrPort(from) }))
	}
	fields := []string{"DSCP 0 arrived as 0", "ECN Not-ECT arrived as Not-ECT", "MSS 1460 arrived as 1460", "MSS 1460 of the reflector arrived as 1460"}
	and := func(first ...string) []string { return append(first, fields...) }
	const hop = "TTL 64 arrived as 63: 1 hop"
	for _, c := range []struct {
		name string
		near Observation
		far  *wire.Ledger
		want []string
	}{
		{"as sent", near(nil), far(own, nil), and(hop)},
		{"translated", near(nil), far(translated, nil), and("source 10.0.0.2 arrived as 198.51.100.1: translated; the SYN itself arrived", hop)},
		{"own port translated", near(nil), far("10.0.0.2:1024", nil), and("source 10.0.0.2:40000 arrived as 10.0.0.2:1024: translated; the SYN itself arrived", hop)},
		{"no timestamps", near(func(s *wire.TCPSeen) { s.Timestamp = 0 }), far(translated, nil),
			and("source 10.0.0.2 arrived as 198.51.100.1: a translator or a proxy in between", hop)},
		{"another SYN from nearby", near(nil), far(translated, func(s *wire.TCPSeen) { s.TTL, s.Timestamp = 64, 77 }),
			and("! connection 10.0.0.2 arrived as 198.51.100.1: a proxy in between made it anew: neither its timestamp nor its TTL are those that were sent")},
		{"another SYN", near(nil), far(translated, func(s *wire.TCPSeen) { s.Timestamp = 3_000_000_000 }),
			and("! connection 10.0.0.2 arrived as 198.51.100.1: a proxy in between made it anew, or a translator rewrites timestamps")},
		{"another timestamp", near(nil), far(own, func(s *wire.TCPSeen) { s.Timestamp = 0 }),
			and("! connection 10.0.0.2 arrived as 10.0.0.2: its timestamp is not the one that was sent: a proxy made it anew, or timestamps are rewritten")},
		{"timestamp taken away", near(func(s *wire.TCPSeen) { s.Timestamp = 500 }), far(own, func(s *wire.TCPSeen) { s.Timestamp = 0 }),
			and("! connection 10.0.0.2 arrived as 10.0.0.2: its timestamp is not the one that was sent: a proxy made it anew, or timestamps are rewritten")},
		{"a clock that wraps", near(func(s *wire.TCPSeen) { s.Timestamp = 100 }), far(own, func(s *wire.TCPSeen) { s.Timestamp = 1<<32 - 100 }), and(hop)},
		{"clamped", near(func(s *wire.TCPSeen) { s.Back = 1300 }), far(own, func(s *wire.TCPSeen) { s.MSS = 1360 }),
			append([]string{hop}, fields[0], fields[1], "! MSS 1460 arrived as 1360", "! MSS 1460 of the reflector arrived as 1300")},
		{"own link is the narrowest", near(func(s *wire.TCPSeen) { s.AtLeast = true }), far(own, func(s *wire.TCPSeen) { s.Back = 8960 }), append([]string{hop}, fields[:3]...)},
		{"marked", near(nil), far(own, func(s *wire.TCPSeen) { s.TOS = 10 << 2 }), append([]string{hop}, "! DSCP 0 arrived as 10", fields[1], fields[2], fields[3])},
		{"the reflector does not tell", near(nil), of(t, arrival("done", "", nil)), nil},
	} {
		if diff := cmp.Diff(c.want, passagesOf(t, scenarios.TCP, c.near, c.far)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// SYNs of other connections at the same port say nothing about the probe's.
func TestSYNsOfStrangersAreNotCompared(t *testing.T) {
	o := Observation{From: netip.MustParseAddrPort("10.0.0.2:40000"), TCP: &wire.TCPSeen{TTL: 64, MSS: 1460, Timestamp: 5}}
	far := of(t, arrival("done", "", nil), func(l *wire.Ledger) {
		l.Strays = []wire.Event{{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 443), TCP: &wire.TCPSeen{TTL: 99, MSS: 1, Timestamp: 1 << 30}}}
	})
	if diff := cmp.Diff([]string(nil), passagesOf(t, scenarios.TCP, o, far)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
