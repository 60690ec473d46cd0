package expect

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// header tells whoever opens a file of expectations what it is.
const header = `# What is expected of wallprobe's runs: wallprobe run ... --expect THIS-FILE
# Each port of a path must have one of its verdicts. Change what you want otherwise:
# take out lines that do not matter, add verdicts that are fine too. The keys are
# explained by: wallprobe expect --help
`

// A Source is the results of one file.
type Source struct {
	Name    string // for messages
	Results []*client.Result
}

// SameRuns tells in one sentence why sources are not several runs of the same;
// nil if they are. What differs between them must be chance's or the line's: not
// another scenario, role, family, firewall or reflector.
func SameRuns(sources []Source) error {
	first := sources[0]
	for i, s := range sources[1:] {
		if r := twice(s.Results); r != nil {
			return fmt.Errorf("%s has %s twice: give each run in a file of its own", s.Name, SubjectOf(r))
		}
		for _, pair := range [][2]Source{{first, s}, {s, first}} {
			for _, r := range pair[0].Results {
				if pair[1].of(r) == nil {
					return fmt.Errorf("%s has %s and %s has not: expectations are made from several runs of the same, or from one", pair[0].Name, SubjectOf(r), pair[1].Name)
				}
			}
		}
		for _, r := range s.Results {
			for _, before := range sources[:i+1] {
				if err := sameRun(before.of(r), r, before.Name, s.Name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// sameRun says what tells two results on one subject apart that must not.
func sameRun(a, b *client.Result, nameA, nameB string) error {
	switch {
	case a.Version != b.Version:
		return fmt.Errorf("%s was measured with version %d of scenario %s and %s with version %d: their paths may mean different things; measure again", nameA, a.Version, a.Scenario, nameB, b.Version)
	case a.Reflector != b.Reflector:
		return fmt.Errorf("%s was measured against reflector %s and %s against %s: what differs may be theirs and not the firewall's", nameA, a.Reflector, nameB, b.Reflector)
	case a.Session == b.Session && a.Session != (wire.SessionID{}):
		return fmt.Errorf("%s and %s have the same run of %s, which would count twice", nameA, nameB, SubjectOf(b))
	}
	return nil
}

// of is the source's result on the subject of another one, or nil.
func (s Source) of(r *client.Result) *client.Result {
	i := slices.IndexFunc(s.Results, func(o *client.Result) bool { return SubjectOf(o) == SubjectOf(r) })
	if i < 0 {
		return nil
	}
	return s.Results[i]
}

// twice is a result on whose subject there is another one, or nil.
func twice(list []*client.Result) *client.Result {
	for i, r := range list {
		if slices.ContainsFunc(list[:i], func(o *client.Result) bool { return SubjectOf(o) == SubjectOf(r) }) {
			return r
		}
	}
	return nil
}

// Write makes a file of expectations by which results like these hold. The
// sources are several runs of the same: where these agree, that is expected.
// Where they differ, each verdict that was seen is acceptable and a comment says
// how often it was, for only a person can tell which of them is the fault; of an
// outcome that worked in some of them nothing is expected, and a comment says so.
// What could not be measured is only a comment. The error says why the results
// are no good for that.
func Write(sources []Source) ([]byte, error) {
	if len(sources) == 0 || len(sources[0].Results) == 0 {
		return nil, fmt.Errorf("there are no results to expect again")
	}
	if err := SameRuns(sources); err != nil {
		return nil, err
	}
	f := File{Schema: SchemaID}
	var comments []runComments
	for _, r := range sources[0].Results {
		runs := []*client.Result{r}
		for _, s := range sources[1:] {
			runs = append(runs, s.of(r))
		}
		for i, r := range runs {
			if why := worthless(r); why != "" {
				where := ""
				if len(runs) > 1 {
					where = " in " + sources[i].Name
				}
				return nil, fmt.Errorf("the result of %s%s is nothing to expect again: %s", SubjectOf(r), where, why)
			}
		}
		run, c := runOf(runs)
		if !several(r, sources[0].Results) {
			run.Firewall = ""
		}
		f.Runs, comments = append(f.Runs, run), append(comments, c)
	}
	data, err := encode(f, comments)
	if err == nil {
		_, err = Parse("the file made", data)
	}
	return data, err
}

// worthless says why a run is no baseline, or is empty. Of several runs each must
// be one: one with the cable out would make every loss acceptable.
func worthless(r *client.Result) string {
	if why := Void(r); why != "" {
		return why
	}
	run, _ := runOf([]*client.Result{r})
	switch {
	case len(run.Paths)+len(run.Outcomes) == 0:
		return "nothing in it could be measured"
	case run.denies() && !slices.ContainsFunc(run.Paths, Path.allows):
		return "nothing passed in it, so that what was closed proves nothing"
	}
	return ""
}

// several tells whether other results differ from r by their firewall alone.
func several(r *client.Result, all []*client.Result) bool {
	is := SubjectOf(r)
	return slices.ContainsFunc(all, func(o *client.Result) bool {
		s := SubjectOf(o)
		s.Firewall = is.Firewall
		return o != r && s == is
	})
}

// runComments are told beside what they are about, by index.
type runComments struct {
	paths, outcomes []string
	head            []string // of the run as a whole
}

// differs marks in comments what the runs do not agree on.
const differs = "differs: "

func runOf(runs []*client.Result) (Run, runComments) {
	r := runs[0]
	run := Run{Scenario: r.Scenario, Version: r.Version, Role: r.Role, Family: Family(r.Family), Firewall: SubjectOf(r).Firewall}
	var c runComments
	for _, alike := range findingsOf(runs) {
		for _, s := range sightsOf(alike) {
			p, said := s.path, s.tally.String()
			if len(p.Verdicts) == 0 {
				c.head = append(c.head, "not measured: "+strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", p.Path, p.Ports, p.Target)), " ")+": "+said)
				continue
			}
			text := s.title
			if len(s.tally) > 1 {
				text += "; " + said
			}
			run.Paths, c.paths = append(run.Paths, p), append(c.paths, text)
		}
	}
	for _, alike := range outcomesOf(runs) {
		o, text, expected := outcomeOf(alike)
		if !expected {
			c.head = append(c.head, text)
			continue
		}
		run.Outcomes, c.outcomes = append(run.Outcomes, o), append(c.outcomes, text)
	}
	if len(runs) > 1 {
		c.head = slices.Insert(c.head, 0, madeOf(len(runs), slices.Concat(c.paths, c.outcomes))...)
	}
	return run, c
}

// madeOf says of how many runs a file was made, and what to look at.
func madeOf(runs int, comments []string) []string {
	n := 0
	for _, text := range comments {
		if strings.Contains(text, differs) {
			n++
		}
	}
	if n == 0 {
		return []string{fmt.Sprintf("made from %d runs, which agree in every line below", runs)}
	}
	return []string{
		fmt.Sprintf("made from %d runs, which do not agree in %d of the lines below: %q says in which,", runs, n, strings.TrimSuffix(differs, ": ")),
		"and how often each verdict was seen. All of them are acceptable: take out what must not be",
	}
}

// findingsOf are the findings of each path and transport, run by run; nil where
// a run has none.
func findingsOf(runs []*client.Result) [][]*client.Finding {
	var out [][]*client.Finding
	for i, r := range runs {
		for j := range r.Findings {
			x := &r.Findings[j]
			at := slices.IndexFunc(out, func(list []*client.Finding) bool {
				return slices.ContainsFunc(list, func(y *client.Finding) bool { return y != nil && y.Path == x.Path && y.Transport == x.Transport })
			})
			if at < 0 {
				at, out = len(out), append(out, make([]*client.Finding, len(runs)))
			}
			out[at][i] = x
		}
	}
	return out
}

// A tally says how often each verdict was seen, the best first. "" is in it where
// a run does not have the ports.
type tally []seen

type seen struct {
	verdict string
	times   int
	all     int // runs
}

// tallyOf counts what was seen in each run; in order, of what there may be.
func tallyOf[T ~string](all []T, order []T) tally {
	var out tally
	order = append(slices.Clone(order), "")
	for _, x := range all {
		if !slices.Contains(order, x) {
			order = append(order, x)
		}
	}
	for _, v := range order {
		n := 0
		for _, x := range all {
			if x == v {
				n++
			}
		}
		if n > 0 {
			out = append(out, seen{string(v), n, len(all)})
		}
	}
	return out
}

// String is "open" where all runs agree, else "open in 2 of 3 runs, silent in 1".
func (t tally) String() string {
	if len(t) == 1 {
		return t[0].verdict
	}
	known := 0
	var said []string
	for i, s := range t {
		what := s.verdict
		if what == "" {
			what = "not there"
		}
		text := fmt.Sprintf("%s in %d", what, s.times)
		if i == 0 {
			text += fmt.Sprintf(" of %d runs", s.all)
		}
		if proves(s.verdict) {
			known++
		}
		said = append(said, text)
	}
	text := strings.Join(said, ", ")
	if known > 1 {
		text = differs + text
	}
	return text
}

// proves tells whether a verdict, or the state of an outcome, is one that can be
// expected.
func proves(word string) bool {
	v := client.Verdict(word)
	return !unsure(v) && v != client.Partial && word != unknown
}

// A sight is a line about ports that fared alike, as often.
type sight struct {
	path  Path
	title string
	tally tally
}

// sightsOf expects of a path what was measured, run by run.
func sightsOf(alike []*client.Finding) []sight {
	var out []sight
	var about *client.Finding
	parted := false
	var shares []share
	for i, f := range alike {
		if f == nil {
			shares = addRun(shares, nil, i)
			continue
		}
		if about == nil {
			about = f
		}
		parted = parted || len(f.Parts) > 0
		shares = addRun(shares, sharesOf(f), i)
	}
	for _, s := range shares {
		t := tallyOf(s.runs, client.Verdicts)
		p := Path{Path: about.Path, Transport: about.Transport, Verdicts: t.acceptable(), Target: s.target}
		if parted {
			p.Ports = s.ports
		}
		same := slices.IndexFunc(out, func(o sight) bool { return o.path.Target == p.Target && slices.Equal(o.tally, t) })
		if same >= 0 { // apart only by their reasons, or by which of the runs it was
			out[same].path.Ports = scenarios.Union(out[same].path.Ports, p.Ports)
			continue
		}
		out = append(out, sight{p, about.Title, t})
	}
	return out
}

// addRun cuts shares of the runs before at the borders of those of the next one.
func addRun(shares, next []share, before int) []share {
	meetings := meet(shares, next)
	if len(shares) == 0 {
		meetings = nil // some findings have no ports
		for _, s := range next {
			meetings = append(meetings, meeting{target: s.target, ports: s.ports, new: s})
		}
	}
	var out []share
	for _, m := range meetings {
		s := share{target: m.target, ports: m.ports, runs: slices.Clone(m.old.runs)}
		for len(s.runs) < before {
			s.runs = append(s.runs, "")
		}
		s.runs = append(s.runs, m.new.state.Verdict)
		out = append(out, s)
	}
	return out
}

// acceptable are the verdicts that were seen, as far as they prove something. Less
// loss than was seen is no fault.
func (t tally) acceptable() []client.Verdict {
	var out []client.Verdict
	for _, s := range t {
		v := client.Verdict(s.verdict)
		switch {
		case !proves(s.verdict):
		case v == client.Degraded && !slices.Contains(out, client.Open):
			out = append(out, client.Open, v)
		default:
			out = append(out, v)
		}
	}
	return out
}

// outcomesOf are the states of each outcome, run by run; nil where a run has none.
func outcomesOf(runs []*client.Result) [][]*client.Outcome {
	var out [][]*client.Outcome
	for i, r := range runs {
		for j := range r.Outcomes {
			x := &r.Outcomes[j]
			at := slices.IndexFunc(out, func(list []*client.Outcome) bool {
				return slices.ContainsFunc(list, func(y *client.Outcome) bool { return y != nil && y.ID == x.ID })
			})
			if at < 0 {
				at, out = len(out), append(out, make([]*client.Outcome, len(runs)))
			}
			out[at][i] = x
		}
	}
	return out
}

// The states of an outcome in a tally, besides those by its ways.
const (
	failing = "fails"
	unknown = "unknown"
)

// outcomeOf expects of an outcome what was measured: that it works by the last of
// the ways that won, or that it fails. Where runs differ in that, or none could
// tell, nothing is expected, and the text says why.
func outcomeOf(alike []*client.Outcome) (o Outcome, text string, expected bool) {
	var states, order []string
	var about *client.Outcome
	works, failed := 0, 0
	for _, x := range alike {
		if x == nil {
			states = append(states, "")
			continue
		}
		about = x
		s := outcomeState(x)
		o = Outcome{Outcome: x.ID, Works: o.Works || s.Works, Way: max(o.Way, s.Way)}
		switch {
		case s.Works:
			works++
		case !s.Unknown:
			failed++
		}
		states = append(states, s.Short())
	}
	for way := range o.Way + 1 {
		order = append(order, OutcomeState{Works: true, Way: way}.Short())
	}
	t := tallyOf(states, append(order, failing, unknown))
	switch {
	case works+failed == 0:
		return o, fmt.Sprintf("not measured: outcome %s: %s", about.ID, t), false
	case works > 0 && failed > 0:
		return o, fmt.Sprintf("nothing is expected of outcome %s, which %s", about.ID, t), false
	case len(t) > 1:
		return o, about.Title + "; " + t.String(), true
	case o.Works && about.Via != "":
		return o, about.Title + "; " + about.Via, true
	}
	return o, about.Title, true
}

// encode writes a file with its comments.
func encode(f File, comments []runComments) ([]byte, error) {
	var root yaml.Node
	if err := root.Encode(f); err != nil {
		return nil, err
	}
	runs := value(&root, "runs")
	for i, run := range runs.Content {
		c := comments[i]
		decorate(value(run, "paths"), c.paths)
		decorate(value(run, "outcomes"), c.outcomes)
		for _, text := range c.head {
			run.Content[0].HeadComment = strings.TrimPrefix(run.Content[0].HeadComment+"\n", "\n") + plain(text)
		}
	}
	var out bytes.Buffer
	out.WriteString(header)
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&root); err != nil {
		return nil, err
	}
	return out.Bytes(), e.Close()
}

// value is the value of a key of a mapping, or an empty node.
func value(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return &yaml.Node{}
}

// decorate puts each item of a list on a line of its own, with a comment.
func decorate(list *yaml.Node, comments []string) {
	for i, item := range list.Content {
		item.Style = yaml.FlowStyle
		item.LineComment = plain(comments[i])
	}
}

// plain is a text fit for a comment.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control) || r == '\uFEFF' || r == '\uFFFE' || r == '\uFFFF' {
			return ' '
		}
		return r
	}, text)
}
