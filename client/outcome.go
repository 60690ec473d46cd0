package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/scenarios"
)

// Outcomes tells which of the outcomes for a near role work: the first way
// whose paths all survive wins. Where the scenario was confined to some of its
// paths, those that cannot be decided by them are left out.
func Outcomes(s *scenarios.Scenario, role string, findings []Finding) []Outcome {
	var out []Outcome
	for _, o := range s.Outcomes {
		if !slices.Contains(o.Roles, role) {
			continue
		}
		res, part := outcome(o, findings), confined(s, o)
		if part && !res.Works {
			continue
		}
		for i := range res.Ways {
			for j, text := range res.Ways[i].Stopped {
				if ref, ok := strings.CutSuffix(text, untried); ok && part {
					res.Ways[i].Stopped[j] = ref + " not asked for"
				}
			}
		}
		out = append(out, res)
	}
	return out
}

// confined tells whether a path of an outcome was left out of the scenario.
func confined(s *scenarios.Scenario, o scenarios.Outcome) bool {
	has := func(ref string) bool {
		id, _, _ := strings.Cut(ref, "/")
		return slices.ContainsFunc(s.Paths, func(p scenarios.Path) bool { return p.ID == id })
	}
	return len(s.Paths) > 0 && slices.ContainsFunc(o.Ways, func(w scenarios.Way) bool {
		return slices.ContainsFunc(w.Paths, func(ref string) bool { return !has(ref) })
	})
}

func outcome(o scenarios.Outcome, findings []Finding) Outcome {
	res := Outcome{ID: o.ID, Title: o.Title, Optional: o.Optional}
	var stopped []string
	for _, w := range o.Ways {
		way := walk(w, findings)
		res.Ways = append(res.Ways, way)
		switch {
		case res.Works:
		case way.Works:
			res.Works, res.Via = true, w.Title
		default:
			res.Unknown = res.Unknown || way.Unknown
			stopped = append(stopped, fmt.Sprintf("%s: %s", w.Title, strings.Join(way.Stopped, ", ")))
		}
	}
	if res.Works {
		res.Unknown = false
	}
	res.Why = strings.Join(stopped, "; ")
	return res
}

const untried = " not measured from this end"

// walk tries one way. It is unknown when nothing stops it but something could
// not be measured.
func walk(w scenarios.Way, findings []Finding) Way {
	res := Way{Title: w.Title}
	blocked := false
	for _, ref := range w.Paths {
		id, transport, _ := strings.Cut(ref, "/")
		found := false
		for i := range findings {
			f := &findings[i]
			if f.Path != id || transport != "" && transport != string(f.Transport) {
				continue
			}
			found = true
			switch {
			case f.Survives():
			case unknown(f):
				res.Unknown = true
				res.Stopped = append(res.Stopped, fmt.Sprintf("%s %s", ref, f.Verdict))
			default:
				blocked = true
				res.Stopped = append(res.Stopped, fmt.Sprintf("%s %s", ref, f.Verdict))
			}
		}
		if !found {
			res.Unknown = true
			res.Stopped = append(res.Stopped, ref+untried)
		}
	}
	res.Unknown = res.Unknown && !blocked
	res.Works = !blocked && !res.Unknown
	return res
}

// unknown tells whether what does not pass would, if what could not be measured
// of it passed.
func unknown(f *Finding) bool {
	unsure := func(v Verdict) bool { return v == Unmeasured || v == Silent }
	if len(f.Parts) == 0 {
		return unsure(f.Verdict)
	}
	at := *f
	at.Verdict, at.Parts = Partial, slices.Clone(f.Parts)
	doubt := false
	for i := range at.Parts {
		if p := &at.Parts[i]; unsure(p.Verdict) {
			doubt, p.Verdict = true, Open
		}
	}
	most := passing(at.Parts)
	at.Share = &most
	return doubt && (most == 1 || at.Survives())
}

// half of a range must be open for an application that draws one port at
// random: then most sessions come up.
const half = 0.5

// Survives tells whether an application gets by with what is left of a path.
func (f *Finding) Survives() bool {
	if f.Verdict != Partial {
		return f.Verdict.Passes()
	}
	switch f.Pick {
	case scenarios.PickAny:
		return true
	case scenarios.PickOne:
		return f.Share != nil && *f.Share >= half
	}
	return false
}
