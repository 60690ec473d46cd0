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
	hold := 0
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{}, {}, {Flex: 1}, {Max: 24}, {Flex: 1}, {}}}
	t.Row("", "", "", "", "expected", "measured")
	for i := range r.Expectations {
		x := &r.Expectations[i]
		if x.State == client.Holds {
			hold++
			if !o.Details {
				continue
			}
		}
		expectation(t, x, o)
	}
	if hold < len(r.Expectations) || o.Details {
		out.WriteString("Expectations\n")
		out.Write(t.render().Bytes())
		out.WriteByte('\n')
	}
	out.WriteString(ExpectationsBrief(r) + "\n")
	_, err := out.WriteTo(w)
	return err
}

// ExpectationsBrief says in a line what came of what was expected of a result.
func ExpectationsBrief(r *client.Result) string {
	states := make(map[client.State]int)
	for _, x := range r.Expectations {
		states[x.State]++
	}
	text := fmt.Sprintf("%s: %d hold", count(len(r.Expectations), "expectation"), states[client.Holds])
	if n := states[client.Fails]; n > 0 {
		text += fmt.Sprintf(", %d fail", n)
	}
	if n := states[client.Untold]; n > 0 {
		text += fmt.Sprintf(", %d cannot be told", n)
	}
	return text + "."
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

// expectedWords are an expectation and what came of it, for reports that are no
// text.
type expectedWords struct{ state, what, wanted, measured, why, place string }

func newExpected(x *client.Expectation) expectedWords {
	e := expectedWords{
		state: (Options{}).expectationState(x.State).text, what: join(" ", x.Path, x.Title, expectedPorts(x, x.Ports)),
		wanted: strings.Join(x.Expected, " or "), measured: x.Measured, place: fmt.Sprintf("%s:%d", x.File, x.Line),
	}
	var measured, why []string
	for _, m := range x.Misses {
		measured = append(measured, join(" ", string(m.Verdict), expectedPorts(x, m.Ports), m.Target))
		for _, d := range m.DecidedBy {
			why = append(why, decision(d, m.Ports))
		}
		why = append(why, m.Why)
	}
	if len(x.Misses) == 0 {
		why = append(why, x.Why)
	}
	e.measured = join("; ", append([]string{e.measured}, measured...)...)
	e.why = strings.Join(distinct(why), "; ")
	if e.measured == "" && x.State == client.Holds {
		e.measured = "as expected"
	}
	return e
}
