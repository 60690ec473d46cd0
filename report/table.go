package report

import (
	"bytes"
	"io"
	"slices"
	"strings"
)

// A Table lays out texts in columns for a terminal. Where the columns are
// wider than the table, those that may give way are wrapped. Wide characters
// count as two. Zero values of its fields are fine.
type Table struct {
	Width   int // in cells of a terminal; 0 is DefaultWidth
	Indent  int
	Columns []Column

	rows []row
}

// A Column says how one column behaves.
type Column struct {
	Max   int  // widest; 0 is as wide as its widest text
	Flex  int  // share of the space where there is too little; 0 never gives way
	Lines int  // a text that needs more goes under its row, from the second column on; 0 is any number
	Right bool // figures stand at the right
}

// DefaultWidth is the width of what is printed where none is known.
const DefaultWidth = 100

const (
	gap      = 2  // between columns
	minimum  = 10 // a column that gives way keeps this much
	readable = 20 // a column whose texts may go under their rows
	notes    = 40 // a text under a row gets this much
)

type row struct {
	heading string // stands alone, without an indent
	cells   []cell
	below   []below
}

type cell struct {
	text string
	paint
}

// below is a text or a table under a row, from a column to the right edge.
type below struct {
	column int
	indent int // of a text, beyond the column
	text   string
	table  *Table
}

// Row adds a row. Cells that are missing at its end are empty.
func (t *Table) Row(texts ...string) {
	cells := make([]cell, len(texts))
	for i, s := range texts {
		cells[i].text = s
	}
	t.add(cells...)
}

// Note puts a text under the last row, from a column (counted from 0) to the
// right edge.
func (t *Table) Note(column int, text string) {
	t.under(below{column: column, text: text})
}

func (t *Table) add(cells ...cell) { t.rows = append(t.rows, row{cells: cells}) }

// heading puts a line of its own between rows.
func (t *Table) heading(text string) { t.rows = append(t.rows, row{heading: text}) }

func (t *Table) under(b below) {
	last := &t.rows[len(t.rows)-1]
	last.below = append(last.below, b)
}

// WriteTo writes the table in one piece.
func (t *Table) WriteTo(w io.Writer) (int64, error) { return t.render().WriteTo(w) }

func (t *Table) render() *bytes.Buffer {
	var out bytes.Buffer
	widths := t.widths()
	for _, r := range t.rows {
		if r.heading != "" {
			out.WriteString(strings.Join(wrap(r.heading, t.width()), "\n") + "\n")
		} else {
			t.line(&out, r.cells, widths)
		}
		for i, c := range r.cells {
			if t.spills(i, c, widths) {
				t.indented(&out, below{column: 1, indent: 2, text: c.text}, widths)
			}
		}
		for _, b := range r.below {
			t.indented(&out, b, widths)
		}
	}
	return &out
}

// natural is the width that a column would like to have.
func (t *Table) natural(column int) int {
	n := 0
	for _, r := range t.rows {
		if column < len(r.cells) {
			n = max(n, textWidth(clean(r.cells[column].text)))
		}
	}
	if most := t.Columns[column].Max; most > 0 {
		n = min(n, most)
	}
	return n
}

// widths fits the columns into the table. A column whose texts may go under
// their rows makes room for the others where it would be too narrow to read.
func (t *Table) widths() []int {
	natural := make([]int, len(t.Columns))
	for i := range natural {
		natural[i] = t.natural(i)
	}
	widths := t.fit(natural)
	for i, c := range t.Columns {
		if c.Lines > 0 && widths[i] < min(natural[i], readable) {
			natural[i] = 0
			widths = t.fit(natural)
		}
	}
	return widths
}

// fit shrinks columns until they fit: first the one that is widest for its share.
func (t *Table) fit(natural []int) []int {
	widths := slices.Clone(natural)
	all := t.Indent
	for i := range widths {
		if widths[i] > 0 {
			all += widths[i] + gap
		}
	}
	for all -= gap; all > t.width(); all-- {
		widest := -1
		for i, c := range t.Columns {
			if c.Flex == 0 || widths[i] <= minimum {
				continue
			}
			if widest < 0 || widths[i]*t.Columns[widest].Flex > widths[widest]*c.Flex {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}

func (t *Table) width() int {
	if t.Width > 0 {
		return t.Width
	}
	return DefaultWidth
}

// start is the cell at which a column begins.
func (t *Table) start(column int, widths []int) int {
	at := t.Indent
	for _, n := range widths[:column] {
		if n > 0 {
			at += n + gap
		}
	}
	return at
}

func (t *Table) spills(column int, c cell, widths []int) bool {
	most := t.Columns[column].Lines
	return most > 0 && c.text != "" && (widths[column] == 0 || len(wrap(c.text, widths[column])) > most)
}

// line writes one row, which may take several lines.
func (t *Table) line(out *bytes.Buffer, cells []cell, widths []int) {
	wrapped := make([][]string, len(cells))
	height := 1
	for i, c := range cells {
		if t.spills(i, c, widths) {
			c.text = ""
		}
		wrapped[i] = wrap(c.text, widths[i])
		height = max(height, len(wrapped[i]))
	}
	for y := range height {
		var line, pending strings.Builder // pending blanks are written only in front of text
		pending.WriteString(strings.Repeat(" ", t.Indent))
		for i, c := range cells {
			text := ""
			if y < len(wrapped[i]) {
				text = wrapped[i][y]
			}
			left, right := "", strings.Repeat(" ", max(0, widths[i]-textWidth(text)))
			if t.Columns[i].Right {
				left, right = right, left
			}
			pending.WriteString(left)
			if text != "" {
				line.WriteString(pending.String() + c.paint.on(text))
				pending.Reset()
			}
			pending.WriteString(right)
			if widths[i] > 0 {
				pending.WriteString(strings.Repeat(" ", gap))
			}
		}
		out.WriteString(line.String() + "\n")
	}
}

// indented writes what stands under a row. A table that needs more room than
// there is begins further to the left.
func (t *Table) indented(out *bytes.Buffer, b below, widths []int) {
	at := t.start(b.column, widths)
	if b.table == nil {
		at = max(t.Indent, min(at, t.width()-notes)) + b.indent
		for _, line := range wrap(b.text, t.width()-at) {
			out.WriteString(strings.Repeat(" ", at) + line + "\n")
		}
		return
	}
	inner := *b.table
	inner.Width = t.width()
	need := 0
	for i := range inner.Columns {
		if n := inner.natural(i); n > 0 {
			need += n + gap
		}
	}
	inner.Indent = max(t.Indent+gap, min(at, t.width()-need+gap))
	out.Write(inner.render().Bytes())
}

// Bytes writes a size in the unit that leaves the fewest digits: "64 MiB".
func Bytes(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB"}
	i := 0
	for ; i < len(units)-1 && n >= 1024 && n%1024 == 0; i++ {
		n /= 1024
	}
	return Group(n) + " " + units[i]
}
