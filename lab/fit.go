package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// A fitting is what the interfaces that rules speak of mean for a lab.
type fitting struct {
	why     string   // the rules are no firewall between the lab's interfaces
	instead *Wiring  // these are, without a doubt
	notes   []string // what a person has to know beside the verdicts
}

// fit compares the interfaces that rules speak of with those of the lab. asked is
// what the user said of these; what the user did not say may be taken from the
// rules. nft takes any name for an interface, so that all would pass, or nothing,
// and look like a measurement.
func fit(found []mention, asked Wiring) fitting {
	w := asked.withDefaults()
	here := func(i Interface, m mention) bool { return matches(m.name, i.Name) || matches(m.name, i.Port) }
	strange := slices.DeleteFunc(slices.Clone(found), func(m mention) bool { return here(w.Inside, m) || here(w.Outside, m) })
	if len(strange) == 0 {
		return fitting{}
	}
	spoken := func(i Interface) bool { return slices.ContainsFunc(found, func(m mention) bool { return here(i, m) }) }
	// A side that the user has named, or that the rules name, is what it is.
	insideSet := asked.Inside.Name != "" || spoken(w.Inside)
	outsideSet := asked.Outside.Name != "" || spoken(w.Outside)
	if insideSet && outsideSet && (spoken(w.Inside) || spoken(w.Outside)) {
		return fitting{notes: []string{elsewhere(strange)}}
	}
	if insideSet && outsideSet {
		return fitting{why: fmt.Sprintf("there is no interface %s here; you say that %s is inside and %s outside, of which the rules do not speak", names(strange, "or"), w.Inside.Name, w.Outside.Name)}
	}
	g := guess(strange, asked, insideSet, outsideSet)
	own := asked.Inside.Name == "" && spoken(w.Inside) || asked.Outside.Name == "" && spoken(w.Outside)
	if own && !g.sure {
		return fitting{notes: []string{elsewhere(strange)}} // written for the lab
	}
	if g.sure {
		instead := asked
		if g.inside != "" {
			instead.Inside.Name = g.inside
		}
		if g.outside != "" {
			instead.Outside.Name = g.outside
		}
		full := instead.withDefaults()
		return fitting{instead: &instead, notes: []string{fmt.Sprintf("%s is taken for the inside and %s for the outside, as the rules have them; --inside and --outside say otherwise", full.Inside.Name, full.Outside.Name)}}
	}
	return fitting{why: fmt.Sprintf("there is no interface %s here; in the lab %s is inside and %s outside; say which it is with %s",
		names(strange, "or"), w.Inside.Name, w.Outside.Name, g.flags())}
}

// elsewhere tells of interfaces that the lab does not have.
func elsewhere(strange []mention) string {
	return fmt.Sprintf("the rules speak of %s too, which lead nowhere here", names(strange, "and"))
}

// foreign tells of networks that rules take packets from, where the user has not
// said which the inside has and it is none of them.
func foreign(networks []netip.Prefix, asked Wiring) []string {
	in := asked.withDefaults().Inside
	var notes []string
	for _, own := range []struct{ asked, is netip.Prefix }{{asked.Inside.V4, in.V4}, {asked.Inside.V6, in.V6}} {
		list := slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool { return p.Addr().Is4() != own.is.Addr().Is4() })
		if own.asked.IsValid() || len(list) == 0 || slices.ContainsFunc(list, own.is.Overlaps) {
			continue
		}
		p := list[0]
		notes = append(notes, fmt.Sprintf("the rules speak of the network %s, and the inside is %s; to give it that one: --inside %s=%s",
			p, own.is.Masked(), in.Name, netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())))
	}
	return notes
}

// names lists the first few of many.
func names(list []mention, last string) string {
	const most = 6
	var out []string
	for _, m := range list {
		out = append(out, m.name)
	}
	if more := len(out) - most; more > 1 {
		out = append(out[:most], fmt.Sprintf("%d more", more))
	}
	if n := len(out); n > 1 {
		return strings.Join(out[:n-1], ", ") + " " + last + " " + out[n-1]
	}
	return out[0]
}

// A guess is which of the rules' interfaces are which. Empty is what stays.
type wiringGuess struct {
	inside, outside string
	sure            bool
	either          bool // one name, which may be on either side
}

func (g wiringGuess) flags() string {
	if g.either {
		return fmt.Sprintf("--inside %s or --outside %[1]s", g.inside)
	}
	var out []string
	if g.inside != "" {
		out = append(out, "--inside "+g.inside)
	}
	if g.outside != "" {
		out = append(out, "--outside "+g.outside)
	}
	return strings.Join(out, " ")
}

// Names that say by themselves where an interface leads.
var (
	outsideName = regexp.MustCompile(`(?i)^(wan|ppp|wwan|wwp|ext|red[0-9]*$|internet|uplink|untrust)`)
	insideName  = regexp.MustCompile(`(?i)^(lan|br-lan|int[0-9]*$|intern|green[0-9]*$|trust|home)`)
)

// guess chooses among interfaces that the lab does not have. It is sure where
// the rules translate addresses on one of them or its name says that it leads
// outside, and where no more than one is left for the other side.
func guess(strange []mention, asked Wiring, insideSet, outsideSet bool) wiringGuess {
	left := slices.DeleteFunc(slices.Clone(strange), func(m mention) bool { return !m.routed })
	if len(left) == 0 {
		left = slices.Clone(strange)
	}
	// take chooses the one interface that passes a test, and tries the next test
	// where that is none or several.
	take := func(tests ...func(mention) bool) string {
		for _, test := range tests {
			i := slices.IndexFunc(left, test)
			if i >= 0 && !slices.ContainsFunc(left[i+1:], test) {
				name := left[i].name
				left = slices.Delete(left, i, i+1)
				return example(name)
			}
		}
		return ""
	}
	named := func(r *regexp.Regexp) func(mention) bool {
		return func(m mention) bool { return r.MatchString(m.name) }
	}
	onlyIf := func(known bool) func(mention) bool { return func(mention) bool { return known } }
	var g wiringGuess
	if !outsideSet {
		g.outside = take(func(m mention) bool { return m.masked }, named(outsideName))
	}
	if !insideSet {
		g.inside = take(onlyIf(g.outside != "" || asked.Outside.Name != ""), named(insideName), func(m mention) bool { return m.behind })
	}
	if !outsideSet && g.outside == "" {
		g.outside = take(onlyIf(g.inside != "" || asked.Inside.Name != ""))
	}
	insideSet, outsideSet = insideSet || g.inside != "", outsideSet || g.outside != ""
	if g.sure = insideSet && outsideSet || len(left) == 0; g.sure {
		return g
	}
	if len(left) == 1 && !insideSet && !outsideSet {
		return wiringGuess{inside: example(left[0].name), either: true}
	}
	if !outsideSet {
		i := max(0, slices.IndexFunc(left, func(m mention) bool { return m.out }))
		g.outside = example(left[i].name)
		left = slices.Delete(left, i, i+1)
	}
	if !insideSet && len(left) > 0 {
		g.inside = example(left[0].name)
	}
	return g
}

// example is an interface that a name with a star is for.
func example(name string) string {
	if start, ok := strings.CutSuffix(name, "*"); ok {
		return start + "0"
	}
	return name
}

// matches tells whether nft's name, which may end in a star, is that of an
// interface.
func matches(name, is string) bool {
	if start, ok := strings.CutSuffix(name, "*"); ok && is != "" {
		return strings.HasPrefix(is, start)
	}
	return name == is
}

// lineWith is "N:" for the first line with a word in it, and empty where none
// has it.
func lineWith(text []byte, word string) string {
	n := 0
	for line := range bytes.Lines(text) {
		if n++; bytes.Contains(line, []byte(word)) {
			return fmt.Sprintf("%d:", n)
		}
	}
	return ""
}
