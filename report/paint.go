package report

import "github.com/wallprobe/wallprobe/client"

// Options say how to print for a person.
type Options struct {
	Color   bool // verdict words in colour; they are never told apart by colour alone
	Width   int  // of a line, in cells of a terminal; 0 is DefaultWidth
	Details bool // reasons, notes and lists whole
}

func (o Options) width() int { return (&Table{Width: o.Width}).width() }

// A paint is an SGR colour (ECMA-48, section 8.3.117); 0 leaves text as it is.
type paint int

const (
	red    paint = 31
	green  paint = 32
	yellow paint = 33
)

func (p paint) on(s string) string {
	switch p {
	case red:
		return "\x1b[31m" + s + "\x1b[0m"
	case green:
		return "\x1b[32m" + s + "\x1b[0m"
	case yellow:
		return "\x1b[33m" + s + "\x1b[0m"
	}
	return s
}

// word is a cell with a verdict or the like.
func (o Options) word(text string, p paint) cell {
	if !o.Color {
		p = 0
	}
	return cell{text, p}
}

func (o Options) verdict(v client.Verdict) cell {
	switch v {
	case client.Open:
		return o.word(string(v), green)
	case client.Degraded, client.Partial, client.Unmeasured:
		return o.word(string(v), yellow)
	}
	return o.word(string(v), red)
}
