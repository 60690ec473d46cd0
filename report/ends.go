package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// nearEnd is what the end that ran the client did and saw, in a few words.
func nearEnd(f *client.Finding, r *client.Result) string {
	if f.Verdict == client.Unmeasured && f.Attempts == nil {
		return "not tried"
	}
	if f.Direction == scenarios.In {
		return called(f)
	}
	said := []string{}
	if a := f.Attempts; a != nil && a.Sent > 0 {
		said = append(said, fmt.Sprintf("%s sent, %s answered", Group(a.Sent), Group(a.Answered)))
	}
	said = append(said, faults(f)...)
	if rtt := milliseconds(f.RTT); rtt != "" {
		said = append(said, rtt)
	}
	return join("; ", said...)
}

// called: of calls from outside the near end is the one that answers.
func called(f *client.Finding) string {
	arrived, syns := 0, 0
	for i := range f.Evidence.Near {
		arrived, syns = arrived+f.Evidence.Near[i].Arrived, syns+f.Evidence.Near[i].SYNs
	}
	said := []string{count(arrived, "call") + " arrived"}
	if syns > arrived {
		said = append(said, count(syns, "SYN")+" arrived")
	}
	return join("; ", append(said, faults(f)...)...)
}

// maxFaults is how many kinds of faults are named in a few words.
const maxFaults = 3

// faults are what ended the near end's probes, each kind once.
func faults(f *client.Finding) []string {
	var out []string
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if text := fault(o.Stage, o.Fault, o.ICMP); text != "" && !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return several(out)
}

// several keeps the first few.
func several(list []string) []string {
	if more := len(list) - maxFaults; more > 0 {
		return append(list[:maxFaults], fmt.Sprintf("%d others", more))
	}
	return list
}

func fault(stage, what string, icmp *client.ICMP) string {
	switch {
	case icmp != nil && icmp.Name != "":
		return fmt.Sprintf("%s from %s", icmp.Name, icmp.From)
	case icmp != nil:
		return fmt.Sprintf("icmp type %d code %d from %s", icmp.Type, icmp.Code, icmp.From)
	case what == "":
		return ""
	}
	return join(" in stage ", what, stage)
}

// farEnd is what the ledger has of a finding, in a few words.
func farEnd(f *client.Finding, r *client.Result) string {
	l := r.Ledgers[f.Where()]
	switch {
	case f.Verdict == client.Unmeasured && f.Attempts == nil:
		return ""
	case l == nil:
		return "no ledger"
	case f.Direction == scenarios.In:
		return outcalls(f)
	}
	said := []string{}
	if a := f.Attempts; a != nil && a.Sent > 0 {
		said = append(said, Group(a.Seen)+" seen")
	}
	if seen, answered := answeredOf(f, l); seen > 0 {
		said = append(said, Group(answered)+" answered")
	}
	var stages []string
	events := eventsOf(f, l)
	for i := range events {
		text := fault(events[i].Stage, events[i].Fault, nil)
		if text == "" && f.Transport == scenarios.TCP && !events[i].Unfinished {
			text = "stage " + events[i].Stage
		}
		if text != "" && !slices.Contains(stages, text) {
			stages = append(stages, text)
		}
	}
	return join("; ", append(said, several(stages)...)...)
}

// outcalls: of calls from outside the far end is the one that begins.
func outcalls(f *client.Finding) string {
	sent, answered := 0, 0
	for i := range f.Evidence.Near {
		if o := &f.Evidence.Near[i]; o.Inward {
			sent, answered = sent+o.Sent, answered+o.Answered
		}
	}
	return fmt.Sprintf("%s, %s answered", count(sent, "call"), Group(answered))
}

// eventsOf are the ledger's events of a finding: probes are shared by findings,
// so their ports count too.
func eventsOf(f *client.Finding, l *wire.Ledger) []wire.Event {
	var out []wire.Event
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if p := recordOf(o, l); p != nil {
			out = append(out, eventsAt(o, p)...)
		}
	}
	return out
}

// recordOf is the ledger's record of what an observation is about.
func recordOf(o *client.Observation, l *wire.Ledger) *wire.ProbeRecord {
	if l == nil {
		return nil
	}
	i := slices.IndexFunc(l.Probes, func(p wire.ProbeRecord) bool { return p.Probe == o.Probe })
	if i < 0 {
		return nil
	}
	return &l.Probes[i]
}

// eventsAt are those of a record that belong to an observation's ports.
func eventsAt(o *client.Observation, p *wire.ProbeRecord) []wire.Event {
	var out []wire.Event
	for _, e := range p.Events {
		port := e.Local.Port()
		if o.ByLocal {
			port = e.Remote.Port()
		}
		if o.Ports.Contains(port) {
			out = append(out, e)
		}
	}
	return out
}

// answeredOf sums the datagrams of a finding that the far end saw and answered.
func answeredOf(f *client.Finding, l *wire.Ledger) (seen, answered int) {
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if p := recordOf(o, l); p != nil {
			s, a := countsAt(o, p)
			seen, answered = seen+s, answered+a
		}
	}
	return seen, answered
}

// countsAt sums a record's counts at an observation's ports.
func countsAt(o *client.Observation, p *wire.ProbeRecord) (seen, answered int) {
	for _, c := range p.Counts {
		n := o.Ports.Len() - o.Ports.Without(c.Ports).Len()
		seen, answered = seen+n*c.Seen, answered+n*c.Answered
	}
	return seen, answered
}

// flat is text on one line, without characters that reorder or hide others.
func flat(s string) string { return strings.Join(strings.Fields(clean(s)), " ") }
