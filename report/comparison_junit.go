package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/wallprobe/wallprobe/expect"
)

// ComparisonJUnit writes a comparison as JUnit XML: a suite for each pair of
// results, a case for each change of a path or of an outcome, and a last one
// for all that did not change. What counts by the choices of on is a failure;
// what could not be told, or changed and does not count, is skipped, for else
// nobody would see it; what makes the comparison prove nothing is an error.
func ComparisonJUnit(w io.Writer, c expect.Comparison, on ...expect.FailOn) error {
	doc := junitSuites{}
	for _, p := range c.Pairs {
		doc.add(comparisonSuite(p, on))
	}
	return doc.write(w)
}

func comparisonSuite(p expect.Pair, on []expect.FailOn) junitSuite {
	s := junitSuite{
		Name: clean(strings.Join(pairLine(p), ", ")), Package: "wallprobe", Hostname: "localhost", Time: "0",
		Timestamp: p.New.Started.UTC().Format("2006-01-02T15:04:05"),
	}
	class := strings.Join([]string{"wallprobe", "diff", dotless(p.Scenario), dotless(p.Role)}, ".")
	add := func(name string, st standing, kind, message, text string) {
		s.add(junitCase{Name: clean(name), Class: class, Time: "0"}, st, junitReason{clean(message), kind, junitLines(text)})
	}
	for _, x := range p.Changes {
		one := expect.Comparison{Pairs: []expect.Pair{{Changes: []expect.Change{x}}}}
		what := x.Path + " " + changedPorts(x, Options{})
		add(what+" "+x.Title, whatCounts(one, on), string(x.Kind), fmt.Sprintf("%s: %s: %s -> %s", x.Kind, what, state(x.Old), state(x.New)), strings.Join(reasons(x), "\n"))
	}
	for _, x := range p.Outcomes {
		one := expect.Comparison{Pairs: []expect.Pair{{Outcomes: []expect.OutcomeChange{x}}}}
		add("outcome "+x.ID+" "+x.Title, whatCounts(one, on), string(x.Kind), fmt.Sprintf("%s: %s: %s -> %s", x.Kind, x.Title, x.Old, x.New), join("; ", x.New.Via, x.New.Why))
	}
	for _, d := range p.Doubts {
		add("the comparison stands", doubtful, "inconclusive", d, "")
	}
	add(fmt.Sprintf("the rest of %s with %s is as it was", count(p.Paths, "path"), count(p.Ports, "port")), holds, "", "", "")
	return s
}

// whatCounts is how a change stands, which is alone in a comparison.
func whatCounts(one expect.Comparison, on []expect.FailOn) standing {
	if one.Fails(on...) {
		return fails
	}
	return skipped
}
