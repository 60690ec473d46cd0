package rules

import (
	"bytes"
	"encoding/csv"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

// paths makes a scenario of paths in flow style, for role app.
func paths(t *testing.T, lines ...string) Near {
	t.Helper()
	s, err := scenarios.Parse("own.yaml", []byte(`schema: wallprobe/scenario/1
name: own
title: an application
version: 1
sources: [{id: D1, file: d.txt, title: a letter, language: en}]
roles:
  - {name: app, title: the application, site: office}
  - {name: mate, title: another, site: office}
  - {name: far, title: the server, site: elsewhere}
paths:
  - `+strings.Join(lines, "\n  - ")+`
outcomes:
  - {id: any, title: anything, roles: [app], ways: [{title: only, paths: [P-1]}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	return Near{s, "app"}
}

const out = "from: [app], to: [far], direction: out, title: x"

// short is a set's rules in a line each.
func short(s Set) []string {
	var list []string
	for _, r := range s.Rules {
		text := "out "
		if r.Inward {
			text = "in "
		}
		text += string(r.Transport) + " " + r.Ports.String()
		if len(r.LocalPorts) > 0 {
			text += " from " + r.LocalPorts.String()
		}
		if len(r.Addresses) > 0 {
			text += " at " + join(r.Addresses)
		}
		list = append(list, text+": "+r.ids(200))
	}
	return list
}

func TestRulesAreTheFewestThatLetEveryPathThrough(t *testing.T) {
	for name, row := range map[string]struct {
		paths []string
		level Level
		want  []string
	}{
		"the same port is one rule": {[]string{
			"{id: P-1, " + out + ", transport: [tcp], ports: 443, need: req}",
			"{id: P-2, " + out + ", transport: [tcp, udp], ports: 443, need: req}"},
			Required, []string{"out tcp 443: P-1, P-2", "out udp 443: P-2"}},
		"a range covers its ports": {[]string{
			"{id: P-1, " + out + ", transport: [udp], ports: 53, need: req}",
			"{id: P-2, " + out + ", transport: [udp], ports: 1-1000, need: req}",
			"{id: P-3, " + out + ", transport: [udp], ports: 1000-1001, need: req}"},
			Required, []string{"out udp 1-1000: P-1, P-2", "out udp 1000-1001: P-3"}},
		"addresses are joined": {[]string{
			"{id: P-1, " + out + ", transport: [tcp], ports: 443, addresses: [192.0.2.0/25, 2001:db8::/32], need: req}",
			"{id: P-2, " + out + ", transport: [tcp], ports: 443, addresses: [192.0.2.128/25], need: req}",
			"{id: P-3, " + out + ", transport: [tcp], ports: 80, addresses: [192.0.2.0/24], need: req}",
			"{id: P-4, " + out + ", transport: [tcp], ports: 80-81, addresses: [192.0.2.0/25], need: req}"},
			Required, []string{"out tcp 80 at 192.0.2.0/24: P-3", "out tcp 80-81 at 192.0.2.0/25: P-4", "out tcp 443 at 192.0.2.0/24, 2001:db8::/32: P-1, P-2"}},
		"any address covers some": {[]string{
			"{id: P-1, " + out + ", transport: [tcp], ports: 443, addresses: [192.0.2.0/24], need: req}",
			"{id: P-2, " + out + ", transport: [tcp], ports: 443, names: [a.example], need: req}"},
			Required, []string{"out tcp 443: P-1, P-2"}},
		"own ports are a rule of their own": {[]string{
			"{id: P-1, " + out + ", transport: [udp], ports: 9000, localPorts: 5000-5010, need: req}",
			"{id: P-2, " + out + ", transport: [udp], ports: 9001, need: req}",
			"{id: P-3, " + out + ", transport: [udp], ports: 9000-9001, localPorts: 5005, need: req}"},
			Required, []string{"out udp 9000 from 5000-5010: P-1", "out udp 9000-9001 from 5005: P-3", "out udp 9001: P-2"}},
		"inward is not outward": {[]string{
			"{id: P-1, " + out + ", transport: [tcp], ports: 25, need: req}",
			"{id: P-2, from: [far], to: [app], direction: in, title: x, transport: [tcp], ports: 25, need: req}",
			"{id: P-3, from: [app], to: [mate], direction: lan, title: x, transport: [tcp], ports: 26, need: req}",
			"{id: P-4, from: [app], to: [far], direction: p2p, title: x, transport: [udp], ports: 27, need: req}"},
			Required, []string{"out tcp 25: P-1", "out udp 27: P-4", "in tcp 25: P-2"}},
		"levels: required":    {levels, Required, []string{"out tcp 1: P-1"}},
		"levels: recommended": {levels, Recommended, []string{"out tcp 1: P-1", "out tcp 2: P-2", "out tcp 3: P-3"}},
		"levels: all":         {levels, All, []string{"out tcp 1: P-1", "out tcp 2: P-2", "out tcp 3: P-3", "out tcp 4: P-4", "out tcp 5: P-5"}},
	} {
		set := For([]Near{paths(t, row.paths...)}, row.level)
		if diff := cmp.Diff(row.want, short(set)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// P-1 is a fallback that an outcome cannot do without.
var levels = []string{
	"{id: P-1, " + out + ", transport: [tcp], ports: 1, need: fb, order: 1}",
	"{id: P-2, " + out + ", transport: [tcp], ports: 2, need: opt}",
	"{id: P-3, " + out + ", transport: [tcp], ports: 3, need: cond, when: asked for}",
	"{id: P-4, " + out + ", transport: [tcp], ports: 4, need: fb, order: 2}",
	"{id: P-5, " + out + ", transport: [tcp], ports: 5, need: opt, basis: external}",
	"{id: P-6, " + out + ", transport: [tcp], ports: 6, need: neg}",
}

// Where the first way of an outcome lacks more than another one, that one is let
// through.
func TestOutcomesGetTheWayThatLacksTheFewest(t *testing.T) {
	n := paths(t, levels...)
	s := *n.Scenario
	s.Outcomes = []scenarios.Outcome{{ID: "any", Title: "anything", Roles: []string{"app"}, Ways: []scenarios.Way{
		{Title: "first", Paths: []string{"P-1", "P-2"}}, {Title: "second", Paths: []string{"P-4"}}, {Title: "third", Paths: []string{"P-5"}}}}}
	set := For([]Near{{&s, "app"}}, Required)
	if diff := cmp.Diff([]string{"out tcp 4: P-4"}, short(set)); diff != "" || set.Rules[0].Reasons[0].For != "anything" {
		t.Errorf("for %q:\n%s", set.Rules[0].Reasons[0].For, diff)
	}
}

// builtin are all near ends of the built-in scenarios.
func builtin(t *testing.T) []Near {
	t.Helper()
	list, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	var out []Near
	for _, s := range list {
		for _, role := range s.NearRoles() {
			out = append(out, Near{s, role})
		}
	}
	return out
}

// Of the documents: every path that is asked for is let through, no rule is
// there without need, and none opens a port that no path of it names.
func TestEveryRuleIsNeededAndEveryPathIsRuled(t *testing.T) {
	for _, n := range builtin(t) {
		for _, level := range Levels {
			set := For([]Near{n}, level)
			name := n.Scenario.Name + " as " + n.Role + ", " + string(level)
			for i, r := range set.Rules {
				var ports []scenarios.PortSet
				for _, x := range r.Reasons {
					ports = append(ports, x.Path.Ports)
				}
				if !slices.Equal(scenarios.Union(ports...), r.Ports) {
					t.Errorf("%s: rule %s is for ports that its paths do not name", name, r.ids(100))
				}
				for j, o := range set.Rules {
					if i != j && o.covers(r) {
						t.Errorf("%s: rule %s is covered by %s", name, r.ids(100), o.ids(100))
					}
				}
			}
			for _, p := range n.Scenario.PathsFor(n.Role) {
				crosses := p.Direction != scenarios.LAN && p.Direction != scenarios.Loop
				if !asked(p, level) || !crosses || len(p.Ports) == 0 || p.Unmeasured != "" {
					continue
				}
				for _, transport := range p.Transport {
					want := ruleOf(Reason{Path: p}, transport)
					if !slices.ContainsFunc(set.Rules, func(r Rule) bool { return r.covers(want) }) {
						t.Errorf("%s: nothing lets %s over %s through", name, p.ID, transport)
					}
				}
			}
		}
	}
}

func writers(o Options) map[string]func(Set, io.Writer) error {
	v6 := o
	v6.IPv6 = true
	return map[string]func(Set, io.Writer) error{
		"nft":       func(s Set, w io.Writer) error { return s.NFT(w, o) },
		"iptables":  func(s Set, w io.Writer) error { return s.IPTables(w, o) },
		"ip6tables": func(s Set, w io.Writer) error { return s.IPTables(w, v6) },
		"markdown":  func(s Set, w io.Writer) error { return s.Markdown(w, o) },
		"csv":       func(s Set, w io.Writer) error { return s.CSV(w) },
	}
}

// rulesOnly are the lines of a file that are no comments.
var rulesOnly = regexp.MustCompile(`(?m)^[^#\n]*[^#\s][^\n]*$`)

// Titles, quotes and names come from files that anybody may have written: they
// stay in comments and cells.
func TestNothingFromAScenarioBecomesARule(t *testing.T) {
	n := paths(t, "{id: P-1, "+out+", transport: [tcp], ports: 443, need: req, source: D1, quote: q}")
	plain := For([]Near{n}, Required)
	evil := *n.Scenario
	evil.Paths = slices.Clone(evil.Paths)
	evil.Sources = []scenarios.Source{{ID: "D1", Title: "t\ntcp dport 1 accept"}}
	evil.Paths[0].Title = "x\n-A FORWARD -j ACCEPT\r\u2028drop \\"
	evil.Paths[0].Quote = "\"; } accept\n| <script> = |\n*filter"
	evil.Paths[0].Names = []string{"a.example\\"}
	spiked := For([]Near{{&evil, "app"}}, Required)
	o := Options{Inside: "lan0", Outside: "wan0", Title: "test"}
	for name, write := range writers(o) {
		var a, b bytes.Buffer
		if write(plain, &a) != nil || write(spiked, &b) != nil {
			t.Fatal(name)
		}
		switch name {
		case "csv":
			rows, err := csv.NewReader(&b).ReadAll()
			if err != nil || len(rows) != 2 {
				t.Errorf("%v, %v", rows, err)
			}
		case "markdown":
			if strings.Count(a.String(), "\n") != strings.Count(b.String(), "\n") || strings.Contains(b.String(), "<script") {
				t.Errorf("markdown:\n%s", b.String())
			}
		default:
			if diff := cmp.Diff(rulesOnly.FindAllString(a.String(), -1), rulesOnly.FindAllString(b.String(), -1)); diff != "" {
				t.Errorf("%s (-plain +spiked):\n%s", name, diff)
			}
		}
	}
}

func TestManyPortsAreSplitAsMultiportHoldsThem(t *testing.T) {
	var set scenarios.PortSet
	for i := range uint16(20) {
		set = append(set, scenarios.PortRange{First: 10 * (i + 1), Last: 10*(i+1) + i%2})
	}
	got := multiport("dport", set)
	want := []string{
		" -m multiport --dports 10,20:21,30,40:41,50,60:61,70,80:81,90,100:101",
		" -m multiport --dports 110,120:121,130,140:141,150,160:161,170,180:181,190,200:201",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAddressesOfOneFamilyAreNoRuleOfTheOther(t *testing.T) {
	n := paths(t, "{id: P-1, "+out+", transport: [tcp], ports: 443, addresses: [192.0.2.0/24], need: req}")
	r := For([]Near{n}, Required).Rules[0]
	if got := r.nft(true); got != "" {
		t.Errorf("nft: %s", got)
	}
	if got := r.iptables(Options{IPv6: true}); got != nil {
		t.Errorf("ip6tables: %s", got)
	}
	want := []string{`-A FORWARD -i in -o out -d 192.0.2.0/24 -p tcp --dport 443 -m comment --comment "P-1" -j ACCEPT`}
	if diff := cmp.Diff(want, r.iptables(Options{Inside: "in", Outside: "out"})); diff != "" {
		t.Error(diff)
	}
	if !within([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}, r.Addresses) || within([]netip.Prefix{netip.MustParsePrefix("192.0.0.0/16")}, r.Addresses) {
		t.Error("within")
	}
}

func TestInterfacesHaveNamesThatRulesCanHold(t *testing.T) {
	for name, fine := range map[string]bool{"lan0": true, "br-lan.20": true, "": false, `a"b`: false, "a b": false, "a/b": false, "sixteen-bytes-xx": false, "..": false, "a\n": false, "eth*": false} {
		if err := CheckInterface(name); (err == nil) != fine {
			t.Errorf("%q: %v", name, err)
		}
	}
}
