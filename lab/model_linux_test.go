package lab_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A modelRule is a rule that chance made. Fields left empty match everything.
type modelRule struct {
	iif, state, proto, field string // "lan0"; "new"; "udp"; "sport" or "dport"
	ports                    scenarios.PortSet
	set                      string // named, in place of its elements
	action, to               string // a statement of nft; the chain of jump and goto
	line                     int    // in the file
}

// A model is nft as its manual describes it: base chains in the order of their
// priorities, of which each must accept, and chains that they jump to.
type model struct {
	dump   bool // as iptables-save writes it, for IPv4 alone
	bases  []modelBase
	chains [][]modelRule
	text   strings.Builder
	lines  int
}

type modelBase struct {
	policy string
	line   int
	rules  []modelRule
}

// A modelPacket is all that the rules look at.
type modelPacket struct {
	iif, state, proto string
	sport, dport      uint16
}

func (r *modelRule) matches(p modelPacket) bool {
	port := p.dport
	if r.field == "sport" {
		port = p.sport
	}
	return (r.iif == "" || r.iif == p.iif) && (r.state == "" || r.state == p.state) &&
		(r.proto == "" || r.proto == p.proto && r.ports.Contains(port))
}

// walk gives the action that ends a packet's way through a chain, and its line;
// "" where it comes out at the end.
func (m *model) walk(rules []modelRule, p modelPacket) (string, int) {
	for i := range rules {
		r := &rules[i]
		if !r.matches(p) {
			continue
		}
		switch r.action {
		case "return":
			return "", 0
		case "jump", "goto":
			n, _ := strconv.Atoi(strings.TrimPrefix(r.to, "c"))
			if action, line := m.walk(m.chains[n], p); action != "" || r.action == "goto" {
				return action, line
			}
		default:
			return r.action, r.line
		}
	}
	return "", 0
}

// fate is what becomes of a packet: "accept", "drop" or a kind of reject.
func (m *model) fate(p modelPacket) (action string, line int) {
	for _, b := range m.bases {
		if action, line = m.walk(b.rules, p); action == "" {
			action, line = b.policy, b.line
		}
		if action != "accept" {
			break
		}
	}
	return action, line
}

// later is no verdict: the first packets pass, and a later one does not.
const later client.Verdict = "later"

// verdict is what a port's probe must come to, and the line that decides. The
// caller's own port is one that no rule names.
func (m *model) verdict(proto string, inward bool, port uint16) (client.Verdict, int) {
	const own = 25000
	there, back := "lan0", "wan0"
	if inward {
		there, back = back, there
	}
	action, line := m.fate(modelPacket{there, "new", proto, own, port})
	switch {
	case action == "drop":
		return client.RequestLost, line
	case action != "accept":
		return client.Rejected, line
	}
	if action, line := m.fate(modelPacket{back, "established", proto, port, own}); action != "accept" {
		return client.ReplyLost, line
	}
	if action, line := m.fate(modelPacket{there, "established", proto, own, port}); action != "accept" {
		return later, line
	}
	return client.Open, line
}

// The ports that testdata/truth/model.yaml names, out and inward.
var modelPorts = map[string][]uint16{"tcp": {443, 2222, 3306, 8040, 19813}, "udp": {500, 3478, 8200}, "inward": {12000, 12345}}

// modelSet makes ports that mean something: one that is probed, several of them,
// a part of the probed ranges, or a wide range.
func modelSet(rnd *rand.Rand, named []uint16) scenarios.PortSet {
	span := func(first, n int) scenarios.PortSet {
		return scenarios.PortSet{{First: uint16(first), Last: uint16(min(first+n, 19999))}}
	}
	kind := rnd.IntN(4)
	if named[0] == modelPorts["inward"][0] {
		kind = rnd.IntN(2) * 3 // no range of the others has these
	}
	switch kind {
	case 0:
		return span(int(named[rnd.IntN(len(named))]), 0)
	case 1:
		return span(6950+rnd.IntN(1000), []int{0, 1, 5, 60, 200}[rnd.IntN(5)])
	case 2:
		return span([]int{1, 400, 1024, 5000, 7000}[rnd.IntN(5)], []int{0, 3000, 8000, 15000}[rnd.IntN(4)])
	}
	var set scenarios.PortSet
	for _, port := range named {
		if rnd.IntN(2) == 0 {
			set = append(set, scenarios.PortRange{First: port, Last: port})
		}
	}
	if set == nil {
		return span(int(named[0]), 0)
	}
	return set
}

// rule makes one that matches on what goes out, comes back, comes in, or what is
// answered to that.
func (m *model) rule(rnd *rand.Rand, policy string, base bool) modelRule {
	r := modelRule{proto: []string{"tcp", "udp"}[rnd.IntN(2)], field: "dport"}
	named := modelPorts[r.proto]
	switch rnd.IntN(8) {
	case 0, 1, 2:
		r.iif = "lan0"
	case 3:
		r.iif, r.field = "wan0", "sport"
	case 4:
		r.iif, named = "wan0", modelPorts["inward"]
	case 5, 6:
		r.iif, r.field, named = "lan0", "sport", modelPorts["inward"]
	}
	r.ports = modelSet(rnd, named)
	if rnd.IntN(6) == 0 {
		r.state = []string{"new", "established"}[rnd.IntN(2)]
	}
	if rnd.IntN(5) == 0 && !m.dump {
		r.set = fmt.Sprintf("s%d", m.lines)
		m.emit("\tset %s { type inet_service; flags interval; elements = { %s } }", r.set, strings.ReplaceAll(r.ports.String(), ",", ", "))
	}
	actions := []string{"drop", "drop", "accept", "reject with icmpx admin-prohibited", "reject with icmpx port-unreachable"}
	if r.proto == "tcp" {
		actions = append(actions, "reject with tcp reset")
	}
	if policy == "drop" {
		actions = append(actions, "accept", "accept", "accept")
	}
	if !base {
		actions = append(actions, "return", "return")
	}
	r.action = actions[rnd.IntN(len(actions))]
	return r
}

// rules makes a chain, whose jumps go to chains from the next on only.
func (m *model) rules(rnd *rand.Rand, policy string, next int, base bool) []modelRule {
	var list []modelRule
	for range 1 + rnd.IntN(5) {
		r := m.rule(rnd, policy, base)
		if next < len(m.chains) && rnd.IntN(3) == 0 {
			r.action, r.to = []string{"jump", "jump", "goto"}[rnd.IntN(3)], fmt.Sprintf("c%d", next+rnd.IntN(len(m.chains)-next))
			if rnd.IntN(2) == 0 {
				r = modelRule{iif: r.iif, action: r.action, to: r.to}
			}
		}
		list = append(list, r)
	}
	return list
}

func (m *model) emit(format string, args ...any) {
	m.lines++
	fmt.Fprintf(&m.text, format+"\n", args...)
}

// write writes rules as nft wants them, and notes their lines.
func (m *model) write(rnd *rand.Rand, rules []modelRule) {
	for i := range rules {
		r := &rules[i]
		var words []string
		say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
		if r.iif != "" {
			say("iifname %q", r.iif)
		}
		if r.state != "" {
			say("ct state %s", r.state)
		}
		switch match := r.proto + " " + r.field; {
		case r.proto == "":
		case r.set != "":
			say("%s @%s", match, r.set)
		case rnd.IntN(6) == 0:
			say("meta l4proto %s th %s { %s }", r.proto, r.field, strings.ReplaceAll(r.ports.String(), ",", ", "))
		default:
			say("%s { %s }", match, strings.ReplaceAll(r.ports.String(), ",", ", "))
		}
		if rnd.IntN(2) == 0 {
			say("counter")
		}
		m.emit("\t\t%s", strings.TrimSpace(strings.Join(append(words, r.action, r.to), " ")))
		r.line = m.lines
	}
}

// randomModel makes rules of a seed.
func randomModel(seed uint64) *model {
	rnd := rand.New(rand.NewPCG(seed, 0))
	m := &model{chains: make([][]modelRule, rnd.IntN(4)), dump: seed%3 == 0}
	if m.dump {
		m.emit("*filter")
	} else {
		m.emit("table inet firewall {")
	}
	for i := range m.chains {
		m.chains[i] = m.rules(rnd, "accept", i+1, false)
	}
	bases := 1 + rnd.IntN(2)
	if m.dump {
		bases = 1
	}
	for range bases {
		b := modelBase{policy: []string{"accept", "accept", "drop"}[rnd.IntN(3)]}
		b.rules = m.rules(rnd, b.policy, 0, true)
		if b.policy == "drop" || rnd.IntN(2) == 0 {
			b.rules = slices.Insert(b.rules, 0, modelRule{state: "established", action: "accept"})
		}
		if b.policy == "drop" { // control must have a way, or much is unmeasured
			https := scenarios.PortSet{{First: 443, Last: 443}}
			b.rules = slices.Insert(b.rules, 0, modelRule{iif: "lan0", proto: "tcp", field: "dport", ports: https, action: "accept"})
		}
		m.bases = append(m.bases, b)
	}
	if m.dump {
		m.writeDump()
	} else {
		m.writeNFT(rnd)
	}
	return m
}

func (m *model) writeNFT(rnd *rand.Rand) {
	for i := len(m.chains) - 1; i >= 0; i-- { // what is jumped to stands before
		m.emit("\tchain c%d {", i)
		m.write(rnd, m.chains[i])
		m.emit("\t}")
	}
	for i := range m.bases {
		m.emit("\tchain base%d {", i)
		m.emit("\t\ttype filter hook forward priority %d; policy %s;", 10*i, m.bases[i].policy)
		m.bases[i].line = m.lines
		m.write(rnd, m.bases[i].rules)
		m.emit("\t}")
	}
	m.emit("}")
}

func (m *model) writeDump() {
	m.emit(":INPUT ACCEPT [0:0]")
	b := &m.bases[0]
	m.emit(":FORWARD %s [12:345]", strings.ToUpper(b.policy))
	b.line = m.lines
	for i := range m.chains {
		m.emit(":c%d - [0:0]", i)
	}
	m.append("FORWARD", b.rules)
	for i := range m.chains {
		m.append(fmt.Sprintf("c%d", i), m.chains[i])
	}
	m.emit("COMMIT")
}

// targets are the actions as iptables names them.
var targets = map[string]string{
	"drop": "-j DROP", "accept": "-j ACCEPT", "return": "-j RETURN", "jump": "-j", "goto": "-g",
	"reject with icmpx admin-prohibited": "-j REJECT --reject-with icmp-admin-prohibited",
	"reject with icmpx port-unreachable": "-j REJECT --reject-with icmp-port-unreachable",
	"reject with tcp reset":              "-j REJECT --reject-with tcp-reset",
}

// append writes rules as iptables-save does, and notes their lines.
func (m *model) append(chain string, rules []modelRule) {
	for i := range rules {
		r := &rules[i]
		words := []string{"-A " + chain}
		if r.iif != "" {
			words = append(words, "-i "+r.iif)
		}
		if r.proto != "" {
			words = append(words, fmt.Sprintf("-p %s -m multiport --%ss %s", r.proto, r.field, strings.ReplaceAll(r.ports.String(), "-", ":")))
		}
		if r.state != "" {
			words = append(words, "-m conntrack --ctstate "+strings.ToUpper(r.state))
		}
		m.emit("%s", strings.TrimSpace(strings.Join(append(words, targets[r.action], r.to), " ")))
		r.line = m.lines
	}
}

// Rules that chance makes are judged port by port as a model of nft says, and
// where something does not pass, the line that decided is named.
// WALLPROBE_SEEDS=100-199 tries others than the usual ones.
func TestRandomRulesFareAsAModelOfNftSays(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	first, last := uint64(1), uint64(24)
	if seeds := os.Getenv("WALLPROBE_SEEDS"); seeds != "" {
		if _, err := fmt.Sscanf(seeds, "%d-%d", &first, &last); err != nil {
			t.Fatalf("WALLPROBE_SEEDS=%s: %v; write 100-199", seeds, err)
		}
	}
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			m := randomModel(seed)
			r := row{name: "random", scenario: "model", rules: m.text.String()}
			file := filepath.Join(t.TempDir(), "random")
			if err := os.WriteFile(file, []byte(r.rules), 0o644); err != nil {
				t.Fatal(err)
			}
			s := r.load(t)
			c := lab.ConfigFor([]*scenarios.Scenario{s})
			var err error
			if c.Firewall, err = lab.OpenFirewall(file); err != nil {
				t.Fatal(err)
			}
			w := lab.Stand(t, c)
			family := []string{"ipv4", "ipv6"}[seed%2]
			if m.dump {
				family = "ipv4"
			}
			measurement := r.measurement(s, program, family)
			measurement.Explain = func(client.Verdict) bool { return true }
			results, err := w.Measure(t.Context(), measurement)
			if err != nil {
				t.Fatal(err)
			}
			control, _ := m.verdict("tcp", false, 443)
			if results[0].Offline && control == client.Open {
				t.Log("control was late, so that no call was asked for")
				control = client.Unmeasured
			}
			var wrong []string
			for i := range results[0].Findings {
				wrong = append(wrong, m.wrong(&results[0].Findings[i], control)...)
			}
			if len(wrong) > 0 {
				t.Errorf("%s\nbehind\n%s", strings.Join(wrong, "\n"), r.rules)
			}
		})
	}
}

// wrong lists in what a finding differs from the model, with one port for all
// that differ alike.
func (m *model) wrong(f *client.Finding, control client.Verdict) []string {
	var out []string
	told := make(map[string]bool)
	tell := func(port uint16, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !told[text] {
			told[text] = true
			out = append(out, fmt.Sprintf("%s, port %d: %s", f.Path, port, text))
		}
	}
	parts := f.Parts
	if len(parts) == 0 {
		parts = []client.Part{{Ports: f.Ports, Verdict: f.Verdict, DecidedBy: f.DecidedBy}}
	}
	inward := f.Direction == scenarios.In
	for _, p := range parts {
		for port := range p.Ports.All {
			want, line := m.verdict(string(f.Transport), inward, port)
			switch named := linesOf(p.DecidedBy, port); {
			case inward && control != client.Open, want == later && f.Transport == scenarios.UDP:
				// Nobody can ask for a call; or it depends on when which answer came.
			case want == later && p.Verdict != client.Cut, want != later && p.Verdict != want:
				tell(port, "%s, and line %d makes it %s", p.Verdict, line, want)
			case want != client.Open && !slices.Contains(named, line):
				tell(port, "%s by line %d, and the lines named are %d", p.Verdict, line, named)
			}
		}
	}
	return out
}

// linesOf are the lines that decide at a port.
func linesOf(list []client.Decision, port uint16) []int {
	var lines []int
	for _, d := range list {
		if d.Ports == nil || d.Ports.Contains(port) {
			lines = append(lines, d.Line)
		}
	}
	return lines
}
