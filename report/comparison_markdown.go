package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/expect"
)

// ComparisonMarkdown writes what changed for a pull request: whether something
// required broke, the outcomes, and each path with exactly the ports that
// changed and the rules that decided. It keeps to MaxMarkdown bytes.
func ComparisonMarkdown(w io.Writer, c expect.Comparison) error {
	var out bytes.Buffer
	st, text := verdictOf(c)
	fmt.Fprintf(&out, "## wallprobe: %s %s\n\n%s\n\n", marks[st], md(text), md(strings.Join(totals(c), " ")))
	for _, doubt := range append(additions(c), c.Doubts()...) {
		fmt.Fprintf(&out, "> %s\n\n", md(doubt+".")) // of a number alone the dot would begin a list
	}
	var left []string
	for _, p := range c.Pairs {
		text := pairMarkdown(p)
		if out.Len()+len(text) > MaxMarkdown {
			left = append(left, md(p.Scenario+" as "+p.Role))
			continue
		}
		out.WriteString(text)
	}
	if len(left) > 0 {
		fmt.Fprintf(&out, "Left out, because comments may be no longer: %s. `--html FILE` has room for them.\n", strings.Join(left, "; "))
	}
	_, err := out.WriteTo(w)
	return err
}

// verdictOf is a comparison in a sentence.
func verdictOf(c expect.Comparison) (standing, string) {
	switch {
	case c.Void():
		return doubtful, "this comparison proves nothing"
	case c.Fails():
		return fails, join(": ", "something required broke", titles(broken(c)))
	case len(c.Doubts()) > 0:
		return doubtful, "not everything could be told"
	case c.Same():
		return holds, "nothing changed"
	case c.Fails(expect.FailOnWorse):
		return yields, "nothing required broke, but something got worse"
	case c.Fails(expect.FailOnOpened):
		return yields, "nothing broke, and something is open that was not"
	}
	return holds, "nothing broke"
}

// broken are the required outcomes that broke, or the paths where none did.
func broken(c expect.Comparison) []string {
	var outcomes, paths []string
	for _, p := range c.Pairs {
		for _, o := range p.Outcomes {
			if o.Kind == expect.Broke && o.Required && !slices.Contains(outcomes, o.Title) {
				outcomes = append(outcomes, o.Title)
			}
		}
		for _, x := range p.Changes {
			if x.Kind == expect.Broke && x.Required && !slices.Contains(paths, x.Path) {
				paths = append(paths, x.Path)
			}
		}
	}
	if len(outcomes) > 0 {
		return outcomes
	}
	return paths
}

// ofChange is the standing of a change.
func ofChange(k expect.Kind, required bool) standing {
	switch k {
	case expect.Broke:
		if required {
			return fails
		}
		return yields
	case expect.Worse, expect.Opened:
		return yields
	case expect.Better:
		return holds
	case expect.Untold:
		return doubtful
	}
	return skipped
}

func pairMarkdown(p expect.Pair) string {
	if len(p.Changes)+len(p.Outcomes) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", md(strings.Join(pairLine(p), ", ")))
	outcomes := mdTable{head: []string{"", "What people want", "Before", "Now"}}
	for _, c := range p.Outcomes {
		outcomes.row(marks[ofChange(c.Kind, c.Required)]+" "+string(c.Kind), md(titleOfChange(c)), md(c.Old.String()), md(join(": ", c.New.String(), c.New.Why)))
	}
	b.WriteString(outcomes.String())
	told := mdTable{head: []string{"", "Path", "Ports", "Before", "Now", "Why"}}
	untold := mdTable{head: told.head}
	for _, c := range p.Changes {
		t := &told
		if c.Kind == expect.Untold {
			t = &untold
		}
		var why []string
		for _, text := range reasons(c) {
			why = append(why, md(text))
		}
		t.row(marks[ofChange(c.Kind, c.Required)]+" "+string(c.Kind), "**"+md(c.Path)+"** "+md(c.Title+aside(c)), md(changedPorts(c, Options{})), md(state(c.Old)), md(state(c.New)), strings.Join(why, "<br>"))
	}
	b.WriteString(told.String())
	if len(untold.rows) > 0 {
		fmt.Fprintf(&b, "<details>\n<summary>Told only one of the two times: %s</summary>\n\n%s</details>\n\n", count(len(untold.rows), "path"), untold.String())
	}
	return b.String()
}

func titleOfChange(c expect.OutcomeChange) string {
	if c.Required {
		return c.Title
	}
	return c.Title + " (optional)"
}
