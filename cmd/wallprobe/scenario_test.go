package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

// scenario runs "wallprobe scenario" with more arguments.
func scenario(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, told bytes.Buffer
	status = run(t.Context(), append([]string{"wallprobe", "scenario"}, args...), &out, &told)
	return status, out.String(), told.String()
}

// file writes a file of its own for the test.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const ownScenario = `schema: wallprobe/scenario/1
name: own
title: own system
version: 3
description: a system of one's own
sources:
  - {id: D9, file: d9.txt, title: letter, language: ja}
roles:
  - {name: pc, title: a computer, site: office}
  - {name: far, title: a server, site: internet}
paths:
  - {id: O-1, title: web, from: [pc], to: [far], direction: out, transport: [tcp, udp], ports: 443, protocol: sooner,
     names: [a.example.com], need: req, source: D9, quote: 通信, inferred: [transport], bytes: 20000}
  - {id: O-2, title: media, from: [pc], to: [far], direction: out, transport: [udp], ports: 40000, localPorts: 5000-5100,
     need: cond, when: video, pick: one, basis: external, maxLoss: 0.05, addresses: [192.0.2.0/24]}
  - {id: O-3, title: nothing in, from: [far], to: [pc], direction: in, need: neg, unmeasured: no port is named}
outcomes:
  - {id: works, title: works, roles: [pc], optional: true, note: of the whole, ways: [{title: web, paths: [O-1/tcp], basis: inferred, note: of the way}]}
conflicts:
  - {id: which, title: "which one?", claims: [O-1, O-2], note: both are kept}
`

const ownShown = `own: own system, version 3
  a system of one's own
  D9: letter (ja, d9.txt)

Roles
  pc   a computer  at office    --as pc
  far  a server    at internet

Paths
  O-1  web         out  443/tcp+udp          sooner  required     stand-in
       pc -> far; inferred: transport
       names: a.example.com
       carries 20,000 bytes each way
       tcp wire: in place of sooner: wallprobe's own message and data phase over TCP
       udp wire: in place of sooner: wallprobe's own message in datagrams, small ones and one of the
       size that the application sends, answered by one no longer
       D9: “通信”
  O-2  media       out  own 5000-5100/udp            conditional  own
                        to 40000
       pc -> far; external
       required when video
       addresses: 192.0.2.0/24
       each session draws one port at random
       may lose 5 % of the datagrams
       wire: a bare message of wallprobe's own to every port of the range
  O-3  nothing in  in                                need not be  unmeasured
                                                     open
       far -> pc
       unmeasured: no port is named

Outcomes, with their ways in the order in which they are tried
  works  works (optional)  for pc
         1 web: O-1/tcp (inferred)
         note: of the way
         note: of the whole

Statements that contradict each other
  which  which one? O-1, O-2
         note: both are kept
`

func TestShowTellsAllThatAScenarioHolds(t *testing.T) {
	path := file(t, "own.yaml", ownScenario)
	status, quoted, stderr := scenario(t, "show", path, "--quotes")
	if diff := cmp.Diff(ownShown, quoted); status != exitHolds || diff != "" {
		t.Errorf("status %d, %s(-want +got):\n%s", status, stderr, diff)
	}
	_, plain, _ := scenario(t, "show", path)
	if diff := cmp.Diff(strings.Replace(ownShown, "       D9: “通信”\n", "", 1), plain); diff != "" {
		t.Errorf("without quotes (-want +got):\n%s", diff)
	}
}

func TestEveryBuiltinScenarioCanBeListedAndShown(t *testing.T) {
	list, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	_, listed, _ := scenario(t, "list")
	for _, s := range list {
		if !strings.Contains(listed, "\n"+s.Name+" ") {
			t.Errorf("%s is not in the list:\n%s", s.Name, listed)
		}
		status, shown, stderr := scenario(t, "show", s.Name, "--quotes")
		if status != exitHolds {
			t.Errorf("show %s: status %d, %s", s.Name, status, stderr)
		}
		for _, p := range s.Paths {
			if !strings.Contains(shown, "\n  "+p.ID+" ") {
				t.Errorf("show %s lacks path %s", s.Name, p.ID)
			}
		}
		for _, o := range s.Outcomes {
			if !strings.Contains(shown, "\n  "+o.ID+" ") {
				t.Errorf("show %s lacks outcome %s", s.Name, o.ID)
			}
		}
	}
}

func TestCheckTellsEveryProblemOfEveryFile(t *testing.T) {
	good := file(t, "good.yaml", ownScenario)
	bad := file(t, "bad.yaml", strings.NewReplacer("ports: 443", "ports: 0", "version: 3", "version: three", "O-1/tcp", "O-9").Replace(ownScenario))
	none := filepath.Join(t.TempDir(), "none.yaml")
	status, out, stderr := scenario(t, "check", good, bad, none)
	want := fmt.Sprintf(`%s: fine, 3 paths
%[2]s:4:10: "version" must be a whole number, not the text "three"
%[2]s:12:96: "ports": port 0 does not exist: ports are 1 to 65535
%[2]s:18:108: unknown path "O-9"; did you mean "O-1"?
%s: no such file or directory
`, good, bad, none)
	if diff := cmp.Diff(want, out); status != exitUsage || stderr != "" || diff != "" {
		t.Errorf("status %d, %q (-want +got):\n%s", status, stderr, diff)
	}
	if status, out, _ := scenario(t, "check", good); status != exitHolds || out != good+": fine, 3 paths\n" {
		t.Errorf("a good file: status %d, %q", status, out)
	}
}

func TestPortsAreTheUnionOfTheScenarios(t *testing.T) {
	path := file(t, "own.yaml", ownScenario)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"screenconnect"}, "tcp  2 ports: 8040-8041\n"},
		{[]string{"screenconnect", path}, "tcp  3 ports: 443,8040-8041\nudp  2 ports: 443,40000\n"},
		{[]string{path, "--format", "json"}, `{"tcp":"443","udp":"443,40000"}` + "\n"},
	} {
		status, out, stderr := scenario(t, append([]string{"ports"}, c.args...)...)
		if status != exitHolds || out != c.want {
			t.Errorf("ports %v: status %d, %q, %q, want %q", c.args, status, out, stderr, c.want)
		}
	}
	list, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	tcp, udp := scenarios.Ports(list...)
	_, out, _ := scenario(t, "ports", "--format=json")
	if want := fmt.Sprintf("{\"tcp\":%q,\"udp\":%q}\n", tcp, udp); out != want {
		t.Errorf("all ports: %q, want %q", out, want)
	}
}

func TestSchemaIsPrintedAsItIs(t *testing.T) {
	want, err := scenarios.Schema()
	if err != nil {
		t.Fatal(err)
	}
	status, out, _ := scenario(t, "schema")
	if status != exitHolds || out != string(want) || !json.Valid([]byte(out)) {
		t.Errorf("status %d, %d bytes, want %d", status, len(out), len(want))
	}
}

func TestWrongUseOfScenarioIsToldWithStatus2(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"lsit"}, `wallprobe: scenario: there is no command "lsit"; see wallprobe scenario --help`},
		{[]string{"list", "x"}, `wallprobe: scenario list: takes no arguments; see one with: wallprobe scenario show x`},
		{[]string{"show"}, `wallprobe: scenario show: name one scenario or file, for example chrome-remote-desktop; scenario list has them all`},
		{[]string{"show", "screenconect"}, `wallprobe: no scenario and no file is named "screenconect": built in are ` + strings.Join(scenarios.Names(), ", ") + `; did you mean "screenconnect"?`},
		{[]string{"check"}, `wallprobe: scenario check: name at least one file`},
		{[]string{"ports", "--format", "xml"}, `wallprobe: scenario ports: --format is text or json, not xml`},
	} {
		status, out, stderr := scenario(t, c.args...)
		if status != exitUsage || out != "" || stderr != c.want+"\n" {
			t.Errorf("%v: status %d, %q\n got %s\nwant %s", c.args, status, out, stderr, c.want)
		}
	}
}
