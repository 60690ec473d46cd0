package client

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// seenFar is a ledger of a reflector that serves the port 443 over both.
func seenFar(t testing.TB, change func(*wire.Ledger)) *wire.Ledger {
	l := &wire.Ledger{Witness: "packet", TCP: ports(t, "443"), UDP: ports(t, "443")}
	if change != nil {
		change(l)
	}
	return l
}

func counted(t testing.TB, probe uint32, set string, seen, answered int) func(*wire.Ledger) {
	return func(l *wire.Ledger) {
		l.Probes = append(l.Probes, wire.ProbeRecord{Probe: probe, Counts: []wire.Count{{Ports: ports(t, set), Seen: seen, Answered: answered}}})
	}
}

// arrival is an event of the first probe over TCP.
func arrival(stage, fault string, change func(*wire.Event)) func(*wire.Ledger) {
	e := wire.Event{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 443), Probe: 1, Stage: stage, Fault: fault, Answered: true}
	if change != nil {
		change(&e)
	}
	return func(l *wire.Ledger) { l.Probes = append(l.Probes, wire.ProbeRecord{Probe: 1, Events: []wire.Event{e}}) }
}

func sawSYN(t testing.TB) func(*wire.Ledger) {
	return func(l *wire.Ledger) { l.SYNs = []wire.Caught{{Ports: ports(t, "443"), N: 1}} }
}

func of(t testing.TB, changes ...func(*wire.Ledger)) *wire.Ledger {
	return seenFar(t, func(l *wire.Ledger) {
		for _, c := range changes {
			c(l)
		}
	})
}

type evidenceRow struct {
	name string
	tr   scenarios.Transport
	near Observation
	far  *wire.Ledger // nil: could not be had
	want Verdict
}

// evidence has at least one row for each verdict.
func evidence(t testing.TB) []evidenceRow {
	const tcp, udp = scenarios.TCP, scenarios.UDP
	router := netip.MustParseAddr("10.77.1.1")
	foreign := hex.EncodeToString([]byte("HTTP/1.1 302 Found"))
	prohibited := func(from netip.Addr) *ICMP { return &ICMP{3, 13, from, "icmp admin-prohibited"} }
	refusing := seenFar(t, func(l *wire.Ledger) { l.TCP, l.UDP = nil, nil })
	servedAs := func(cert string) func(*wire.Ledger) {
		return arrival("done", "", func(e *wire.Event) { e.TLS = &wire.TLSSeen{ServerName: "a.example", Certificate: cert} })
	}
	gotAs := &wire.TLSSeen{ServerName: "a.example", Version: "TLS 1.3", Certificate: "aa"}
	inward := func(arrived, answered int, fault string) Observation {
		return Observation{Inward: true, Sent: 3, Arrived: arrived, Answered: answered, Fault: fault}
	}
	called := func(stage, fault string, syns int, blind string) Observation {
		return Observation{Inward: true, Sent: 3, Stage: stage, Fault: fault, SYNs: syns, Blind: blind}
	}
	return []evidenceRow{
		{"datagrams answered", udp, Observation{Sent: 3, Answered: 3, Stage: "done"}, of(t, counted(t, 1, "443", 3, 3)), Open},
		{"one datagram of three lost", udp, Observation{Sent: 20, Answered: 19, Stage: "done"}, of(t, counted(t, 1, "443", 19, 19)), Open},
		{"half of the datagrams lost", udp, Observation{Sent: 20, Answered: 10, Stage: "done"}, of(t, counted(t, 1, "443", 14, 14)), Degraded},
		{"open, without a ledger", tcp, Observation{Sent: 1, Answered: 1, Stage: "done"}, nil, Open},
		{"certificate as sent", tcp, Observation{Sent: 1, Answered: 1, Stage: "done", TLS: gotAs}, of(t, servedAs("aa")), Open},
		{"another certificate", tcp, Observation{Sent: 1, Answered: 1, Stage: "done", TLS: gotAs}, of(t, servedAs("bb")), Altered},
		{"datagrams nobody saw", udp, Observation{Sent: 3, Stage: "token", Fault: "timeout"}, of(t), RequestLost},
		{"datagrams that were answered", udp, Observation{Sent: 3, Stage: "token", Fault: "timeout"}, of(t, counted(t, 1, "443", 3, 3)), ReplyLost},
		{"silence without a ledger, udp", udp, Observation{Sent: 3, Stage: "token", Fault: "timeout"}, nil, Silent},
		{"strays and a ledger that saw nothing", udp, Observation{Sent: 3, Strays: 3, Stage: "token", Fault: "timeout"}, of(t), RequestLost},
		{"strays and a ledger that saw it", udp, Observation{Sent: 3, Strays: 3, Stage: "token", Fault: "timeout"}, of(t, counted(t, 1, "443", 3, 3)), ReplyLost},
		{"strays without a ledger", udp, Observation{Sent: 3, Strays: 3, Stage: "token", Fault: "timeout"}, nil, Silent},
		{"silence without a ledger, tcp", tcp, Observation{Sent: 3, Stage: "connect", Fault: "timeout"}, nil, Silent},
		{"SYN nobody saw", tcp, Observation{Sent: 3, Stage: "connect", Fault: "timeout"}, of(t), RequestLost},
		{"SYN that was answered", tcp, Observation{Sent: 3, Stage: "connect", Fault: "timeout"}, of(t, sawSYN(t)), ReplyLost},
		{"SYN where nobody can see one", tcp, Observation{Sent: 3, Stage: "connect", Fault: "timeout"}, seenFar(t, func(l *wire.Ledger) { l.Witness = "" }), Silent},
		{"silence at a port not served", tcp, Observation{Sent: 3, Stage: "connect", Fault: "timeout"}, refusing, Unmeasured},
		{"reset at a port not served", tcp, Observation{Sent: 1, Stage: "connect", Fault: "refused"}, refusing, Refused},
		{"reset at a port served", tcp, Observation{Sent: 1, Stage: "connect", Fault: "refused"}, of(t), Rejected},
		{"reset without a ledger", tcp, Observation{Sent: 1, Stage: "connect", Fault: "refused"}, nil, Unmeasured},
		{"ICMP of a router", udp, Observation{Sent: 3, Stage: "token", Fault: "icmp", ICMP: prohibited(router)}, of(t), Rejected},
		{"ICMP of a router, without a ledger", udp, Observation{Sent: 3, Stage: "token", Fault: "icmp", ICMP: prohibited(router)}, nil, Rejected},
		{"ICMP in the reflector's name", udp, Observation{Sent: 3, Stage: "token", Fault: "icmp", ICMP: prohibited(farAddr)}, of(t), Rejected},
		{"ICMP of the reflector's host", udp, Observation{Sent: 3, Stage: "token", Fault: "icmp", ICMP: &ICMP{3, 3, farAddr, "icmp port-unreachable"}}, refusing, Refused},
		{"ICMP of who knows whom", udp, Observation{Sent: 3, Stage: "token", Fault: "icmp", ICMP: prohibited(farAddr)}, nil, Unmeasured},
		{"no route", udp, Observation{Sent: 0, Stage: "token", Fault: "unroutable"}, of(t), Unmeasured},
		{"an error nobody classified", tcp, Observation{Sent: 1, Stage: "connect", Fault: "other", Detail: "something new"}, of(t), Unmeasured},
		{"an error of this machine", udp, Observation{Sent: 0, Stage: "token", Fault: "other", Detail: "no buffers"}, of(t), Unmeasured},
		{"large datagrams vanish", udp, Observation{Sent: 3, Answered: 3, Stage: "data", Fault: "timeout", Up: 1200, Down: 84}, of(t, counted(t, 1, "443", 3, 3)), Cut},
		{"silence breaks a flow", udp, Observation{Sent: 3, Answered: 3, Stage: "idle", Fault: "timeout", Seconds: 50}, of(t, counted(t, 1, "443", 3, 3)), Cut},
		{"cut after some bytes", tcp, Observation{Sent: 1, Stage: "data", Fault: "timeout", Down: 4096}, of(t, sawSYN(t), arrival("data", "timeout", nil)), Cut},
		{"reset in the middle", tcp, Observation{Sent: 1, Stage: "data", Fault: "reset"}, of(t, sawSYN(t), arrival("data", "eof", nil)), Cut},
		{"cut, without a ledger", tcp, Observation{Sent: 1, Stage: "data", Fault: "eof", Down: 7}, nil, Cut},
		{"came up, then nothing, without a ledger", tcp, Observation{Sent: 1, Stage: "token", Fault: "timeout"}, nil, Silent},
		{"changed on the way back", tcp, Observation{Sent: 1, Stage: "data", Fault: "altered", Down: 7}, of(t, sawSYN(t), arrival("data", "eof", nil)), Altered},
		{"changed on the way out", tcp, Observation{Sent: 1, Stage: "data", Fault: "eof"}, of(t, sawSYN(t), arrival("data", "altered", func(e *wire.Event) { e.BytesIn = 7 })), Altered},
		{"foreign answer, reflector saw nothing", tcp, Observation{Sent: 1, Stage: "token", Fault: "foreign", Sample: foreign}, of(t), Impostor},
		{"foreign answer, without a ledger", tcp, Observation{Sent: 1, Stage: "token", Fault: "foreign", Sample: foreign}, nil, Impostor},
		{"foreign answer to what arrived", tcp, Observation{Sent: 1, Stage: "token", Fault: "foreign", Sample: foreign}, of(t, sawSYN(t), arrival("done", "", nil)), Altered},
		{"foreign datagram, reflector saw nothing", udp, Observation{Sent: 3, Invalid: 3, Stage: "token", Sample: foreign}, of(t), Impostor},
		{"foreign datagram to what arrived", udp, Observation{Sent: 3, Invalid: 3, Stage: "token", Sample: foreign}, of(t, counted(t, 1, "443", 3, 3)), Altered},
		{"call answered", tcp, inward(1, 3, ""), of(t), Open},
		{"call lost", tcp, inward(0, 0, "timeout"), of(t), RequestLost},
		{"call arrived, answer lost", tcp, inward(1, 0, "timeout"), of(t), ReplyLost},
		{"call refused on the way", tcp, inward(0, 0, "refused"), of(t), Rejected},
		{"call answered by somebody else", tcp, inward(0, 0, "foreign"), of(t), Impostor},
		{"call whose SYN arrived", tcp, called("connect", "timeout", 3, ""), of(t), ReplyLost},
		{"call whose SYN arrived and met a reset", tcp, called("connect", "refused", 1, ""), of(t), Rejected},
		{"call that may have arrived unseen", tcp, called("connect", "timeout", 0, "nobody looked"), of(t), Silent},
		{"call that came up and said nothing", tcp, called("token", "timeout", 1, ""), of(t), Cut},
		{"call that came up, and perhaps here", tcp, called("token", "reset", 0, "nobody looked"), of(t), Cut},
		{"call that came up elsewhere", tcp, called("token", "timeout", 0, ""), of(t), Impostor},
		{"datagram that did not arrive", udp, called("connect", "timeout", 0, ""), of(t), RequestLost},
		{"call not made", tcp, Observation{Inward: true, Detail: "this end cannot listen"}, of(t), Unmeasured},
	}
}

func judged(t testing.TB, tr scenarios.Transport, near []Observation, far *wire.Ledger) Finding {
	f := []Finding{{Path: "A", Direction: scenarios.Out, Transport: tr, Ports: near[0].Ports, Evidence: Evidence{Near: near}}}
	ledgers := map[Where]*wire.Ledger{}
	if far != nil {
		ledgers[WhereFar] = far
	}
	Judge(f, ledgers, Control{})
	return f[0]
}

func TestVerdictFollowsFromBothEndsEvidence(t *testing.T) {
	met := map[Verdict]bool{Partial: true} // of several ports: TestRangeIsToldExactly
	for _, row := range evidence(t) {
		row.near.Probe, row.near.Addr, row.near.Target, row.near.Ports = 1, farAddr, farAddr.String(), ports(t, "443")
		got := judged(t, row.tr, []Observation{row.near}, row.far)
		if diff := cmp.Diff(row.want, got.Verdict); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", row.name, got.Why, diff)
		}
		if got.Verdict != Open && got.Why == "" {
			t.Errorf("%s: %s without a proof in words", row.name, got.Verdict)
		}
		if len(got.Parts) > 0 || got.Share != nil {
			t.Errorf("%s: one port has parts: %+v", row.name, got.Parts)
		}
		met[got.Verdict] = true
	}
	for _, v := range Verdicts {
		if !met[v] {
			t.Errorf("no evidence leads to %s", v)
		}
	}
	if len(met) != len(Verdicts) {
		t.Errorf("%d verdicts were given, the list has %d", len(met), len(Verdicts))
	}
}

// Whatever was met here, if the far end's ledger is missing and nothing came
// back, nothing may be called blocked.
func TestSilenceWithoutALedgerIsNeverBlocked(t *testing.T) {
	blocked := []Verdict{RequestLost, ReplyLost, Refused, Rejected, Impostor, Altered}
	for _, tr := range []scenarios.Transport{scenarios.TCP, scenarios.UDP} {
		for _, stage := range []string{protocol.StageConnect, protocol.StageTLS, protocol.StageToken} {
			o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 3, Stage: stage, Fault: protocol.FaultTimeout}
			if got := judged(t, tr, []Observation{o}, nil); slices.Contains(blocked, got.Verdict) || got.Verdict != Silent {
				t.Errorf("%s, stage %s: %s, %s", tr, stage, got.Verdict, got.Why)
			}
		}
	}
}

func TestRangeIsToldExactly(t *testing.T) {
	near := func(set string, answered int) Observation {
		o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, set), Sent: 3 - 2*answered, Answered: answered, Stage: "done"}
		if answered == 0 {
			o.Stage, o.Fault = "token", "timeout"
		}
		return o
	}
	far := seenFar(t, func(l *wire.Ledger) {
		l.UDP = ports(t, "40000-40999")
		counted(t, 1, "40000-40099", 1, 1)(l)
		l.Probes[0].Counts = append(l.Probes[0].Counts, wire.Count{Ports: ports(t, "40500-40599"), Seen: 3, Answered: 3})
	})
	got := judged(t, scenarios.UDP, []Observation{near("40000-40099", 1), near("40100-40999", 0)}, far)
	if diff := cmp.Diff("open 40000-40099, request-lost 40100-40499,40600-40999, reply-lost 40500-40599", got.Sentence()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Verdict != Partial || got.Share == nil || *got.Share != 0.1 {
		t.Errorf("%s, share %v", got.Verdict, got.Share)
	}
	if diff := cmp.Diff(&Attempts{Sent: 2800, Seen: 400, Answered: 100}, got.Attempts); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
}

func TestPortsThatWereNotTriedFareLikeTheOneBefore(t *testing.T) {
	tried := func(set, probed string, answered int) Observation {
		o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, set), Probed: ports(t, probed), Sent: 3 - 2*answered, Answered: answered, Stage: "done"}
		if answered == 0 {
			o.Stage, o.Fault = "token", "timeout"
		}
		return o
	}
	far := seenFar(t, func(l *wire.Ledger) { l.UDP = ports(t, "40000-40999"); counted(t, 1, "40000,40050,40099", 1, 1)(l) })
	got := judged(t, scenarios.UDP, []Observation{tried("40000-40099", "40000,40050,40099", 1), tried("40100-40999", "40100,40500,40999", 0)}, far)
	if diff := cmp.Diff("open 40000-40099, request-lost 40100-40999", got.Sentence()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&Attempts{Sent: 3 + 9, Seen: 3, Answered: 3}, got.Attempts); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
}

func TestFindingWithoutEvidenceKeepsThePlannersReason(t *testing.T) {
	f := []Finding{{Path: "A", Why: "needs a second machine", Verdict: Unmeasured}}
	Judge(f, nil, Control{})
	if diff := cmp.Diff([]Finding{{Path: "A", Why: "needs a second machine", Verdict: Unmeasured}}, f, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestJudgingAgainWithALedgerReplacesSilence(t *testing.T) {
	o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 3, Stage: "connect", Fault: "timeout"}
	f := []Finding{{Path: "A", Direction: scenarios.Out, Transport: scenarios.TCP, Evidence: Evidence{Near: []Observation{o}}}}
	var got []Verdict
	for _, l := range []*wire.Ledger{nil, of(t), nil, of(t, sawSYN(t))} {
		Judge(f, map[Where]*wire.Ledger{WhereFar: l}, Control{})
		got = append(got, f[0].Verdict)
	}
	if diff := cmp.Diff([]Verdict{Silent, RequestLost, Silent, ReplyLost}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEachFarEndIsJudgedByItsOwnLedger(t *testing.T) {
	o := Observation{Probe: 1, Addr: lanAddr, Ports: ports(t, "443"), Sent: 3, Stage: "connect", Fault: "timeout"}
	f := []Finding{
		{Path: "A", Direction: scenarios.LAN, Transport: scenarios.TCP, Evidence: Evidence{Near: []Observation{o}}},
		{Path: "B", Direction: scenarios.Loop, Transport: scenarios.TCP, Evidence: Evidence{Near: []Observation{o}}},
		{Path: "C", Direction: scenarios.Out, Transport: scenarios.TCP, Evidence: Evidence{Near: []Observation{o}}},
	}
	Judge(f, map[Where]*wire.Ledger{WhereFar: of(t), WhereLAN: of(t, sawSYN(t))}, Control{})
	if diff := cmp.Diff([]Verdict{ReplyLost, Silent, RequestLost}, []Verdict{f[0].Verdict, f[1].Verdict, f[2].Verdict}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPausesOfBothDirectionsAreTold(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		back, out float64
		want      string
	}{
		{0.9, 0.9, "1 MiB each way at 1 MiB/s"},
		{1.25, 0, "1 MiB each way at 1 MiB/s, once standing still for 1.2 s on the way back"},
		{0, 2, "1 MiB each way at 1 MiB/s, once standing still for 2.0 s on the way out"},
		{1.5, 2, "1 MiB each way at 1 MiB/s, once standing still for 2.0 s on the way out and for 1.5 s on the way back"},
	} {
		far := of(t, arrival("done", "", func(e *wire.Event) { e.BytesIn, e.BytesOut, e.Pause = mib, mib, c.out }))
		near := Observation{Sent: 1, Answered: 1, Stage: "done", Up: mib, Down: mib, Rate: mib, Pause: c.back,
			Probe: 1, Addr: farAddr, Target: farAddr.String(), Ports: ports(t, "443")}
		if f := judged(t, scenarios.TCP, []Observation{near}, far); f.Verdict != Open || f.Why != c.want {
			t.Errorf("%v back, %v out: %s, %q", c.back, c.out, f.Verdict, f.Why)
		}
	}
}
