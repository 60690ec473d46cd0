package monitor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A Change is what is different from the round before.
type Change struct {
	What     string // "CRD-A3 3478/udp", or the title of an outcome
	Old, New string // "open", "request-lost"; no Old where there was no round before
}

// String is "CRD-A3 3478/udp: open -> request-lost".
func (c Change) String() string {
	if c.Old == "" {
		return c.What + ": " + c.New
	}
	return fmt.Sprintf("%s: %s -> %s", c.What, c.Old, c.New)
}

// Changes tells how a result differs from the one before of the same scenario
// and role: verdicts, the exact ranges of partial ones, and outcomes with their
// ways, but no times. Where old is nil, it tells all that does not pass or work.
func Changes(old, now *client.Result) []Change {
	var out []Change
	before := make(map[string][]string)
	if old != nil {
		for _, s := range states(old) {
			before[s.key] = s.said
		}
	}
	for _, s := range states(now) {
		was, known := before[s.key]
		switch {
		case old == nil && !s.fine:
			out = append(out, Change{What: s.what, New: few(s.said)})
		case old != nil && !known:
			out = append(out, Change{What: s.what, Old: "not measured", New: few(s.said)})
		case old != nil && !slices.Equal(was, s.said):
			gone, come := without(was, s.said), without(s.said, was)
			if len(gone) == 0 || len(come) == 0 {
				gone, come = was, s.said
			}
			out = append(out, Change{What: s.what, Old: few(gone), New: few(come)})
		}
	}
	return out
}

// A state is how a path or an outcome stands.
type state struct {
	key, what string
	said      []string // a verdict, or one for each part
	fine      bool
}

// fine tells whether nothing need be said of a finding in the first round. What
// cannot be measured from this end at all is told by run without --watch.
func fine(f *client.Finding) bool {
	return f.Survives() || f.Verdict == client.Unmeasured || f.Need == scenarios.Negative
}

// states lists how everything of a result stands.
func states(r *client.Result) []state {
	var out []state
	for i := range r.Findings {
		f := &r.Findings[i]
		s := state{key: findingKey(f), what: strings.TrimSpace(f.Path + " " + report.Where(f)), fine: fine(f)}
		for _, p := range f.Parts {
			s.said = append(s.said, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", p.Verdict, p.Target, p.Ports)), " "))
		}
		if len(s.said) == 0 {
			s.said = []string{string(f.Verdict)}
		}
		out = append(out, s)
	}
	for _, o := range r.Outcomes {
		out = append(out, state{key: "outcome " + o.ID, what: o.Title, said: []string{outcome(o)}, fine: o.Works})
	}
	return out
}

func findingKey(f *client.Finding) string { return "path " + f.Path + "/" + string(f.Transport) }

func outcome(o client.Outcome) string {
	switch {
	case o.Works && len(o.Ways) > 1:
		return "works by " + o.Via
	case o.Works:
		return "works"
	case o.Unknown:
		return "unknown"
	}
	return "fails"
}

// without gives the members of a that are not in b.
func without(a, b []string) (out []string) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// few joins a list and says how many more there are of a long one.
func few(list []string) string {
	const most = 4
	if more := len(list) - most; more > 1 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), more)
	}
	return strings.Join(list, ", ")
}
