package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A standing is what a verdict amounts to for those who asked: the one place
// where verdict, need and doubt come together.
type standing int

const (
	holds    standing = iota // as it should be
	yields                   // does not pass, and need not
	skipped                  // was not measured
	doubtful                 // could not be decided
	fails                    // should pass and does not
)

// standings is their number.
const standings = int(fails) + 1

// counting is a standing in a result. Where a file says what is expected of it,
// that counts, and what else fails is only told.
func (s standing) counting(r *client.Result) standing {
	switch {
	case len(r.Expectations) == 0:
		return s
	case s == fails:
		return yields
	case s == doubtful:
		return skipped
	}
	return s
}

// ofExpectation is the standing of what a file expects.
func ofExpectation(x *client.Expectation) standing {
	switch x.State {
	case client.Holds:
		return holds
	case client.Fails:
		return fails
	}
	return doubtful
}

// ofPath is the standing of a finding.
func ofPath(f *client.Finding, r *client.Result) standing { return pathAlone(f).counting(r) }

func pathAlone(f *client.Finding) standing {
	switch {
	case f.Survives() || f.Need == scenarios.Negative && f.Verdict != client.Silent && f.Verdict != client.Unmeasured:
		return holds
	case stays(f, client.Unmeasured):
		return skipped
	case stays(f, client.Unmeasured, client.Silent):
		return doubtful
	case f.Need == scenarios.Required || f.Need == "":
		return fails
	}
	return yields
}

// stays tells whether all of a finding that does not pass has one of these
// verdicts.
func stays(f *client.Finding, verdicts ...client.Verdict) bool {
	if f.Verdict != client.Partial {
		return slices.Contains(verdicts, f.Verdict)
	}
	return len(f.Parts) > 0 && !slices.ContainsFunc(f.Parts, func(p client.Part) bool {
		return !p.Verdict.Passes() && !slices.Contains(verdicts, p.Verdict)
	})
}

// ofOutcome is the standing of an outcome. What is unknown because nothing
// could be measured from here is no doubt about the firewall; silence is.
func ofOutcome(oc *client.Outcome, r *client.Result) standing { return outcomeAlone(oc).counting(r) }

func outcomeAlone(oc *client.Outcome) standing {
	switch {
	case oc.Works:
		return holds
	case oc.Unknown && slices.ContainsFunc(oc.Ways, silentWay):
		return doubtful
	case oc.Unknown:
		return skipped
	case oc.Optional:
		return yields
	}
	return fails
}

func silentWay(w client.Way) bool {
	return slices.ContainsFunc(w.Stopped, func(s string) bool { return strings.HasSuffix(s, " "+string(client.Silent)) })
}

// outcomeWord is an outcome's state in a word.
func outcomeWord(oc *client.Outcome) string {
	switch {
	case oc.Works:
		return cellWorks
	case oc.Unknown:
		return "unknown"
	}
	return cellFails
}

// answer says in a sentence or two what a result means.
func answer(r *client.Result) string {
	var of [standings][]string
	for i := range r.Outcomes {
		oc := &r.Outcomes[i]
		s := outcomeAlone(oc)
		of[s] = append(of[s], oc.Title)
	}
	var said []string
	if !r.Complete {
		said = append(said, "This run did not come to its end.")
	}
	if text := expectedAnswer(r); text != "" {
		said = append(said, text)
	}
	if len(r.Outcomes) == 0 {
		return join(" ", append(said, pathAnswer(r))...)
	}
	decided := len(of[holds]) + len(of[yields]) + len(of[fails])
	switch {
	case decided == 0:
		said = append(said, "Nothing could be decided.")
	case len(of[fails]) == 0 && len(of[yields]) == 0:
		said = append(said, "Everything that could be decided works.")
		if len(of[doubtful])+len(of[skipped]) == 0 {
			said[len(said)-1] = "Everything works."
		}
	case len(of[fails]) == 0:
		said = append(said, fmt.Sprintf("What must work does; optional and failing: %s.", titles(of[yields])))
	default:
		said = append(said, fmt.Sprintf("Does not work: %s.", titles(of[fails])))
		if len(of[yields]) > 0 {
			said = append(said, fmt.Sprintf("Optional and failing: %s.", titles(of[yields])))
		}
	}
	if open := slices.Concat(of[doubtful], of[skipped]); len(open) > 0 && decided > 0 {
		said = append(said, fmt.Sprintf("Undecided: %s.", titles(open)))
	}
	return strings.Join(said, " ")
}

// expectedAnswer tells how a file's expectations fared, or nothing where there
// are none.
func expectedAnswer(r *client.Result) string {
	var of [standings][]string
	for i := range r.Expectations {
		x := &r.Expectations[i]
		name := x.Path
		if x.Outcome != "" {
			name = x.Title
		}
		of[ofExpectation(x)] = append(of[ofExpectation(x)], name)
	}
	switch {
	case len(r.Expectations) == 0:
		return ""
	case len(of[fails]) > 0:
		return fmt.Sprintf("Not as expected: %s.", titles(distinct(of[fails])))
	case len(of[doubtful]) > 0:
		return fmt.Sprintf("Expectations that could not be told: %s.", titles(distinct(of[doubtful])))
	}
	return "Everything is as expected."
}

// pathAnswer is the answer where no outcome was asked for.
func pathAnswer(r *client.Result) string {
	var lost []string
	for i := range r.Findings {
		if pathAlone(&r.Findings[i]) == fails {
			lost = append(lost, reference(&r.Findings[i], r.Findings))
		}
	}
	switch {
	case len(r.Findings) == 0:
		return "Nothing was measured."
	case len(lost) == 0:
		return "No required path is stopped."
	}
	return "Required and stopped: " + titles(lost) + "."
}

// titles lists the first few.
func titles(list []string) string {
	const most = 6
	if len(list) > most+1 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], "; "), len(list)-most)
	}
	return strings.Join(list, "; ")
}

// worst is the result's standing as a whole, by its outcomes, or by its paths
// where it has none.
func worst(r *client.Result) standing {
	s := holds
	for i := range r.Expectations {
		s = max(s, ofExpectation(&r.Expectations[i]))
	}
	for i := range r.Outcomes {
		s = max(s, ofOutcome(&r.Outcomes[i], r))
	}
	if len(r.Outcomes) == 0 {
		for i := range r.Findings {
			s = max(s, ofPath(&r.Findings[i], r))
		}
	}
	if !r.Complete && s < doubtful {
		s = doubtful
	}
	return s
}

// Firewalls is the number of firewalls, or of reflectors behind what the
// program did not make, that the results are about.
func Firewalls(results []*client.Result) int { return len(newMatrix(results, Options{}).columns) }
