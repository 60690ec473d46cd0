package lab

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Compare holds what was measured of a variant against what the document says.
// rounds are what was measured by turns with the firewall that the variant is
// compared with, where there is one.
func (x Experiment) Compare(v Variant, r *client.Result, rounds []Round) (s Status, measured, reason string) {
	list := x.Expected(v)
	s, reason = compare(list, r, rounds, x.Bytes > 0)
	var said []string
	for _, e := range list {
		said = append(said, e.tell(r, rounds, x.Bytes > 0))
	}
	for _, id := range x.Report {
		said = append(said, tell(r, id))
	}
	for _, id := range x.Tell {
		said = append(said, tellFinding(r, id))
	}
	return s, join("; ", gather(said)...), join("; ", reason, standIns(list, r), x.Beyond)
}

// gather joins what was said alike of several: "A: open" and "B: open" become
// "A, B: open".
func gather(said []string) []string {
	var out []string
	of := make(map[string]int) // predicate to index in out
	for _, s := range said {
		subject, predicate, ok := strings.Cut(s, ": ")
		if i, seen := of[predicate]; ok && seen {
			out[i] = strings.Replace(out[i], ": ", ", "+subject+": ", 1)
			continue
		}
		if ok {
			of[predicate] = len(out)
		}
		out = append(out, s)
	}
	return out
}

func join(between string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), between)
}

// compare judges expectations. All of them together are the statement: one
// that does not hold contradicts it, whatever is known of the others. What is
// expected to fail proves nothing in a run in which nothing worked.
func compare(list []Expectation, r *client.Result, rounds []Round, itself bool) (Status, string) {
	switch {
	case len(list) == 0:
		return Unmeasured, ""
	case !r.Complete:
		return Unmeasured, "the run did not come to its end: " + r.Why
	}
	why := make(map[Status][]string)
	for _, e := range list {
		status, reason := e.judge(r, rounds, itself)
		if !slices.Contains(why[status], reason) {
			why[status] = append(why[status], reason)
		}
	}
	for _, s := range []Status{Contradicted, Unmeasured} {
		if len(why[s]) > 0 {
			return s, strings.Join(why[s], "; ")
		}
	}
	if slices.ContainsFunc(list, Expectation.negative) && !slices.ContainsFunc(r.Findings, works) {
		return Unmeasured, "nothing worked in this run, so that what is closed proves nothing"
	}
	return Confirmed, ""
}

// works tells whether anything came through on a path.
func works(f client.Finding) bool { return f.Verdict.Passes() || f.Verdict == client.Partial }

// negative tells whether something is expected to fail.
func (e Expectation) negative() bool {
	return e.Works != nil && !*e.Works || e.Passes != nil && !*e.Passes
}

// judge compares one expectation; the reason is empty only where it holds.
func (e Expectation) judge(r *client.Result, rounds []Round, itself bool) (Status, string) {
	switch {
	case e.Outcome != "":
		return e.judgeOutcome(r)
	case e.Path != "":
		return e.judgePath(r, itself)
	}
	return e.judgeSlower(rounds)
}

func (e Expectation) judgeOutcome(r *client.Result) (Status, string) {
	o := outcomeOf(r, e.Outcome)
	switch {
	case o == nil:
		return Unmeasured, "there is no outcome " + e.Outcome + " in this run"
	case o.Unknown:
		return Unmeasured, o.Title + ": " + o.Why
	case o.Works != *e.Works:
		return Contradicted, strings.TrimSuffix(fmt.Sprintf("%s: %s", o.Title, o.Why), ": ")
	}
	return Confirmed, ""
}

// judgePath judges all findings on a path, of which there is one for each
// transport, or a part of them. itself tells that a stand-in says nothing.
func (e Expectation) judgePath(r *client.Result, itself bool) (Status, string) {
	found := false
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Path != e.Path {
			continue
		}
		if f.Spoken != "" && (itself || e.Part != "") {
			return Unmeasured, fmt.Sprintf("%s was tried with another exchange (%s) in place of %s, which proves nothing here", f.Path, f.Spoken, f.Protocol)
		}
		verdict, why, ok := e.part(f)
		if !ok {
			return Unmeasured, fmt.Sprintf("%s has no part %q", f.Path, e.Part)
		}
		found = true
		switch {
		case verdict == client.Unmeasured || verdict == client.Silent:
			return Unmeasured, join(": ", e.name()+" "+string(verdict), why)
		case (verdict.Passes() || e.Part == "" && usable(f)) != *e.Passes:
			return Contradicted, join(": ", e.name()+" "+string(verdict), why)
		}
	}
	if !found {
		return Unmeasured, "there is no path " + e.Path + " in this run"
	}
	return Confirmed, ""
}

// usable tells whether an application that takes whatever works gets by.
func usable(f *client.Finding) bool {
	return f.Verdict == client.Partial && f.Pick == scenarios.PickAny &&
		slices.ContainsFunc(f.Parts, func(p client.Part) bool { return p.Verdict.Passes() })
}

// part is the verdict on the part that the expectation is about.
func (e Expectation) part(f *client.Finding) (v client.Verdict, why string, ok bool) {
	if e.Part == "" {
		return f.Verdict, f.Why, true
	}
	for _, p := range f.Parts {
		if p.Target != e.Part && ofTarget(p.Target) != e.Part {
			continue
		}
		v, why, ok = p.Verdict, p.Why, true
		if !v.Passes() {
			return v, why, ok // of several destinations, the one that does not pass
		}
	}
	// Parts that all fared alike are one finding.
	if len(f.Parts) == 0 && f.Verdict != client.Partial {
		return f.Verdict, f.Why, true
	}
	return v, why, ok
}

// ofTarget is a variant without the name or address before it, where a path
// has several: "passive" in "update.example passive".
func ofTarget(target string) string {
	host, variant, _ := strings.Cut(target, " ")
	if !strings.ContainsAny(host, ".:") {
		return ""
	}
	return variant
}

func (e Expectation) name() string { return join(" ", e.Path, e.Part) }

// tell says what was measured of what the expectation is about.
func (e Expectation) tell(r *client.Result, rounds []Round, itself bool) string {
	switch {
	case e.Outcome != "":
		return tell(r, e.Outcome)
	case e.Path != "":
		return e.tellPath(r, itself)
	}
	return e.tellSlower(rounds)
}

func (e Expectation) tellPath(r *client.Result, itself bool) string {
	var said []string
	for i := range r.Findings {
		if f := &r.Findings[i]; f.Path == e.Path {
			v, _, ok := e.part(f)
			if !ok || f.Spoken != "" && (itself || e.Part != "") {
				v = client.Unmeasured
			}
			said = append(said, string(v))
		}
	}
	if len(said) == 0 {
		return e.name() + " was not measured"
	}
	return e.name() + ": " + strings.Join(slices.Compact(said), " and ")
}

// standIns says what was not spoken itself on the paths that count.
func standIns(list []Expectation, r *client.Result) string {
	var said []string
	for _, e := range list {
		for i := range r.Findings {
			f := &r.Findings[i]
			if e.Part == "" && slices.Contains(e.paths(), f.Path) && f.Spoken != "" {
				said = append(said, f.Protocol+" by a stand-in, "+f.Spoken)
			}
		}
	}
	slices.Sort(said)
	return strings.Join(slices.Compact(said), "; ")
}

// tellFinding says what was measured of a path, with the reason, where it was
// spoken itself.
func tellFinding(r *client.Result, id string) string {
	for i := range r.Findings {
		if f := &r.Findings[i]; f.Path == id && f.Spoken == "" {
			return join(": ", f.Title+" ("+id+")", join(", ", string(f.Verdict), f.Why))
		}
	}
	return ""
}

func outcomeOf(r *client.Result, id string) *client.Outcome {
	for i := range r.Outcomes {
		if r.Outcomes[i].ID == id {
			return &r.Outcomes[i]
		}
	}
	return nil
}

// tell says how an outcome came out.
func tell(r *client.Result, id string) string {
	o := outcomeOf(r, id)
	switch {
	case o == nil:
		return id + " was not measured"
	case o.Works:
		return fmt.Sprintf("%s: works (%s)", o.Title, o.Via)
	case o.Unknown:
		return o.Title + ": unknown"
	}
	return o.Title + ": fails"
}

// Supported gives the sides that the measurement supports.
func (d Dispute) Supported(r *client.Result) []Side {
	var out []Side
	for _, s := range d.Sides {
		if status, _ := compare(s.Expect, r, nil, false); status == Confirmed {
			out = append(out, s)
		}
	}
	return out
}
