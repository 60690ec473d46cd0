package report

import (
	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Rules as decisions, by line, by place in a chain, and policies.
var (
	webRule   = client.Decision{Rule: client.Rule{Chain: "forward", Index: 2, File: "rules/office.nft", Line: 6, Text: "tcp dport { 80, 443 } accept", Verdict: "accept"}}
	stateRule = client.Decision{Back: true, Rule: client.Rule{Chain: "forward", Index: 1, File: "rules/office.nft", Line: 5, Text: "ct state established accept", Verdict: "accept"}}
	dropRule  = client.Decision{Rule: client.Rule{Chain: "lan", Index: 7, Text: "udp dport 40001-65535 drop", Verdict: "drop"}}
	rejection = client.Decision{Rule: client.Rule{Chain: "forward", Index: 4, File: "rules/new.nft", Line: 17, Text: "tcp dport 5222 reject", Verdict: "reject"}}
	closing   = client.Decision{Rule: client.Rule{Chain: "forward", File: "rules/new.nft", Line: 3, Text: "policy drop", Verdict: "drop"}}
	noAnswers = client.Decision{Back: true, Rule: client.Rule{Chain: "forward", File: "rules/new.nft", Line: 3, Text: "policy drop", Verdict: "drop"}}
)

func finding(t scenarios.Transport, path, title, ports string, v client.Verdict, why string) client.Finding {
	return client.Finding{Path: path, Title: title, Direction: scenarios.Out, Transport: t, Ports: set(ports), Verdict: v, Why: why}
}

// decidedResult has a rule for everything.
func decidedResult() *client.Result {
	r := sample()
	r.Firewall = &client.Firewall{Name: "new.nft"}
	open := finding(scenarios.TCP, "CRD-A1", "sign-in and session, HTTPS", "443", client.Open, "TLS 1.3, certificate as sent")
	open.DecidedBy = []client.Decision{webRule, stateRule}
	reject := finding(scenarios.TCP, "CRD-B5", "host signalling, XMPP", "5222", client.Rejected, "icmp admin-prohibited from 10.77.1.1")
	reject.DecidedBy = []client.Decision{rejection}
	lost := finding(scenarios.TCP, "CRD-A2", "first contact, HTTP", "80", client.ReplyLost, "the reflector saw it and answered; the answer did not arrive")
	lost.DecidedBy = []client.Decision{noAnswers}
	part := finding(scenarios.UDP, "CRD-B1", "any UDP out", "1-65535", client.Partial, "")
	some := client.Decision{Ports: set("50000-65535"), Rule: closing.Rule}
	most := client.Decision{Ports: set("40001-49999"), Rule: dropRule.Rule}
	part.Parts = []client.Part{
		{Ports: set("1-40000"), Verdict: client.Open, Attempts: tries(40000, 40000, 40000), DecidedBy: []client.Decision{webRule}},
		{Ports: set("40001-65535"), Verdict: client.RequestLost, Attempts: tries(25535, 0, 0), DecidedBy: []client.Decision{most, some}},
	}
	again := finding(scenarios.TCP, "CRD-X2", "TURN over TCP", "3478", client.Open, "")
	again.Round = 1
	mystery := finding(scenarios.TCP, "CRD-B3", "HTTPS", "443", client.Cut, "stage tls: nothing more came")
	mystery.Unexplained, mystery.Round = true, 2
	loss := finding(scenarios.UDP, "CRD-B10", "session data, port policy", "12400-12409", client.Partial, "")
	loss.Parts = []client.Part{
		{Ports: set("12400"), Verdict: client.Degraded, Attempts: tries(20, 10, 10), Why: "50 % of 20 datagrams lost; at most 20 % are allowed", DecidedBy: []client.Decision{dropRule}},
		{Ports: set("12401"), Verdict: client.Degraded, Attempts: tries(20, 12, 12), Why: "40 % of 20 datagrams lost; at most 20 % are allowed", DecidedBy: []client.Decision{webRule}},
		{Ports: set("12402-12409"), Verdict: client.RequestLost, Attempts: tries(24, 0, 0), Unexplained: true},
	}
	r.Findings, r.Outcomes = []client.Finding{open, reject, lost, part, again, mystery, loss}, nil
	return r
}

// decidedComparison has rules on both sides: several changes by the same ones,
// answers that a rule stops, and a rule that decides for some of the ports.
func decidedComparison() expect.Comparison {
	c := sampleComparison()
	change := func(path, ports string, old, new client.Verdict, a, b []client.Decision) expect.Change {
		return expect.Change{Kind: expect.Broke, Path: path, Title: "path " + path, Need: scenarios.Required, Required: true,
			Transport: scenarios.UDP, Ports: set(ports), Old: expect.State{Verdict: old, DecidedBy: a}, New: expect.State{Verdict: new, DecidedBy: b}}
	}
	passed := []client.Decision{webRule, stateRule}
	c.Pairs[0].Outcomes, c.Pairs = nil, c.Pairs[:1]
	c.Pairs[0].Changes = []expect.Change{
		change("A", "1-9", client.Open, client.RequestLost, passed, []client.Decision{closing}),
		change("B", "5", client.Open, client.ReplyLost, passed, []client.Decision{noAnswers}),
		change("C", "7-8", client.Open, client.RequestLost, passed, []client.Decision{closing}),
		change("D", "1-9", client.Open, client.RequestLost, passed, []client.Decision{{Ports: set("1-4"), Rule: closing.Rule}, {Ports: set("5-9"), Rule: dropRule.Rule}, {Ports: set("30"), Rule: rejection.Rule}}),
	}
	return c
}
