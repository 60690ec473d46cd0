package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/client"
)

// A matrix is which outcome works behind which firewall.
type matrix struct {
	columns []string // firewalls, as they come
	groups  []*group
	seen    map[string]bool // words used in cells
	notes   []string        // on the firewalls
}

// A group is one scenario measured from one near end.
type group struct {
	scenario, role string
	rows           []*outcomeRow
}

type outcomeRow struct {
	outcome client.Outcome
	cells   map[string]cell // by column
}

// The words of the cells.
const (
	cellFails   = "fails"
	cellWorks   = "works"
	cellUnknown = "?"
	cellAbsent  = "-"
)

var legend = []struct{ word, means string }{
	{"way", "way N: works by way N, the first in the application's order whose paths all survive"},
	{cellWorks, "works: by the only way there is"},
	{cellFails, "fails: no way survives"},
	{cellUnknown, "?: too little could be measured to say"},
	{cellAbsent, "-: not measured there"},
}

// Matrix prints which outcome works behind which firewall and by which way:
// outcomes downwards, firewalls across. Ways are numbered and listed under
// their outcome. Firewalls that do not fit beside each other follow in a
// second table.
func Matrix(w io.Writer, results []*client.Result, o Options) error {
	m := newMatrix(results, o)
	var out bytes.Buffer
	for rest := m.columns; len(rest) > 0; {
		n := fit(rest, o)
		out.Write(m.table(rest[:n], o).render().Bytes())
		out.WriteByte('\n')
		rest = rest[n:]
	}
	var used []string
	for _, l := range legend {
		if m.seen[l.word] {
			used = append(used, l.means)
		}
	}
	for _, line := range wrap(strings.Join(used, "; "), o.width()) {
		out.WriteString(line + "\n")
	}
	for _, note := range m.notes {
		for i, line := range wrap(note, o.width()-2) {
			out.WriteString(strings.Repeat("  ", min(i, 1)) + line + "\n")
		}
	}
	_, err := out.WriteTo(w)
	return err
}

func newMatrix(results []*client.Result, o Options) *matrix {
	m := &matrix{seen: make(map[string]bool)}
	columns := columnsOf(results)
	for _, r := range results {
		column := columns[r]
		if !slices.Contains(m.columns, column) {
			m.columns = append(m.columns, column)
		}
		if r.Firewall != nil {
			for _, n := range r.Firewall.Notes {
				if n = column + ": " + n; !slices.Contains(m.notes, n) {
					m.notes = append(m.notes, n)
				}
			}
		}
		g := m.group(r)
		for _, oc := range r.Outcomes {
			g.row(oc).cells[column] = m.cell(oc, o)
		}
	}
	for _, g := range m.groups {
		for _, r := range g.rows {
			m.seen[cellAbsent] = m.seen[cellAbsent] || len(r.cells) < len(m.columns)
		}
	}
	return m
}

// columnsOf names the firewall of each result; of those that were measured
// twice, the time too.
func columnsOf(results []*client.Result) map[*client.Result]string {
	families := make(map[string]bool)
	for _, r := range results {
		families[r.Family] = true
	}
	times := make(map[[3]string]int)
	subject := func(r *client.Result) [3]string {
		return [3]string{r.Scenario, r.Role, columnOf(r, len(families) > 1)}
	}
	for _, r := range results {
		times[subject(r)]++
	}
	out := make(map[*client.Result]string)
	for _, r := range results {
		out[r] = subject(r)[2]
		if times[subject(r)] > 1 {
			out[r] += r.Started.UTC().Format(", " + time.DateTime)
		}
	}
	return out
}

// columnOf names the firewall of a result; one that the program did not make
// is known by the reflector beyond it.
func columnOf(r *client.Result, families bool) string {
	name := "to " + r.Reflector.String()
	if r.Firewall != nil && r.Firewall.Name != "" {
		name = r.Firewall.Name
	}
	if families {
		name += " " + strings.Replace(r.Family, "ip", "IP", 1)
	}
	return name
}

func (m *matrix) group(r *client.Result) *group {
	for _, g := range m.groups {
		if g.scenario == r.Scenario && g.role == r.Role {
			return g
		}
	}
	m.groups = append(m.groups, &group{scenario: r.Scenario, role: r.Role})
	return m.groups[len(m.groups)-1]
}

func (g *group) row(oc client.Outcome) *outcomeRow {
	for _, r := range g.rows {
		if r.outcome.ID == oc.ID {
			return r
		}
	}
	g.rows = append(g.rows, &outcomeRow{outcome: oc, cells: make(map[string]cell)})
	return g.rows[len(g.rows)-1]
}

// cell says in a word how an outcome fared.
func (m *matrix) cell(oc client.Outcome, o Options) cell {
	c := o.outcome(oc)
	word := cellWorks
	switch {
	case !oc.Works && oc.Unknown:
		c.text, word = cellUnknown, cellUnknown
	case !oc.Works:
		c.text, word = cellFails, cellFails
	case len(oc.Ways) > 1:
		i := slices.IndexFunc(oc.Ways, func(w client.Way) bool { return w.Title == oc.Via })
		c.text, word = fmt.Sprintf("way %d", i+1), "way"
	}
	m.seen[word] = true
	return c
}

// titleRoom is what the outcomes' titles keep where columns are many.
const titleRoom = 24

// fit is how many of the columns have room beside the outcomes.
func fit(columns []string, o Options) int {
	used := 2 + titleRoom
	for i, name := range columns {
		used += gap + min(textWidth(clean(name)), minimum)
		if used > o.width() && i > 0 {
			return i
		}
	}
	return len(columns)
}

// table lays out the outcomes of all groups behind some of the firewalls.
func (m *matrix) table(columns []string, o Options) *Table {
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{Flex: 3}}}
	head := []string{""}
	for _, c := range columns {
		t.Columns = append(t.Columns, Column{Flex: 1})
		head = append(head, c)
	}
	t.Row(head...)
	for _, g := range m.groups {
		t.heading(g.scenario + " as " + g.role)
		for _, r := range g.rows {
			cells := []cell{{text: outcomeTitle(r.outcome)}}
			for _, c := range columns {
				v, ok := r.cells[c]
				if !ok {
					v = cell{text: cellAbsent}
				}
				cells = append(cells, v)
			}
			t.add(cells...)
			if len(r.outcome.Ways) > 1 {
				t.under(below{indent: 2, text: ways(r.outcome)})
			}
		}
	}
	return t
}

// ways lists the ways of an outcome by their numbers.
func ways(oc client.Outcome) string {
	var out []string
	for i, w := range oc.Ways {
		out = append(out, fmt.Sprintf("%d %s", i+1, w.Title))
	}
	return strings.Join(out, ", ")
}
