package report

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A pageProof is the evidence that a row opens.
type (
	pageProof struct {
		Path     string
		Quote    *pageQuote
		Facts    [][2]string
		Parts    []pagePart
		Seen     []sighting
		Lines    []string
		Dialogue []pageSaid
		Left     string
	}
	pageQuote struct{ Text, Language, Source string }
	pagePart  struct{ Class, What, Verdict, Why string }
	sighting  struct{ What, Near, Far string }
	pageSaid  struct{ Who, Text string }
)

// newProof gathers both ends' evidence of a finding, nil when there is none.
func newProof(f *client.Finding, r *client.Result, s *scenarios.Scenario, d depth) *pageProof {
	p := &pageProof{Path: reference(f, r.Findings), Quote: quoteOf(f, s)}
	var left []string
	cut := func(n, most int, thing string) int {
		if n > most {
			left = append(left, count(n-most, thing))
		}
		return min(n, most)
	}
	add := func(name, text string) {
		if text != "" {
			p.Facts = append(p.Facts, [2]string{name, text})
		}
	}
	add("protocol", f.Protocol)
	add("spoken instead", strings.TrimSuffix(standIn(f), " in place of "+f.Protocol))
	add("imitation", f.Imitation)
	add("note", f.Note)
	for _, part := range f.Parts[:cut(len(f.Parts), d.parts, "part")] {
		what := join(" ", part.Target, ports(part.Ports, ""))
		why := part.Why
		if a := part.Attempts; a != nil && a.Sent > 0 {
			why = join("; ", fmt.Sprintf("%s sent, %s seen", Group(a.Sent), Group(a.Seen)), why)
		}
		p.Parts = append(p.Parts, pagePart{classOf(part.Verdict), what, string(part.Verdict), why})
	}
	seen := sightings(f, r)
	p.Seen = seen[:cut(len(seen), d.seen, "destination")]
	lines := distinct(append(decided(f), proofs(f)...))
	p.Lines = lines[:cut(len(lines), d.lines, "line")]
	if f.Verdict != client.Open && d.dialogue > 0 {
		p.Dialogue = dialogues(f, r, d.dialogue)
	}
	if len(left) > 0 {
		p.Left = "Left out here: " + strings.Join(left, ", ") + "; the JSON result has them."
	}
	if p.Quote == nil && len(p.Facts)+len(p.Parts)+len(p.Seen)+len(p.Lines) == 0 {
		return nil
	}
	return p
}

// quoteOf is the sentence of the document that a path comes from.
func quoteOf(f *client.Finding, s *scenarios.Scenario) *pageQuote {
	if s == nil {
		return nil
	}
	i := slices.IndexFunc(s.Paths, func(p scenarios.Path) bool { return p.ID == f.Path })
	if i < 0 || s.Paths[i].Quote == "" {
		return nil
	}
	q := &pageQuote{Text: s.Paths[i].Quote}
	for _, src := range s.Sources {
		if src.ID == s.Paths[i].Source {
			q.Language, q.Source = src.Language, src.Title
		}
	}
	return q
}

// sightings are what both ends saw of each destination; those that fared alike
// are told once.
func sightings(f *client.Finding, r *client.Result) []sighting {
	l := r.Ledgers[f.Where()]
	var out []sighting
	alike := make(map[[2]string]int) // to its place in out
	var names [][]string
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		s := sighting{Near: nearSaw(o), Far: farSaw(o, l, r)}
		name := destination(o, f)
		key := [2]string{s.Near, s.Far}
		if j, ok := alike[key]; ok {
			names[j] = append(names[j], name)
			continue
		}
		alike[key] = len(out)
		out, names = append(out, s), append(names, []string{name})
	}
	for i := range out {
		out[i].What = listed(distinct(names[i]))
	}
	return out
}

// maxNames is how many destinations that fared alike are named.
const maxNames = 4

func listed(names []string) string {
	if more := len(names) - maxNames; more > 1 {
		return fmt.Sprintf("%s and %d more alike", strings.Join(names[:maxNames], ", "), more)
	}
	return strings.Join(names, ", ")
}

func destination(o *client.Observation, f *client.Finding) string {
	on := ports(o.Ports, "")
	if o.ByLocal {
		on = fmt.Sprintf("own %s to %d", on, o.Aimed)
	}
	target := o.Target
	if o.Addr.IsValid() && !strings.Contains(target, o.Addr.String()) {
		target = join(" ", o.Addr.String(), target)
	}
	return join(" ", target, "port "+on)
}

// nearSaw is what the near end saw of one destination. Times and own ports,
// which differ for each, are left out.
func nearSaw(o *client.Observation) string {
	said := []string{}
	switch {
	case o.Inward:
		said = append(said, count(o.Arrived, "call")+" arrived")
		if o.SYNs > o.Arrived {
			said = append(said, count(o.SYNs, "SYN")+" arrived")
		}
	default:
		said = append(said, fmt.Sprintf("%s sent, %s answered", Group(o.Sent), Group(o.Answered)))
	}
	if o.Probed != nil {
		said = append(said, count(o.Probed.Len(), "port")+" of them tried")
	}
	if text := fault(o.Stage, o.Fault, o.ICMP); text != "" {
		said = append(said, text)
	} else if o.Stage != "" {
		said = append(said, "stage "+o.Stage)
	}
	if o.Up+o.Down > 0 {
		said = append(said, fmt.Sprintf("%s bytes up, %s down", Group(o.Up), Group(o.Down)))
	}
	if o.Invalid > 0 {
		said = append(said, count(o.Invalid, "answer")+" that did not verify")
	}
	if o.Strays > 0 {
		said = append(said, count(o.Strays, "stray datagram"))
	}
	if o.TLS != nil {
		said = append(said, join(" ", o.TLS.Version, o.TLS.ALPN))
		if o.TLS.Issuer != "" {
			said = append(said, "certificate by "+o.TLS.Issuer)
		}
	}
	if o.Sample != "" {
		said = append(said, "it begins "+shorten(o.Sample, 64))
	}
	if o.Fault != "" && o.Detail != "" {
		said = append(said, shorten(o.Detail, 160))
	}
	return join("; ", said...)
}

// farSaw is what the ledger has of one destination.
func farSaw(o *client.Observation, l *wire.Ledger, r *client.Result) string {
	if l == nil {
		return "no ledger"
	}
	if o.Inward {
		return join("; ", fmt.Sprintf("%s made, %s answered", count(o.Sent, "call"), Group(o.Answered)), o.Fault)
	}
	p := recordOf(o, l)
	if p == nil {
		return join("; ", "nothing of this probe", synsAt(o, l))
	}
	said := []string{}
	if seen, answered := countsAt(o, p); seen > 0 {
		said = append(said, fmt.Sprintf("%s seen, %s answered", Group(seen), Group(answered)))
	}
	events := eventsAt(o, p)
	if len(events) == 0 && len(said) == 0 {
		return join("; ", "nothing at these ports", synsAt(o, l))
	}
	var kinds []string
	from := netip.Addr{}
	for i := range events {
		e := &events[i]
		kinds = append(kinds, arrival(e))
		from = e.Remote.Addr()
	}
	said = append(said, several(distinct(kinds))...)
	if from.IsValid() {
		said = append(said, "from "+from.String())
	}
	return join("; ", said...)
}

// arrival is an event in words.
func arrival(e *wire.Event) string {
	said := []string{}
	if text := fault(e.Stage, e.Fault, nil); text != "" {
		said = append(said, text)
	} else if e.Stage != "" {
		said = append(said, "stage "+e.Stage)
	}
	if e.Answered {
		said = append(said, "answered")
	}
	if e.BytesIn+e.BytesOut > 0 {
		said = append(said, fmt.Sprintf("%s bytes in, %s out", Group(e.BytesIn), Group(e.BytesOut)))
	}
	if e.Pause >= 1 {
		said = append(said, fmt.Sprintf("once standing still for %.1f s", e.Pause))
	}
	if e.TLS != nil {
		said = append(said, join(" ", e.TLS.Version, e.TLS.ALPN))
	}
	if e.TTL != 0 {
		said = append(said, fmt.Sprintf("TTL %d", e.TTL))
	}
	return join(", ", said...)
}

// synsAt counts the SYNs that were witnessed below the sockets, at one port.
func synsAt(o *client.Observation, l *wire.Ledger) string {
	n := 0
	for _, c := range l.SYNs {
		if o.Ports.Len() == 1 && c.Ports.Contains(o.Ports[0].First) {
			n += c.N
		}
	}
	if n == 0 {
		return ""
	}
	return count(n, "SYN") + " at this port in the session"
}

// dialogues are what was said, as each end has it, of the first destination
// with a dialogue that failed.
func dialogues(f *client.Finding, r *client.Result, most int) []pageSaid {
	l := r.Ledgers[f.Where()]
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if o.Said == nil || o.Fault == "" && len(f.Evidence.Near) > 1 {
			continue
		}
		out := []pageSaid{{"The near end's record" + of(o, f), spoken(o.Said, most)}}
		if p := recordOf(o, l); p != nil {
			for _, e := range eventsAt(o, p) {
				if e.Said != nil {
					out = append(out, pageSaid{"The far end's record", spoken(e.Said, most)})
					break
				}
			}
		}
		return out
	}
	return nil
}

func of(o *client.Observation, f *client.Finding) string {
	if len(f.Evidence.Near) == 1 {
		return ""
	}
	return " of " + destination(o, f)
}

// spoken is one end's record of a dialogue.
func spoken(s *wire.Said, most int) string {
	var b strings.Builder
	put := func(who string, lines []string) {
		for i, line := range lines {
			if i == most {
				fmt.Fprintf(&b, "%s … %s more\n", who, count(len(lines)-i, "line"))
				break
			}
			fmt.Fprintf(&b, "%s %s\n", who, shorten(clean(line), 96))
		}
	}
	put("sent ", s.Sent)
	put("heard", s.Heard)
	return b.String()
}

// distinct leaves out what was there before.
func distinct(list []string) []string {
	var out []string
	for _, s := range list {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
