package expect

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A share is the ports of a finding that fared alike.
type share struct {
	target   string // "" is all of them
	ports    scenarios.PortSet
	state    State
	attempts client.Attempts

	rejection string           // by what, where that is known
	runs      []client.Verdict // of several runs, each; "" where one does not have the ports
}

// portsOf are the ports by which a finding's parts are told: the near end's own
// where the path limits those.
func portsOf(f *client.Finding) (s scenarios.PortSet, own bool) {
	if len(f.LocalPorts) > 0 {
		return f.LocalPorts, true
	}
	return f.Ports, false
}

// sharesOf takes a finding apart.
func sharesOf(f *client.Finding) []share {
	if f == nil {
		return nil
	}
	ports, _ := portsOf(f)
	whole := client.Part{Ports: ports, Verdict: f.Verdict, Why: f.Why, Attempts: f.Attempts, DecidedBy: f.DecidedBy}
	parts := f.Parts
	if len(parts) == 0 {
		parts = []client.Part{whole}
	}
	var out []share
	for _, p := range parts {
		s := share{target: p.Target, ports: p.Ports, state: State{Verdict: p.Verdict, Why: p.Why, DecidedBy: p.DecidedBy}, rejection: f.Rejection(p)}
		if p.Attempts != nil {
			s.attempts = *p.Attempts
		}
		out = append(out, s)
	}
	return out
}

// compareFinding tells what changed of one path and transport, and how many
// ports were compared. One of the two may be nil.
func compareFinding(old, new *client.Finding, o Options) (changes []Change, ports int) {
	about := new
	if new == nil {
		about = old
	}
	all, own := portsOf(about)
	blank := Change{Path: about.Path, Title: about.Title, Need: about.Need, Direction: about.Direction, Transport: about.Transport, Own: own}
	var rows []row
	for _, m := range meet(sharesOf(old), sharesOf(new)) {
		kind := kindOf(m.old, m.new, about.Need)
		if kind == "" {
			continue
		}
		c := blank
		c.Kind, c.Ports, c.Old, c.New = kind, m.ports, m.old.state, m.new.state
		if kind == Rejection {
			c.Old.Rejection, c.New.Rejection = m.old.rejection, m.new.rejection
		}
		c.Required = about.Need == scenarios.Required && (kind != Broke || !new.Survives())
		rows = addRow(rows, row{c, m.target})
	}
	changes = gather(rows, targetsOf(old, new))
	if grew := slower(old, new, o.Slower); grew != "" {
		c := blank
		c.Kind, c.Ports, c.Required = Worse, all, about.Need == scenarios.Required
		c.Old, c.New = State{Verdict: old.Verdict}, State{Verdict: new.Verdict, Why: grew}
		changes = append(changes, c)
	}
	return changes, all.Len()
}

// slower says how a round trip grew by more than is tolerated.
func slower(old, new *client.Finding, tolerated time.Duration) string {
	if tolerated == 0 || old == nil || new == nil || old.RTT == 0 || new.RTT == 0 {
		return ""
	}
	if grew := time.Duration((new.RTT - old.RTT) * float64(time.Millisecond)); grew <= tolerated {
		return ""
	}
	return fmt.Sprintf("the round trip took %.1f ms and takes %.1f ms", old.RTT, new.RTT)
}

// A meeting is the ports that two shares have in common. The share of a side
// that has nothing there is zero.
type meeting struct {
	target   string
	ports    scenarios.PortSet
	old, new share
}

// meet cuts the shares of both sides at each other's borders.
func meet(old, new []share) []meeting {
	var out []meeting
	rest := slices.Clone(new)
	for _, a := range old {
		left, met := a.ports, false
		for i, b := range new {
			if a.target != b.target && a.target != "" && b.target != "" {
				continue
			}
			both := a.ports.Intersect(b.ports)
			if len(both) == 0 && len(a.ports)+len(b.ports) > 0 {
				continue
			}
			target := a.target
			if target == "" {
				target = b.target
			}
			out = append(out, meeting{target, both, a, b})
			left, rest[i].ports, met = left.Without(both), rest[i].ports.Without(both), true
		}
		if len(left) > 0 || !met {
			out = append(out, meeting{target: a.target, ports: left, old: a})
		}
	}
	for _, b := range rest {
		if len(b.ports) > 0 {
			out = append(out, meeting{target: b.target, ports: b.ports, new: b})
		}
	}
	return out
}

// unsure tells whether a verdict says nothing about a firewall.
func unsure(v client.Verdict) bool {
	return v == "" || v == client.Silent || v == client.Unmeasured
}

// kindOf is "" where nothing changed.
func kindOf(old, new share, need scenarios.Need) Kind {
	a, b := old.state.Verdict, new.state.Verdict
	switch {
	case a == client.Rejected && b == client.Rejected && old.rejection != new.rejection && old.rejection != "" && new.rejection != "":
		return Rejection
	case a == b || unsure(a) && unsure(b):
		return ""
	case unsure(a) || unsure(b):
		return Untold
	case a.Passes() && b.Passes():
		return lossKind(old, new)
	case b.Passes():
		return Opened
	case a.Passes() && need == scenarios.Negative:
		return Better
	case a.Passes():
		return Broke
	}
	return Different
}

// lossKind is that of open and degraded, between which the loss of datagrams decides.
func lossKind(old, new share) Kind {
	if a, b := lossOf(old), lossOf(new); math.Abs(a-b) <= LossTolerance {
		return ""
	}
	if new.state.Verdict == client.Degraded {
		return Worse
	}
	return Better
}

func lossOf(s share) float64 {
	if s.attempts.Sent == 0 {
		return 0
	}
	return 1 - float64(s.attempts.Answered)/float64(s.attempts.Sent)
}

// A row is a change at one target.
type row struct {
	Change
	target string
}

// addRow joins a row with one before it that tells the same of other ports.
func addRow(rows []row, r row) []row {
	for i := range rows {
		x := &rows[i]
		if x.target != r.target || !alike(x.Old, r.Old) || !alike(x.New, r.New) {
			continue
		}
		x.Ports = scenarios.Union(x.Ports, r.Ports)
		x.Old, x.New = joined(x.Old, r.Old), joined(x.New, r.New)
		return rows
	}
	return append(rows, r)
}

// joined is the state of ports whose reasons may differ.
func joined(a, b State) State {
	if a.Why != b.Why {
		a.Why = ""
	}
	return a
}

// alike tells whether two states differ by their reasons at most.
func alike(a, b State) bool {
	return a.Verdict == b.Verdict && a.Rejection == b.Rejection && sameRules(a, b)
}

func sameRules(a, b State) bool {
	return slices.EqualFunc(a.DecidedBy, b.DecidedBy, func(x, y client.Decision) bool {
		return x.Back == y.Back && x.Family == y.Family && x.Table == y.Table && x.Chain == y.Chain && x.Index == y.Index
	})
}

// targetsOf are the places that a path was measured at, where it has several.
func targetsOf(old, new *client.Finding) []string {
	var out []string
	for _, s := range append(sharesOf(old), sharesOf(new)...) {
		if s.target != "" && !slices.Contains(out, s.target) {
			out = append(out, s.target)
		}
	}
	return out
}

// gather joins rows that tell the same of several targets. What all of them
// have in common names none.
func gather(rows []row, all []string) []Change {
	var out []Change
	for _, r := range rows {
		same := slices.IndexFunc(out, func(c Change) bool {
			return slices.Equal(c.Ports, r.Ports) && alike(c.Old, r.Old) && alike(c.New, r.New)
		})
		if same < 0 {
			same = len(out)
			out = append(out, r.Change)
		} else {
			out[same].Old, out[same].New = joined(out[same].Old, r.Old), joined(out[same].New, r.New)
		}
		if r.target != "" {
			out[same].Targets = append(out[same].Targets, r.target)
		}
	}
	for i := range out {
		if len(out[i].Targets) == len(all) {
			out[i].Targets = nil
		}
	}
	slices.SortStableFunc(out, func(a, b Change) int { return firstPort(a) - firstPort(b) })
	return out
}

func firstPort(c Change) int {
	if len(c.Ports) == 0 {
		return 0
	}
	return int(c.Ports[0].First)
}
