package lab

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// holds, breaks and unsure are expectations of ran's outcomes and paths, by
// what comparing them has to give.
var (
	holds = []Expectation{
		{Outcome: "works", Works: new(true)}, {Outcome: "fails", Works: new(false)},
		{Path: "OPEN", Passes: new(true)}, {Path: "LOST", Passes: new(false)}, {Path: "DEGRADED", Passes: new(true)},
		{Path: "FTP", Part: "active", Passes: new(false)}, {Path: "FTP", Part: "extended passive", Passes: new(false)}, {Path: "FTP", Part: "passive", Passes: new(true)},
		{Path: "NAMED", Part: "passive", Passes: new(true)}, {Path: "ALIKE", Part: "passive", Passes: new(false)},
		{Path: "ANY", Passes: new(true)}, {Path: "NONE", Passes: new(false)}, {Path: "FTP", Passes: new(false)},
		{Slower: []string{"SLOW"}, Than: "other"},
	}
	breaks = []Expectation{
		{Outcome: "works", Works: new(false)}, {Outcome: "fails", Works: new(true)},
		{Path: "OPEN", Passes: new(false)}, {Path: "LOST", Passes: new(true)}, {Path: "BOTH", Passes: new(true)},
		{Path: "FTP", Part: "active", Passes: new(true)}, {Path: "FTP", Part: "passive", Passes: new(false)},
		{Slower: []string{"SAME"}, Than: "other"},
	}
	unsure = []Expectation{
		{Outcome: "unknown", Works: new(true)}, {Outcome: "unknown", Works: new(false)}, {Outcome: "none", Works: new(false)},
		{Path: "SILENT", Passes: new(false)}, {Path: "UNTRIED", Passes: new(false)}, {Path: "none", Passes: new(false)},
		{Path: "FTP", Part: "sideways", Passes: new(false)}, {Path: "STANDIN", Part: "passive", Passes: new(false)},
		{Slower: []string{"NOISY"}, Than: "other"}, {Slower: []string{"LOST"}, Than: "other"}, {Slower: []string{"none"}, Than: "other"},
	}
)

// timed is a finding whose exchanges took so many milliseconds.
func timed(path string, v client.Verdict, rtts ...float64) client.Finding {
	f := client.Finding{Path: path, Transport: scenarios.TCP, Verdict: v}
	for i, ms := range rtts {
		f.Evidence.Near = append(f.Evidence.Near, client.Observation{Probe: uint32(i%2 + 1), RTT: ms})
	}
	return f
}

func ran() *client.Result {
	untimed := timed("LOST", client.RequestLost, 5)
	untimed.Evidence.Near[0].Fault = "timeout" // its round trip is that of the handshake alone
	standIn := timed("STANDIN", client.Open)
	standIn.Spoken, standIn.Protocol = "plain", "ftp"
	parts := func(path, before string) client.Finding {
		f := timed(path, client.Partial)
		f.Parts = []client.Part{
			{Target: before + "extended passive", Verdict: client.RequestLost}, {Target: before + "passive", Verdict: client.Open},
			{Target: before + "active", Verdict: client.ReplyLost, Why: "no call came"},
		}
		return f
	}
	any := parts("ANY", "")
	any.Pick = scenarios.PickAny
	none := timed("NONE", client.Partial)
	none.Pick, none.Parts = scenarios.PickAny, []client.Part{{Target: "a", Verdict: client.RequestLost}, {Target: "b", Verdict: client.Cut}}
	return &client.Result{
		Complete: true,
		Outcomes: []client.Outcome{
			{ID: "works", Title: "it works", Works: true, Via: "the way"}, {ID: "fails", Title: "it fails", Why: "way: LOST request-lost"},
			{ID: "unknown", Title: "it may work", Unknown: true, Why: "way: SILENT silent"},
		},
		Findings: []client.Finding{
			timed("OPEN", client.Open, 11), untimed, timed("DEGRADED", client.Degraded), timed("SILENT", client.Silent), timed("UNTRIED", client.Unmeasured),
			timed("BOTH", client.Open), timed("BOTH", client.RequestLost), parts("FTP", ""), parts("NAMED", "update.example "), timed("ALIKE", client.RequestLost), standIn, any, none,
		},
	}
}

// byTurns are rounds in which one path is slower here, one the same, and one
// differs from itself by more than it is slower.
func byTurns() []Round {
	at := func(slow, same, noisy float64) *client.Result {
		return &client.Result{Complete: true, Findings: []client.Finding{
			timed("SLOW", client.Open, slow), timed("SAME", client.Open, same), timed("NOISY", client.Open, noisy), timed("LOST", client.RequestLost),
		}}
	}
	return slices.Repeat([]Round{{Before: at(1, 1, 1), Here: at(2, 1.1, 4), After: at(1, 1, 3)}}, Rounds)
}

func TestOneExpectationIsConfirmedContradictedOrUnmeasured(t *testing.T) {
	for want, list := range map[Status][]Expectation{Confirmed: holds, Contradicted: breaks, Unmeasured: unsure} {
		for _, e := range list {
			got, reason := compare([]Expectation{e}, ran(), byTurns(), false)
			if got != want || (reason == "") != (want == Confirmed) {
				t.Errorf("%+v: %s %q, want %s with a reason unless confirmed", e, got, reason, want)
			}
		}
	}
}

// One part of a statement that does not hold contradicts all of it; without
// one, a part that is not known leaves all of it open. The order is nothing.
func TestAStatementIsAllItsExpectationsTogether(t *testing.T) {
	kinds := map[Status][]Expectation{Confirmed: holds, Contradicted: breaks, Unmeasured: unsure}
	worse := func(a, b Status) Status {
		for _, s := range []Status{Contradicted, Unmeasured} {
			if a == s || b == s {
				return s
			}
		}
		return Confirmed
	}
	for first, a := range kinds {
		for second, b := range kinds {
			for _, x := range a {
				for _, y := range b {
					if got, _ := compare([]Expectation{x, y}, ran(), byTurns(), false); got != worse(first, second) {
						t.Errorf("%+v with %+v: %s, want %s", x, y, got, worse(first, second))
					}
				}
			}
		}
	}
}

func TestAVoidRunConfirmsNothing(t *testing.T) {
	cut := ran()
	cut.Complete, cut.Why = false, "the client was killed"
	dead := &client.Result{Complete: true, Findings: []client.Finding{timed("LOST", client.RequestLost), timed("SILENT", client.Silent)},
		Outcomes: []client.Outcome{{ID: "fails", Title: "it fails"}}}
	cases := map[string]struct {
		r    *client.Result
		list []Expectation
		want string
	}{
		"cut off":        {cut, holds, "the run did not come to its end: the client was killed"},
		"cut off, worse": {cut, breaks, "the run did not come to its end: the client was killed"},
		"nothing worked": {dead, []Expectation{{Path: "LOST", Passes: new(false)}, {Outcome: "fails", Works: new(false)}}, "nothing worked in this run, so that what is closed proves nothing"},
		"no statement":   {ran(), nil, ""},
		"one of several": {dead, []Expectation{{Slower: []string{"OPEN"}, Than: "other"}, {Path: "LOST", Passes: new(false)}}, "in 0 of 0 rounds the exchanges on OPEN came through both here and behind other; it takes 12"},
	}
	for name, c := range cases {
		if got, reason := compare(c.list, c.r, nil, false); got != Unmeasured || reason != c.want {
			t.Errorf("%s: %s %q, want unmeasured %q", name, got, reason, c.want)
		}
	}
}

func TestAStandInProvesNoTransfer(t *testing.T) {
	x := Experiment{Bytes: 1 << 30, Expect: []Expectation{{Path: "STANDIN", Passes: new(true)}}}
	got, measured, reason := x.Compare(Variant{}, ran(), nil)
	if got != Unmeasured || measured != "STANDIN: unmeasured" || !strings.Contains(reason, "(plain) in place of ftp") {
		t.Errorf("%s %q %q", got, measured, reason)
	}
	x.Bytes = 0
	if got, _, reason = x.Compare(Variant{}, ran(), nil); got != Confirmed || reason != "ftp by a stand-in, plain" {
		t.Errorf("without a transfer: %s %q, want confirmed and what was spoken", got, reason)
	}
}

func TestCompareTellsWhatWasMeasured(t *testing.T) {
	x := Experiment{
		Expect: []Expectation{{Path: "OPEN", Passes: new(true)}, {Path: "DEGRADED", Passes: new(true)}, {Path: "BOTH", Passes: new(true)}},
		Tell:   []string{"STANDIN", "TOLD", "nowhere"},
		Report: []string{"works", "fails", "unknown", "none"}, Beyond: "the rest is not measured",
	}
	other := Variant{Expect: []Expectation{{Slower: []string{"SAME"}, Than: "other"}}}
	type told struct {
		Status           Status
		Measured, Reason string
	}
	r := ran()
	r.Findings = append(r.Findings, client.Finding{Path: "TOLD", Title: "session", Verdict: client.Open, Why: "host to relay"})
	got := make([]told, 2)
	for i, v := range []Variant{{}, other} {
		got[i].Status, got[i].Measured, got[i].Reason = x.Compare(v, r, byTurns())
	}
	outcomes := "; it works: works (the way); it fails: fails; it may work: unknown; none was not measured; session (TOLD): open, host to relay"
	want := []told{
		{Contradicted, "OPEN: open; DEGRADED: degraded; BOTH: open and request-lost" + outcomes, "BOTH request-lost; the rest is not measured"},
		{Contradicted, "round trip 1.10 ms, 1.00 ms behind other: 1.1 times (other against itself: 1.0), 25 rounds by turns" + outcomes,
			"the delay is 1.10 times that behind other (half of the rounds: 1.10 to 1.10); the rest is not measured"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestADisputeSupportsTheSidesWhoseStatementsHold(t *testing.T) {
	sides := []Side{
		{Source: "yes", Expect: holds[:2]}, {Source: "no", Expect: breaks[:1]},
		{Source: "perhaps", Expect: unsure[:1]}, {Source: "says nothing"},
	}
	for list, want := range map[string][]string{"yes no perhaps": {"yes"}, "no perhaps nothing": nil, "yes and yes": {"yes", "yes"}} {
		d := Dispute{Sides: map[string][]Side{"yes no perhaps": sides, "no perhaps nothing": sides[1:], "yes and yes": {sides[0], sides[0]}}[list]}
		var got []string
		for _, s := range d.Supported(ran()) {
			got = append(got, s.Source)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", list, diff)
		}
	}
	cut := ran()
	cut.Complete = false
	if got := (Dispute{Sides: sides}).Supported(cut); got != nil {
		t.Errorf("a run that was cut off supports %v", got)
	}
}

func TestAnExpectationHasOneForm(t *testing.T) {
	for name, e := range map[string]Expectation{
		"nothing": {}, "outcome alone": {Outcome: "o"}, "works alone": {Works: new(true)}, "path alone": {Path: "P"},
		"part alone": {Part: "p"}, "part of an outcome": {Outcome: "o", Works: new(true), Part: "p"}, "slower alone": {Slower: []string{"P"}}, "than alone": {Than: "open"},
		"two forms": {Outcome: "o", Works: new(true), Path: "P", Passes: new(true)},
	} {
		if e.check() == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for _, e := range []Expectation{holds[0], holds[2], holds[5], holds[10]} {
		if err := e.check(); err != nil {
			t.Errorf("%+v: %v", e, err)
		}
	}
}
