package report

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/client"
)

// The elements of JUnit XML, as both Apache Ant's schema and that of Jenkins'
// xUnit plugin take them: the attributes that either demands, in Ant's order.
type (
	junitSuites struct {
		XMLName xml.Name     `xml:"testsuites"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name       string          `xml:"name,attr"`
		Package    string          `xml:"package,attr"`
		ID         int             `xml:"id,attr"` // from 0
		Timestamp  string          `xml:"timestamp,attr"`
		Hostname   string          `xml:"hostname,attr"`
		Tests      int             `xml:"tests,attr"`
		Failures   int             `xml:"failures,attr"`
		Errors     int             `xml:"errors,attr"`
		Skipped    int             `xml:"skipped,attr"`
		Time       string          `xml:"time,attr"` // seconds
		Properties []junitProperty `xml:"properties>property"`
		Cases      []junitCase     `xml:"testcase"`
		Out        junitText       `xml:"system-out"`
		Err        junitText       `xml:"system-err"`
	}
	junitProperty struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	}
	junitCase struct {
		Name    string       `xml:"name,attr"`
		Class   string       `xml:"classname,attr"`
		Time    string       `xml:"time,attr"`
		Skipped *junitReason `xml:"skipped"`
		Error   *junitReason `xml:"error"`
		Failure *junitReason `xml:"failure"`
	}
	junitReason struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		junitText
	}
	// junitText is escaped already, so that its lines stay lines.
	junitText struct {
		XML string `xml:",innerxml"`
	}
)

// JUnit writes results as JUnit XML: a suite for each result, a case for each
// path and transport and for each outcome. A required path or outcome that
// does not pass is a failure; what was not measured, or does not pass and need
// not, is skipped; what could not be decided is an error. Seconds are those of
// the whole run: probes run side by side, so a case has none of its own.
func JUnit(w io.Writer, results []*client.Result) error {
	doc := junitSuites{}
	columns := columnsOf(results)
	for _, r := range results {
		s, err := suite(r, columns[r])
		if err != nil {
			return err
		}
		doc.add(s)
	}
	return doc.write(w)
}

// add numbers a suite and takes it.
func (d *junitSuites) add(s junitSuite) {
	s.ID = len(d.Suites)
	d.Suites = append(d.Suites, s)
}

func (d *junitSuites) write(w io.Writer) error {
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(d); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func suite(r *client.Result, column string) (junitSuite, error) {
	var text strings.Builder
	if err := Text(&text, r, Options{Width: 120, Details: true}); err != nil {
		return junitSuite{}, err
	}
	s := junitSuite{
		Name: clean(fmt.Sprintf("%s as %s, %s", r.Scenario, r.Role, behind(column, r))), Package: "wallprobe",
		Timestamp: r.Started.UTC().Format("2006-01-02T15:04:05"), Hostname: "localhost", Time: fmt.Sprintf("%.3f", r.Seconds),
		Properties: properties(r), Out: junitLines(text.String()),
	}
	// A dot parts packages from classes; names of firewalls have dots too.
	class := strings.Join([]string{"wallprobe", dotless(r.Scenario), dotless(r.Role + " " + behind(column, r))}, ".")
	add := func(name string, st standing, kind string, message, text string) {
		s.add(junitCase{Name: clean(name), Class: class, Time: "0"}, st, junitReason{clean(message), kind, junitLines(text)})
	}
	for i := range r.Expectations {
		x := &r.Expectations[i]
		e := newExpected(x)
		add(fmt.Sprintf("expected %s: %s (%s)", e.what, e.wanted, e.place), ofExpectation(x), string(x.State), join(": ", e.what, "expected "+e.wanted+", measured "+e.measured, e.why), "")
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		name := join(" ", join("/", f.Path, string(f.Transport)), f.Title)
		add(name, ofPath(f, r), string(f.Verdict), join(": ", join(" ", f.Path, Where(f), string(f.Verdict)), proof(f, r)), bothEnds(f, r))
	}
	for i := range r.Outcomes {
		oc := &r.Outcomes[i]
		add("outcome "+oc.ID+" "+outcomeTitle(*oc), ofOutcome(oc, r), outcomeWord(oc), join(": ", oc.Title, outcomeWord(oc), reason(*oc)), ladder(oc))
	}
	if !r.Complete {
		add("the run came to its end", doubtful, "incomplete", "it did not: "+r.Why, "")
	}
	return s, nil
}

// junitLines escapes text and keeps its lines. What XML cannot hold becomes a
// mark.
func junitLines(s string) junitText {
	var b bytes.Buffer
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			b.WriteByte('\n')
		}
		xml.EscapeText(&b, []byte(clean(line))) // a buffer takes everything
	}
	return junitText{b.String()}
}

// behind says what stood in between, in words.
func behind(column string, r *client.Result) string {
	if r.Firewall != nil && r.Firewall.Name != "" {
		return "firewall " + column
	}
	return column
}

func dotless(s string) string { return strings.ReplaceAll(clean(s), ".", "-") }

// add counts a case and gives its reason the element of its standing.
func (s *junitSuite) add(c junitCase, st standing, why junitReason) {
	s.Tests++
	switch st {
	case fails:
		s.Failures++
		c.Failure = &why
	case doubtful:
		s.Errors++
		c.Error = &why
	case yields:
		why.Message = "not required: " + why.Message
		s.Skipped++
		c.Skipped = &why
	case skipped:
		s.Skipped++
		c.Skipped = &why
	}
	s.Cases = append(s.Cases, c)
}

func properties(r *client.Result) []junitProperty {
	var out []junitProperty
	for _, p := range facts(r) {
		out = append(out, junitProperty{p[0], clean(p[1])})
	}
	return out
}

// facts are what a result says of itself, by name.
func facts(r *client.Result) [][2]string {
	all := [][2]string{
		{"scenario", fmt.Sprintf("%s, version %d", r.Scenario, r.Version)},
		{"role", r.Role},
	}
	if r.Firewall != nil && r.Firewall.Name != "" {
		all = append(all, [2]string{"firewall", r.Firewall.Name})
	}
	if r.Reflector.IsValid() {
		all = append(all, [2]string{"reflector", r.Reflector.String()})
	}
	all = append(all, [2]string{"both ends", control(r)})
	if !r.Started.IsZero() {
		all = append(all, [2]string{"started", r.Started.UTC().Format(time.DateTime + " UTC")})
	}
	all = append(all, [2]string{"took", took(r.Seconds)})
	if r.Program != "" {
		all = append(all, [2]string{"program", r.Program})
	}
	return all
}

// proof is a finding's evidence in one line.
func proof(f *client.Finding, r *client.Result) string {
	return evidence(f, r.Ledgers[f.Where()] != nil)
}

// bothEnds is a finding's evidence from both ends, a line each, and the exact
// ranges of a partial one.
func bothEnds(f *client.Finding, r *client.Result) string {
	lines := []string{"near end: " + nearEnd(f, r), "far end: " + farEnd(f, r)}
	if len(f.Parts) > 0 {
		lines = append(lines, "parts: "+shorten(clean(f.Sentence()), maxSentence))
	}
	lines = append(lines, decided(f)...)
	return "\n" + strings.Join(lines, "\n") + "\n"
}

// maxSentence bounds a list of parts, in cells.
const maxSentence = 2000

// ladder is an outcome's ways, a line each.
func ladder(oc *client.Outcome) string {
	text := "\n"
	for i, w := range oc.Ways {
		state := "survives"
		if !w.Works {
			state = strings.Join(w.Stopped, ", ")
		}
		text += fmt.Sprintf("way %d, %s: %s\n", i+1, w.Title, state)
	}
	return text
}
