package lab

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A Chain is a chain of the firewall; one without a hook is only jumped to.
type Chain struct {
	Family, Table, Name string
	Type, Hook          string // "filter", "nat"; "forward", "prerouting"
	Policy              string // "accept" or "drop"; empty without a hook
	File                string // where the policy is set, as of a Rule
	Line                int
}

// A ruleset is what nft lists.
type ruleset struct {
	chains []Chain
	rules  []Rule
	scopes []scope // of each rule
	text   []byte
}

// A flow is an exchange of a few packets to be traced.
type flow struct {
	transport scenarios.Transport
	inward    bool   // the server calls the host
	own       uint16 // the caller's port; 0 is any
	to        netip.AddrPort
}

// A fate is what became of a flow's packets.
type fate struct {
	request, reply course // of the first packet each way
	late           course // of the first later packet that was dropped
	lateBack       bool   // which was one of the answers
}

// maxFlows bounds the packets that are traced for one finding.
const maxFlows = 128

// A question is a run of ports that fared alike, and the flows that show why.
type question struct {
	verdict client.Verdict
	ports   scenarios.PortSet
	asked   []asked // in the order of their ports
	sampled bool    // rules may end between the ports that are asked for
	answer  *[]client.Decision

	result      *client.Result
	finding     *client.Finding
	target      string
	unexplained *bool
}

type asked struct {
	port uint16
	flow flow
}

// questions are what to ask about results. Rules begin and end at numbers that
// they name, so the ports next to these stand for all the others.
func questions(results []*client.Result, named []uint16, which func(client.Verdict) bool) []question {
	var out []question
	for _, r := range results {
		for i := range r.Findings {
			for _, q := range questionsOf(&r.Findings[i], named) {
				q.result = r
				out = append(out, q)
			}
		}
	}
	return slices.DeleteFunc(out, func(q question) bool { return len(q.asked) == 0 || !which(q.verdict) })
}

// questionsOf asks about a finding or about each of its parts.
func questionsOf(f *client.Finding, named []uint16) []question {
	switch {
	case f.Direction == scenarios.LAN || f.Direction == scenarios.Loop:
		return nil // no firewall stands there
	case len(f.Parts) == 0:
		ports := f.Ports
		if len(f.LocalPorts) > 0 {
			ports = f.LocalPorts
		}
		return []question{questionOf(f, client.Part{Verdict: f.Verdict, Ports: ports}, named, &f.DecidedBy, &f.Unexplained)}
	}
	var out []question
	for i := range f.Parts {
		out = append(out, questionOf(f, f.Parts[i], named, &f.Parts[i].DecidedBy, &f.Parts[i].Unexplained))
	}
	return out
}

func questionOf(f *client.Finding, p client.Part, named []uint16, answer *[]client.Decision, unexplained *bool) question {
	q := question{verdict: p.Verdict, ports: p.Ports, answer: answer, finding: f, target: p.Target, unexplained: unexplained}
	if p.Verdict == client.Unmeasured || p.Verdict == client.Refused || p.Verdict == client.Impostor {
		return q
	}
	all := marks(p.Ports, named)
	some := spread(all, maxFlows)
	q.sampled = len(some) < len(all)
	for _, port := range some {
		if fl, ok := flowOf(f, port, p.Target); ok {
			q.asked = append(q.asked, asked{port, fl})
		}
	}
	return q
}

// spread takes at most n of a list, its ends among them.
func spread[T any](list []T, n int) []T {
	if len(list) <= n {
		return list
	}
	out := make([]T, 0, n)
	for i := range n {
		out = append(out, list[i*(len(list)-1)/(n-1)])
	}
	return out
}

// flowOf is the flow that a finding tried at a port, or at the caller's port.
func flowOf(f *client.Finding, port uint16, target string) (flow, bool) {
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if target != "" && o.Target != target || !o.Ports.Contains(port) {
			continue
		}
		fl := flow{transport: f.Transport, to: netip.AddrPortFrom(o.Addr, port)}
		switch {
		case o.Inward:
			fl.inward, fl.to = true, netip.AddrPortFrom(o.Local, port)
		case o.ByLocal:
			fl.own, fl.to = port, netip.AddrPortFrom(o.Addr, o.Aimed)
		}
		return fl, fl.to.Addr().IsValid()
	}
	return flow{}, false
}

// marks are the ends of a set of ports, and what of it stands at or beside a
// number that the rules name.
func marks(ports scenarios.PortSet, named []uint16) []uint16 {
	var out []uint16
	for _, r := range ports {
		out = append(out, r.First, r.Last)
		at, _ := slices.BinarySearch(named, r.First)
		for ; at < len(named) && named[at] <= r.Last; at++ {
			out = append(out, named[at])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var (
	numberPattern = regexp.MustCompile(`\b\d{1,5}\b`)
	handleRemark  = regexp.MustCompile(`(?m) # handle \d+$|counter packets \d+ bytes \d+`)
)

// namedPorts are the numbers that nft's listing names, each with its neighbours,
// as far as they may be ports, in their order.
func namedPorts(listing []byte) []uint16 {
	var is [1 << 16]bool
	for _, text := range numberPattern.FindAll(handleRemark.ReplaceAll(listing, nil), -1) {
		n, _ := strconv.Atoi(string(text))
		for _, n := range []int{n - 1, n, n + 1} {
			if n > 0 && n < len(is) {
				is[n] = true
			}
		}
	}
	var out []uint16
	for n, named := range is {
		if named {
			out = append(out, uint16(n))
		}
	}
	return out
}

// decide answers a question from what became of its flows. Where these did not
// fare as the client did, nothing is said.
func (q *question) decide(fates map[flow]*fate, rules map[ruleRef]client.Rule) {
	var all [kinds][]client.Decision
	var gap [kinds]bool // nothing was decided at the port before
	for _, a := range q.asked {
		found := decisions(q.verdict, fates[a.flow])
		for kind, ref := range found {
			rule, ok := rules[ref]
			if ok {
				d := client.Decision{Ports: scenarios.PortSet{{First: a.port, Last: a.port}}, Back: kind == byAnswer, Rule: rule}
				all[kind] = extend(all[kind], d, gap[kind] || q.sampled, q.ports)
			}
			gap[kind] = !ok
		}
	}
	for _, list := range all {
		*q.answer = append(*q.answer, q.simplify(list)...)
	}
}

// extend adds a decision at a higher port than those before. The same rule as at
// the port asked before it decides for all between.
func extend(list []client.Decision, d client.Decision, gap bool, within scenarios.PortSet) []client.Decision {
	if n := len(list); n > 0 && !gap && sameRule(list[n-1].Rule, d.Rule) {
		last := &list[n-1]
		between := scenarios.PortSet{{First: last.Ports[0].First, Last: d.Ports[0].Last}}
		last.Ports = scenarios.Union(last.Ports, between.Without(between.Without(within)))
		return list
	}
	return append(list, d)
}

// simplify leaves out the ports where one rule decides for all of them, and joins
// what a rule decides.
func (q *question) simplify(list []client.Decision) []client.Decision {
	var out []client.Decision
	for _, d := range list {
		i := slices.IndexFunc(out, func(o client.Decision) bool { return sameRule(o.Rule, d.Rule) })
		if i < 0 {
			out = append(out, d)
			continue
		}
		out[i].Ports = scenarios.Union(out[i].Ports, d.Ports)
	}
	for i := range out {
		if len(q.ports.Without(out[i].Ports)) == 0 {
			out[i].Ports = nil
		}
	}
	return out
}

func sameRule(a, b client.Rule) bool {
	return a.Family == b.Family && a.Table == b.Table && a.Chain == b.Chain && a.Index == b.Index
}

// What a rule may decide about.
const (
	byRequest   = iota // whether requests go on
	byTranslate        // where they go
	byAnswer           // whether answers do
	kinds
)

// decisions are the rules that explain a verdict, none where the flow fared
// otherwise.
func decisions(v client.Verdict, f *fate) (found [kinds]ruleRef) {
	none := ruleRef{}
	switch {
	case f == nil || !f.request.begun:
	case v.Passes():
		if f.request.dropped == none && f.reply.dropped == none {
			found = [kinds]ruleRef{byRequest: f.request.let, byTranslate: f.request.translated, byAnswer: f.reply.let}
		}
	case v == client.RequestLost || v == client.Rejected && f.request.dropped != none:
		found[byRequest] = f.request.dropped
	case v == client.ReplyLost:
		found[byAnswer] = f.reply.dropped
	case v == client.Silent && f.request.dropped != none:
		found[byRequest] = f.request.dropped
	case v == client.Silent:
		found[byAnswer] = f.reply.dropped
	case (v == client.Cut || v == client.Rejected) && f.lateBack:
		found[byAnswer] = f.late.dropped
	case v == client.Cut || v == client.Rejected:
		found[byRequest] = f.late.dropped
	}
	return found
}

// byRef makes rules and policies findable by what a trace says of them.
func (s *ruleset) byRef() map[ruleRef]client.Rule {
	m := make(map[ruleRef]client.Rule, len(s.rules)+len(s.chains))
	for _, r := range s.rules {
		m[ruleRef{chainID{r.Family, r.Table, r.Chain}, uint64(r.Handle)}] = r.forClient()
	}
	for _, c := range s.chains {
		if c.Hook != "" {
			m[ruleRef{chain: chainID{c.Family, c.Table, c.Name}}] = client.Rule{
				Family: c.Family, Table: c.Table, Chain: c.Name, File: c.File, Line: c.Line,
				Text: "policy " + c.Policy, Verdict: c.Policy,
			}
		}
	}
	return m
}

// hooks tells the chain of an identity, a zero one of what is not listed.
func (s *ruleset) hooks() func(chainID) Chain {
	m := make(map[chainID]Chain)
	for _, c := range s.chains {
		m[chainID{c.Family, c.Table, c.Name}] = c
	}
	return func(id chainID) Chain { return m[id] }
}

// forClient is the rule as results have it, without figures.
func (r Rule) forClient() client.Rule {
	return client.Rule{
		Family: r.Family, Table: r.Table, Chain: r.Chain, Index: r.Index, File: r.File, Line: r.Line,
		Text: r.Text, Verdict: r.Verdict,
	}
}
