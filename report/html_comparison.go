package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
)

// What the page of a comparison shows.
type (
	comparisonPage struct {
		sheet
		Facts   [][2]string
		Notices []string
		Pairs   []pagePair
	}
	pagePair struct {
		ID, Name, Sides string
		Outcomes        []pageOutcomeChange
		Changes         []pageChange
		Untold          []string
	}
	pageOutcomeChange struct{ Class, Kind, Title, Old, New, Why string }
	pageChange        struct {
		Class, Kind, Path, Title, Where string
		Sides                           []pageSide
		Reasons                         []string
	}
	pageSide struct {
		Class, Name, Verdict, Track string
		word                        client.Verdict // to explain
	}
)

// ComparisonHTML writes what changed as one page that needs no other file: the
// answer, the outcomes, and each path as its line was and as it is.
func ComparisonHTML(w io.Writer, c expect.Comparison) error {
	var out bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&out, "comparison", newComparisonPage(c)); err != nil {
		return err
	}
	_, err := w.Write(visible(out.Bytes()))
	return err
}

// maxChanges is how many changed paths a page shows for each pair of results.
const maxChanges = 200

func newComparisonPage(c expect.Comparison) *comparisonPage {
	p := &comparisonPage{sheet: newSheet(), Notices: append(additions(c), c.Doubts()...)}
	st, text := verdictOf(c)
	p.Title, p.Answer, p.Class = comparedTitle(c), strings.ToUpper(text[:1])+text[1:]+".", classes[st]
	p.Facts = [][2]string{{"in short", strings.Join(totals(c), " ")}}
	for i := range p.Notices {
		p.Notices[i] += "."
	}
	var tracks []string
	var verdicts []client.Verdict
	for i, pair := range c.Pairs {
		if len(pair.Changes)+len(pair.Outcomes) == 0 {
			continue
		}
		shown := newPagePair(fmt.Sprintf("p%d", i+1), pair)
		if more := len(pair.Changes) - maxChanges; more > 0 {
			p.Left = append(p.Left, fmt.Sprintf("Of %s, %s are left out; the JSON of the comparison has them.", shown.Name, count(more, "change")))
		}
		for _, ch := range shown.Changes {
			for _, s := range ch.Sides {
				tracks, verdicts = append(tracks, s.Track), append(verdicts, s.word)
			}
		}
		p.Pairs = append(p.Pairs, shown)
	}
	p.Words = explained(verdicts)
	p.Symbols = symbolsOf(append(tracks, p.drawn()...))
	return p
}

// comparedTitle names the two sides where they are the same for all.
func comparedTitle(c expect.Comparison) string {
	if len(c.Pairs) == 0 {
		return "Before and after"
	}
	old, new := c.Pairs[0].Old.Firewall, c.Pairs[0].New.Firewall
	for _, p := range c.Pairs {
		if p.Old.Firewall != old || p.New.Firewall != new {
			return "Before and after"
		}
	}
	switch {
	case old == "" && new == "":
		return "Before and after"
	case old == new:
		return "Before and after, behind " + new
	}
	return fmt.Sprintf("From %s to %s", old, new)
}

func newPagePair(id string, p expect.Pair) pagePair {
	out := pagePair{ID: id, Name: p.Scenario + " as " + p.Role}
	if p.Family == "ipv6" {
		out.Name += ", over IPv6"
	}
	out.Sides = join(" ", "Before:", sideOf(p.Old)) + " " + join(" ", "Now:", sideOf(p.New))
	for _, c := range p.Outcomes {
		out.Outcomes = append(out.Outcomes, pageOutcomeChange{classes[ofChange(c.Kind, c.Required)], string(c.Kind), titleOfChange(c), c.Old.String(), c.New.String(), c.New.Why})
	}
	for _, c := range p.Changes {
		where := changedPorts(c, Options{})
		if c.Kind == expect.Untold {
			out.Untold = append(out.Untold, fmt.Sprintf("%s %s (%s): %s, now %s", c.Path, c.Title, where, state(c.Old), state(c.New)))
			continue
		}
		if len(out.Changes) == maxChanges {
			continue
		}
		out.Changes = append(out.Changes, pageChange{
			Class: classes[ofChange(c.Kind, c.Required)], Kind: string(c.Kind), Path: c.Path, Title: c.Title + aside(c), Where: where,
			Sides: []pageSide{newPageSide("before", c, c.Old), newPageSide("now", c, c.New)}, Reasons: reasons(c),
		})
	}
	return out
}

func newPageSide(name string, c expect.Change, s expect.State) pageSide {
	side := pageSide{Class: classOf(s.Verdict), Name: name, Verdict: state(s), word: s.Verdict}
	if s.Verdict != "" {
		side.Track = trackOf(s.Verdict, c.Direction)
	}
	return side
}

// sideOf says what one side was measured behind, and when.
func sideOf(m expect.Measured) string {
	var said []string
	if m.Firewall != "" {
		said = append(said, "firewall "+m.Firewall)
	}
	if m.Reflector.IsValid() {
		said = append(said, "reflector "+m.Reflector.String())
	}
	if !m.Started.IsZero() {
		said = append(said, m.Started.UTC().Format(time.DateTime+" UTC"))
	}
	return strings.Join(said, ", ") + "."
}
