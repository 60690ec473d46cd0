//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/rules"
	"github.com/wallprobe/wallprobe/scenarios"
)

// wallprobe runs the program, which must come to a result.
func wallprobe(t *testing.T, args ...string) []byte {
	t.Helper()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "wallprobe", args...)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != exitBroken {
		t.Fatalf("wallprobe %s: %v\n%.4000s%s", strings.Join(args, " "), err, out.String(), complaints.String())
	}
	return out.Bytes()
}

// throughRules measures a scenario behind rules.
func throughRules(t *testing.T, scenario, role, file string, args ...string) *client.Result {
	t.Helper()
	r := new(client.Result)
	data := wallprobe(t, append([]string{"lab", scenario, "--as", role, "--firewall", file, "--timeout", "1s", "--json", "-"}, args...)...)
	if err := json.Unmarshal(data, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// folder is a temporary one whose name no flag takes for two.
func folder(t *testing.T) string {
	t.Helper()
	name, err := os.MkdirTemp("", "rules")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(name) })
	return name
}

// rulesFile writes the rules for a near end, as scenario rules prints them.
func rulesFile(t *testing.T, n rules.Near, args ...string) string {
	t.Helper()
	name := filepath.Join(folder(t), "rules.nft")
	data := wallprobe(t, append([]string{"scenario", "rules", n.Scenario.Name, "--as", n.Role}, args...)...)
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func needLab(t *testing.T) {
	t.Helper()
	if enterErr == nil {
		return
	}
	need.Missing(t, enterErr)
}

func nearsOf(t *testing.T) []rules.Near {
	t.Helper()
	list, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	var out []rules.Near
	for _, s := range list {
		for _, role := range s.NearRoles() {
			out = append(out, rules.Near{Scenario: s, Role: role})
		}
	}
	return out
}

// letsOut tells whether rules let TCP out, without which this end cannot reach
// the reflector to ask it for calls.
func letsOut(n rules.Near) bool {
	set := rules.For([]rules.Near{n}, rules.Required)
	return slices.ContainsFunc(set.Rules, func(r rules.Rule) bool { return !r.Inward && r.Transport == scenarios.TCP })
}

// Behind the rules made of it, every scenario survives from every near end: all
// that is required passes, and every outcome that is not optional works.
func TestScenariosSurviveTheirOwnRules(t *testing.T) {
	needLab(t)
	tried := 0
	for _, n := range nearsOf(t) {
		if !letsOut(n) {
			continue // what comes in is swept below
		}
		tried++
		t.Run(n.Scenario.Name+" as "+n.Role, func(t *testing.T) {
			t.Parallel()
			file := rulesFile(t, n)
			survive(t, failures, func() *client.Result { return throughRules(t, n.Scenario.Name, n.Role, file) })
		})
	}
	if tried < len(scenarios.Names()) {
		t.Errorf("only %d near ends were tried", tried)
	}
}

// So does one behind its rules for iptables-restore, over both families of
// addresses, with the FTP helper that those set.
func TestScenarioSurvivesItsRulesForIPTables(t *testing.T) {
	needLab(t)
	for _, program := range []string{"iptables-restore", "ip6tables-restore"} {
		need.Program(t, program)
	}
	s, err := scenarios.Load("timesensor-legal")
	if err != nil {
		t.Fatal(err)
	}
	n := rules.Near{Scenario: s, Role: "office"}
	for family, args := range map[string][]string{"ipv4": nil, "ipv6": {"--ipv6"}} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			file := rulesFile(t, n, append(args, "--format", "iptables")...)
			survive(t, failures, func() *client.Result { return throughRules(t, s.Name, n.Role, file, args...) })
		})
	}
}

// survive measures until all is as it must be, three times at the most: a
// busy machine loses packets of its own, but none gets through a rule by chance.
func survive(t *testing.T, judge func(*client.Result) []string, measure func() *client.Result) {
	t.Helper()
	var troubles []string
	for range 3 {
		if troubles = judge(measure()); len(troubles) == 0 {
			return
		}
	}
	for _, text := range troubles {
		t.Errorf("%.500s", text)
	}
}

// failures says what of a result is required and does not pass or work.
func failures(r *client.Result) (out []string) {
	passed := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		switch {
		case f.Need != scenarios.Required || f.Verdict == client.Unmeasured:
		case !f.Survives():
			out = append(out, fmt.Sprintf("%s %s %s: %s", f.Path, f.Ports, f.Transport, f.Sentence()))
		default:
			passed++
		}
	}
	if passed == 0 {
		out = append(out, "nothing that is required was measured")
	}
	for _, o := range r.Outcomes {
		if !o.Optional && !o.Works {
			out = append(out, fmt.Sprintf("outcome %s: %s", o.ID, o.Why))
		}
	}
	return out
}

const everyPort = "1-65535"

// beside writes a scenario of the ports that rules let through, and of every
// port that they do not.
func beside(t *testing.T, set rules.Set, inward bool) (file string) {
	t.Helper()
	let := map[scenarios.Transport]scenarios.PortSet{}
	for _, r := range set.Rules {
		if r.Inward == inward && len(r.Addresses)+len(r.LocalPorts) == 0 {
			let[r.Transport] = scenarios.Union(let[r.Transport], r.Ports)
		}
	}
	all, err := scenarios.ParsePortSet(everyPort)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("schema: wallprobe/scenario/1\nname: beside\ntitle: every port beside\nversion: 1\n" +
		"sources: [{id: T, file: t, title: t, language: en}]\n" +
		"roles: [{name: near, title: near, site: home}, {name: far, title: far, site: internet}]\npaths:\n")
	ways := ""
	for _, transport := range []scenarios.Transport{scenarios.TCP, scenarios.UDP} {
		path := func(id string, ports scenarios.PortSet) {
			if len(ports) > 0 {
				fmt.Fprintf(&b, "  - {id: %s-%s, title: x, from: [near], to: [far], direction: out, transport: [%[2]s], ports: \"%s\", need: opt}\n", id, transport, ports)
			}
		}
		if len(let[transport]) > 0 {
			ways += fmt.Sprintf(", LET-%s", transport)
		}
		path("LET", let[transport])
		path("BESIDE", all.Without(let[transport]))
	}
	if ways == "" {
		t.Fatal("no port is let through, so that what is shut proves nothing")
	}
	fmt.Fprintf(&b, "outcomes: [{id: let, title: let, roles: [near], ways: [{title: all, paths: [%s]}]}]\n", ways[2:])
	file = filepath.Join(folder(t), "beside.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Every one of 65,535 ports over TCP and UDP that no rule names stays shut, and
// every port that one names is open. The program sweeps outward alone, so that
// rules for what comes in are swept with the two interfaces changed over.
func TestEveryPortBesideTheRulesIsShut(t *testing.T) {
	needLab(t)
	if testing.Short() {
		t.Skip("sweeps every port, half a minute for each scenario")
	}
	swept := make(map[string]bool)
	for _, n := range nearsOf(t) {
		// One near end of each scenario: the others' rules are of the same form.
		out := letsOut(n) && !swept[n.Scenario.Name]
		swept[n.Scenario.Name] = swept[n.Scenario.Name] || out
		set := rules.For([]rules.Near{n}, rules.Required)
		in := !letsOut(n) && len(set.Rules) > 0
		if !out && !in {
			continue
		}
		t.Run(n.Scenario.Name+" as "+n.Role, func(t *testing.T) {
			t.Parallel()
			var args []string
			if in {
				args = []string{"--inside", "wan0", "--outside", "lan0"}
			}
			scenario, file := beside(t, set, in), rulesFile(t, n, args...)
			survive(t, leaks, func() *client.Result { return throughRules(t, scenario, "near", file) })
		})
	}
	if len(swept) != len(scenarios.Names()) {
		t.Errorf("only the rules of %d scenarios were swept", len(swept))
	}
}

// leaks says what of a result is not as the rules have it: what they let through
// passes, and nothing else does.
func leaks(r *client.Result) (out []string) {
	ports := map[scenarios.Transport]int{}
	for i := range r.Findings {
		f := &r.Findings[i]
		ports[f.Transport] += f.Ports.Len()
		wanted := f.Verdict == client.RequestLost && len(f.Parts) == 0
		if strings.HasPrefix(f.Path, "LET-") {
			wanted = f.Verdict.Passes() // every port: else it were partial
		}
		if !wanted {
			out = append(out, f.Path+": "+f.Sentence())
		}
	}
	for _, transport := range []scenarios.Transport{scenarios.TCP, scenarios.UDP} {
		if ports[transport] != 65535 {
			out = append(out, fmt.Sprintf("%d ports were tried over %s", ports[transport], transport))
		}
	}
	return out
}
