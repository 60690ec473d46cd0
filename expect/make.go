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
)

// header tells whoever opens a file of expectations what it is.
const header = `# What is expected of wallprobe's runs: wallprobe run ... --expect THIS-FILE
# Each port of a path must have one of its verdicts. Change what you want otherwise:
# take out lines that do not matter, add verdicts that are fine too. The keys are
# explained by: wallprobe expect --help
`

// Write makes a file of expectations by which results like these hold. What
// could not be measured is only a comment in it. The error says why the results
// are no good for that.
func Write(results []*client.Result) ([]byte, error) {
	if len(results) == 0 {
		return nil, fmt.Errorf("there are no results to expect again")
	}
	f := File{Schema: SchemaID}
	var comments []runComments
	for _, r := range results {
		if why := Void(r); why != "" {
			return nil, fmt.Errorf("the result of %s is nothing to expect again: %s", SubjectOf(r), why)
		}
		run, c := runOf(r)
		if len(run.Paths)+len(run.Outcomes) == 0 {
			return nil, fmt.Errorf("the result of %s is nothing to expect again: nothing in it could be measured", SubjectOf(r))
		}
		if run.denies() && !slices.ContainsFunc(run.Paths, Path.allows) {
			return nil, fmt.Errorf("the result of %s is nothing to expect again: nothing passed in it, so that what was closed proves nothing", SubjectOf(r))
		}
		if !several(r, results) {
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
	left            []string // what could not be measured
}

func runOf(r *client.Result) (Run, runComments) {
	run := Run{Scenario: r.Scenario, Version: r.Version, Role: r.Role, Family: Family(r.Family), Firewall: SubjectOf(r).Firewall}
	var c runComments
	for i := range r.Findings {
		x := &r.Findings[i]
		for _, p := range pathsOf(x) {
			if unsure(p.Verdicts[0]) || p.Verdicts[0] == client.Partial {
				c.left = append(c.left, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", p.Path, p.Ports, p.Target)), " ")+": "+string(p.Verdicts[0]))
				continue
			}
			run.Paths, c.paths = append(run.Paths, p), append(c.paths, x.Title)
		}
	}
	for i := range r.Outcomes {
		o := &r.Outcomes[i]
		if o.Unknown {
			c.left = append(c.left, fmt.Sprintf("outcome %s: unknown", o.ID))
			continue
		}
		e := Outcome{Outcome: o.ID, Works: o.Works, Way: outcomeState(o).Way}
		title := o.Title
		if o.Works && o.Via != "" {
			title += "; " + o.Via
		}
		run.Outcomes, c.outcomes = append(run.Outcomes, e), append(c.outcomes, title)
	}
	return run, c
}

// pathsOf expects of a path what was measured.
func pathsOf(f *client.Finding) []Path {
	var out []Path
	for _, s := range sharesOf(f) {
		p := Path{Path: f.Path, Transport: f.Transport, Verdicts: []client.Verdict{s.state.Verdict}, Target: s.target}
		if s.state.Verdict == client.Degraded {
			p.Verdicts = []client.Verdict{client.Open, client.Degraded} // less loss is no fault
		}
		if len(f.Parts) > 0 {
			p.Ports = s.ports
		}
		same := slices.IndexFunc(out, func(q Path) bool { return q.Target == p.Target && slices.Equal(q.Verdicts, p.Verdicts) })
		if same >= 0 { // apart only by their reasons
			out[same].Ports = scenarios.Union(out[same].Ports, p.Ports)
			continue
		}
		out = append(out, p)
	}
	return out
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
		for _, text := range c.left {
			run.Content[0].HeadComment = strings.TrimPrefix(run.Content[0].HeadComment+"\n", "\n") + "not measured: " + plain(text)
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
