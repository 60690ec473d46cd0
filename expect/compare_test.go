package expect

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

func set(text string) scenarios.PortSet {
	s, err := scenarios.ParsePortSet(text)
	if err != nil {
		panic(err)
	}
	return s
}

// finding reads "A tcp 80-90 req: open 80-85, request-lost 86-90"; without
// ports behind it a verdict stands for all, "open@x 80" is that of one target.
func finding(text string) client.Finding {
	head, tail, _ := strings.Cut(text, ": ")
	h := strings.Fields(head)
	f := client.Finding{Path: h[0], Title: "path " + h[0], Transport: scenarios.Transport(h[1]), Ports: set(h[2]), Need: scenarios.Need(h[3]), Direction: scenarios.Out, Pick: scenarios.PickAll}
	parts := strings.Split(tail, ", ")
	if len(parts) == 1 && !strings.Contains(tail, " ") {
		f.Verdict = client.Verdict(tail)
		return f
	}
	share := 0.0
	for _, text := range parts {
		verdict, ports, _ := strings.Cut(text, " ")
		v, target, _ := strings.Cut(verdict, "@")
		p := client.Part{Ports: set(ports), Target: target, Verdict: client.Verdict(v)}
		if p.Verdict.Passes() {
			share += float64(p.Ports.Len()) / float64(f.Ports.Len())
		}
		f.Parts = append(f.Parts, p)
	}
	f.Verdict, f.Share = client.Partial, &share
	return f
}

// result is one scenario measured, with these findings.
func result(findings ...string) *client.Result {
	r := &client.Result{Schema: client.ResultSchema, Scenario: "own", Version: 1, Role: "app", Family: "ipv4", Complete: true,
		Reflector: netip.MustParseAddr("198.51.100.10"), Control: client.Control{Via: "443/tcp"}}
	for _, text := range findings {
		r.Findings = append(r.Findings, finding(text))
	}
	return r
}

// told is a comparison's changes in short.
func told(c Comparison) []string {
	var out []string
	for _, p := range c.Pairs {
		for _, x := range p.Changes {
			text := fmt.Sprintf("%s %s %s %s: %s -> %s", x.Kind, x.Path, x.Transport, x.Ports, x.Old.Verdict, x.New.Verdict)
			if len(x.Targets) > 0 {
				text += " at " + strings.Join(x.Targets, ",")
			}
			if x.Required {
				text += " (required)"
			}
			out = append(out, text)
		}
		for _, x := range p.Outcomes {
			out = append(out, fmt.Sprintf("%s %s: %s -> %s", x.Kind, x.ID, x.Old, x.New))
		}
	}
	return out
}

func TestChangesAreToldToTheExactPort(t *testing.T) {
	for name, row := range map[string]struct {
		old, new string
		want     []string
	}{
		"the same":               {"A tcp 80 req: open", "A tcp 80 req: open", nil},
		"a path":                 {"A tcp 80 req: open", "A tcp 80 req: rejected", []string{"broke A tcp 80: open -> rejected (required)"}},
		"a boundary moved":       {"A udp 1-9 req: open 1-5, request-lost 6-9", "A udp 1-9 req: open 1-4, request-lost 5-9", []string{"broke A udp 5: open -> request-lost (required)"}},
		"a hole":                 {"A udp 1-9 req: open", "A udp 1-9 req: open 1-3, request-lost 4-5, open 6-9", []string{"broke A udp 4-5: open -> request-lost (required)"}},
		"two at once":            {"A udp 1-9 opt: open 1-5, rejected 6-9", "A udp 1-9 opt: open 3-7, rejected 1-2, rejected 8-9", []string{"broke A udp 1-2: open -> rejected", "opened A udp 6-7: rejected -> open"}},
		"reset, not silence":     {"A tcp 80 req: request-lost", "A tcp 80 req: rejected", []string{"different A tcp 80: request-lost -> rejected (required)"}},
		"closed as it must be":   {"A tcp 23 neg: open", "A tcp 23 neg: rejected", []string{"better A tcp 23: open -> rejected"}},
		"opened unasked":         {"A tcp 23 neg: rejected", "A tcp 23 neg: open", []string{"opened A tcp 23: rejected -> open"}},
		"silence now":            {"A tcp 80 req: open", "A tcp 80 req: silent", []string{"untold A tcp 80: open -> silent (required)"}},
		"silence before":         {"A tcp 80 req: unmeasured", "A tcp 80 req: rejected", []string{"untold A tcp 80: unmeasured -> rejected (required)"}},
		"never told":             {"A tcp 80 req: unmeasured", "A tcp 80 req: silent", nil},
		"one of two targets":     {"A tcp 80 req: open@x 80, rejected@y 80", "A tcp 80 req: rejected", []string{"broke A tcp 80: open -> rejected at x (required)"}},
		"both targets":           {"A tcp 80 req: open@x 80, open@y 80", "A tcp 80 req: rejected", []string{"broke A tcp 80: open -> rejected (required)"}},
		"ports of one time only": {"A udp 1-9 opt: open 1-5", "A udp 1-9 opt: open 3-9", []string{"untold A udp 1-2: open -> ", "untold A udp 6-9:  -> open"}},
		"another target":         {"A tcp 80 opt: open@x 80, open@y 80", "A tcp 80 opt: open@x 80, open@z 80", []string{"untold A tcp 80: open ->  at y", "untold A tcp 80:  -> open at z"}},
	} {
		c, err := Compare([]*client.Result{result(row.old)}, []*client.Result{result(row.new)}, Options{})
		if diff := cmp.Diff(row.want, told(c)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if c.Same() != (row.want == nil) {
			t.Errorf("%s: the same: %v", name, c.Same())
		}
	}
}

// A required range of which an application needs one port survives the loss of some.
func TestLossOfAFewPortsIsRequiredOnlyWhereThePathDies(t *testing.T) {
	for pick, required := range map[scenarios.Pick]bool{scenarios.PickAll: true, scenarios.PickAny: false} {
		old, new := result("A udp 1-9 req: open"), result("A udp 1-9 req: open 1-4, request-lost 5-9")
		new.Findings[0].Pick = pick
		c, err := Compare([]*client.Result{old}, []*client.Result{new}, Options{})
		if err != nil || len(c.Pairs[0].Changes) != 1 || c.Pairs[0].Changes[0].Required != required || c.Fails() != required || !c.Fails(FailOnWorse) {
			t.Errorf("pick %s: %v, %v", pick, told(c), err)
		}
	}
}

// Times and chance are no changes; figures beyond what is tolerated are.
func TestNoiseIsNoChange(t *testing.T) {
	lossy := func(v client.Verdict, answered int, rtt float64) []*client.Result {
		r := result("A udp 9000 req: " + string(v))
		r.Findings[0].Attempts, r.Findings[0].RTT = &client.Attempts{Sent: 100, Seen: 100, Answered: answered}, rtt
		return []*client.Result{r}
	}
	for name, row := range map[string]struct {
		old, new []*client.Result
		slower   time.Duration
		want     []string
	}{
		"times":                    {lossy(client.Open, 100, 1), lossy(client.Open, 100, 900), 0, nil},
		"times within tolerance":   {lossy(client.Open, 100, 1), lossy(client.Open, 100, 50), 50 * time.Millisecond, nil},
		"times beyond it":          {lossy(client.Open, 100, 1), lossy(client.Open, 100, 52), 50 * time.Millisecond, []string{"worse A udp 9000: open -> open (required)"}},
		"loss around a limit":      {lossy(client.Open, 81, 1), lossy(client.Degraded, 79, 1), 0, nil},
		"loss":                     {lossy(client.Open, 100, 1), lossy(client.Degraded, 60, 1), 0, []string{"worse A udp 9000: open -> degraded (required)"}},
		"loss that went away":      {lossy(client.Degraded, 60, 1), lossy(client.Open, 100, 1), 0, []string{"better A udp 9000: degraded -> open (required)"}},
		"faster is never a change": {lossy(client.Open, 100, 900), lossy(client.Open, 100, 1), 50 * time.Millisecond, nil},
	} {
		c, err := Compare(row.old, row.new, Options{Slower: row.slower})
		if diff := cmp.Diff(row.want, told(c)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func outcomes(won int, unknown bool) []*client.Result {
	r := result("A tcp 80 req: open")
	o := client.Outcome{ID: "call", Title: "call", Unknown: unknown, Ways: []client.Way{{Title: "direct"}, {Title: "relay"}, {Title: "https"}}}
	if won > 0 {
		o.Works, o.Via = true, o.Ways[won-1].Title
	}
	r.Outcomes = []client.Outcome{o}
	return []*client.Result{r}
}

func TestOutcomesThatFareOtherwiseAreTold(t *testing.T) {
	for name, row := range map[string]struct {
		old, new []*client.Result
		want     string
		fails    bool
	}{
		"broke":    {outcomes(1, false), outcomes(0, false), "broke call: works by way 1, direct -> fails", true},
		"mended":   {outcomes(0, false), outcomes(3, false), "opened call: fails -> works by way 3, https", false},
		"a detour": {outcomes(1, false), outcomes(3, false), "worse call: works by way 1, direct -> works by way 3, https", false},
		"shorter":  {outcomes(3, false), outcomes(2, false), "better call: works by way 3, https -> works by way 2, relay", false},
		"unknown":  {outcomes(2, false), outcomes(0, true), "untold call: works by way 2, relay -> unknown", false},
		"the same": {outcomes(2, false), outcomes(2, false), "", false},
	} {
		c, err := Compare(row.old, row.new, Options{})
		if got := strings.Join(told(c), "\n"); err != nil || got != row.want || c.Fails() != row.fails {
			t.Errorf("%s: %q, %v, fails %v", name, got, err, c.Fails())
		}
		if lost := name == "unknown"; lost != (len(c.Doubts()) > 0) {
			t.Errorf("%s: doubts %q", name, c.Doubts())
		}
	}
}

func TestChoicesOfWhatFails(t *testing.T) {
	for kind, want := range map[Kind][]bool{ // broke, worse, opened, change
		Broke:     {false, true, false, true},
		Worse:     {false, true, false, true},
		Opened:    {false, false, true, true},
		Better:    {false, false, false, true},
		Different: {false, false, false, true},
		Untold:    {false, false, false, false},
	} {
		c := Comparison{Pairs: []Pair{{Changes: []Change{{Kind: kind}}}}}
		for i, on := range FailOns {
			if c.Fails(on) != want[i] {
				t.Errorf("%s with %s: %v", kind, on, c.Fails(on))
			}
		}
	}
}

func behind(firewall, finding string) *client.Result {
	r := result(finding)
	r.Firewall = &client.Firewall{Name: firewall}
	return r
}

func TestResultsArePairedByFirewallWhereThereAreSeveral(t *testing.T) {
	open, shut := "A tcp 80 req: open", "A tcp 80 req: rejected"
	old := []*client.Result{behind("a", open), behind("b", shut), behind("gone", open)}
	new := []*client.Result{behind("b", shut), behind("a", open)}
	c, err := Compare(old, new, Options{})
	if err != nil || !c.Same() || len(c.Pairs) != 2 || len(c.OldOnly) != 1 || c.OldOnly[0].Firewall != "gone" || len(c.Doubts()) != 1 {
		t.Errorf("%v, %v, %v", told(c), c.Doubts(), err)
	}
	// The only one on each side is the same place, whatever its file is called.
	c, err = Compare([]*client.Result{behind("before", open)}, []*client.Result{behind("after", shut)}, Options{})
	if err != nil || !c.Fails() || c.Pairs[0].Old.Firewall != "before" || c.Pairs[0].New.Firewall != "after" {
		t.Errorf("%v, %v", told(c), err)
	}
}

func TestWhatCannotBeComparedSaysWhy(t *testing.T) {
	second, other := result("A tcp 80 req: open"), result("A tcp 80 req: open")
	second.Version, other.Scenario = 2, "other"
	for name, row := range map[string]struct {
		new  []*client.Result
		want string
	}{
		"version":  {[]*client.Result{second}, "scenario own: version 1 in the old result, 2 in the new: their paths may mean different things; measure the old side again"},
		"nothing":  {nil, "nothing was measured both times: old has own as app over ipv4; new has no results"},
		"scenario": {[]*client.Result{other}, "nothing was measured both times: old has own as app over ipv4; new has other as app over ipv4"},
	} {
		_, err := Compare([]*client.Result{result("A tcp 80 req: open")}, row.new, Options{})
		if err == nil || err.Error() != row.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDoubtfulPairsSayWhy(t *testing.T) {
	for name, row := range map[string]struct {
		spoil func(*client.Result)
		want  string
	}{
		"cut off":           {func(r *client.Result) { r.Complete, r.Why = false, "not finished" }, "the new result of own as app over ipv4 proves nothing: it was cut off half-way (not finished); measure again"},
		"no control":        {func(r *client.Result) { r.Control.Via = "" }, "the new result of own as app over ipv4 proves nothing: the reflector was not reached, so that silence may mean anything; join the reflector's journal with wallprobe merge, or measure again"},
		"another reflector": {func(r *client.Result) { r.Reflector = netip.MustParseAddr("198.51.100.11") }, "own as app over ipv4 was measured against two reflectors, 198.51.100.10 and 198.51.100.11: what differs may be theirs and not the firewall's"},
		"a path lost":       {func(r *client.Result) { r.Findings = nil }, "own as app: what is required could be told before and cannot be told now: A"},
	} {
		new := result("A tcp 80 req: open")
		row.spoil(new)
		c, err := Compare([]*client.Result{result("A tcp 80 req: open")}, []*client.Result{new}, Options{})
		if diff := cmp.Diff([]string{row.want}, c.Doubts()); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		any, err := Compare([]*client.Result{result("A tcp 80 req: open")}, []*client.Result{new}, Options{AnyReflector: true})
		if waived := name == "another reflector"; err != nil || waived == (len(any.Doubts()) > 0) {
			t.Errorf("%s, any reflector: %v, %v", name, any.Doubts(), err)
		}
	}
}

// rejected gives the ports of a result's first finding evidence of what rejected them.
func rejected(r *client.Result, near ...client.Observation) *client.Result {
	r.Findings[0].Evidence.Near = near
	return r
}

func TestAnotherKindOfRejectionIsAChangeOfItsOwn(t *testing.T) {
	icmp := func(ports, name, from string) client.Observation {
		return client.Observation{Ports: set(ports), Fault: "icmp", ICMP: &client.ICMP{Type: 3, Code: 13, Name: name, From: netip.MustParseAddr(from)}}
	}
	reset := func(ports string) client.Observation {
		return client.Observation{Ports: set(ports), Fault: "refused"}
	}
	const one, two = "A tcp 80 req: rejected", "A tcp 80-89 req: rejected"
	prohibited := icmp("80", "icmp admin-prohibited", "10.77.1.1")
	for _, tt := range []struct {
		name     string
		old, new *client.Result
		want     []string
	}{
		{"a reset, then ICMP", rejected(result(one), reset("80")), rejected(result(one), prohibited), []string{"rejection 80: tcp reset -> icmp admin-prohibited"}},
		{"another code", rejected(result(one), icmp("80", "icmp port-unreachable", "10.77.1.1")), rejected(result(one), prohibited), []string{"rejection 80: icmp port-unreachable -> icmp admin-prohibited"}},
		{"another sender", rejected(result(one), prohibited), rejected(result(one), icmp("80", "icmp admin-prohibited", "10.77.1.9")), nil},
		{"the same", rejected(result(one), reset("80")), rejected(result(one), reset("80")), nil},
		{"nobody knows what it was", rejected(result(one)), rejected(result(one), prohibited), nil},
		{"some ports of a range", rejected(result("A tcp 80-89 req: rejected 80-84, rejected 85-89"), reset("80-89")),
			rejected(result("A tcp 80-89 req: rejected 80-84, rejected 85-89"), reset("80-84"), icmp("85-89", "icmp admin-prohibited", "10.77.1.1")),
			[]string{"rejection 85-89: tcp reset -> icmp admin-prohibited"}},
		{"both at once on one side", rejected(result(two), reset("80-89")), rejected(result(two), reset("80-84"), icmp("85-89", "icmp admin-prohibited", "10.77.1.1")), nil},
	} {
		c, err := Compare([]*client.Result{tt.old}, []*client.Result{tt.new}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range c.Pairs[0].Changes {
			got = append(got, fmt.Sprintf("%s %s: %s -> %s", x.Kind, x.Ports, x.Old.Rejection, x.New.Rejection))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if c.Fails(FailOnBroke, FailOnWorse, FailOnOpened) || c.Fails(FailOnChange) != (len(tt.want) > 0) {
			t.Errorf("%s: the status counts it wrong", tt.name)
		}
	}
}
