package report

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// maxRules is the number of firewall rules that get a line.
const maxRules = 8

// dropped names the rules that stopped packets, where a path was lost.
func dropped(r *client.Result, o Options) []string {
	hurt := func(f client.Finding) bool { return f.Verdict != client.Open && f.Verdict != client.Unmeasured }
	if r.Firewall == nil || !slices.ContainsFunc(r.Findings, hurt) {
		return nil
	}
	var out []string
	for _, rule := range r.Firewall.Rules {
		did := map[string]string{"drop": "dropped", "reject": "rejected"}[rule.Verdict]
		if did == "" || rule.Packets == 0 {
			continue
		}
		text := fmt.Sprintf("firewall: %s %s %s: ", ruleAt(rule), did, count(rule.Packets, "packet"))
		if !o.Details {
			out = append(out, text+shorten(clean(rule.Text), max(minimum, 2*(o.width()-8)-textWidth(text))))
			continue
		}
		out = append(out, text+rule.Text)
	}
	if more := len(out) - maxRules; more > 1 && !o.Details {
		out = append(out[:maxRules], fmt.Sprintf("firewall: … %d more rules; see --details", more))
	}
	return out
}

// ruleAt says where a rule stands: in the user's file or, where that is not
// certain, in its chain.
func ruleAt(r client.Rule) string {
	switch {
	case r.Line > 0:
		return fmt.Sprintf("%s:%d in %s", filepath.Base(r.File), r.Line, r.Chain)
	case r.Index == 0:
		return "the policy of " + r.Chain
	}
	return fmt.Sprintf("rule %d in %s", r.Index, r.Chain)
}

// deciders names the rules that stopped packets, or nothing where these pass.
func deciders(list []client.Decision, v client.Verdict) string {
	list = slices.DeleteFunc(slices.Clone(list), func(d client.Decision) bool { return v.Passes() && !forbids(d.Rule) })
	if len(list) == 0 {
		return ""
	}
	did := "dropped"
	if list[0].Verdict == "reject" {
		did = "rejected"
	}
	text := did + " by " + ruleBriefly(list[0].Rule)
	if more := len(list) - 1; more > 0 {
		text += " and " + count(more, "more rule")
	}
	return text
}

// forbids tells whether packets that match a rule go no further.
func forbids(r client.Rule) bool { return r.Verdict == "drop" || r.Verdict == "reject" }

// noRule is what is told of what no rule explains.
const noRule = "no rule of the firewall explains it"

// doubts say that no rule explains a finding, and that it was measured again.
func doubts(f *client.Finding) string {
	again := ""
	if f.Round > 0 {
		again = fmt.Sprintf("measured %d times", f.Round+1)
	}
	if !f.Unexplained {
		return again
	}
	return join(", ", noRule, again)
}

// ruleBriefly is a rule's line, or else its place in its chain.
func ruleBriefly(r client.Rule) string {
	if r.Line > 0 {
		return fmt.Sprintf("%s:%d", filepath.Base(r.File), r.Line)
	}
	return ruleAt(r)
}

// decided are the rules of a finding and of its parts, whole.
func decided(f *client.Finding) []string {
	var out []string
	add := func(list []client.Decision, of scenarios.PortSet) {
		for _, d := range list {
			on := ""
			switch {
			case len(d.Ports) > 0:
				on = " for " + d.Ports.String()
			case len(f.Parts) > 0:
				on = " for " + of.String()
			}
			out = append(out, "rule"+on+": "+decision(d, nil))
		}
	}
	add(f.DecidedBy, f.Ports)
	for _, p := range f.Parts {
		add(p.DecidedBy, p.Ports)
	}
	return out
}

// remarks are what a person has to know of the rules.
func remarks(r *client.Result) []string {
	var out []string
	if r.Firewall != nil {
		for _, n := range r.Firewall.Notes {
			out = append(out, "firewall: "+n)
		}
	}
	return out
}

// outcomes lays out what works, by which way, and what stops the rest.
func outcomes(r *client.Result, o Options) *Table {
	t := &Table{Width: o.Width, Indent: 2, Columns: []Column{{Flex: 2}, {}, {Flex: 3}}}
	for _, oc := range r.Outcomes {
		t.add(cell{text: outcomeTitle(oc)}, o.outcome(oc), cell{text: reason(oc)})
		if !o.Details {
			continue
		}
		for i, w := range oc.Ways {
			state := "survives"
			if !w.Works {
				state = strings.Join(w.Stopped, ", ")
			}
			t.Note(2, fmt.Sprintf("way %d, %s: %s", i+1, w.Title, state))
		}
	}
	return t
}

func outcomeTitle(oc client.Outcome) string {
	if oc.Optional {
		return oc.Title + " (optional)"
	}
	return oc.Title
}

func (o Options) outcome(oc client.Outcome) cell {
	switch {
	case oc.Works:
		return o.word("works", green)
	case oc.Unknown:
		return o.word("unknown", yellow)
	}
	return o.word("fails", red)
}

// reason says by which way an outcome works, or what stops its ways.
func reason(oc client.Outcome) string {
	var stopped []string
	said := make(map[string]int)
	for _, w := range oc.Ways {
		if w.Works {
			break
		}
		s := few(w.Stopped)
		if said[s]++; said[s] > 1 {
			continue // as a way before
		}
		if len(oc.Ways) > 1 {
			s = w.Title + ": " + s
		}
		stopped = append(stopped, s)
	}
	why := strings.Join(stopped, "; ")
	switch {
	case !oc.Works && len(said) == 1 && len(oc.Ways) > 1:
		return "every way: " + few(oc.Ways[0].Stopped)
	case !oc.Works:
		return why
	case why != "":
		return oc.Via + " (not " + why + ")"
	}
	return oc.Via
}

// few shortens a list of paths that do not survive. A verdict that neighbours
// share is told once.
func few(stopped []string) string {
	const most = 3
	more := len(stopped) - most
	if more <= 1 {
		return strings.Join(shared(stopped), ", ")
	}
	return fmt.Sprintf("%s and %d more paths", strings.Join(shared(stopped[:most]), ", "), more)
}

// shared leaves out of "A lost", "B lost" what the next one says again: "A", "B
// lost".
func shared(stopped []string) []string {
	out := slices.Clone(stopped)
	for i := range len(out) - 1 {
		path, verdict, _ := strings.Cut(stopped[i], " ")
		if _, next, _ := strings.Cut(stopped[i+1], " "); verdict == next {
			out[i] = path
		}
	}
	return out
}

// notices say what is missing from a result, and the next step.
func notices(r *client.Result, o Options) []string {
	var out []string
	if !r.Complete {
		why := r.Why
		if why == "" {
			why = "the run did not come to its end"
		}
		out = append(out, "This result is not complete: "+why+". What was not tried counts as unmeasured; run it again for the rest.")
	}
	has := r.Ledgers[client.WhereFar] != nil
	switch {
	case !has:
		out = append(out, "The reflector's ledger is missing: "+uncontrolled(r, o)+". Without it nobody can say whether a packet was lost on its way out or the answer on its way back, so silence is called silent, not blocked. Next step: keep this result (--json FILE) and the journal of the reflector (reflector --journal FILE), then join both: wallprobe merge RESULT JOURNAL")
	case unseen(r):
		out = append(out, "The reflector cannot see SYNs on its system, so TCP paths that stayed silent may be lost either way. Next step: start it with the privilege to capture packets (setcap cap_net_raw+ep wallprobe).")
	}
	return out
}

// uncontrolled says why there is no ledger.
func uncontrolled(r *client.Result, o Options) string {
	if r.Control.Via != "" {
		return "control over " + r.Control.Via + " was there, then lost"
	}
	said := "no port carried control"
	if r.Control.Proxy != "" {
		said += " through the proxy " + r.Control.Proxy
	}
	if len(r.Control.Tried) == 0 {
		return said
	}
	var tried []string
	for _, t := range r.Control.Tried {
		tried = append(tried, fmt.Sprintf("%d %s", t.Port, t.Error))
	}
	if more := len(tried) - maxParts; more > 1 && !o.Details {
		tried = append(tried[:maxParts], fmt.Sprintf("%d more ports", more))
	}
	return said + " (" + strings.Join(tried, ", ") + ")"
}

// unseen tells whether TCP paths stayed silent for lack of a witness.
func unseen(r *client.Result) bool {
	return slices.ContainsFunc(r.Findings, func(f client.Finding) bool {
		return f.Verdict == client.Silent && f.Transport == scenarios.TCP && r.Ledgers[f.Where()] != nil && r.Ledgers[f.Where()].Witness == ""
	})
}

// summary is the last line, sentence by sentence.
func summary(r *client.Result) []string {
	var verdicts []string
	for _, v := range client.Verdicts {
		n := 0
		for _, f := range r.Findings {
			if f.Verdict == v {
				n++
			}
		}
		if n > 0 {
			verdicts = append(verdicts, Group(n)+" "+string(v))
		}
	}
	works, unknown := 0, 0
	for _, oc := range r.Outcomes {
		switch {
		case oc.Works:
			works++
		case oc.Unknown:
			unknown++
		}
	}
	out := []string{join(": ", count(len(r.Findings), "path"), strings.Join(verdicts, ", ")) + "."}
	if n := len(r.Outcomes); n > 0 {
		verb := "work"
		if works == 1 {
			verb = "works"
		}
		text := fmt.Sprintf("%d of %d outcomes %s", works, n, verb)
		if unknown > 0 {
			text += fmt.Sprintf(", %d unknown", unknown)
		}
		out = append(out, text+".")
	}
	return append(out, took(r.Seconds))
}

// Brief says in one line what Text says in its last ones: how many paths have
// which verdict, how many outcomes work, and how long it took.
func Brief(r *client.Result) string { return strings.Join(summary(r), " ") }

// took writes seconds, and milliseconds where they are few.
func took(seconds float64) string {
	if seconds < 0.095 {
		return fmt.Sprintf("%.0f ms", seconds*1000)
	}
	return fmt.Sprintf("%.1f s", seconds)
}
