package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))
)

// policy forbids the page everything but its own style and script
// (Content Security Policy level 2, section 7).
func policy() string {
	of := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return fmt.Sprintf("default-src 'none'; style-src %s; script-src %s; base-uri 'none'; form-action 'none'", of(pageCSS), of(pageJS))
}

// MaxPage is the size in bytes that a page keeps to where leaving out evidence
// can achieve that.
const MaxPage = 1_000_000

// A depth is how much evidence a page has room for.
type depth struct {
	seen, parts, lines int  // of each path
	dialogue           int  // lines, of paths that do not pass
	passing            bool // paths that pass have evidence
	listed             bool // paths that pass have a row
	results            int  // the worst ones; 0 is all
	left               string
}

var depths = []depth{
	{seen: 24, parts: 60, lines: 16, dialogue: 24, passing: true, listed: true},
	{seen: 6, parts: 30, lines: 6, dialogue: 12, passing: true, listed: true, left: "So that the page stays small, only the first destinations and lines of evidence are shown of each path; the JSON result has all of them."},
	{seen: 6, parts: 30, lines: 6, dialogue: 12, listed: true, left: "So that the page stays small, the evidence of paths that pass is left out, and only the first lines of the others are shown; the JSON result has all of it."},
	{seen: 2, parts: 12, lines: 2, left: "So that the page stays small, the table has only paths that do not pass, with the first lines of their evidence; the JSON result has all of it."},
}

// HTML writes results as one page that needs no other file: the answer, the
// outcomes with their ways, a picture of every path, both ends' evidence, and
// all ports. known are scenarios whose documents are quoted; nil quotes none.
//
// A page larger than MaxPage leaves out evidence, and says so. Where that is not
// enough for twice that size, it leaves out the best of very many results.
func HTML(w io.Writer, results []*client.Result, known []*scenarios.Scenario) error {
	var out bytes.Buffer
	for _, d := range depths {
		out.Reset()
		if err := pageTemplate.Execute(&out, newPage(results, known, d)); err != nil {
			return err
		}
		if out.Len() <= MaxPage {
			break
		}
	}
	d := depths[len(depths)-1]
	for d.results = len(results); out.Len() > 2*MaxPage && d.results > 1; {
		d.results = max(1, min(d.results-1, d.results*2*MaxPage/out.Len()))
		out.Reset()
		if err := pageTemplate.Execute(&out, newPage(results, known, d)); err != nil {
			return err
		}
	}
	_, err := w.Write(visible(out.Bytes()))
	return err
}

// visible replaces what a file or a stranger may have put in that no reader
// sees, and that turns text around.
func visible(page []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return unicode.ReplacementChar
		}
		return r
	}, page)
}

// What the page's template shows. Texts are escaped by the template.
type (
	page struct {
		sheet
		Matrix  *pageMatrix
		Results []*pageResult
	}
	// sheet is what all pages have.
	sheet struct {
		Title, Answer, Class string // no class, no answer
		Policy               string
		CSS                  template.CSS
		JS                   template.JS
		Symbols              template.HTML
		Words                []pageWord
		Left                 []string
		Program              string
	}
	pageWord   struct{ Class, Verdict, Means, Track string }
	pageResult struct {
		ID, Name, Answer, Class, Summary string
		Facts                            [][2]string
		Notices                          []string
		Expectations                     []pageExpected
		Outcomes                         []pageOutcome
		Caption                          string
		Pictures                         []*picture
		Unmeasured                       string
		Passing                          string
		Rows                             []pageRow
		Strips                           []strip
		Rules                            []pageRule
		Rewrites                         []string
	}
	pageExpected struct{ Class, State, What, Wanted, Measured, Why, Place string }
	pageOutcome  struct {
		Class, Title, Word string
		Rungs              []rung
	}
	rung struct {
		Class, Title, State string
		Stops               []stop
	}
	stop    struct{ ID, Path, Verdict string }
	pageRow struct {
		ID, Path, Title, Where, Verdict, Class, Need, Near, Far, Why string
		Proof                                                        *pageProof
	}
	pageRule struct{ Place, Did, Text string }
)

// classOf is the colour and the sign of a verdict: what passes, what passes
// badly or in part, what does not, and what nobody can say.
func classOf(v client.Verdict) string {
	switch v {
	case client.Open:
		return "pass"
	case client.Degraded, client.Partial:
		return "warn"
	case client.Silent:
		return "doubt"
	case client.Unmeasured:
		return "none"
	}
	return "fail"
}

// classes of standings.
var classes = [standings]string{holds: "pass", yields: "warn", skipped: "none", doubtful: "doubt", fails: "fail"}

// meanings says what each verdict proves, for people.
var meanings = map[client.Verdict]string{
	client.Open:        "The exchange was completed, unaltered, with the reflector. Both ends know of it.",
	client.Degraded:    "It passes, but worse than the application can bear: loss, delay or rate.",
	client.Partial:     "Some of it passes and some does not; the ports, destinations or modes are listed.",
	client.Cut:         "It began, and was then broken off or stalled on the way.",
	client.Altered:     "It arrived changed: another certificate, a rewritten command, other bytes.",
	client.ReplyLost:   "The reflector saw the request and answered; the answer was lost on its way back.",
	client.RequestLost: "Nothing came back, and the reflector saw nothing: the request was lost on its way out.",
	client.Rejected:    "A reset or an ICMP error came that the reflector never sent: somebody in between refuses.",
	client.Refused:     "The far host itself refused: nothing listens there. That is no fault of the firewall.",
	client.Impostor:    "Somebody answered who is not the reflector: a captive portal, a proxy, a forged name.",
	client.Silent:      "Nothing came back, and the far end's evidence is missing: nobody can say where it was lost.",
	client.Unmeasured:  "It could not be tried from here.",
}

func newSheet() sheet {
	return sheet{Policy: policy(), CSS: template.CSS(pageCSS), JS: template.JS(pageJS)}
}

func newPage(results []*client.Result, known []*scenarios.Scenario, d depth) *page {
	p := &page{sheet: newSheet()}
	if d.left != "" && len(results) > 0 {
		p.Left = append(p.Left, d.left)
	}
	shown := worstOf(results, d.results)
	if n := len(results) - len(shown); n > 0 {
		p.Left = append(p.Left, fmt.Sprintf("Of the results, %s stand only in the overview; give fewer of them to wallprobe report for the rest.", Group(n)))
	}
	ids := make([]string, len(results))
	for _, i := range shown {
		r := results[i]
		ids[i] = fmt.Sprintf("r%d", i+1)
		p.Results = append(p.Results, newResult(ids[i], r, results, scenarioOf(r, known), d))
		p.Program = r.Program
	}
	p.Words = wordsOf(results)
	p.Symbols = symbolsOf(append(tracksOf(p.Results), p.drawn()...))
	switch len(results) {
	case 0:
		p.Title = "No results"
	case 1:
		one := p.Results[0]
		p.Title, p.Answer, p.Class = one.Name, one.Answer, one.Class
		if s := scenarioOf(results[0], known); s != nil {
			p.Title = s.Title + strings.TrimPrefix(one.Name, flat(results[0].Scenario))
		}
	default:
		p.Title = titleOf(results)
		p.Answer, p.Class = overall(results)
		p.Matrix = newPageMatrix(results, ids)
	}
	return p
}

// worstOf are the places of so many results, the worst of them, in their order;
// 0 is all.
func worstOf(results []*client.Result, most int) []int {
	var places []int
	for i := range results {
		places = append(places, i)
	}
	if most == 0 || most >= len(results) {
		return places
	}
	slices.SortStableFunc(places, func(a, b int) int { return int(worst(results[b])) - int(worst(results[a])) })
	places = places[:most]
	slices.Sort(places)
	return places
}

// titleOf names several results by what they have in common.
func titleOf(results []*client.Result) string {
	var names []string
	for _, r := range results {
		if !slices.Contains(names, r.Scenario) {
			names = append(names, r.Scenario)
		}
	}
	what := count(len(names), "application")
	if len(names) == 1 {
		what = names[0]
	}
	var firewalls []string
	for _, r := range results {
		if r.Firewall != nil && r.Firewall.Name != "" && !slices.Contains(firewalls, r.Firewall.Name) {
			firewalls = append(firewalls, r.Firewall.Name)
		}
	}
	switch len(firewalls) {
	case 0:
		return fmt.Sprintf("%s, %s", what, count(len(results), "measurement"))
	case 1:
		return what + " behind " + firewalls[0]
	}
	return fmt.Sprintf("%s behind %s", what, count(len(firewalls), "firewall"))
}

// overall is the answer of several results.
func overall(results []*client.Result) (text, class string) {
	var of [standings]int
	for _, r := range results {
		of[worst(r)]++
	}
	n := len(results)
	bad := of[fails] + of[doubtful]
	if bad == 0 {
		return fmt.Sprintf("In all %s everything required works.", count(n, "measurement")), "pass"
	}
	said := []string{fmt.Sprintf("Of %s, everything required works in %s", count(n, "measurement"), number(n-bad))}
	if of[fails] > 0 {
		said = append(said, fmt.Sprintf("in %s something required fails", number(of[fails])))
	}
	if of[doubtful] > 0 {
		said = append(said, fmt.Sprintf("in %s something could not be decided", number(of[doubtful])))
	}
	class = "warn"
	if bad == n {
		class = "fail"
	}
	return strings.Join(said, "; ") + ".", class
}

func number(n int) string {
	if n == 0 {
		return "none"
	}
	return Group(n)
}

// scenarioOf finds what a result was made with, nil when it is not known in
// that version.
func scenarioOf(r *client.Result, known []*scenarios.Scenario) *scenarios.Scenario {
	for _, s := range known {
		if s.Name == r.Scenario && (s.Version == r.Version || r.Version == 0) {
			return s
		}
	}
	return nil
}

func wordsOf(results []*client.Result) []pageWord {
	var used []client.Verdict
	for _, r := range results {
		for i := range r.Findings {
			used = append(used, r.Findings[i].Verdict)
			for _, p := range r.Findings[i].Parts {
				used = append(used, p.Verdict)
			}
		}
	}
	return explained(used)
}

// drawn are the tracks beside the words.
func (s *sheet) drawn() []string {
	var out []string
	for _, w := range s.Words {
		out = append(out, w.Track)
	}
	return out
}

// explained says what each of the verdicts that were used means.
func explained(used []client.Verdict) []pageWord {
	var out []pageWord
	for _, v := range client.Verdicts {
		if slices.Contains(used, v) {
			out = append(out, pageWord{classOf(v), string(v), meanings[v], trackOf(v, scenarios.Out)})
		}
	}
	return out
}

func newResult(id string, r *client.Result, all []*client.Result, s *scenarios.Scenario, d depth) *pageResult {
	p := &pageResult{
		ID: id, Name: nameOf(r, all), Answer: answer(r), Class: classes[worst(r)], Summary: strings.Join(summary(r), " "),
		Facts: facts(r), Notices: notices(r, Options{}), Rewrites: append(remarks(r), rewrites(r)...),
	}
	for i := range r.Expectations {
		x := &r.Expectations[i]
		e := newExpected(x)
		p.Expectations = append(p.Expectations, pageExpected{classes[ofExpectation(x)], e.state, e.what, e.wanted, e.measured, e.why, e.place})
	}
	rows := p.addRows(r, s, d)
	for i := range r.Outcomes {
		p.Outcomes = append(p.Outcomes, newOutcome(&r.Outcomes[i], r, rows))
	}
	p.draw(r, s, rows)
	p.Strips = stripsOf(r)
	if r.Firewall != nil {
		for _, rule := range r.Firewall.Rules {
			if did := map[string]string{"drop": "dropped", "reject": "rejected"}[rule.Verdict]; did != "" && rule.Packets > 0 {
				p.Rules = append(p.Rules, pageRule{ruleAt(rule), did + " " + Group(rule.Packets), rule.Text})
			}
		}
	}
	return p
}

// needs are the words for what a document demands; what is required needs none.
var needs = map[scenarios.Need]string{
	scenarios.Optional: "optional", scenarios.Conditional: "with a feature only", scenarios.Fallback: "fallback", scenarios.Negative: "need not be open",
}

// addRows makes the table, and gives the rows' ids by finding, "" where a
// finding has none.
func (p *pageResult) addRows(r *client.Result, s *scenarios.Scenario, d depth) []string {
	ids := make([]string, len(r.Findings))
	omitted := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		passes := f.Verdict == client.Open || f.Verdict == client.Unmeasured
		if passes && !d.listed {
			omitted++
			continue
		}
		ids[i] = fmt.Sprintf("%s-%d", p.ID, i+1)
		row := pageRow{
			ID: ids[i], Path: reference(f, r.Findings), Title: f.Title, Where: Where(f), Verdict: string(f.Verdict), Class: classOf(f.Verdict),
			Need: needs[f.Need], Near: nearEnd(f, r), Far: farEnd(f, r), Why: why(f),
		}
		if !passes || d.passing {
			row.Proof = newProof(f, r, s, d)
		}
		p.Rows = append(p.Rows, row)
	}
	if omitted > 0 {
		p.Passing = fmt.Sprintf("%s that are open or unmeasured stand only in the picture.", count(omitted, "path"))
		if len(p.Rows) == 0 {
			p.Passing = ""
		}
	}
	return ids
}

// why is the reason for a verdict, with the exact ranges of a partial one;
// counts are left to the columns of the two ends.
func why(f *client.Finding) string {
	if f.Verdict == client.Partial && len(f.Parts) > 0 {
		return join("; ", share(f), shorten(clean(f.Sentence()), 240), f.Why, doubts(f))
	}
	return join("; ", f.Why, deciders(f.DecidedBy, f.Verdict), doubts(f))
}

func newOutcome(oc *client.Outcome, r *client.Result, rows []string) pageOutcome {
	out := pageOutcome{Class: classes[ofOutcome(oc, r)], Title: outcomeTitle(*oc), Word: outcomeWord(oc)}
	taken := false
	for _, w := range oc.Ways {
		g := rung{Title: w.Title}
		switch {
		case w.Works && !taken:
			g.Class, g.State, taken = "won", "is taken", true
		case w.Works:
			g.Class, g.State = "stands", "would work too"
		case w.Unknown:
			g.Class, g.State = "unsure", "could not be decided: "
		default:
			g.Class, g.State = "broken", "stopped by "
		}
		for _, text := range w.Stopped {
			g.Stops = append(g.Stops, stopOf(text, r, rows))
		}
		out.Rungs = append(out.Rungs, g)
	}
	return out
}

// stopOf takes "CRD-B4/udp request-lost" apart and finds its row.
func stopOf(text string, r *client.Result, rows []string) stop {
	ref, verdict, _ := strings.Cut(text, " ")
	path, transport, _ := strings.Cut(ref, "/")
	s := stop{Path: ref, Verdict: verdict}
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Path == path && (transport == "" || transport == string(f.Transport)) && (s.ID == "" || string(f.Verdict) == verdict) {
			s.ID = rows[i]
		}
	}
	return s
}

// A pageMatrix leads from outcomes and firewalls to results.
type (
	pageMatrix struct {
		Columns  []string
		Span     int
		Groups   []pageGroup
		Contents []pageContents
	}
	pageGroup struct {
		Name string
		Rows []pageOutcomeRow
	}
	pageOutcomeRow struct {
		Title, Ways string
		Cells       []pageCell
	}
	pageCell     struct{ ID, Class, Text string }
	pageContents struct {
		Name  string
		Links []pageLink
	}
	pageLink struct{ ID, Class, Name string }
)

// newPageMatrix leads to results by their ids, "" where one has no place.
func newPageMatrix(results []*client.Result, places []string) *pageMatrix {
	m := newMatrix(results, Options{})
	out := &pageMatrix{Columns: m.columns, Span: len(m.columns) + 1}
	columns := columnsOf(results)
	for _, g := range m.groups {
		name := g.scenario + " as " + g.role
		c, group := pageContents{Name: name}, pageGroup{Name: name}
		ids := make(map[string]string) // by column
		for i, r := range results {
			if r.Scenario == g.scenario && r.Role == g.role {
				column := columns[r]
				ids[column] = places[i]
				if places[i] != "" {
					c.Links = append(c.Links, pageLink{places[i], classes[worst(r)], column})
				}
			}
		}
		for _, row := range g.rows {
			group.Rows = append(group.Rows, newOutcomeRow(row, m.columns, ids))
		}
		out.Contents, out.Groups = append(out.Contents, c), append(out.Groups, group)
	}
	return out
}

func newOutcomeRow(row *outcomeRow, columns []string, ids map[string]string) pageOutcomeRow {
	out := pageOutcomeRow{Title: outcomeTitle(row.outcome)}
	if len(row.outcome.Ways) > 1 {
		out.Ways = ways(row.outcome)
	}
	for _, c := range columns {
		v, ok := row.cells[c]
		if !ok {
			out.Cells = append(out.Cells, pageCell{})
			continue
		}
		text := v.text
		if text == cellUnknown {
			text = "unknown"
		}
		out.Cells = append(out.Cells, pageCell{ids[c], classes[standingOf(v.text, row.outcome.Optional)], text})
	}
	return out
}
