package report

import (
	"bytes"
	"fmt"
	"io"
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
	for _, c := range p.Changes {
		if c.Kind == expect.Untold && !o.Details {
			untold = append(untold, fmt.Sprintf("%s %s (%s, now %s)", c.Path, changedPorts(c, o), state(c.Old), state(c.New)))
			continue
		}
		t.add(o.kind(c.Kind), cell{text: c.Path}, cell{text: c.Title + aside(c)}, cell{text: changedPorts(c, o)},
			o.state(c.Old), cell{text: "->"}, o.state(c.New))
		for _, text := range reasons(c) {
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
	c.text = state(s)
	return c
}

func state(s expect.State) string {
	if s.Verdict == "" {
		return "not there"
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

// reasons are the evidence of both sides and the rules that decided them.
func reasons(c expect.Change) []string {
	var out []string
	if len(c.Targets) > 0 {
		out = append(out, "at "+few(c.Targets))
	}
	sides := []struct {
		name string
		expect.State
	}{{"old", c.Old}, {"new", c.New}}
	for _, s := range sides {
		for _, d := range s.DecidedBy {
			if len(d.Ports) == 0 || len(d.Ports.Intersect(c.Ports)) > 0 {
				out = append(out, s.name+": "+decision(d))
			}
		}
		if s.Why != "" && len(s.DecidedBy) == 0 && s.Verdict != client.Open {
			out = append(out, s.name+": "+s.Why)
		}
	}
	return out
}

// decision names a rule: by its file and line, or else by its place in a chain.
func decision(d client.Decision) string {
	text := d.Text
	switch {
	case d.File != "" && d.Line > 0:
		text = fmt.Sprintf("%s:%d: %s", d.File, d.Line, d.Text)
	case d.Index > 0:
		text = fmt.Sprintf("rule %d in %s: %s", d.Index, d.Chain, d.Text)
	}
	if d.Back {
		text += " (of the answers)"
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
	for _, k := range []expect.Kind{expect.Broke, expect.Worse, expect.Opened, expect.Better, expect.Different, expect.Untold} {
		if kinds[k] > 0 {
			said = append(said, fmt.Sprintf("%s %s", Group(kinds[k]), k))
		}
	}
	if len(said) == 0 {
		return none
	}
	return strings.Join(said, ", ")
}
