package report

import (
	"net/netip"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/scenarios"
)

// sampleComparison is the sample before and after changes of every kind.
func sampleComparison() expect.Comparison {
	old, new := sample(), sample()
	old.Firewall.Name, new.Firewall.Name = "monday", "tuesday"
	shut := func(r *client.Result, i int, v client.Verdict, why string) {
		f := &r.Findings[i]
		f.Verdict, f.Why, f.Parts = v, why, nil
	}
	rule := func(file string, line int, text string) []client.Decision {
		return []client.Decision{{Rule: client.Rule{Chain: "forward", Index: 3, File: file, Line: line, Text: text}}}
	}
	for i := range new.Findings {
		f, was := &new.Findings[i], &old.Findings[i]
		switch f.Path {
		case "CRD-A1":
			shut(new, i, client.Rejected, "icmp admin-prohibited from 10.77.1.1")
			f.DecidedBy = rule("tuesday.nft", 17, "tcp dport 443 reject with icmp type admin-prohibited")
			was.DecidedBy = rule("monday.nft", 9, "tcp dport { 80, 443 } accept")
		case "CRD-B11":
			f.Parts = []client.Part{
				{Ports: set("32768-39999"), Verdict: client.Open},
				{Ports: set("40000-65535"), Verdict: client.RequestLost, Why: "the reflector saw nothing", DecidedBy: rule("tuesday.nft", 18, "udp dport 40000-65535 drop")},
			}
		case "CRD-B5":
			shut(old, i, client.Rejected, "tcp reset that the reflector never sent")
			shut(new, i, client.Rejected, "icmp admin-prohibited from 10.77.1.1")
			was.Evidence.Near = []client.Observation{{Ports: was.Ports, Fault: "refused"}}
			f.Evidence.Near = []client.Observation{{Ports: f.Ports, Fault: "icmp", ICMP: &client.ICMP{Name: "icmp admin-prohibited"}}}
		case "CRD-B8":
			shut(new, i, client.Open, "")
			f.Need = scenarios.Negative
		case "CRD-A2":
			shut(new, i, client.Silent, "nothing came back, and the reflector's ledger could not be had")
		}
	}
	new.Outcomes[1].Works, new.Outcomes[1].Via = true, "over TCP 443 alone"
	new.Outcomes[0].Works, new.Outcomes[0].Via, new.Outcomes[0].Why = false, "", "HTTPS: CRD-A1 rejected"
	new.Reflector = netip.MustParseAddr("198.51.100.11")
	c, err := expect.Compare([]*client.Result{old}, []*client.Result{new}, expect.Options{})
	if err != nil {
		panic(err)
	}
	return c
}

// unchanged compares a result with itself.
func unchanged() expect.Comparison {
	r := []*client.Result{sample()}
	c, err := expect.Compare(r, r, expect.Options{})
	if err != nil {
		panic(err)
	}
	return c
}

// expected is the sample held against what somebody demands of it.
func expected() *client.Result {
	f, err := expect.Parse("office.yaml", []byte(`schema: wallprobe/expect/1
runs:
- scenario: chrome-remote-desktop
  version: 1
  role: host
  others: as-scenario
  paths:
  - {path: CRD-A1, verdicts: [open]}
  - {path: CRD-A3, verdicts: [rejected]}
  - {path: CRD-B11, verdicts: [open]}
  - {path: CRD-B11c, ports: 40001-50000, verdicts: [request-lost, rejected]}
  - {path: GT-T1, verdicts: [altered, cut]}
  - {path: CWA-9, verdicts: [request-lost]}
  outcomes:
  - {outcome: session-outside, works: true, way: 1}
  - {outcome: session-lan, works: true}
`))
	if err != nil {
		panic(err)
	}
	r := sample()
	r.Expectations = f.Check(r)
	return r
}
