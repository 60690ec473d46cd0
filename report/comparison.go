package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Comparison prints what changed and nothing else: for each pair of results the
// paths with their exact ports, and what it means for the outcomes.
func Comparison(w io.Writer, c expect.Comparison, o Options) error {
	var out bytes.Buffer
	for _, p := range c.Pairs {
		if len(p.Changes)+len(p.Outcomes) == 0 {
			continue
		}
		for i, line := range pack(pairLine(p), " -- ", o.width()-2) {
			out.WriteString(strings.Repeat("  ", min(i, 1)) + line + "\n")
		}
		out.WriteByte('\n')
		t, untold := changes(p, o)
		out.Write(t.render().Bytes())
		paragraph(&out, untold, o)
		if len(p.Outcomes) > 0 {
			if len(p.Changes) > 0 {
				out.WriteByte('\n')
			}
			out.Write(outcomeChanges(p, o).render().Bytes())
		}
		out.WriteByte('\n')
	}
	for _, text := range append(additions(c), c.Doubts()...) {
		for i, line := range wrap(text+".", o.width()-2) {
			out.WriteString(strings.Repeat("  ", min(i, 1)) + line + "\n")
		}
	}
	for _, line := range pack(totals(c), "   ", o.width()) {
		out.WriteString(line + "\n")
	}
	_, err := out.WriteTo(w)
	return err
}

// ComparisonJSON writes a comparison as JSON.
func ComparisonJSON(w io.Writer, c expect.Comparison) error { return encode(w, c) }

// pairLine says what was compared with what.
func pairLine(p expect.Pair) []string {
	parts := []string{p.Scenario + " as " + p.Role}
	if p.Family == "ipv6" {
		parts = append(parts, "over IPv6")
	}
	if p.Old.Firewall != "" || p.New.Firewall != "" {
		parts = append(parts, "old firewall "+p.Old.Firewall, "new firewall "+p.New.Firewall)
	}
	return parts
}

// changes lays out the paths, and folds those that could not be told.
func changes(p expect.Pair, o Options) (*Table, string) {
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{}, {}, {Flex: 2}, {Max: 24}, {}, {}, {}}}
	var untold []string
	var told []expect.Change
	for _, c := range p.Changes {
		if c.Kind == expect.Untold && !o.Details {
			untold = append(untold, fmt.Sprintf("%s %s (%s, now %s)", c.Path, changedPorts(c, o), state(c.Old), state(c.New)))
			continue
		}
		told = append(told, c)
	}
	for _, g := range byReasons(told) {
		for _, c := range g {
			t.add(o.kind(c.Kind), cell{text: c.Path}, cell{text: c.Title + aside(c)}, cell{text: changedPorts(c, o)},
				o.state(c.Old), cell{text: "->"}, o.state(c.New))
		}
		said := reasons(g[0])
		switch {
		case len(said) == 0:
		case len(g) == 2:
			t.under(below{column: 2, text: "both alike:"})
		case len(g) > 2:
			t.under(below{column: 2, text: fmt.Sprintf("all %d alike:", len(g))})
		}
		for _, text := range said {
			t.under(below{column: 2, text: text})
		}
	}
	if len(untold) == 0 {
		return t, ""
	}
	return t, "told only one of the two times: " + strings.Join(untold, ", ") + ": reasons with --details"
}

func (o Options) kind(k expect.Kind) cell {
	paints := map[expect.Kind]paint{expect.Broke: red, expect.Worse: yellow, expect.Opened: yellow, expect.Better: green, expect.Untold: yellow}
	return o.word(string(k), paints[k])
}

func (o Options) state(s expect.State) cell {
	c := o.verdict(s.Verdict)
	s.Rejection = "" // stands below, where there is room
	c.text = state(s)
	return c
}

func state(s expect.State) string {
	switch {
	case s.Verdict == "":
		return "not there"
	case s.Rejection != "":
		return fmt.Sprintf("%s (%s)", s.Verdict, s.Rejection)
	}
	return string(s.Verdict)
}

// aside says what a change means for its path, where that is not simply bad.
func aside(c expect.Change) string {
	switch {
	case c.Kind == expect.Broke && c.Need == scenarios.Required && !c.Required:
		return " (the path survives)"
	case c.Need == scenarios.Required:
		return ""
	}
	return " (" + needs[c.Need] + ")"
}

// fewTargets names targets, the first of many.
func fewTargets(targets []string) string {
	const most = 3
	if more := len(targets) - most; more > 1 {
		return fmt.Sprintf("%s and %d more", strings.Join(targets[:most], ", "), more)
	}
	return strings.Join(targets, ", ")
}

// ChangeLine is a change in one line: "CRD-A3 3478/udp: open -> request-lost".
func ChangeLine(c expect.Change) string {
	what := strings.TrimSpace(c.Path + " " + changedPorts(c, Options{}))
	if len(c.Targets) > 0 {
		what += " at " + fewTargets(c.Targets)
	}
	return fmt.Sprintf("%s: %s -> %s", what, state(c.Old), state(c.New))
}

func changedPorts(c expect.Change, o Options) string {
	text := ports(c.Ports, c.Transport)
	if o.Details {
		text = c.Ports.String() + "/" + string(c.Transport)
	}
	if c.Own {
		return "own " + text
	}
	return text
}

// byReasons puts changes beside each other that have the same reasons.
func byReasons(list []expect.Change) [][]expect.Change {
	var out [][]expect.Change
	at := make(map[string]int)
	for _, c := range list {
		said := strings.Join(reasons(c), "\n")
		i, known := at[said]
		if !known || said == "" {
			i = len(out)
			at[said] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], c)
	}
	return out
}

// reasons are the evidence of both sides and the rules that decided them.
func reasons(c expect.Change) []string {
	var out []string
	if len(c.Targets) > 0 {
		out = append(out, "at "+fewTargets(c.Targets))
	}
	sides := []struct {
		name string
		expect.State
	}{{"old", c.Old}, {"new", c.New}}
	back := answersStopped(c.Old) || answersStopped(c.New)
	for _, s := range sides {
		for _, d := range s.DecidedBy {
			if d.Back == back || !s.Verdict.Passes() {
				if text := s.name + ": " + join(", by ", s.Rejection, decision(d, c.Ports)); len(d.Ports) == 0 || len(d.Ports.Intersect(c.Ports)) > 0 {
					out = append(out, text)
				}
			}
		}
		if s.Why != "" && len(s.DecidedBy) == 0 && s.Verdict != client.Open {
			out = append(out, s.name+": "+s.Why)
		}
	}
	return out
}

// answersStopped tells whether a rule stopped the answers. Then the rule that lets
// them pass is the one to tell of the other side, and else that for the requests.
func answersStopped(s expect.State) bool {
	return !s.Verdict.Passes() && slices.ContainsFunc(s.DecidedBy, func(d client.Decision) bool { return d.Back })
}

// decision names a rule: by its file and line, or else by its place in a chain;
// and the ports for which it decides, where others do for the rest of a change.
func decision(d client.Decision, of scenarios.PortSet) string {
	text := d.Text
	switch {
	case d.File != "" && d.Line > 0:
		text = fmt.Sprintf("%s:%d: %s", d.File, d.Line, d.Text)
	case d.Index > 0:
		text = fmt.Sprintf("rule %d in %s: %s", d.Index, d.Chain, d.Text)
	case d.Chain != "":
		text = fmt.Sprintf("%s of %s", d.Text, d.Chain)
	}
	if d.Back {
		text += " (of the answers)"
	}
	if len(d.Ports) > 0 && len(of.Without(d.Ports)) > 0 {
		text += " (for " + ports(d.Ports.Intersect(of), "") + ")"
	}
	return text
}

func outcomeChanges(p expect.Pair, o Options) *Table {
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{}, {Flex: 1}, {}, {}, {}}}
	for _, c := range p.Outcomes {
		title := c.Title
		if !c.Required {
			title += " (optional)"
		}
		t.add(o.kind(c.Kind), cell{text: title}, cell{text: c.Old.Short()}, cell{text: "->"}, cell{text: c.New.Short()})
		if c.Kind != expect.Broke && c.Old.Via != "" {
			t.Note(1, "old: "+c.Old.Via)
		}
		if text := join("; ", c.New.Via, c.New.Why); text != "" {
			t.Note(1, "new: "+text)
		}
	}
	return t
}

// additions says what was not measured before.
func additions(c expect.Comparison) []string {
	var out []string
	for _, s := range c.NewOnly {
		out = append(out, fmt.Sprintf("%s was not measured before", s))
	}
	return out
}

// totals is the last line: what changed, out of how much.
func totals(c expect.Comparison) []string {
	kinds, outcomes := make(map[expect.Kind]int), make(map[expect.Kind]int)
	paths, ports := 0, 0
	for _, p := range c.Pairs {
		paths, ports = paths+p.Paths, ports+p.Ports
		for _, x := range p.Changes {
			kinds[x.Kind]++
		}
		for _, x := range p.Outcomes {
			outcomes[x.Kind]++
		}
	}
	out := []string{fmt.Sprintf("%s with %s compared: %s.", count(paths, "path"), count(ports, "port"), tally(kinds, "nothing changed"))}
	if len(outcomes) > 0 {
		out = append(out, fmt.Sprintf("Outcomes: %s.", tally(outcomes, "")))
	}
	return out
}

// tally counts kinds: "1 broke, 2 opened".
func tally(kinds map[expect.Kind]int, none string) string {
	var said []string
	for _, k := range []expect.Kind{expect.Broke, expect.Worse, expect.Opened, expect.Better, expect.Different, expect.Rejection, expect.Untold} {
		if kinds[k] > 0 {
			said = append(said, fmt.Sprintf("%s %s", Group(kinds[k]), k))
		}
	}
	if len(said) == 0 {
		return none
	}
	return strings.Join(said, ", ")
}
