package lab

import (
	"fmt"
	"slices"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
)

// An attribution tells what can have stopped a path whose first packets the
// firewall lets pass: a rule that goes deeper than a trace shows, as its counter
// proves; or none, and then it was the machine. Both are told only where every
// other rule is ruled out.
type attribution struct {
	set             *ruleset
	results         []*client.Result
	inside, outside string // interfaces
	boxes           []Box
	elsewhere       bool // there is another firewall, whose rules are not looked at
	translated      bool // some destinations are not those that the near end aimed at
}

// mayBeStopped tells whether a firewall, or a busy machine, can make a verdict.
func mayBeStopped(v client.Verdict) bool {
	switch v {
	case client.Open, client.Partial, client.Unmeasured, client.Refused, client.Impostor:
		return false
	}
	return true
}

// withoutFirewall marks what is not open although it crosses no firewall.
func withoutFirewall(results []*client.Result, which func(client.Verdict) bool) {
	for _, r := range results {
		for i := range r.Findings {
			f := &r.Findings[i]
			if f.Direction != scenarios.LAN && f.Direction != scenarios.Loop {
				continue
			}
			f.Unexplained = len(f.Parts) == 0 && mayBeStopped(f.Verdict) && which(f.Verdict)
			for j := range f.Parts {
				f.Parts[j].Unexplained = mayBeStopped(f.Parts[j].Verdict) && which(f.Parts[j].Verdict)
			}
		}
	}
}

// unfollowed are the flows of what was stopped that have not been seen to the
// end, and of the first time all flows.
func unfollowed(all []question, fates map[flow]*fate) []flow {
	var out []flow
	for _, q := range all {
		for _, x := range q.asked {
			f := fates[x.flow]
			if (f == nil || mayBeStopped(q.verdict) && !f.followed()) && !slices.Contains(out, x.flow) {
				out = append(out, x.flow)
			}
		}
	}
	return out
}

// followed tells whether it is known where a flow's packets went.
func (f *fate) followed() bool {
	return f.stopped() || f.passed() || f.request.end == delivered
}

// stopped tells whether a rule dropped any of them.
func (f *fate) stopped() bool {
	none := ruleRef{}
	return f.request.dropped != none || f.reply.dropped != none || f.late.dropped != none
}

// passed tells whether a request and its answer left the firewall.
func (f *fate) passed() bool {
	return !f.stopped() && f.request.end == forwarded && f.reply.end == forwarded
}

// settle adds to questions that the traced packets have not answered what can be
// told beyond that.
func (a *attribution) settle(all []question, fates map[flow]*fate) {
	for i := range all {
		q := &all[i]
		left, passed := a.unanswered(q, fates)
		if !mayBeStopped(q.verdict) || len(left) == 0 || !passed || a.beyondRules(q) {
			continue
		}
		deep := a.deepRules(q)
		switch {
		case len(deep) == 0:
			*q.unexplained = true
		case len(deep) == 1:
			a.name(q, deep[0], left)
		}
	}
}

// unanswered are the ports whose packets fared better when they were traced, and
// whether all those did pass.
func (a *attribution) unanswered(q *question, fates map[flow]*fate) (left scenarios.PortSet, passed bool) {
	passed = true
	for _, x := range q.asked {
		f := fates[x.flow]
		switch {
		case f == nil || !f.stopped():
			passed = passed && f != nil && f.passed()
		case q.verdict == client.Degraded && a.stoppedDeep(f):
			// Some got through as a whole, and so past all rules that do not go deep.
		default:
			continue
		}
		left = scenarios.Union(left, scenarios.PortSet{{First: x.port, Last: x.port}})
	}
	return left, passed
}

// stoppedDeep tells whether it was a deep rule that stopped a flow.
func (a *attribution) stoppedDeep(f *fate) bool {
	for i, s := range a.set.scopes {
		r := a.set.rules[i]
		ref := ruleRef{chainID{r.Family, r.Table, r.Chain}, uint64(r.Handle)}
		if s.deep && (f.request.dropped == ref || f.reply.dropped == ref || f.late.dropped == ref) {
			return true
		}
	}
	return false
}

// beyondRules tells whether something else than the rules looked at here may have
// stopped a path: a box, another firewall, or flows of which only some were asked
// about.
func (a *attribution) beyondRules(q *question) bool {
	f := q.finding
	// How long a firewall remembers a silent flow is no rule's doing, and what it
	// then drops is dropped by rules that let the first packets pass.
	silent := slices.ContainsFunc(f.Evidence.Near, func(o client.Observation) bool { return o.Stage == protocol.StageIdle })
	box := f.Transport == scenarios.TCP && slices.ContainsFunc(a.boxes, func(b Box) bool { return len(b.Ports.Intersect(f.Ports)) > 0 })
	return a.elsewhere || silent || box || spoken(f) == ftp || spoken(f) == protocol.ICE
}

// ftp has data connections of its own, and a session of ICE as many flows as it
// likes.
const ftp = "ftp"

// spoken is the protocol that was spoken on a path; whatever stood in for one has
// a single flow.
func spoken(f *client.Finding) string {
	if f.Spoken != "" {
		return f.Spoken
	}
	return f.Protocol
}

// deepRules are the deep rules that may have decided about a path's packets, by
// their place in the ruleset. Those that only stop, and whose counters say that
// they stopped nothing in this run, have not.
func (a *attribution) deepRules(q *question) []int {
	var out []int
	for i, s := range a.set.scopes {
		r := a.set.rules[i]
		idle := s.exact && r.Stops() && a.count(q.result, r) == 0
		if s.deep && !idle && slices.ContainsFunc(q.packets(), func(p packets) bool { return a.may(s, p) || a.may(s, p.back()) }) {
			out = append(out, i)
		}
	}
	return out
}

func (a *attribution) may(s scope, p packets) bool {
	return s.may(p, a.inside, a.outside, a.translated)
}

// count is how many packets a rule counted during the run.
func (a *attribution) count(r *client.Result, of Rule) uint64 {
	if r.Firewall == nil {
		return of.Packets
	}
	for _, c := range r.Firewall.Rules {
		if sameRule(c, of.forClient()) {
			return c.Packets
		}
	}
	return 0
}

// name names the one deep rule that may have stopped some ports of a path, if its
// counter proves that it stopped packets, and these can only have been the path's.
// It must be certain too which way they went.
func (a *attribution) name(q *question, rule int, left scenarios.PortSet) {
	r, s := a.set.rules[rule], a.set.scopes[rule]
	if !s.exact || !r.Stops() || a.count(q.result, r) == 0 || a.others(q, s) {
		return
	}
	request, answer := false, false
	for _, p := range q.packets() {
		request, answer = request || a.may(s, p), answer || a.may(s, p.back())
	}
	if request == answer {
		return
	}
	if q.verdict.Passes() {
		*q.answer = nil // the rule that lets most of them pass says nothing of those that are lost
	}
	ports := left
	if left.Len() == len(q.asked) {
		ports = q.ports
	}
	ports = ports.Without(ports.Without(a.within(q, s, answer)))
	if len(ports) > 0 {
		q.addDecision(client.Decision{Ports: ports, Back: answer, Rule: r.forClient()})
	}
}

// within are the ports of a question at which a rule may match.
func (a *attribution) within(q *question, s scope, answer bool) scenarios.PortSet {
	byLocal := slices.ContainsFunc(q.finding.Evidence.Near, func(o client.Observation) bool { return o.ByLocal })
	ports := s.to
	if byLocal != answer {
		ports = s.from
	}
	if a.translated || ports == nil {
		return q.ports
	}
	return q.ports.Intersect(ports)
}

// addDecision joins a decision with what the same rule decides already.
func (q *question) addDecision(d client.Decision) {
	i := slices.IndexFunc(*q.answer, func(o client.Decision) bool { return o.Back == d.Back && sameRule(o.Rule, d.Rule) })
	if i < 0 {
		i = len(*q.answer)
		*q.answer = append(*q.answer, client.Decision{Ports: d.Ports, Back: d.Back, Rule: d.Rule})
	}
	o := &(*q.answer)[i]
	if o.Ports = scenarios.Union(o.Ports, d.Ports); len(q.ports.Without(o.Ports)) == 0 {
		o.Ports = nil
	}
}

// packets are the requests of the ports that a question is about.
func (q *question) packets() []packets {
	return packetsOf(q.finding, q.ports, q.target)
}

// The near end's own ports, unless a path says which: the system's for
// connections (ip_local_port_range), and the client's for datagrams.
var ownPorts = scenarios.PortSet{{First: client.OwnFirst, Last: 65535}}

// packetsOf are the requests that a finding tried at some ports, nil is all, of
// one target, "" is all.
func packetsOf(f *client.Finding, ports scenarios.PortSet, target string) []packets {
	var out []packets
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		at := o.Ports
		if ports != nil {
			at = at.Intersect(ports)
		}
		if len(at) == 0 || target != "" && target != o.Target {
			continue
		}
		p := packets{transport: f.Transport, from: ownPorts, to: at, inward: o.Inward}
		if o.ByLocal {
			p.from, p.to = at, scenarios.PortSet{{First: o.Aimed, Last: o.Aimed}}
		}
		out = append(out, p)
		for _, c := range o.Controls { // the same with one thing changed
			out = append(out, packets{transport: f.Transport, from: ownPorts, to: scenarios.PortSet{{First: c.Port, Last: c.Port}}})
		}
	}
	switch spoken(f) {
	case ftp:
		high := scenarios.PortSet{{First: 1024, Last: 65535}}
		data := packets{transport: f.Transport, from: high, to: high}
		active := packets{transport: f.Transport, from: scenarios.PortSet{{First: 20, Last: 20}}, to: high, inward: true}
		out = append(out, data, data.back(), active, active.back())
	case protocol.ICE:
		out = append(out, packets{}, packets{inward: true})
	}
	return out
}

// others tells whether a rule may also have met packets of anything else in the
// run: of other paths, of other ports of this one that are open, of control.
func (a *attribution) others(q *question, s scope) bool {
	meets := func(p packets) bool { return a.may(s, p) || a.may(s, p.back()) }
	for _, r := range a.results {
		for i := range r.Findings {
			f := &r.Findings[i]
			crosses := f.Direction != scenarios.LAN && f.Direction != scenarios.Loop
			if f != q.finding && crosses && slices.ContainsFunc(packetsOf(f, nil, ""), meets) {
				return true
			}
		}
		for _, via := range append(tried(r), r.Control.Via) {
			var n uint16
			if _, err := fmt.Sscanf(via, "%d/tcp", &n); err == nil && meets(packets{transport: scenarios.TCP, from: ownPorts, to: scenarios.PortSet{{First: n, Last: n}}}) {
				return true
			}
		}
	}
	return false
}

// tried are the ports on which control was tried.
func tried(r *client.Result) []string {
	var out []string
	for _, t := range r.Control.Tried {
		out = append(out, fmt.Sprintf("%d/tcp", t.Port))
	}
	return out
}
