package expect

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

var update = flag.Bool("update", false, "rewrite schema.json")

// own is the scenario of which result and finding speak.
func own(t *testing.T) *scenarios.Scenario {
	t.Helper()
	s, err := scenarios.Parse("own.yaml", []byte(`
schema: wallprobe/scenario/1
name: own
title: an application
version: 1
sources: [{id: D1, file: d.txt, title: a document, language: en}]
roles:
  - {name: app, title: the application, site: office}
  - {name: far, title: the server, site: elsewhere}
paths:
  - {id: O-1, title: web, from: [app], to: [far], direction: out, transport: [tcp], ports: 443, need: req}
  - {id: O-2, title: media, from: [app], to: [far], direction: out, transport: [udp], ports: 40000-40010, need: req}
  - {id: O-3, title: telnet, from: [app], to: [far], direction: out, transport: [tcp], ports: 23, need: neg}
  - {id: O-4, title: push, from: [far], to: [app], direction: in, transport: [tcp], ports: 25, need: opt}
  - {id: O-5, title: name, from: [app], to: [far], direction: out, need: opt, unmeasured: it is nothing}
  - {id: O-6, title: backup, from: [far], to: [far], direction: lan, transport: [tcp], ports: 99, need: opt}
outcomes:
  - {id: sign-in, title: sign-in, roles: [app], ways: [{title: web, paths: [O-1]}]}
  - {id: call, title: call, roles: [app], ways: [{title: media, paths: [O-2]}, {title: web, paths: [O-1]}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// measured is a run of own.
func ownResult(findings ...string) *client.Result {
	r := result(findings...)
	works := func(path string) bool {
		i := slices.IndexFunc(r.Findings, func(f client.Finding) bool { return f.Path == path })
		return i >= 0 && r.Findings[i].Survives()
	}
	call := client.Outcome{ID: "call", Title: "call", Ways: []client.Way{{Title: "media"}, {Title: "web"}}}
	for i, id := range []string{"O-2", "O-1"} {
		if works(id) && !call.Works {
			call.Works, call.Via = true, call.Ways[i].Title
		}
	}
	r.Outcomes = []client.Outcome{{ID: "sign-in", Title: "sign-in", Works: works("O-1"), Ways: []client.Way{{Title: "web"}}}, call}
	return r
}

const (
	webOpen   = "O-1 tcp 443 req: open"
	mediaPart = "O-2 udp 40000-40010 req: open 40000-40004, request-lost 40005-40010"
	noTelnet  = "O-3 tcp 23 neg: rejected"
)

// file is a file of expectations of own.
func file(lines ...string) string {
	return "schema: wallprobe/expect/1\nruns:\n- scenario: own\n  version: 1\n  role: app\n" + strings.Join(lines, "\n") + "\n"
}

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse("x.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return f
}

// states are what came of expectations: "6 O-1: holds", with the ports that missed.
func states(list []client.Expectation) []string {
	var out []string
	for _, x := range list {
		text := x.Path + x.Outcome + ": " + string(x.State)
		for _, m := range x.Misses {
			text += " " + string(m.Verdict) + " " + m.Ports.String()
		}
		out = append(out, text)
	}
	return out
}

func TestExpectationsAreCheckedPortByPort(t *testing.T) {
	for name, row := range map[string]struct {
		file string
		run  *client.Result
		want []string
	}{
		"all as expected": {file("  paths:",
			"  - {path: O-1, verdicts: [open]}",
			"  - {path: O-2, ports: 40000-40004, verdicts: [open]}",
			"  - {path: O-2, ports: 40005-40010, verdicts: [request-lost, rejected]}",
			"  - {path: O-3, verdicts: [rejected]}",
			"  outcomes: [{outcome: sign-in, works: true}, {outcome: call, works: true, way: 2}]"),
			ownResult(webOpen, mediaPart, noTelnet),
			[]string{"O-1: holds", "O-2: holds", "O-2: holds", "O-3: holds", "sign-in: holds", "call: holds"}},
		"one port too many": {file("  paths: [{path: O-2, ports: 40000-40005, verdicts: [open, degraded]}]"),
			ownResult(mediaPart), []string{"O-2: fails request-lost 40005"}},
		"open where it must not be": {file("  paths: [{path: O-1, verdicts: [open]}, {path: O-3, verdicts: [rejected]}]"),
			ownResult(webOpen, "O-3 tcp 23 neg: open"), []string{"O-1: holds", "O-3: fails open 23"}},
		"closed another way": {file("  paths: [{path: O-1, verdicts: [open]}, {path: O-3, verdicts: [rejected]}]"),
			ownResult(webOpen, "O-3 tcp 23 neg: request-lost"), []string{"O-1: holds", "O-3: fails request-lost 23"}},
		"silence proves nothing": {file("  paths: [{path: O-1, verdicts: [open]}, {path: O-3, verdicts: [request-lost]}]"),
			ownResult(webOpen, "O-3 tcp 23 neg: silent"), []string{"O-1: holds", "O-3: untold silent 23"}},
		"no positive control": {file("  paths: [{path: O-1, verdicts: [open]}, {path: O-3, verdicts: [request-lost]}]", "  outcomes: [{outcome: sign-in, works: false}]"),
			ownResult("O-1 tcp 443 req: request-lost", "O-3 tcp 23 neg: request-lost"), []string{"O-1: fails request-lost 443", "O-3: untold", "sign-in: untold"}},
		"a path that was not measured": {file("  paths: [{path: O-1, verdicts: [open]}, {path: O-4, verdicts: [open]}]"),
			ownResult(webOpen), []string{"O-1: holds", "O-4: untold"}},
		"a detour": {file("  outcomes: [{outcome: call, works: true, way: 1}]"),
			ownResult(webOpen, mediaPart), []string{"call: fails"}},
		"a shortcut": {file("  outcomes: [{outcome: call, works: true, way: 2}]"),
			ownResult(webOpen, "O-2 udp 40000-40010 req: open"), []string{"call: holds"}},
		"others": {file("  others: as-scenario", "  paths: [{path: O-1, verdicts: [open]}]", "  outcomes: [{outcome: call, works: true}]"),
			ownResult(webOpen), []string{"O-1: holds", "call: holds", "sign-in: holds"}},
		"others fail": {file("  others: as-scenario", "  paths: [{path: O-2, verdicts: [open]}]"),
			ownResult("O-2 udp 40000-40010 req: open"), []string{"O-2: holds", "sign-in: fails", "call: holds"}},
		"others are ignored": {file("  paths: [{path: O-2, verdicts: [open]}]"),
			ownResult("O-2 udp 40000-40010 req: open"), []string{"O-2: holds"}},
	} {
		f := parse(t, row.file)
		if err := f.Fit([]*scenarios.Scenario{own(t)}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(row.want, states(f.Check(row.run))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// What passes only within the site is no control of the firewall.
func TestControlCrossesTheFirewall(t *testing.T) {
	f := parse(t, file("  paths: [{path: O-1, verdicts: [open]}, {path: O-3, verdicts: [rejected]}]"))
	r := ownResult(webOpen, noTelnet)
	r.Findings[0].Direction = scenarios.LAN
	if diff := cmp.Diff([]string{"O-1: holds", "O-3: untold"}, states(f.Check(r))); diff != "" {
		t.Error(diff)
	}
}

func TestRunThatProvesNothingHoldsNothing(t *testing.T) {
	f := parse(t, file("  paths: [{path: O-1, verdicts: [open]}]"))
	r := ownResult(webOpen)
	r.Complete = false
	if diff := cmp.Diff([]string{"O-1: untold"}, states(f.Check(r))); diff != "" {
		t.Error(diff)
	}
}

func TestRunsOfWhichThereIsNoResultAreTold(t *testing.T) {
	f := parse(t, file("  family: ipv6", "  paths: [{path: O-1, verdicts: [open]}]"))
	r := ownResult(webOpen)
	want := []string{"x.yaml:3: nothing was measured of own as app over ipv6, so that what is expected there was not checked; measure it too, or take it out"}
	if diff := cmp.Diff(want, f.Unmatched([]*client.Result{r})); diff != "" || f.Covers(r) || len(f.Check(r)) > 0 {
		t.Error(diff)
	}
	if r.Family = "ipv6"; len(f.Unmatched([]*client.Result{r})) > 0 || !f.Covers(r) {
		t.Error("the run over IPv6 is not found")
	}
}

func TestInvalidFilesGetExactMessages(t *testing.T) {
	for text, want := range map[string]string{
		"": "x.yaml:1:1: the file is empty",
		"schema: wallprobe/scenario/1\nruns: []\n": "x.yaml:1:9: \"schema\": \"wallprobe/scenario/1\" is not the schema that this program reads: wallprobe/expect/1",
		file(): "x.yaml:3:3: nothing is expected of this run; give it paths or outcomes",
		file("  paths: [{path: O-1, verdict: [open]}]"):                                                                                    "x.yaml:6:11: key \"verdicts\" is missing\nx.yaml:6:23: unknown key \"verdict\"; did you mean \"verdicts\"?",
		file("  paths: [{path: O-1, verdicts: open}]"):                                                                                     "x.yaml:6:33: \"verdicts\" must be a list, not the text \"open\"; write [open]",
		file("  paths: [{path: O-1, verdicts: [open]}, {path: O-2, verdicts: [silent]}]"):                                                  "x.yaml:6:65: \"verdicts\" must be one of open, degraded, cut, altered, reply-lost, request-lost, rejected, refused, impostor, not \"silent\"",
		file("  paths: [{path: O-1, verdicts: [not open]}]"):                                                                               "x.yaml:6:34: \"verdicts\" must be one of open, degraded, cut, altered, reply-lost, request-lost, rejected, refused, impostor, not \"not open\"",
		file("  paths: [{path: O-3, verdicts: [rejected]}]"):                                                                               "x.yaml:3:3: only what does not pass is expected here, which a cable that is out would fulfil: add a path that is expected open, as a positive control",
		file("  outcomes: [{outcome: call, works: false}]"):                                                                                "x.yaml:3:3: only what does not pass is expected here, which a cable that is out would fulfil: add a path that is expected open, as a positive control",
		file("  paths: [{path: O-1, verdicts: [open]}]", "  outcomes: [{outcome: call, works: false, way: 2}]"):                            "x.yaml:7:49: \"way\" is only for an outcome that works",
		file("  paths:", "  - {path: O-2, ports: 40000-40005, verdicts: [open]}", "  - {path: O-2, ports: 40005-40010, verdicts: [open]}"): "x.yaml:8:5: path O-2 ports 40005 was spoken of on line 7 already",
		file("  paths:", "  - {path: O-2, verdicts: [open]}", "  - {path: O-2, transport: udp, ports: 40005, verdicts: [open]}"):           "x.yaml:8:5: path O-2 was spoken of on line 7 already",
		file("  outcomes: [{outcome: call, works: true}, {outcome: call, works: true}]"):                                                   "x.yaml:6:44: outcome call was spoken of on line 6 already",
		file("  others: all", "  paths: [{path: O-1, verdicts: [open]}]"):                                                                  "x.yaml:6:11: \"others\" must be one of ignored, as-scenario, not \"all\"",
	} {
		_, err := Parse("x.yaml", []byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("got:  %v\nwant: %s\n%s", err, want, text)
		}
	}
}

func TestFilesThatDoNotFitTheScenarioGetExactMessages(t *testing.T) {
	s := own(t)
	s.Version = 2
	second := func(lines ...string) string { return strings.Replace(file(lines...), "version: 1", "version: 2", 1) }
	for text, want := range map[string]string{
		strings.Replace(second("  paths: [{path: O-1, verdicts: [open]}]"), "scenario: own", "scenario: owm", 1): `x.yaml:3:13: scenario "owm" is not measured here; did you mean "own"?`,
		file("  paths: [{path: O-1, verdicts: [open]}]"):                                                         `x.yaml:4:12: this was written for version 1 of scenario own, which is at version 2: look through it with wallprobe scenario show own.yaml, then write 2 here`,
		strings.Replace(second("  paths: [{path: O-1, verdicts: [open]}]"), "version: 2", "version: 3", 1):       `x.yaml:4:12: this was written for version 3 of scenario own, which is at version 2: look through it with wallprobe scenario show own.yaml, then write 2 here`,
		strings.Replace(second("  paths: [{path: O-1, verdicts: [open]}]"), "role: app", "role: nobody", 1):      `x.yaml:5:9: scenario own has no near end "nobody"; known are app`,
		second("  paths: [{path: O-1, verdicts: [open]}, {path: P-1, verdicts: [open]}]"):                        `x.yaml:6:49: scenario own has no path "P-1"; did you mean "O-1"?`,
		second("  paths: [{path: O-6, verdicts: [open]}]"):                                                       `x.yaml:6:18: path O-6 of scenario own is not measured from role app`,
		second("  paths: [{path: O-5, verdicts: [open]}]"):                                                       `x.yaml:6:11: path O-5 can never be measured, so that nothing can be expected of it: it is nothing`,
		second("  paths: [{path: O-1, transport: udp, verdicts: [open]}]"):                                       `x.yaml:6:34: path O-1 is not over udp`,
		second("  paths: [{path: O-2, ports: 40005-40011, verdicts: [open]}]"):                                   `x.yaml:6:30: path O-2 does not have 40011; it has 40000-40010`,
		second("  outcomes: [{outcome: calls, works: true}]"):                                                    `x.yaml:6:24: role app of scenario own has no outcome "calls"; did you mean "call"?`,
		second("  outcomes: [{outcome: call, works: true, way: 3}]"):                                             `x.yaml:6:48: outcome call has no way 3; it has 2`,
	} {
		err := parse(t, text).Fit([]*scenarios.Scenario{s})
		if _, told := errors.AsType[scenarios.Errors](err); !told || err.Error() != want {
			t.Errorf("got:  %v\nwant: %s\n%s", err, want, text)
		}
	}
}

// samples are results of every kind.
func samples(t *testing.T) map[string]*client.Result {
	out := map[string]*client.Result{
		"own":     ownResult(webOpen, mediaPart, noTelnet),
		"targets": ownResult(webOpen, "O-2 udp 40000-40010 req: open@x 40000-40010, rejected@y 40000-40010"),
	}
	files, _ := filepath.Glob("testdata/*.json")
	for _, name := range append(files, "../testdata/report/result-json.golden") {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		r := new(client.Result)
		if err := json.Unmarshal(data, r); err != nil {
			t.Fatal(err)
		}
		out[name] = r
	}
	return out
}

// again is a copy of a result.
func again(t *testing.T, r *client.Result) *client.Result {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	c := new(client.Result)
	if err := json.Unmarshal(data, c); err != nil {
		t.Fatal(err)
	}
	return c
}

func fails(list []client.Expectation) bool {
	return slices.ContainsFunc(list, func(x client.Expectation) bool { return x.State != client.Holds })
}

// one is a single file.
func one(results ...*client.Result) []Source { return []Source{{Results: results}} }

// What was made from a result holds for it, and for no result that differs in
// one verdict that was told.
func TestExpectationsMadeFromAResultHoldForItAlone(t *testing.T) {
	for name, r := range samples(t) {
		data, err := Write(one(r))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f := parse(t, string(data))
		if got := f.Check(r); len(got) == 0 || fails(got) {
			t.Errorf("%s: %v\n%s", name, states(got), data)
		}
		flips := 0
		flip := func(v *client.Verdict, changed *client.Result) {
			was := *v
			for _, other := range client.Verdicts {
				if other == was || unsure(was) || was == client.Partial || was == client.Degraded && other == client.Open {
					continue
				}
				if *v = other; !fails(f.Check(changed)) {
					t.Errorf("%s: %s in place of %s goes unseen\n%s", name, other, was, data)
				}
				flips++
			}
			*v = was
		}
		c := again(t, r)
		for i := range c.Findings {
			x := &c.Findings[i]
			for j := range x.Parts {
				flip(&x.Parts[j].Verdict, c)
			}
			if len(x.Parts) == 0 {
				flip(&x.Verdict, c)
			}
		}
		for i := range c.Outcomes {
			if o := &c.Outcomes[i]; !o.Unknown {
				o.Works = !o.Works
				if !fails(f.Check(c)) {
					t.Errorf("%s: outcome %s may be either way", name, o.ID)
				}
				o.Works = !o.Works
			}
		}
		if flips == 0 {
			t.Errorf("%s: nothing was tried", name)
		}
	}
}

func TestResultsThatProveNothingAreNotExpectedAgain(t *testing.T) {
	cut, dark, blind := ownResult(webOpen), ownResult("O-1 tcp 443 req: request-lost"), ownResult("O-1 tcp 443 req: silent")
	cut.Complete, cut.Why = false, "stopped"
	blind.Outcomes = nil
	for want, r := range map[string][]*client.Result{
		"there are no results to expect again": nil,
		"the result of own as app over ipv4 is nothing to expect again: it was cut off half-way (stopped); measure again":             {cut},
		"the result of own as app over ipv4 is nothing to expect again: nothing passed in it, so that what was closed proves nothing": {dark},
		"the result of own as app over ipv4 is nothing to expect again: nothing in it could be measured":                              {blind},
	} {
		if _, err := Write(one(r...)); err == nil || err.Error() != want {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// Texts from a result, which may come from anywhere, cannot become keys or lines.
func TestNothingFromAResultBreaksOutOfTheFile(t *testing.T) {
	r := ownResult(webOpen, mediaPart, "O-3 tcp 23 neg: silent")
	for i := range r.Findings {
		r.Findings[i].Title = "x\n    others: as-scenario\r\u2028y\x00\u202e # - {path: O-9}"
	}
	r.Outcomes[0].Title, r.Outcomes[0].ID = "}\n- a: b", "sign-in"
	r.Firewall = &client.Firewall{Name: "a: \"b\"\n# c"}
	data, err := Write(one(r, behind("other", webOpen)))
	if err == nil {
		t.Errorf("a name of two lines was taken:\n%s", data)
	}
	r.Firewall.Name = `a: "b" # c`
	if data, err = Write(one(r, behind("other", webOpen))); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	f := parse(t, string(data))
	if got := f.Check(r); fails(got) || len(got) != 5 || f.Runs[0].Others != "" || f.Runs[0].Firewall != r.Firewall.Name {
		t.Errorf("%v\n%s", states(got), data)
	}
}

func TestCommittedSchemaIsThatOfTheTypes(t *testing.T) {
	got, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("schema.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("schema.json")
	if err != nil || !bytes.Equal(want, got) {
		t.Errorf("schema.json is old; go test ./expect -update rewrites it (%v):\n%s", err, cmp.Diff(string(want), string(got)))
	}
}

// Whatever a file holds, reading it ends with expectations or with problems.
func FuzzParse(f *testing.F) {
	f.Add([]byte(file("  paths: [{path: O-1, verdicts: [open]}, {path: O-2, ports: 40000-40001, target: x, verdicts: [rejected]}]", "  outcomes: [{outcome: call, works: true, way: 2}]")))
	f.Add([]byte("schema: wallprobe/expect/1\nruns: [{}]\n"))
	f.Add([]byte("runs: [a, {paths: [b], outcomes: [c]}]\n"))
	r := ownResult(webOpen, mediaPart, noTelnet)
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := Parse("x.yaml", data)
		if err != nil {
			if _, told := errors.AsType[scenarios.Errors](err); !told {
				t.Errorf("%T: %v", err, err)
			}
			return
		}
		x.Check(r)
		x.Unmatched([]*client.Result{r})
		x.Fit([]*scenarios.Scenario{})
	})
}
