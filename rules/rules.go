// Package rules turns what documents ask for into rules of a packet filter: the
// fewest that let a scenario's paths through a firewall that lets nothing else
// through. It is pure.
package rules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A Level says how much of what documents ask for is let through.
type Level string

// The levels. Each holds what the one before it does.
const (
	Required    Level = "required"    // required paths, and what outcomes that are not optional cannot do without
	Recommended Level = "recommended" // also what is optional, or required with a feature
	All         Level = "all"         // also fallbacks, and what public sources say beyond the documents
)

// Levels lists them.
var Levels = []Level{Required, Recommended, All}

// A Set is the rules for one firewall.
type Set struct {
	Rules    []Rule   // outward ones first
	Unruled  []Reason // what is asked for and of which no rule can be made
	Within   []Reason // what does not cross the firewall
	Negative []Reason // what the documents say need not, or must not, be open
}

// A Rule lets new connections to some ports through; answers need none.
type Rule struct {
	Inward     bool // from outside to inside
	Transport  scenarios.Transport
	Ports      scenarios.PortSet // destination
	LocalPorts scenarios.PortSet // source; none is any
	Addresses  []netip.Prefix    // of the far end, sorted and apart; none is any
	FTP        bool              // needs the firewall's FTP helper: its data connections have ports of their own
	Reasons    []Reason          // in the order of the documents
}

// A Reason is a path that a document asks for, or says something else about.
type Reason struct {
	Scenario *scenarios.Scenario
	Path     scenarios.Path
	For      string // title of the outcome that needs it, where the path is not required itself

	order int // among all that are asked for
}

// Source is the title of the document that is quoted, or empty.
func (r Reason) Source() string {
	for _, s := range r.Scenario.Sources {
		if s.ID == r.Path.Source {
			return s.Title
		}
	}
	return ""
}

// A Near is a scenario as it is seen from one of its near ends, at whose site
// the firewall stands.
type Near struct {
	Scenario *scenarios.Scenario
	Role     string
}

// For plans the rules for scenarios.
func For(list []Near, level Level) Set {
	var set Set
	order := 0
	for _, n := range list {
		needed := n.needed(level)
		for _, p := range n.Scenario.PathsFor(n.Role) {
			order++
			r := Reason{Scenario: n.Scenario, Path: p, order: order}
			use, asked := needed[p.ID]
			r.For = use.outcome
			switch {
			case p.Need == scenarios.Negative:
				set.Negative = append(set.Negative, r)
			case !asked:
			case p.Direction == scenarios.LAN || p.Direction == scenarios.Loop:
				set.Within = append(set.Within, r)
			case p.Unmeasured != "" && len(p.Ports) == 0:
				set.Unruled = append(set.Unruled, r)
			default:
				for _, t := range use.transports {
					set.Rules = append(set.Rules, ruleOf(r, t))
				}
			}
		}
	}
	set.Rules = fewest(set.Rules)
	return set
}

func ruleOf(r Reason, t scenarios.Transport) Rule {
	return Rule{
		Inward: r.Path.Direction == scenarios.In, Transport: t, Ports: r.Path.Ports, LocalPorts: r.Path.LocalPorts,
		Addresses: r.Path.Addresses, FTP: r.Path.Protocol == "ftp", Reasons: []Reason{r},
	}
}

// A use is why a path is let through, and over what.
type use struct {
	transports []scenarios.Transport
	outcome    string // that needs it, where the path is not asked for by itself
}

// needed are the paths of a level, by id.
func (n Near) needed(level Level) map[string]use {
	out := make(map[string]use)
	for _, p := range n.Scenario.PathsFor(n.Role) {
		if asked(p, level) {
			out[p.ID] = use{transports: p.Transport}
		}
	}
	for _, o := range n.Scenario.Outcomes {
		if o.Optional || !slices.Contains(o.Roles, n.Role) {
			continue
		}
		for _, ref := range n.missing(o, out) {
			id, t := scenarios.SplitRef(ref)
			u := out[id]
			if u.outcome == "" && len(u.transports) == 0 {
				u.outcome = o.Title
			}
			u.transports = union(u.transports, n.transports(id, t))
			out[id] = u
		}
	}
	return out
}

func asked(p scenarios.Path, level Level) bool {
	switch p.Need {
	case scenarios.Required:
		return true
	case scenarios.Optional, scenarios.Conditional:
		return level == All || level == Recommended && p.Basis != scenarios.External
	case scenarios.Fallback:
		return level == All
	}
	return false
}

// missing are the paths that an outcome lacks: of the way that lacks the fewest.
func (n Near) missing(o scenarios.Outcome, have map[string]use) []string {
	var best []string
	for i, w := range o.Ways {
		var lacks []string
		for _, ref := range w.Paths {
			id, t := scenarios.SplitRef(ref)
			for _, want := range n.transports(id, t) {
				if !slices.Contains(have[id].transports, want) {
					lacks = append(lacks, ref)
					break
				}
			}
		}
		if i == 0 || len(lacks) < len(best) {
			best = lacks
		}
	}
	return best
}

// transports are those of a path, or the one that a reference names.
func (n Near) transports(id string, t scenarios.Transport) []scenarios.Transport {
	if t != "" {
		return []scenarios.Transport{t}
	}
	i := slices.IndexFunc(n.Scenario.Paths, func(p scenarios.Path) bool { return p.ID == id })
	return n.Scenario.Paths[i].Transport
}

func union(a, b []scenarios.Transport) []scenarios.Transport {
	out := slices.Clone(a)
	for _, t := range b {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// fewest joins rules for the same ports, drops those that another one covers,
// and sorts the rest.
func fewest(list []Rule) []Rule {
	var out []Rule
	for _, r := range list {
		same := slices.IndexFunc(out, func(o Rule) bool { return o.sameBut(r) && slices.Equal(o.Ports, r.Ports) })
		if same < 0 {
			r.Addresses = merged(r.Addresses)
			out = append(out, r)
			continue
		}
		o := &out[same]
		switch {
		case len(o.Addresses) == 0 || len(r.Addresses) == 0:
			o.Addresses = nil
		default:
			o.Addresses = merged(slices.Concat(o.Addresses, r.Addresses))
		}
		o.FTP = o.FTP || r.FTP
		o.Reasons = append(o.Reasons, r.Reasons...)
	}
	out = uncovered(out)
	for _, r := range out {
		slices.SortStableFunc(r.Reasons, func(a, b Reason) int { return a.order - b.order })
	}
	slices.SortStableFunc(out, Rule.compare)
	return out
}

// sameBut tells whether two rules differ by far ports and addresses alone.
func (r Rule) sameBut(o Rule) bool {
	return r.Inward == o.Inward && r.Transport == o.Transport && slices.Equal(r.LocalPorts, o.LocalPorts)
}

// uncovered leaves out rules that let through only what another one does too.
func uncovered(list []Rule) []Rule {
	slices.SortStableFunc(list, Rule.narrower)
	var out []Rule
	for _, r := range list {
		at := slices.IndexFunc(out, func(o Rule) bool { return o.covers(r) })
		if at < 0 {
			out = append(out, r)
			continue
		}
		out[at].FTP = out[at].FTP || r.FTP
		out[at].Reasons = append(out[at].Reasons, r.Reasons...)
	}
	return out
}

// narrower orders rules so that none covers one before it.
func (r Rule) narrower(o Rule) int {
	size := func(n int) int { // none is any
		if n == 0 {
			return 1 << 16
		}
		return n
	}
	return cmp.Or(o.Ports.Len()-r.Ports.Len(), size(o.LocalPorts.Len())-size(r.LocalPorts.Len()), len(r.Addresses)-len(o.Addresses))
}

// covers tells whether r lets through all that o does.
func (r Rule) covers(o Rule) bool {
	return r.Inward == o.Inward && r.Transport == o.Transport &&
		len(o.Ports.Without(r.Ports)) == 0 &&
		(len(r.LocalPorts) == 0 || len(o.LocalPorts) > 0 && len(o.LocalPorts.Without(r.LocalPorts)) == 0) &&
		(len(r.Addresses) == 0 || len(o.Addresses) > 0 && within(o.Addresses, r.Addresses))
}

func within(inner, outer []netip.Prefix) bool {
	var b netipx.IPSetBuilder
	for _, p := range outer {
		b.AddPrefix(p)
	}
	all, err := b.IPSet()
	return err == nil && !slices.ContainsFunc(inner, func(p netip.Prefix) bool { return !all.ContainsPrefix(p) })
}

// merged are the fewest prefixes for the same addresses.
func merged(list []netip.Prefix) []netip.Prefix {
	if len(list) == 0 {
		return nil
	}
	var b netipx.IPSetBuilder
	for _, p := range list {
		b.AddPrefix(p)
	}
	set, err := b.IPSet()
	if err != nil {
		return list // what was read strictly cannot be wrong
	}
	return set.Prefixes()
}

// compare orders rules: outward first, TCP first, then by ports.
func (r Rule) compare(o Rule) int {
	side := func(x Rule) int {
		if x.Inward {
			return 1
		}
		return 0
	}
	first := func(x Rule) int {
		if len(x.Ports) == 0 {
			return 0
		}
		return int(x.Ports[0].First)
	}
	return cmp.Or(side(r)-side(o), strings.Compare(string(r.Transport), string(o.Transport)), first(r)-first(o), r.Ports.Len()-o.Ports.Len())
}

// family gives the addresses of one family. A rule for any address is for both
// families; one that names addresses, for those families alone that they are of.
func (r Rule) family(v6 bool) (list []netip.Prefix, has bool) {
	for _, p := range r.Addresses {
		if p.Addr().Is6() == v6 {
			list = append(list, p)
		}
	}
	return list, len(r.Addresses) == 0 || len(list) > 0
}

// need says how much a path is asked for, in words.
func (r Reason) need() string {
	p := r.Path
	text := map[scenarios.Need]string{
		scenarios.Required: "required", scenarios.Optional: "optional", scenarios.Conditional: "required when " + p.When,
		scenarios.Fallback: fmt.Sprintf("fallback %d", p.Order), scenarios.Negative: "need not be open",
	}[p.Need]
	if r.For != "" {
		text += "; needed for: " + r.For
	}
	if p.Basis == scenarios.External {
		text += "; not in the documents"
	}
	return text
}
