package report

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/wallprobe/wallprobe/client"
)

// MaxMarkdown is the size in bytes that Markdown keeps to: GitHub refuses
// comments of more than 65,536 characters.
const MaxMarkdown = 60_000

// marks tell standings apart at a glance; a word stands beside each.
var marks = [standings]string{holds: "✅", yields: "⚠️", skipped: "➖", doubtful: "❔", fails: "❌"}

// Markdown writes results for a pull request: the answer first, then what
// fails, then everything in parts that open. GitHub and GitLab show it alike.
// What does not fit into MaxMarkdown bytes is left out, and named.
func Markdown(w io.Writer, results []*client.Result) error {
	var out bytes.Buffer
	m := newMatrix(results, Options{})
	fmt.Fprintf(&out, "## wallprobe: %s\n\n", headlineOf(results))
	if len(results) > 1 {
		out.WriteString(m.markdown(results))
	}
	var left []string
	for _, r := range results {
		name := nameOf(r, results)
		text := section(r, name, len(results) > 1)
		if out.Len()+len(text) > MaxMarkdown {
			left = append(left, md(name))
			continue
		}
		out.WriteString(text)
	}
	if len(left) > 0 {
		text := strings.Join(left, "; ")
		if len(text) > 2000 {
			text = count(len(left), "result")
		}
		fmt.Fprintf(&out, "Left out, because comments may be no longer: %s. `--html FILE` has room for them.\n", text)
	}
	_, err := out.WriteTo(w)
	return err
}

// headlineOf is the answer in the fewest words.
func headlineOf(results []*client.Result) string {
	var of [standings]int
	for _, r := range results {
		of[worst(r)]++
	}
	bad := of[fails] + of[doubtful]
	switch {
	case len(results) == 0:
		return "no results"
	case len(results) == 1:
		return marks[worst(results[0])] + " " + md(nameOf(results[0], results))
	case bad == 0:
		return fmt.Sprintf("✅ %s, everything required works", count(len(results), "measurement"))
	}
	st, said := doubtful, []string{}
	if of[fails] > 0 {
		st, said = fails, append(said, fmt.Sprintf("something required fails in %d", of[fails]))
	}
	if of[doubtful] > 0 {
		said = append(said, fmt.Sprintf("%d could not be decided", of[doubtful]))
	}
	return fmt.Sprintf("%s of %s, %s", marks[st], count(len(results), "measurement"), strings.Join(said, " and "))
}

// nameOf tells a result from the others.
func nameOf(r *client.Result, all []*client.Result) string {
	column := columnsOf(all)[r]
	if r.Firewall != nil && r.Firewall.Name != "" {
		column = "behind " + column
	}
	return flat(fmt.Sprintf("%s as %s, %s", r.Scenario, r.Role, column))
}

// section is all about one result; folded where there are several.
func section(r *client.Result, name string, folded bool) string {
	var b strings.Builder
	if folded {
		fmt.Fprintf(&b, "<details>\n<summary>%s %s: %s</summary>\n\n", marks[worst(r)], mdHTML(name), mdHTML(answer(r)))
	} else {
		fmt.Fprintf(&b, "%s\n\n%s\n\n", md(answer(r)), md(strings.Join(summary(r), " ")))
	}
	for _, n := range notices(r, Options{}) {
		fmt.Fprintf(&b, "> %s\n\n", md(n))
	}
	b.WriteString(failing(r))
	for _, line := range dropped(r, Options{Width: 100}) {
		fmt.Fprintf(&b, "- %s\n", md(line))
	}
	if len(dropped(r, Options{})) > 0 {
		b.WriteByte('\n')
	}
	all := everyPath(r)
	if folded {
		b.WriteString(all + "</details>\n\n")
		return b.String()
	}
	fmt.Fprintf(&b, "<details>\n<summary>All of it: %s, %s</summary>\n\n%s</details>\n\n", count(len(r.Findings), "path"), count(len(r.Outcomes), "outcome"), all)
	var said []string
	for _, f := range facts(r) {
		said = append(said, md(f[0])+": "+md(f[1]))
	}
	fmt.Fprintf(&b, "%s\n", strings.Join(said, " · "))
	return b.String()
}

// failing is a table of what fails, and one of what stops it.
func failing(r *client.Result) string {
	var b strings.Builder
	expectations := mdTable{head: []string{"", "Expectation", "Expected", "Measured", "Why"}}
	for i := range r.Expectations {
		if s := ofExpectation(&r.Expectations[i]); s != holds {
			e := newExpected(&r.Expectations[i])
			expectations.row(marks[s]+" "+e.state, md(e.what), md(e.wanted), md(e.measured), md(join("; ", e.why, e.place)))
		}
	}
	b.WriteString(expectations.String())
	outcomes := mdTable{head: []string{"", "What fails", "Why"}}
	for i := range r.Outcomes {
		oc := &r.Outcomes[i]
		if s := ofOutcome(oc, r); s != holds {
			outcomes.row(marks[s]+" "+outcomeWord(oc), md(outcomeTitle(*oc)), md(reason(*oc)))
		}
	}
	b.WriteString(outcomes.String())
	paths := mdTable{head: []string{"Path", "Port", "Verdict", "Near end", "Far end", "Why"}}
	for i := range r.Findings {
		f := &r.Findings[i]
		if s := ofPath(f, r); s == fails || s == doubtful || s == yields {
			paths.row(pathCells(f, r)...)
		}
	}
	b.WriteString(paths.String())
	return b.String()
}

func pathCells(f *client.Finding, r *client.Result) []string {
	why := f.Why
	if len(f.Parts) > 0 {
		why = join("; ", shorten(clean(f.Sentence()), 200), why)
	}
	why = join("; ", why, deciders(f.DecidedBy, f.Verdict), doubts(f))
	return []string{"**" + md(f.Path) + "** " + md(f.Title), md(Where(f)), marks[ofPath(f, r)] + " " + md(string(f.Verdict)), md(nearEnd(f, r)), md(farEnd(f, r)), md(why)}
}

// everyPath is every outcome with its ways, and every path.
func everyPath(r *client.Result) string {
	var b strings.Builder
	for i := range r.Outcomes {
		oc := &r.Outcomes[i]
		fmt.Fprintf(&b, "- %s **%s** %s\n", marks[ofOutcome(oc, r)], md(outcomeTitle(*oc)), outcomeWord(oc))
		for j, w := range oc.Ways {
			state := strings.Join(w.Stopped, ", ")
			if w.Works {
				state = "survives"
			}
			if w.Works && w.Title == oc.Via {
				state = "survives, and is taken"
			}
			fmt.Fprintf(&b, "  %d. %s: %s\n", j+1, md(w.Title), md(state))
		}
	}
	if len(r.Outcomes) > 0 {
		b.WriteByte('\n')
	}
	t := mdTable{head: []string{"Path", "Port", "Verdict", "Near end", "Far end", "Why"}}
	for i := range r.Findings {
		t.row(pathCells(&r.Findings[i], r)...)
	}
	return b.String() + t.String()
}

// markdown is the matrix as a table, firewalls across.
func (m *matrix) markdown(results []*client.Result) string {
	t := mdTable{head: []string{"Outcome"}}
	for _, c := range m.columns {
		t.head = append(t.head, md(c))
	}
	for _, g := range m.groups {
		t.row("**" + md(g.scenario+" as "+g.role) + "**")
		for _, row := range g.rows {
			title := md(outcomeTitle(row.outcome))
			if len(row.outcome.Ways) > 1 {
				title += "<br><sub>" + md(ways(row.outcome)) + "</sub>"
			}
			cells := []string{title}
			for _, c := range m.columns {
				text := cellAbsent
				if v, ok := row.cells[c]; ok {
					text = marks[standingOf(v.text, row.outcome.Optional)] + " " + strings.Replace(v.text, cellUnknown, "unknown", 1)
				}
				cells = append(cells, text)
			}
			t.row(cells...)
		}
	}
	return t.String()
}

// standingOf reads a cell of a matrix.
func standingOf(word string, optional bool) standing {
	switch {
	case word == cellUnknown:
		return doubtful
	case word == cellFails && optional:
		return yields
	case word == cellFails:
		return fails
	}
	return holds
}

// An mdTable is a table in GitHub's Markdown. Cells must be escaped.
type mdTable struct {
	head []string
	rows [][]string
}

func (t *mdTable) row(cells ...string) {
	for len(cells) < len(t.head) {
		cells = append(cells, "")
	}
	t.rows = append(t.rows, cells)
}

// String is empty where the table is.
func (t *mdTable) String() string {
	if len(t.rows) == 0 {
		return ""
	}
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(t.head)
	b.WriteString(strings.Repeat("| --- ", len(t.head)) + "|\n")
	for _, r := range t.rows {
		line(r)
	}
	return b.String() + "\n"
}

// nothing parts characters that would have a meaning together: a comment of
// HTML, of which nobody sees anything.
const nothing = "<!-- -->"

// meaningful are colons of links and of emoji.
var meaningful = regexp.MustCompile(`^:(//|[A-Za-z0-9_+-]+:)`)

// md makes text harmless in Markdown: it becomes one line in which nothing is
// markup, HTML, a link, a mention of a person or of an issue. Names in results
// come from files, and reasons quote what strangers sent.
func md(s string) string {
	var b strings.Builder
	text := flat(s)
	for i, r := range text {
		switch {
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '&':
			b.WriteString("&amp;")
		case r == ':' && meaningful.MatchString(text[i:]),
			strings.ContainsRune("@#!~%$^", r): // references of GitHub and GitLab
			b.WriteString("\\" + string(r) + nothing)
		case strings.ContainsRune("\\`*_{}[]()|+", r), i == 0 && strings.ContainsRune("-=", r), r == '.' && strings.Trim(text[:i], "0123456789") == "": // the last two begin a list or a heading
			b.WriteString("\\" + string(r))
		default:
			b.WriteRune(r)
		}
	}
	text = b.String()
	for _, www := range []string{"www.", "WWW."} {
		text = strings.ReplaceAll(text, www, www[:3]+nothing+".")
	}
	return text
}

// mdHTML is md for text inside HTML, where no Markdown is read.
func mdHTML(s string) string {
	s = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;").Replace(flat(s))
	return strings.NewReplacer("@", "@"+nothing, "#", "#"+nothing, "://", ":"+nothing+"//").Replace(s)
}
