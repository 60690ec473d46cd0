package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

const deepScenario = `schema: wallprobe/scenario/1
name: deep
title: what the first packets do not show
version: 1
sources:
  - {id: D, file: letter.txt, title: letter, language: en}
roles:
  - {name: pc, title: a computer, site: office}
  - {name: far, title: a server, site: internet}
paths:
  - {id: WEB, title: web, from: [pc], to: [far], direction: out, transport: [tcp], ports: 443, protocol: https, need: req}
  - {id: MAIL, title: mail, from: [pc], to: [far], direction: out, transport: [tcp], ports: 587, protocol: submission, need: req}
  - {id: MEDIA, title: media, from: [pc], to: [far], direction: out, transport: [udp], ports: 5000-5019, need: req}
  - {id: CALL, title: call, from: [far], to: [pc], direction: in, transport: [tcp], ports: 28450, need: opt}
outcomes:
  - {id: mail, title: mail, roles: [pc], ways: [{title: mail, paths: [WEB, MAIL]}]}
`

// attributions are firewalls with what must be told of the path that they do not
// let through as a whole: the line of the rule, "a rule" that cannot be named, or
// that it is no rule's doing. What stands behind a bar may be told of some ports
// too: a traced packet may be lost as well, or be dropped by chance.
var attributions = []struct {
	name    string
	forward string // rules, from line 4 on
	server  string // a rule beyond the firewall, where the machine's own losses are
	path    string
	told    string
}{
	{"bytes of a connection", "tcp dport 587 ct bytes > 3000 counter drop", "", "MAIL", "4"},
	{"contents, reset", "tcp dport 587 @ih,0,32 0x45484c4f counter reject with tcp reset", "", "MAIL", "4"},
	{"a quota", "tcp dport 587 quota over 2 kbytes counter drop", "", "MAIL", "4"},
	{"a rate", "udp dport 5000-5019 limit rate over 10/second burst 5 packets counter drop", "", "MEDIA", "4|a rule"},
	{"every second packet", "udp dport 5000-5019 numgen random mod 2 0 counter drop", "", "MEDIA", "4|a rule"},
	{"answers by their size", "udp sport 5000-5019 meta length > 400 counter drop", "", "MEDIA", "4 back"},
	{"the second of two, of which one stopped nothing", "tcp dport 587 @ih,0,32 0x41414141 counter drop\ntcp dport 587 meta length > 300 counter drop", "", "MAIL", "5"},

	{"without a counter", "tcp dport 587 ct bytes > 3000 drop", "", "MAIL", "a rule"},
	{"every second packet, without a counter", "udp dport 5000-5019 numgen random mod 2 0 drop", "", "MEDIA", "a rule|4"},
	{"a counter before the match", "tcp dport 587 counter ct bytes > 3000 drop", "", "MAIL", "a rule"},
	{"two that may have", "tcp dport 587 meta length > 300 counter drop\ntcp dport 587 ct bytes > 100000 drop", "", "MAIL", "a rule"},
	{"other paths as well", "tcp dport { 443, 587 } @ih,0,32 0x45484c4f counter reject with tcp reset", "", "MAIL", "a rule"},
	{"one that lets pass, and what comes after it", "tcp dport 587 meta length < 300 accept\ntcp dport 587 ct state established counter drop", "", "MAIL", "a rule"},

	{"beyond the firewall", "tcp dport 25 counter drop", "tcp dport 587 meta length > 300", "MAIL", "no rule"},
	{"beyond a firewall that may have, and did not", "tcp dport 587 @ih,0,32 0x41414141 counter drop", "tcp dport 587 meta length > 300", "MAIL", "no rule"},
	{"beyond a firewall that may have, and does not say", "tcp dport 587 @ih,0,32 0x41414141 drop", "tcp dport 587 meta length > 300", "MAIL", "a rule"},
	{"loss beyond the firewall", "tcp dport 25 counter drop", "udp dport 5000-5019 numgen random mod 2 0", "MEDIA", "no rule|a rule"},
	{"a call to the firewall's own address", "}\n\tchain post {\n\t\ttype nat hook postrouting priority srcnat;\n\t\toifname \"wan0\" masquerade", "", "CALL", "a rule"},
}

func TestWhatStoppedAPathIsToldAsFarAsItIsProved(t *testing.T) {
	lab.NeedLab(t)
	s := deep(t)
	for _, tt := range attributions {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rules := fmt.Sprintf("table inet f {\n\tchain c {\n\t\ttype filter hook forward priority filter;\n%s\n\t}\n}\n", tt.forward)
			w := lab.Stand(t, configWith(t, s, "rules.nft", rules))
			if tt.server != "" {
				loss := fmt.Sprintf("table inet f { chain c { type filter hook input priority filter; %s drop; }; }", tt.server)
				if _, err := w.Host("server").NFT(t.Context(), []byte(loss), "-f", "-"); err != nil {
					t.Fatal(err)
				}
			}
			expectTold(t, w, s, tt.path, tt.told)
		})
	}
}

// A dump's rules all have counters; a text is what nft itself cannot look for.
func TestStringMatchOfADumpIsNamed(t *testing.T) {
	lab.NeedLab(t)
	need.Programs(t, "iptables-nft-restore")
	t.Parallel()
	s := deep(t)
	const dump = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" +
		"-A FORWARD -m conntrack --ctstate INVALID -j DROP\n" +
		"-A FORWARD -p tcp -m tcp --dport 587 -m string --string \"EHLO\" --algo bm -j DROP\nCOMMIT\n"
	expectTold(t, lab.Stand(t, configWith(t, s, "rules.v4", dump)), s, "MAIL", "6")
}

func deep(t *testing.T) *scenarios.Scenario {
	t.Helper()
	path := filepath.Join(t.TempDir(), "deep.yaml")
	if err := os.WriteFile(path, []byte(deepScenario), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := scenarios.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func configWith(t *testing.T, s *scenarios.Scenario, name, rules string) lab.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := lab.OpenFirewall(path)
	if err != nil {
		t.Fatal(err)
	}
	c := lab.ConfigFor([]*scenarios.Scenario{s})
	c.Firewall = f
	return c
}

// expectTold measures, and holds what is told of every path against what must be:
// of all but one that it is open.
func expectTold(t *testing.T, w *lab.World, s *scenarios.Scenario, path, want string) {
	t.Helper()
	results, err := w.Measure(t.Context(), lab.Measurement{
		Scenarios: []*scenarios.Scenario{s}, Timeout: truthTimeout, Program: programFor(t), Read: report.ReadJSON,
		Explain: func(v client.Verdict) bool { return v != client.Open },
	})
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string][]string)
	add := func(f *client.Finding, v client.Verdict, decided []client.Decision, unexplained bool) {
		text := "a rule"
		decided = slices.DeleteFunc(slices.Clone(decided), func(d client.Decision) bool { return d.Verdict == "accept" })
		switch {
		case v == client.Open || v == client.Unmeasured:
			return
		case unexplained && len(decided) > 0:
			text = "both"
		case unexplained:
			text = "no rule"
		case len(decided) > 0:
			text = strings.TrimSpace(fmt.Sprintf("%d %s", decided[0].Line, map[bool]string{true: "back"}[decided[0].Back]))
		}
		if !slices.Contains(told[f.Path], text) {
			told[f.Path] = append(told[f.Path], text)
		}
	}
	for i := range results[0].Findings {
		f := &results[0].Findings[i]
		if len(f.Parts) == 0 {
			add(f, f.Verdict, f.DecidedBy, f.Unexplained)
		}
		for _, p := range f.Parts {
			add(f, p.Verdict, p.DecidedBy, p.Unexplained)
		}
	}
	first, others, _ := strings.Cut(want, "|")
	told[path] = slices.DeleteFunc(told[path], func(text string) bool { return text == others })
	if diff := cmp.Diff(map[string][]string{path: {first}}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
		for _, r := range results[0].Firewall.Rules {
			t.Logf("%d packets: %s", r.Packets, r.Text)
		}
		for _, f := range results[0].Findings {
			t.Logf("%s %s: %s, %+v", f.Path, f.Verdict, f.Why, f.Parts)
		}
	}
}
