package expect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Matches tells whether a run speaks of a result.
func (r Run) Matches(res *client.Result) bool {
	return r.Scenario == res.Scenario && (r.Role == "" || r.Role == res.Role) &&
		(r.Family == "" || string(r.Family) == res.Family) &&
		(r.Firewall == "" || r.Firewall == SubjectOf(res).Firewall)
}

// String names what a run speaks of.
func (r Run) String() string {
	text := r.Scenario
	if r.Role != "" {
		text += " as " + r.Role
	}
	if r.Family != "" {
		text += " over " + string(r.Family)
	}
	if r.Firewall != "" {
		text += " behind " + r.Firewall
	}
	return text
}

// Unmatched says of which runs there is no result at all.
func (f *File) Unmatched(results []*client.Result) []string {
	var out []string
	for i, r := range f.Runs {
		if !slices.ContainsFunc(results, r.Matches) {
			out = append(out, fmt.Sprintf("%s:%d: nothing was measured of %s, so that what is expected there was not checked; measure it too, or take it out", f.name, f.parsed.Line(place(i)), r))
		}
	}
	return out
}

// Covers tells whether a file speaks of a result.
func (f *File) Covers(res *client.Result) bool {
	return slices.ContainsFunc(f.Runs, func(r Run) bool { return r.Matches(res) })
}

// Check holds a result against what a file expects of it. What must not pass is
// only proved by a run in which something passed that had to.
func (f *File) Check(res *client.Result) []client.Expectation {
	var out []client.Expectation
	for i, r := range f.Runs {
		if !r.Matches(res) {
			continue
		}
		checked, control := f.checkPaths(i, r, res)
		denied := slices.Concat(checked.denied, f.checkOutcomes(i, r, res))
		if !control {
			denied = unproved(denied)
		}
		out = append(out, inOrder(checked.allowed, denied)...)
		out = append(out, f.checkOthers(i, r, res)...)
	}
	if why := Void(res); why != "" {
		for i := range out {
			out[i].State, out[i].Why = client.Untold, why
		}
	}
	return out
}

type checkedPaths struct{ allowed, denied []client.Expectation }

// checkPaths also tells whether anything that had to pass across the firewall did.
func (f *File) checkPaths(run int, r Run, res *client.Result) (checked checkedPaths, control bool) {
	for j, e := range r.Paths {
		blank := client.Expectation{File: f.name, Line: f.parsed.Line(pathPlace(run, j)), Path: e.Path, Transport: e.Transport, Ports: e.Ports}
		for _, v := range e.Verdicts {
			blank.Expected = append(blank.Expected, string(v))
		}
		to := &checked.denied
		if e.allows() {
			to = &checked.allowed
		}
		found := false
		for k := range res.Findings {
			x := &res.Findings[k]
			if x.Path != e.Path || e.Transport != "" && e.Transport != x.Transport {
				continue
			}
			found = true
			got := e.hold(x, blank)
			*to = append(*to, got)
			crosses := x.Direction != scenarios.LAN && x.Direction != scenarios.Loop
			control = control || e.allows() && crosses && got.State == client.Holds && passesSomewhere(x)
		}
		if !found {
			blank.State, blank.Why = client.Untold, "it is not in this result"
			*to = append(*to, blank)
		}
	}
	return checked, control
}

func passesSomewhere(f *client.Finding) bool {
	return slices.ContainsFunc(sharesOf(f), func(s share) bool { return s.state.Verdict.Passes() })
}

// wanted marks the ports that an expectation is about.
const wanted client.Verdict = "wanted"

// hold compares a finding with what is acceptable, port by port.
func (e Path) hold(f *client.Finding, x client.Expectation) client.Expectation {
	all, own := portsOf(f)
	x.Title, x.Transport, x.Own, x.State = f.Title, f.Transport, own, client.Holds
	if x.Ports == nil {
		x.Ports = all
	}
	want := share{target: e.Target, ports: x.Ports, state: State{Verdict: wanted}}
	for _, m := range meet([]share{want}, sharesOf(f)) {
		got := m.new.state
		if m.old.state.Verdict != wanted || slices.Contains(e.Verdicts, got.Verdict) {
			continue
		}
		if unsure(got.Verdict) && x.State == client.Holds {
			x.State = client.Untold
		} else if !unsure(got.Verdict) {
			x.State = client.Fails
		}
		if got.Verdict == "" {
			got.Verdict, got.Why = client.Unmeasured, "it is not in this result"
		}
		x.Misses = addMiss(x.Misses, client.Part{Ports: m.ports, Target: m.target, Verdict: got.Verdict, Why: got.Why, DecidedBy: got.DecidedBy})
	}
	if len(x.Misses) > 0 {
		x.Why = x.Misses[0].Why
	}
	return x
}

// addMiss joins ports that missed alike.
func addMiss(list []client.Part, p client.Part) []client.Part {
	for i := range list {
		q := &list[i]
		if q.Target == p.Target && q.Verdict == p.Verdict && q.Why == p.Why && sameRules(State{DecidedBy: q.DecidedBy}, State{DecidedBy: p.DecidedBy}) {
			q.Ports = scenarios.Union(q.Ports, p.Ports)
			return list
		}
	}
	return append(list, p)
}

func (f *File) checkOutcomes(run int, r Run, res *client.Result) []client.Expectation {
	var out []client.Expectation
	for j, e := range r.Outcomes {
		out = append(out, e.hold(res, f.name, f.parsed.Line(outcomePlace(run, j))))
	}
	return out
}

// checkOthers holds the outcomes that a run does not mention against its rule for them.
func (f *File) checkOthers(run int, r Run, res *client.Result) []client.Expectation {
	if r.Others != AsScenario {
		return nil
	}
	var out []client.Expectation
	for _, o := range res.Outcomes {
		mentioned := slices.ContainsFunc(r.Outcomes, func(e Outcome) bool { return e.Outcome == o.ID })
		if o.Optional || mentioned {
			continue
		}
		out = append(out, Outcome{Outcome: o.ID, Works: true}.hold(res, f.name, f.parsed.Line(place(run, "others"))))
	}
	return out
}

// hold compares an outcome with what is expected of it.
func (e Outcome) hold(res *client.Result, file string, line int) client.Expectation {
	x := client.Expectation{File: file, Line: line, Outcome: e.Outcome, State: client.Holds, Expected: []string{e.words()}}
	at := slices.IndexFunc(res.Outcomes, func(o client.Outcome) bool { return o.ID == e.Outcome })
	if at < 0 {
		x.State, x.Why = client.Untold, "it is not in this result"
		return x
	}
	o := &res.Outcomes[at]
	got := outcomeState(o)
	x.Title, x.Measured = o.Title, got.Short()
	switch {
	case o.Unknown:
		x.State, x.Why = client.Untold, o.Why
	case o.Works != e.Works || e.Way > 0 && got.Way > e.Way:
		x.State, x.Why = client.Fails, strings.TrimSuffix(strings.TrimPrefix(o.Via+"; "+o.Why, "; "), "; ")
	}
	return x
}

func (e Outcome) words() string {
	switch {
	case !e.Works:
		return "fails"
	case e.Way > 0:
		return "works by way " + strconv.Itoa(e.Way)
	}
	return "works"
}

// noControl is why what is closed proves nothing.
const noControl = "nothing across the firewall that was expected open was open in this run, so that what is closed proves nothing"

// unproved are denials in a run in which nothing passed that had to.
func unproved(list []client.Expectation) []client.Expectation {
	for i := range list {
		if x := &list[i]; x.State == client.Holds && (x.Path != "" || slices.Equal(x.Expected, []string{"fails"})) {
			x.State, x.Why = client.Untold, noControl
		}
	}
	return list
}

// Uncontrolled says in a sentence that a result which was checked proves none of
// what must be closed, for nothing that must be open was; it is empty otherwise.
func Uncontrolled(res *client.Result) string {
	if !slices.ContainsFunc(res.Expectations, func(x client.Expectation) bool { return x.Why == noControl }) {
		return ""
	}
	var closed []string
	for _, x := range res.Expectations {
		for _, m := range x.Misses {
			closed = append(closed, fmt.Sprintf("%s %s/%s %s", x.Path, m.Ports, x.Transport, m.Verdict))
		}
	}
	return fmt.Sprintf("%s: the run is void, for nothing that must be open was (%s), so that what is closed proves nothing", SubjectOf(res), strings.Join(closed, ", "))
}

// inOrder merges expectations by their lines.
func inOrder(a, b []client.Expectation) []client.Expectation {
	out := slices.Concat(a, b)
	slices.SortStableFunc(out, func(x, y client.Expectation) int { return x.Line - y.Line })
	return out
}
