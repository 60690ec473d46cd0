package report

import (
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

// runeWidth is the number of terminal cells of a character, by Unicode
// Standard Annex 11: wide and fullwidth ones take two, marks take none.
func runeWidth(r rune) int {
	if r < 0x300 {
		return 1 // before the first combining mark
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// blank is a space at which no line ends.
const blank = '\u00a0'

// fits tells whether s takes n cells at the most, without reading far beyond.
func fits(s string, n int) bool { return len(s) <= n || len(head(s, n)) == len(s) && textWidth(s) <= n }

// clean makes text from a file or the network fit for a terminal: white space
// becomes a space, other control characters a mark.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r) && r != blank:
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// shorten cuts s to n cells, with an ellipsis for what is missing.
func shorten(s string, n int) string {
	if textWidth(s) <= n {
		return s
	}
	return head(s, n-1) + "…"
}

// head is the longest beginning of s that fits into n cells, and at the least
// one character.
func head(s string, n int) string {
	used := 0
	for i, r := range s {
		used += runeWidth(r)
		if used > n && i > 0 {
			return s[:i]
		}
	}
	return s
}

// wrap breaks text into lines of at most n cells: at spaces, between wide
// characters, and inside a word only if it is longer than a line.
func wrap(text string, n int) []string {
	n = max(n, 1)
	line, lines := "", []string(nil)
	text = strings.ReplaceAll(clean(text), " %", string(blank)+"%")
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' }) {
		space := " "
		for _, u := range units(word) {
			if line == "" {
				space = ""
			}
			if fits(line+space+u, n) {
				line, space = line+space+u, ""
				continue
			}
			if line != "" {
				lines = append(lines, line)
			}
			for !fits(u, n) {
				h := breakable(u, n)
				lines, u = append(lines, h), u[len(h):]
			}
			line, space = u, ""
		}
	}
	if line != "" || len(lines) == 0 {
		lines = append(lines, line)
	}
	for i := range lines {
		lines[i] = strings.ReplaceAll(lines[i], string(blank), " ")
	}
	return lines
}

// pack puts as many parts on each line as fit, and wraps those that are longer.
func pack(parts []string, between string, n int) []string {
	var lines []string
	for i, p := range parts {
		if last := len(lines) - 1; i > 0 && textWidth(lines[last]+between+clean(p)) <= n {
			lines[last] += between + clean(p)
			continue
		}
		lines = append(lines, wrap(p, n)...)
	}
	return lines
}

// units splits a word where a line may end inside it.
func units(word string) []string {
	var out []string
	start, last := 0, rune(0)
	for i, r := range word {
		between := runeWidth(last) == 2 || runeWidth(r) == 2
		if i > 0 && between && !unicode.In(r, unicode.Po, unicode.Pe, unicode.Pf, unicode.Mn) && !unicode.In(last, unicode.Ps, unicode.Pi) {
			out, start = append(out, word[start:i]), i
		}
		last = r
	}
	return append(out, word[start:])
}

// breakable is the beginning of a long word up to the last joint that fits
// into n cells, or n cells of it if there is none. Lists break between entries.
func breakable(word string, n int) string {
	h := head(word, n)
	for _, joints := range []string{",;", "-/.:"} {
		if i := strings.LastIndexAny(h, joints); i > 0 {
			return h[:i+1]
		}
	}
	return h
}

// Group writes n with a comma between thousands.
func Group[T ~int | ~int64 | ~uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	first := 0
	if n < 0 {
		first = 1
	}
	for i := len(s) - 3; i > first; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// count writes a number of things: "1 path", "2,000 paths".
func count[T ~int | ~int64 | ~uint64](n T, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return Group(n) + " " + thing + "s"
}
