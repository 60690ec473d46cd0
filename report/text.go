// Package report turns results into what a person reads and what programs
// read: pure functions, without a network and without a clock.
//
// Text, Matrix and Experiments print for a terminal, JSON and ReadJSON are the
// lasting form, JUnit, Markdown and HTML are for continuous integration, pull
// requests and people. Whatever comes from a file or from the network is made
// harmless before it reaches a terminal.
package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Columns of the table of findings.
const (
	colTitle   = 1
	colVerdict = 3
)

// Text prints one result: what was measured, the verdicts, what stops the
// others, and which outcomes work.
func Text(w io.Writer, r *client.Result, o Options) error {
	var out bytes.Buffer
	for i, line := range pack(headline(r), " -- ", o.width()-2) {
		out.WriteString(strings.Repeat("  ", min(i, 1)) + line + "\n")
	}
	out.WriteByte('\n')
	t, unmeasured := findings(r, o)
	out.Write(t.render().Bytes())
	paragraph(&out, unmeasured, o)
	for _, line := range rewrites(r) {
		paragraph(&out, line, o)
	}
	for _, line := range dropped(r, o) {
		paragraph(&out, line, o)
	}
	for _, line := range remarks(r) {
		paragraph(&out, line, o)
	}
	if len(r.Outcomes) > 0 {
		out.WriteByte('\n')
		out.Write(outcomes(r, o).render().Bytes())
	}
	out.WriteByte('\n')
	for _, n := range notices(r, o) {
		for _, line := range wrap(n, o.width()) {
			out.WriteString(line + "\n")
		}
		out.WriteByte('\n')
	}
	for _, line := range pack(summary(r), "   ", o.width()) {
		out.WriteString(line + "\n")
	}
	if len(r.Expectations) > 0 {
		out.WriteByte('\n')
		if err := Expectations(&out, r, o); err != nil {
			return err
		}
	}
	_, err := out.WriteTo(w)
	return err
}

// paragraph writes text with an indent, and nothing for no text.
func paragraph(out *bytes.Buffer, text string, o Options) {
	if text == "" {
		return
	}
	for i, line := range wrap(text, o.width()-4) {
		out.WriteString(strings.Repeat(" ", 2+2*min(i, 1)) + line + "\n")
	}
}

// headline says who measured what across what.
func headline(r *client.Result) []string {
	parts := []string{r.Scenario + " as " + r.Role}
	if r.Firewall != nil && r.Firewall.Name != "" {
		parts = append(parts, "firewall "+r.Firewall.Name)
	}
	if r.Reflector.IsValid() {
		parts = append(parts, "reflector "+r.Reflector.String())
	}
	return append(parts, control(r))
}

// control says how the two ends spoke with each other.
func control(r *client.Result) string {
	has := r.Ledgers[client.WhereFar] != nil
	switch {
	case r.Control.Via != "" && r.Offline:
		return "control over " + r.Control.Via + ", only after the probes"
	case r.Control.Via != "":
		return "control over " + r.Control.Via
	case has:
		return "no control; joined with the reflector's journal"
	}
	return "no control"
}

// findings lays out the findings, and folds those that were not measured into
// one line unless the details are asked for.
func findings(r *client.Result, o Options) (*Table, string) {
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{}, {Flex: 2}, {Max: 19}, {}, {Flex: 3, Lines: 3}, {Right: true}}}
	var folded []string
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Verdict == client.Unmeasured && len(f.Parts) == 0 && !o.Details {
			folded = append(folded, reference(f, r.Findings))
			continue
		}
		t.add(cell{text: f.Path}, cell{text: f.Title}, cell{text: Where(f)}, o.verdict(f.Verdict),
			cell{text: evidence(f, r.Ledgers[f.Where()] != nil)}, cell{text: milliseconds(f.RTT)})
		if len(f.Parts) > 0 {
			parts(t, f, o)
		}
		if o.Details && f.Imitation != "" {
			t.under(below{column: colTitle, text: "imitation: " + f.Imitation})
		}
		if o.Details && f.Note != "" {
			t.under(below{column: colTitle, text: "note: " + f.Note})
		}
		if o.Details {
			for _, text := range decided(f) {
				t.under(below{column: colTitle, text: text})
			}
			for _, text := range proofs(f) {
				t.under(below{column: colTitle, text: text})
			}
		}
	}
	if len(folded) == 0 {
		return t, ""
	}
	return t, "not measured: " + strings.Join(folded, ", ") + ": reasons with --details"
}

// reference names a finding: by its path, and by its transport too where the
// path has another one.
func reference(f *client.Finding, all []client.Finding) string {
	for i := range all {
		if o := &all[i]; o.Path == f.Path && o.Transport != f.Transport {
			return f.Path + "/" + string(f.Transport)
		}
	}
	return f.Path
}

// Where writes the ports and the transport of a finding: "443/tcp", "own
// 40000-65535/udp".
func Where(f *client.Finding) string {
	if len(f.LocalPorts) > 0 {
		return "own " + ports(f.LocalPorts, f.Transport)
	}
	return ports(f.Ports, f.Transport)
}

// maxRanges is the number of ranges that are listed one by one.
const maxRanges = 5

func ports(s scenarios.PortSet, t scenarios.Transport) string {
	text := s.String()
	if more := len(s) - maxRanges; more > 1 {
		text = fmt.Sprintf("%s,… %s", s[:maxRanges], count(more, "more range"))
	}
	if t != "" {
		text += "/" + string(t)
	}
	return strings.TrimPrefix(text, "/")
}

// evidence is a finding's proof in a few words.
func evidence(f *client.Finding, ledger bool) string {
	var said []string
	switch {
	case f.Verdict == client.Partial && len(f.Parts) > 0:
		said = append(said, share(f))
	case f.Transport == scenarios.UDP || f.Ports.Len() > 1 || len(f.LocalPorts) > 0:
		said = append(said, counts(f.Attempts, f.Direction, ledger))
	}
	counted := len(said) > 0 && said[0] != ""
	if f.Why != "" && !(counted && told(f.Verdict, ledger)) {
		said = append(said, f.Why)
	}
	if text := deciders(f.DecidedBy, f.Verdict); text != "" {
		said = append(said, text)
	}
	if text := doubts(f); text != "" {
		said = append(said, text)
	}
	if s := standIn(f); s != "" {
		said = append(said, s)
	}
	if f.Imitation != "" {
		said = append(said, "imitation")
	}
	return join("; ", said...)
}

// told tells whether the counts already say what a verdict means.
func told(v client.Verdict, ledger bool) bool {
	if !ledger {
		return v == client.Silent
	}
	return v == client.RequestLost || v == client.ReplyLost
}

// counts are attempts as both ends know them.
func counts(a *client.Attempts, d scenarios.Direction, ledger bool) string {
	switch {
	case a == nil || a.Sent == 0 || d == scenarios.In: // of calls from outside the reason says it all
		return ""
	case !ledger && a.Answered == 0:
		return Group(a.Sent) + " sent, none answered"
	case !ledger || a.Seen < a.Answered:
		return fmt.Sprintf("%s sent, %s answered", Group(a.Sent), Group(a.Answered))
	case a.Seen == 0:
		return Group(a.Sent) + " sent, 0 seen"
	}
	return fmt.Sprintf("%s sent, %s seen, %s answered", Group(a.Sent), Group(a.Seen), Group(a.Answered))
}

// share says how much of a range passes, and how much the application needs.
func share(f *client.Finding) string {
	passing, unmeasured, all := 0, 0, 0
	aimed, several := false, false // at different destinations or variants; at several ports of one
	hosts := false                 // at different destinations
	for _, p := range f.Parts {
		all += p.Ports.Len()
		if p.Verdict.Passes() {
			passing += p.Ports.Len()
		}
		if p.Verdict == client.Unmeasured {
			unmeasured += p.Ports.Len()
		}
		aimed = aimed || p.Target != f.Parts[0].Target
		hosts = hosts || isHost(p.Target)
		several = several || p.Ports.Len() > 1
	}
	things := "ports"
	switch {
	case aimed && several:
		things = "ports of several destinations"
	case aimed && !hosts:
		things = "variants"
	case aimed:
		things = "destinations"
	}
	text := fmt.Sprintf("%s of %s %s open", Group(passing), Group(all), things)
	if unmeasured > 0 {
		text += fmt.Sprintf(", %s unmeasured", Group(unmeasured))
	}
	switch f.Pick {
	case scenarios.PickAny:
		return text + ", one is enough"
	case scenarios.PickOne:
		return text + ", half is enough"
	}
	return text
}

// isHost tells a part's name or address from a variant: "http/1.1" is one.
func isHost(target string) bool {
	host, _, _ := strings.Cut(target, " ")
	return strings.ContainsAny(host, ".:") && !strings.Contains(host, "/")
}

// standIn says what was spoken where the protocol itself is not.
func standIn(f *client.Finding) string {
	spoken := f.Spoken
	switch spoken {
	case "":
		return ""
	case "plain":
		spoken = "plain exchange"
	case "datagram":
		spoken = "plain datagrams"
	case "tls":
		spoken = "TLS"
	}
	return spoken + " in place of " + f.Protocol
}

// maxParts is the number of lines that the parts of a finding get.
const maxParts = 8

// parts lists what of a path fared how, under its verdict.
func parts(t *Table, f *client.Finding, o Options) {
	in := &Table{Columns: []Column{{}, {Flex: 3}, {Flex: 9}, {Flex: 3}, {Flex: 4}}}
	shown := f.Parts
	if !o.Details && len(shown) > maxParts+1 {
		shown = shown[:maxParts]
	}
	one := !slices.ContainsFunc(f.Parts, func(p client.Part) bool { return p.Target != f.Parts[0].Target })
	alike := !slices.ContainsFunc(f.Parts, func(p client.Part) bool { return !slices.Equal(p.Ports, f.Ports) })
	for _, p := range shown {
		if one {
			p.Target = ""
		}
		why := p.Why
		if !o.Details && (told(p.Verdict, true) || p.Verdict == client.Open && !strings.Contains(why, " each way at ")) {
			why = "" // the counts say it
		}
		attempts := ""
		if p.Attempts != nil && p.Attempts.Sent > 0 && !(f.Transport == scenarios.TCP && p.Attempts.Sent == 1 && p.Attempts.Seen == 1) {
			attempts = fmt.Sprintf("%s sent, %s seen", Group(p.Attempts.Sent), Group(p.Attempts.Seen))
		}
		why = join("; ", why, deciders(p.DecidedBy, p.Verdict))
		if p.Unexplained {
			why = join("; ", why, noRule)
		}
		on := ports(p.Ports, "")
		if alike && !one {
			on = "" // as the finding's
		}
		in.add(o.verdict(p.Verdict), cell{text: on}, cell{text: p.Target}, cell{text: attempts}, cell{text: why})
	}
	t.under(below{column: colVerdict, table: in})
	if more := len(f.Parts) - len(shown); more > 0 {
		t.under(below{column: colVerdict, text: fmt.Sprintf("… %s more; see --json", Group(more))})
	}
}

// milliseconds writes a round trip with two or three digits.
func milliseconds(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 0.05:
		return "<0.1 ms"
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f s", ms/1000)
}

// join leaves out what is empty.
func join(between string, parts ...string) string {
	var out []string
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, between)
}
