package lab

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A scope is which packets a rule may match, as far as it is read here: more than
// it does match, never less.
type scope struct {
	// deep: the rule goes by more than addresses, ports, interfaces and what the
	// firewall knows of connections: by contents, sizes, rates, amounts, chance, or
	// by what is not known here. A packet sent afterwards need not fare as those of
	// the path did.
	deep bool
	// exact: the rule's own counter stands behind all that it matches by, so that it
	// counts what the rule decided about and nothing else.
	exact bool

	transports []string
	from, to   scenarios.PortSet // nil is any
	in, out    string            // interfaces
}

// The statements that do no more than is said of plain rules. Of a mangle, what
// is changed is changed for every packet that matches.
var plainStatements = map[string]bool{
	"counter": true, "log": true, "mangle": true, "flow": true, "ct helper": true,
	"accept": true, "drop": true, "reject": true, "jump": true, "goto": true, "return": true, "continue": true,
	"snat": true, "dnat": true, "masquerade": true, "redirect": true,
}

// What plain rules match by, in the words of libnftables-json(5), and the
// extensions of iptables that do the same.
var (
	plainMeta = map[string]bool{"iif": true, "iifname": true, "oif": true, "oifname": true, "iifgroup": true, "oifgroup": true,
		"iiftype": true, "oiftype": true, "l4proto": true, "nfproto": true, "protocol": true, "mark": true}
	plainCT    = map[string]bool{"state": true, "status": true, "direction": true, "mark": true, "helper": true, "l3proto": true, "protocol": true}
	plainField = map[string]bool{"saddr": true, "daddr": true, "sport": true, "dport": true, "protocol": true, "nexthdr": true, "type": true, "code": true}
	plainXT    = map[string]bool{"conntrack": true, "state": true, "comment": true, "multiport": true, "tcp": true, "udp": true, "icmp": true, "icmp6": true,
		"addrtype": true, "iprange": true, "mark": true, "connmark": true, "set": true,
		"REJECT": true, "LOG": true, "NFLOG": true, "TCPMSS": true, "MASQUERADE": true, "SNAT": true, "DNAT": true, "REDIRECT": true, "MARK": true, "CONNMARK": true}
)

// deep tells whether any rule is.
func (s *ruleset) deep() bool {
	return slices.ContainsFunc(s.scopes, func(s scope) bool { return s.deep })
}

// scopeOf reads the statements of a rule.
func scopeOf(statements []map[string]json.RawMessage) scope {
	var s scope
	counted, last := -1, -1
	for i, statement := range statements {
		for kind, value := range statement {
			var body any
			if json.Unmarshal(value, &body) != nil {
				s.deep = true
			}
			_, shared := body.(string)
			switch {
			case kind == "match":
				last = i
				s.match(body)
			case kind == "vmap":
				last = i
				s.deep = s.deep || !plain(member(body, "key"))
			case kind == "xt":
				name, _ := member(body, "name").(string)
				s.deep = s.deep || !plainXT[name]
				if member(body, "type") == "match" {
					last = i
				}
			case kind == "counter" && !shared:
				counted = i
			case !plainStatements[kind]:
				last = i
				s.deep = true
			}
		}
	}
	s.exact = counted > last
	return s
}

// member is a member of an object, or nil.
func member(object any, name string) any {
	m, _ := object.(map[string]any)
	return m[name]
}

// plain tells whether an expression gives the same of a packet sent afterwards.
func plain(expression any) bool {
	m, ok := expression.(map[string]any)
	if !ok {
		return true // a constant
	}
	for kind, value := range m {
		key, _ := member(value, "key").(string)
		field, _ := member(value, "field").(string)
		switch kind {
		case "meta":
			return plainMeta[key]
		case "ct":
			return plainCT[key]
		case "payload":
			return plainField[field] || member(value, "protocol") == "tcp" && field == "flags"
		case "fib", "rt", "socket", "prefix", "range", "set":
			return true
		case "&", "|", "^", "concat":
			list, _ := value.([]any)
			return !slices.ContainsFunc(list, func(x any) bool { return !plain(x) })
		}
	}
	return false
}

// match narrows a scope by a match for equality.
func (s *scope) match(body any) {
	left, right := member(body, "left"), member(body, "right")
	s.deep = s.deep || !plain(left)
	if op := member(body, "op"); op != "==" && op != "in" {
		return
	}
	key, _ := member(member(left, "meta"), "key").(string)
	field, _ := member(member(left, "payload"), "field").(string)
	name, _ := right.(string)
	named := name != "" && !strings.ContainsAny(name, "@*")
	switch {
	case key == "l4proto":
		s.transports = words(right)
	case (key == "iifname" || key == "iif") && named:
		s.in = name
	case (key == "oifname" || key == "oif") && named:
		s.out = name
	case field == "sport" || field == "dport":
		if p, _ := member(member(left, "payload"), "protocol").(string); p == "tcp" || p == "udp" {
			s.transports = []string{p}
		}
		if field == "sport" {
			s.from = portsIn(right)
		} else {
			s.to = portsIn(right)
		}
	}
}

// words are the names in a value, nil where there is anything else.
func words(value any) []string {
	if name, ok := value.(string); ok && !strings.HasPrefix(name, "@") {
		return []string{name}
	}
	list, _ := member(value, "set").([]any)
	var out []string
	for _, x := range list {
		name, ok := x.(string)
		if !ok {
			return nil
		}
		out = append(out, name)
	}
	return out
}

// portsIn are the ports of a value, nil where it is not known which they are.
func portsIn(value any) scenarios.PortSet {
	if n, ok := port(value); ok {
		return scenarios.PortSet{{First: n, Last: n}}
	}
	if ends, ok := member(value, "range").([]any); ok && len(ends) == 2 {
		first, ok1 := port(ends[0])
		last, ok2 := port(ends[1])
		if !ok1 || !ok2 {
			return nil
		}
		return scenarios.PortSet{{First: first, Last: last}}
	}
	list, _ := member(value, "set").([]any)
	var out scenarios.PortSet
	for _, x := range list {
		some := portsIn(x)
		if some == nil {
			return nil
		}
		out = scenarios.Union(out, some)
	}
	return out
}

func port(value any) (uint16, bool) {
	n, ok := value.(float64)
	return uint16(n), ok && n >= 1 && n <= 65535
}

// packets are those that go one way between two sets of ports.
type packets struct {
	transport scenarios.Transport
	from, to  scenarios.PortSet // nil is any
	inward    bool              // they come in from outside
}

// back are the packets that go the other way.
func (p packets) back() packets {
	return packets{transport: p.transport, from: p.to, to: p.from, inward: !p.inward}
}

// may tells whether a rule may match some of the packets, between interfaces of
// these names. Where destinations are translated, ports say nothing.
func (s scope) may(p packets, inside, outside string, translated bool) bool {
	in, out := inside, outside
	if p.inward {
		in, out = out, in
	}
	meets := func(a, b scenarios.PortSet) bool {
		return translated || a == nil || b == nil || len(a.Intersect(b)) > 0
	}
	return (s.in != out) && (s.out != in) &&
		(p.transport == "" || s.transports == nil || slices.Contains(s.transports, string(p.transport))) &&
		meets(s.from, p.from) && meets(s.to, p.to)
}
