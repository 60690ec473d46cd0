package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Expectations prints what was expected of a result and does not hold, or could
// not be told, each with its exact ports and the line that expects it. It prints
// nothing of a result of which nothing was expected.
func Expectations(w io.Writer, r *client.Result, o Options) error {
	if len(r.Expectations) == 0 {
		return nil
	}
	var out bytes.Buffer
	states := make(map[client.State]int)
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{}, {}, {Flex: 1}, {Max: 24}, {Flex: 1}, {}}}
	t.Row("", "", "", "", "expected", "measured")
	for i := range r.Expectations {
		x := &r.Expectations[i]
		if states[x.State]++; x.State == client.Holds && !o.Details {
			continue
		}
		expectation(t, x, o)
	}
	total := fmt.Sprintf("%s: %d hold", count(len(r.Expectations), "expectation"), states[client.Holds])
	if n := states[client.Fails]; n > 0 {
		total += fmt.Sprintf(", %d fail", n)
	}
	if n := states[client.Untold]; n > 0 {
		total += fmt.Sprintf(", %d cannot be told", n)
	}
	if states[client.Holds] < len(r.Expectations) || o.Details {
		out.WriteString("Expectations\n")
		out.Write(t.render().Bytes())
		out.WriteByte('\n')
	}
	out.WriteString(total + ".\n")
	_, err := out.WriteTo(w)
	return err
}

// expectation lays out one expectation, a row for each verdict that missed it.
func expectation(t *Table, x *client.Expectation, o Options) {
	t.add(o.expectationState(x.State), cell{text: x.Path + x.Outcome}, cell{text: x.Title}, cell{text: expectedPorts(x, x.Ports)},
		cell{text: strings.Join(x.Expected, ", ")}, cell{text: x.Measured})
	last := &t.rows[len(t.rows)-1]
	for i, m := range x.Misses {
		if i > 0 {
			t.add()
			last = &t.rows[len(t.rows)-1]
			last.cells = make([]cell, len(t.Columns))
		}
		last.cells[3].text, last.cells[5] = expectedPorts(x, m.Ports), o.verdict(m.Verdict)
		var why []string
		if m.Target != "" {
			why = append(why, "at "+m.Target)
		}
		for _, d := range m.DecidedBy {
			why = append(why, decision(d, m.Ports))
		}
		if text := join("; ", append(why, m.Why)...); text != "" {
			t.Note(2, text)
		}
	}
	if len(x.Misses) == 0 && x.Why != "" {
		t.Note(2, x.Why)
	}
	t.Note(2, fmt.Sprintf("expected in %s:%d", x.File, x.Line))
}

func (o Options) expectationState(s client.State) cell {
	switch s {
	case client.Holds:
		return o.word("holds", green)
	case client.Fails:
		return o.word("fails", red)
	}
	return o.word("unknown", yellow)
}

func expectedPorts(x *client.Expectation, s scenarios.PortSet) string {
	if len(s) == 0 {
		return ""
	}
	text := ports(s, x.Transport)
	if x.Own {
		return "own " + text
	}
	return text
}
