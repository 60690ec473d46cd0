package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

var farAddr = netip.MustParseAddr("198.51.100.10")

func portSet(t testing.TB, s string) scenarios.PortSet {
	t.Helper()
	set, err := scenarios.ParsePortSet(s)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Each finding that crosses the firewall is asked about at its ends and beside
// what the rules name, by the flow that it tried.
func TestQuestionsFollowWhatWasTried(t *testing.T) {
	near := func(o client.Observation) client.Evidence {
		o.Addr = farAddr
		return client.Evidence{Near: []client.Observation{o}}
	}
	wide := portSet(t, "1-65535")
	r := &client.Result{Findings: []client.Finding{
		{Path: "whole", Direction: scenarios.Out, Transport: scenarios.TCP, Verdict: client.Open, Ports: portSet(t, "443"), Evidence: near(client.Observation{Ports: portSet(t, "443")})},
		{Path: "parts", Direction: scenarios.P2P, Transport: scenarios.UDP, Verdict: client.Partial, Ports: wide, Evidence: near(client.Observation{Ports: wide}),
			Parts: []client.Part{{Ports: portSet(t, "1-40000"), Verdict: client.Open}, {Ports: portSet(t, "40001-65535"), Verdict: client.RequestLost}}},
		{Path: "own", Direction: scenarios.Out, Transport: scenarios.UDP, Verdict: client.RequestLost, Ports: portSet(t, "3478"), LocalPorts: portSet(t, "60000-60009"),
			Evidence: near(client.Observation{Ports: portSet(t, "60000-60009"), ByLocal: true, Aimed: 3478})},
		{Path: "inward", Direction: scenarios.In, Transport: scenarios.TCP, Verdict: client.RequestLost, Ports: portSet(t, "8040"),
			Evidence: near(client.Observation{Ports: portSet(t, "8040"), Inward: true, Local: netip.MustParseAddr("198.51.100.1")})},
		{Path: "lan", Direction: scenarios.LAN, Transport: scenarios.TCP, Verdict: client.Open, Ports: portSet(t, "70"), Evidence: near(client.Observation{Ports: portSet(t, "70")})},
		{Path: "not asked for", Direction: scenarios.Out, Transport: scenarios.TCP, Verdict: client.Degraded, Ports: portSet(t, "443"), Evidence: near(client.Observation{Ports: portSet(t, "443")})},
		{Path: "unmeasured", Direction: scenarios.Out, Transport: scenarios.TCP, Verdict: client.Unmeasured, Ports: portSet(t, "443")},
	}}
	var got []string
	for _, q := range questions([]*client.Result{r}, []uint16{39999, 40000, 40001}, func(v client.Verdict) bool { return v != client.Degraded }) {
		said := []string{string(q.verdict)}
		for _, a := range q.asked {
			said = append(said, fmt.Sprintf("%d:%s/%s own %d inward %v", a.port, a.flow.to, a.flow.transport, a.flow.own, a.flow.inward))
		}
		got = append(got, strings.Join(said, "; "))
	}
	want := []string{
		"open; 443:198.51.100.10:443/tcp own 0 inward false",
		"open; 1:198.51.100.10:1/udp own 0 inward false; 39999:198.51.100.10:39999/udp own 0 inward false; 40000:198.51.100.10:40000/udp own 0 inward false",
		"request-lost; 40001:198.51.100.10:40001/udp own 0 inward false; 65535:198.51.100.10:65535/udp own 0 inward false",
		"request-lost; 60000:198.51.100.10:3478/udp own 60000 inward false; 60009:198.51.100.10:3478/udp own 60009 inward false",
		"request-lost; 8040:198.51.100.1:8040/tcp own 0 inward true",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What the traced packets met is told where it is what the client met, and of
// no more ports than it is known of.
func TestDecisionsAreToldAsFarAsTheyAreKnown(t *testing.T) {
	chain := chainID{"inet", "t", "c"}
	dropped := func(n uint64) *fate {
		return &fate{request: course{begun: true, dropped: ruleRef{chain, n}}}
	}
	passed := func(n, back uint64) *fate {
		return &fate{request: course{begun: true, let: ruleRef{chain, n}}, reply: course{begun: true, let: ruleRef{chain, back}}}
	}
	translated := func(n, to, back uint64) *fate {
		f := passed(n, back)
		f.request.translated = ruleRef{chain, to}
		return f
	}
	unanswered := func(n, back uint64) *fate {
		f := passed(n, 0)
		f.reply = course{begun: true, dropped: ruleRef{chain, back}}
		return f
	}
	rules := map[ruleRef]client.Rule{}
	for n := range uint64(9) {
		rules[ruleRef{chain, n}] = client.Rule{Chain: "c", Index: int(n)}
	}
	for _, x := range []struct {
		name    string
		verdict client.Verdict
		ports   string
		fates   map[uint16]*fate
		sampled bool
		want    string
	}{
		{"one port", client.RequestLost, "443", map[uint16]*fate{443: dropped(3)}, false, "3"},
		{"one rule for a range", client.RequestLost, "1-9", map[uint16]*fate{1: dropped(3), 9: dropped(3)}, false, "3"},
		{"two rules", client.RequestLost, "1-9", map[uint16]*fate{1: dropped(3), 4: dropped(3), 5: dropped(2), 9: dropped(2)}, false, "3 for 1-4, 2 for 5-9"},
		{"a rule within another's", client.Rejected, "1-9", map[uint16]*fate{1: dropped(3), 4: dropped(3), 5: dropped(2), 6: dropped(3), 9: dropped(3)}, false, "3 for 1-4,6-9, 2 for 5"},
		{"with a gap between", client.RequestLost, "1-3,7-9", map[uint16]*fate{1: dropped(3), 3: dropped(3), 7: dropped(3), 9: dropped(3)}, false, "3"},
		{"an end that went another way", client.RequestLost, "1-9", map[uint16]*fate{1: dropped(3), 5: dropped(3), 9: passed(1, 2)}, false, "3 for 1-5"},
		{"a middle that went another way", client.RequestLost, "1-9", map[uint16]*fate{1: dropped(3), 5: passed(1, 2), 9: dropped(3)}, false, "3 for 1,9"},
		{"nothing traced", client.RequestLost, "443", map[uint16]*fate{443: {}}, false, ""},
		{"lost, and traced through", client.RequestLost, "443", map[uint16]*fate{443: passed(1, 2)}, false, ""},
		{"open, and traced to a drop", client.Open, "443", map[uint16]*fate{443: dropped(3)}, false, ""},
		{"open, and its answers traced to a drop", client.Open, "443", map[uint16]*fate{443: unanswered(1, 2)}, false, ""},
		{"open", client.Open, "443", map[uint16]*fate{443: passed(1, 2)}, false, "1, answers 2"},
		{"open, translated", client.Open, "1-2", map[uint16]*fate{1: translated(1, 4, 2), 2: translated(1, 4, 2)}, false, "1, 4, answers 2"},
		{"answers lost", client.ReplyLost, "443", map[uint16]*fate{443: unanswered(1, 2)}, false, "answers 2"},
		{"answers lost, requests dropped", client.ReplyLost, "443", map[uint16]*fate{443: dropped(3)}, false, ""},
		{"cut, and nothing dropped", client.Cut, "443", map[uint16]*fate{443: passed(1, 2)}, false, ""},
		{"cut", client.Cut, "443", map[uint16]*fate{443: {request: course{begun: true}, late: course{begun: true, dropped: ruleRef{chain, 5}}, lateBack: true}}, false, "answers 5"},
		{"altered", client.Altered, "443", map[uint16]*fate{443: passed(1, 2)}, false, ""},
		{"some of many, alike", client.RequestLost, "1-9", map[uint16]*fate{1: dropped(3), 5: dropped(3)}, true, "3 for 1,5"},
		{"some of many, not alike", client.RequestLost, "1-9", map[uint16]*fate{1: dropped(3), 5: dropped(2)}, true, "3 for 1, 2 for 5"},
	} {
		t.Run(x.name, func(t *testing.T) {
			var answer []client.Decision
			q := question{verdict: x.verdict, ports: portSet(t, x.ports), sampled: x.sampled, answer: &answer}
			fates := map[flow]*fate{}
			for port := range q.ports.All {
				if f := x.fates[port]; f != nil {
					fl := flow{to: netip.AddrPortFrom(farAddr, port)}
					fates[fl] = f
					q.asked = append(q.asked, asked{port, fl})
				}
			}
			q.decide(fates, rules)
			var said []string
			for _, d := range answer {
				text := fmt.Sprint(d.Index)
				if d.Back {
					text = "answers " + text
				}
				if len(d.Ports) > 0 {
					text += " for " + d.Ports.String()
				}
				said = append(said, text)
			}
			if got := strings.Join(said, ", "); got != x.want {
				t.Errorf("got %q, want %q", got, x.want)
			}
		})
	}
}
