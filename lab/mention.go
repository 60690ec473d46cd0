package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A mention is an interface that rules speak of.
type mention struct {
	name   string // may end in a star, as nft writes a beginning
	masked bool   // those who leave by it get its address: it leads outside
	behind bool   // and those who leave by all but it: it leads inside
	out    bool   // something is said of packets that leave by it
	routed bool   // it is spoken of where routed packets pass, and not only those of bridges and cards
}

// The part of nft's JSON that tells of interfaces (libnftables-json(5)).
type namings struct {
	Nftables []struct {
		Chain *struct {
			Family, Table, Name, Type, Hook string
		}
		Set, Map *struct {
			Family, Table, Name string
			Elem                []any
		}
		Rule *struct {
			Family, Table, Chain string
			Expr                 []map[string]any
		}
		Flowtable *struct {
			Dev any
		}
	}
}

// A reader of mentions goes through a listing.
type mentionReader struct {
	elements map[[3]string][]any // of sets and maps, by family, table and name
	rules    map[chainKey][]map[string]any
	masking  map[chainKey]bool // chains of which masks knows already
	found    []mention
	networks []netip.Prefix
}

// A reading is what rules speak of.
type reading struct {
	interfaces []mention      // each once, in their order, without the loopback interface
	networks   []netip.Prefix // private ones that packets come from, each once
	hooks      []string       // at which rules begin
}

// readMentions finds what rules speak of. list is what `nft -j list ruleset` says, which leaves out the devices that
// chains and flow tables are attached to where these are not there.
func readMentions(list []byte, devices []string) (out reading, err error) {
	var all namings
	if err := json.Unmarshal(list, &all); err != nil {
		return out, fmt.Errorf("nft list ruleset: %w", err)
	}
	r := &mentionReader{elements: make(map[[3]string][]any), rules: make(map[chainKey][]map[string]any), masking: make(map[chainKey]bool)}
	for _, o := range all.Nftables {
		if s := o.Set; s != nil {
			r.elements[[3]string{s.Family, s.Table, s.Name}] = s.Elem
		}
		if m := o.Map; m != nil {
			r.elements[[3]string{m.Family, m.Table, m.Name}] = m.Elem
		}
		if c := o.Chain; c != nil && c.Hook != "" {
			out.hooks = append(out.hooks, c.Hook)
		}
		if rule := o.Rule; rule != nil {
			key := chainKey{rule.Family, rule.Table, rule.Chain}
			r.rules[key] = append(r.rules[key], rule.Expr...)
		}
	}
	for _, o := range all.Nftables {
		if rule := o.Rule; rule != nil {
			r.rule(chainKey{rule.Family, rule.Table, rule.Chain}, rule.Expr)
		}
		if o.Flowtable != nil {
			for _, name := range r.values(chainKey{}, o.Flowtable.Dev, -1) {
				r.add(mention{name: name})
			}
		}
	}
	for _, name := range devices {
		r.add(mention{name: name})
	}
	out.interfaces, out.networks = r.found, r.networks
	return out, nil
}

// add joins a mention with the others of its name.
func (r *mentionReader) add(m mention) {
	if m.name == "lo" || m.name == "" {
		return
	}
	i := slices.IndexFunc(r.found, func(o mention) bool { return o.name == m.name })
	if i < 0 {
		r.found = append(r.found, m)
		return
	}
	o := &r.found[i]
	o.masked, o.behind = o.masked || m.masked, o.behind || m.behind
	o.out, o.routed = o.out || m.out, o.routed || m.routed
}

// rule finds the interfaces in one rule.
func (r *mentionReader) rule(at chainKey, expr []map[string]any) {
	routed := at.family == "inet" || at.family == "ip" || at.family == "ip6"
	masks := slices.ContainsFunc(expr, func(s map[string]any) bool { return r.masks(at, s) })
	for _, statement := range expr {
		if m, ok := statement["match"].(map[string]any); ok {
			r.network(at, m)
			for _, c := range compared(m["left"]) {
				out := strings.HasPrefix(c.key, "oif")
				for _, name := range r.values(at, m["right"], c.place) {
					is := m["op"] != "!="
					r.add(mention{name: name, masked: out && masks && is, behind: out && masks && !is, out: out && is, routed: routed})
				}
			}
		}
		for _, kind := range []string{"vmap", "map"} {
			m, ok := statement[kind].(map[string]any)
			if !ok {
				continue
			}
			for _, c := range compared(m["key"]) {
				for _, pair := range r.members(at, m["data"]) {
					p, ok := pair.([]any)
					if !ok || len(p) != 2 {
						continue
					}
					verdict, _ := p[1].(map[string]any)
					for _, name := range r.values(at, p[0], c.place) {
						r.add(mention{name: name, masked: strings.HasPrefix(c.key, "oif") && r.masks(at, verdict), routed: routed})
					}
				}
			}
		}
	}
}

// bogons are the private networks as a whole. Rules that speak of them keep them
// out, and are about nobody's own.
var bogons = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fc00::/8"), netip.MustParsePrefix("fd00::/8"),
}

// network keeps the private networks that a match wants packets to come from.
func (r *mentionReader) network(at chainKey, match map[string]any) {
	left, _ := match["left"].(map[string]any)
	payload, _ := left["payload"].(map[string]any)
	if payload["field"] != "saddr" || match["op"] == "!=" {
		return
	}
	for _, m := range r.members(at, match["right"]) {
		outer, _ := m.(map[string]any)
		inner, _ := outer["prefix"].(map[string]any)
		text, _ := inner["addr"].(string)
		bits, _ := inner["len"].(float64)
		a, err := netip.ParseAddr(text)
		p := netip.PrefixFrom(a, int(bits))
		if err == nil && p.IsValid() && a.IsPrivate() && !slices.Contains(bogons, p) && !slices.Contains(r.networks, p) {
			r.networks = append(r.networks, p)
		}
	}
}

// masks tells whether a statement gives packets the address of the interface by
// which they leave, or leads to a chain that does.
func (r *mentionReader) masks(at chainKey, statement map[string]any) bool {
	if _, ok := statement["masquerade"]; ok {
		return true
	}
	if xt, ok := statement["xt"].(map[string]any); ok && xt["name"] == "MASQUERADE" {
		return true
	}
	for _, kind := range []string{"jump", "goto"} {
		to, _ := statement[kind].(map[string]any)
		target, _ := to["target"].(string)
		if target != "" && r.chainMasks(chainKey{at.family, at.table, target}) {
			return true
		}
	}
	return false
}

func (r *mentionReader) chainMasks(chain chainKey) bool {
	if known, ok := r.masking[chain]; ok {
		return known
	}
	r.masking[chain] = false // while it is being looked at: no chain leads to itself
	r.masking[chain] = slices.ContainsFunc(r.rules[chain], func(s map[string]any) bool { return r.masks(chain, s) })
	return r.masking[chain]
}

// A comparison is with an interface, which may be one of several things that are
// compared at once.
type comparison struct {
	key   string // iifname, oifname, iif, …
	place int    // among several, or -1
}

// compared are the interfaces on the left side of a match.
func compared(left any) []comparison {
	side, _ := left.(map[string]any)
	if several, ok := side["concat"].([]any); ok {
		var out []comparison
		for i, one := range several {
			for _, c := range compared(one) {
				out = append(out, comparison{c.key, i})
			}
		}
		return out
	}
	meta, _ := side["meta"].(map[string]any)
	switch key, _ := meta["key"].(string); key {
	case "iifname", "oifname", "iif", "oif", "ibrname", "obrname", "ibriport", "obriport", "sdif", "sdifname":
		return []comparison{{key, -1}}
	}
	return nil
}

// members are the elements of a set that is written out or named.
func (r *mentionReader) members(at chainKey, v any) []any {
	switch v := v.(type) {
	case string:
		if name, ok := strings.CutPrefix(v, "@"); ok {
			return r.elements[[3]string{at.family, at.table, name}]
		}
	case map[string]any:
		if set, ok := v["set"].([]any); ok {
			return set
		}
		if set, ok := v["set"]; ok {
			return []any{set}
		}
	case []any:
		return v
	}
	return []any{v}
}

// values are the names on the right side of a match, or those at one place of
// several.
func (r *mentionReader) values(at chainKey, right any, place int) []string {
	var out []string
	for _, m := range r.members(at, right) {
		if e, ok := m.(map[string]any); ok && e["elem"] != nil {
			if inner, ok := e["elem"].(map[string]any); ok {
				m = inner["val"]
			}
		}
		if pair, ok := m.([]any); ok && len(pair) == 2 { // of a map
			m = pair[0]
		}
		if c, ok := m.(map[string]any); ok && place >= 0 {
			if several, ok := c["concat"].([]any); ok && place < len(several) {
				m = several[place]
			}
		}
		if name, ok := m.(string); ok && !strings.HasPrefix(name, "@") {
			out = append(out, name)
		}
	}
	return out
}
