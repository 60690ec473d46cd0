package client

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func fields(s string) []string { return strings.Fields(s) }

// found reads findings as "PATH/TRANSPORT=VERDICT".
func found(s string) (out []Finding) {
	for _, f := range fields(s) {
		name, verdict, _ := strings.Cut(f, "=")
		id, tr, _ := strings.Cut(name, "/")
		out = append(out, Finding{Path: id, Transport: scenarios.Transport(tr), Verdict: Verdict(verdict)})
	}
	return out
}

// asked is an outcome whose ways are lists of paths.
func asked(ways ...string) *scenarios.Scenario {
	o := scenarios.Outcome{ID: "o", Title: "O", Roles: []string{"a"}}
	for i, w := range ways {
		o.Ways = append(o.Ways, scenarios.Way{Title: "way " + string(rune('1'+i)), Paths: fields(w)})
	}
	return &scenarios.Scenario{Outcomes: []scenarios.Outcome{o, {ID: "of another role", Roles: []string{"b"}}}}
}

func TestFirstWayThatSurvivesWins(t *testing.T) {
	for name, c := range map[string]struct {
		ways  []string
		found string
		want  Outcome
	}{
		"the first of two": {[]string{"A", "B"}, "A/tcp=open B/tcp=open",
			Outcome{Works: true, Via: "way 1", Ways: []Way{{Works: true}, {Works: true}}}},
		"the second, and what stops the first": {[]string{"A", "B"}, "A/tcp=request-lost B/tcp=degraded",
			Outcome{Works: true, Via: "way 2", Why: "way 1: A request-lost", Ways: []Way{{Stopped: []string{"A request-lost"}}, {Works: true}}}},
		"none": {[]string{"A C", "B"}, "A/tcp=rejected B/tcp=cut C/udp=reply-lost",
			Outcome{Why: "way 1: A rejected, C reply-lost; way 2: B cut", Ways: []Way{{Stopped: []string{"A rejected", "C reply-lost"}}, {Stopped: []string{"B cut"}}}}},
		"a way needs all of its paths": {[]string{"A B"}, "A/tcp=open B/tcp=altered",
			Outcome{Why: "way 1: B altered", Ways: []Way{{Stopped: []string{"B altered"}}}}},
		"all transports of a path": {[]string{"A"}, "A/tcp=open A/udp=request-lost",
			Outcome{Why: "way 1: A request-lost", Ways: []Way{{Stopped: []string{"A request-lost"}}}}},
		"one transport of a path": {[]string{"A/udp", "A/tcp"}, "A/tcp=open A/udp=request-lost",
			Outcome{Works: true, Via: "way 2", Why: "way 1: A/udp request-lost", Ways: []Way{{Stopped: []string{"A/udp request-lost"}}, {Works: true}}}},
		"unknown when nothing is known to stop it": {[]string{"A B"}, "A/tcp=open B/tcp=silent",
			Outcome{Unknown: true, Why: "way 1: B silent", Ways: []Way{{Unknown: true, Stopped: []string{"B silent"}}}}},
		"unmeasured is unknown": {[]string{"A"}, "A/tcp=unmeasured",
			Outcome{Unknown: true, Why: "way 1: A unmeasured", Ways: []Way{{Unknown: true, Stopped: []string{"A unmeasured"}}}}},
		"a path of the other end is unknown": {[]string{"A Z"}, "A/tcp=open",
			Outcome{Unknown: true, Why: "way 1: Z not measured from this end", Ways: []Way{{Unknown: true, Stopped: []string{"Z not measured from this end"}}}}},
		"blocked for certain although something is unknown": {[]string{"A B"}, "A/tcp=silent B/tcp=refused",
			Outcome{Why: "way 1: A silent, B refused", Ways: []Way{{Stopped: []string{"A silent", "B refused"}}}}},
		"unknown although another way is blocked": {[]string{"A", "B"}, "A/tcp=impostor B/tcp=silent",
			Outcome{Unknown: true, Why: "way 1: A impostor; way 2: B silent", Ways: []Way{{Stopped: []string{"A impostor"}}, {Unknown: true, Stopped: []string{"B silent"}}}}},
		"known to work although an earlier way is unknown": {[]string{"A", "B"}, "A/tcp=silent B/tcp=open",
			Outcome{Works: true, Via: "way 2", Why: "way 1: A silent", Ways: []Way{{Unknown: true, Stopped: []string{"A silent"}}, {Works: true}}}},
	} {
		c.want.ID, c.want.Title = "o", "O"
		for i := range c.want.Ways {
			c.want.Ways[i].Title = "way " + string(rune('1'+i))
		}
		if diff := cmp.Diff([]Outcome{c.want}, Outcomes(asked(c.ways...), "a", found(c.found)), same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestPartOfARangeIsEnoughForSomePicks(t *testing.T) {
	share := func(x float64) *float64 { return &x }
	for _, c := range []struct {
		pick  scenarios.Pick
		share *float64
		want  bool
	}{
		{"", share(0.999), false}, {scenarios.PickAll, share(0.999), false},
		{scenarios.PickAny, share(0.000001), true},
		{scenarios.PickOne, share(0.5), true}, {scenarios.PickOne, share(0.499999), false}, {scenarios.PickOne, nil, false},
	} {
		f := Finding{Path: "A", Transport: scenarios.UDP, Verdict: Partial, Pick: c.pick, Share: c.share}
		if got := Outcomes(asked("A"), "a", []Finding{f})[0]; got.Works != c.want || got.Unknown {
			t.Errorf("pick %q, share %v: %+v", c.pick, c.share, got)
		}
	}
}

func TestOnlyOpenAndDegradedPass(t *testing.T) {
	for _, v := range Verdicts {
		want := v == Open || v == Degraded
		o := Outcomes(asked("A"), "a", []Finding{{Path: "A", Verdict: v}})[0]
		if v.Passes() != want || o.Works != want || o.Unknown != (v == Silent || v == Unmeasured) {
			t.Errorf("%s: %+v", v, o)
		}
	}
}

// Of paths that were not asked for nothing is told: neither that an outcome
// fails nor that it could not be decided.
func TestAnOutcomeThatTheAskedPathsCannotDecideIsLeftOut(t *testing.T) {
	s := asked("A", "B")
	s.Paths = []scenarios.Path{{ID: "A"}}
	for findings, want := range map[string]int{"A/tcp=open": 1, "A/tcp=request-lost": 0} {
		if got := Outcomes(s, "a", found(findings)); len(got) != want {
			t.Errorf("%s: %+v, want %d outcomes", findings, got, want)
		}
	}
	s.Paths = append(s.Paths, scenarios.Path{ID: "B"})
	if got := Outcomes(s, "a", found("A/tcp=request-lost B/tcp=request-lost")); len(got) != 1 || got[0].Works || got[0].Unknown {
		t.Errorf("all asked for: %+v", got)
	}
}
