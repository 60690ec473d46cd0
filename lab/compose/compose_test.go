// Package compose tests the lab that docker-compose.yml makes of containers.
// scripts/compose runs it, where there is a Docker engine.
package compose

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/report"
)

// composeVariable names the program to test with: docker-compose, or docker compose.
const composeVariable = "WALLPROBE_COMPOSE"

// patience is longer than anything takes that works.
const patience = 5 * time.Minute

// An ending is how a program ended and what it said.
type ending struct {
	status      int
	out, errors string
}

// play runs a program in a folder.
func play(t *testing.T, folder string, env []string, argv ...string) ending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, complaints bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = folder, &out, &complaints
	cmd.Env = append(os.Environ(), append(env, "PWD="+folder)...)
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited || ctx.Err() != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, complaints.String())
	}
	return ending{cmd.ProcessState.ExitCode(), out.String(), complaints.String()}
}

// A stage is a folder that somebody works in, with the containers.
type stage struct {
	*testing.T
	root, folder string
	service      string // client, if empty
}

func newStage(t *testing.T) *stage {
	if os.Getenv(composeVariable) == "" {
		// Never forced: make test runs these tests by scripts/compose, or says that it does not.
		t.Skip("needs the image of a Docker engine: make compose")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{T: t, root: root, folder: t.TempDir()}
	// The containers' users are not this one.
	for dir := s.folder; dir != filepath.Dir(dir) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// compose runs the real docker-compose.yml.
func (s *stage) compose(env []string, args ...string) ending {
	s.Helper()
	argv := append(strings.Fields(os.Getenv(composeVariable)), "--file", filepath.Join(s.root, "docker-compose.yml"))
	return play(s.T, s.folder, env, append(argv, args...)...)
}

// run is what a person types.
func (s *stage) run(firewall string, args ...string) ending {
	s.Helper()
	return s.compose([]string{"FIREWALL=" + firewall, "FIREWALL2=far.nft"}, append([]string{"run", "--rm", "-T", cmp.Or(s.service, "client")}, args...)...)
}

// rootless runs the lab of namespaces.
func (s *stage) rootless(args ...string) ending {
	s.Helper()
	return play(s.T, s.folder, nil, append([]string{filepath.Join(s.root, "scripts/lab-exec"), filepath.Join(s.root, "bin/wallprobe"), "lab"}, args...)...)
}

func (s *stage) write(name, text string) {
	s.Helper()
	if err := os.WriteFile(filepath.Join(s.folder, name), []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) results(e ending) []*client.Result {
	s.Helper()
	list, err := report.ReadJSON(strings.NewReader(e.out))
	if err != nil || len(list) == 0 {
		s.Fatalf("exit status %d, no results: %v\n%s\n%s", e.status, err, e.errors, e.out)
	}
	return list
}

// both holds one lab against the other: no verdict on any port may differ, and
// no outcome. A machine that is busy with other things may spoil a measurement,
// so scenarios that differ are measured again, twice at most.
func (s *stage) both(firewalls, names []string, flags ...string) {
	s.Helper()
	// A busy machine takes its time; what is swallowed is so after 3 s as well.
	flags = append(flags, "--timeout", "3s", "--json", "-")
	for _, f := range firewalls {
		flags = append(flags, "--firewall", f)
	}
	var second []string // what the containers have from FIREWALL2
	if s.service != "" {
		second = []string{"--far-firewall", "far.nft"}
	}
	for range 3 {
		args := slices.Concat(names, flags)
		here, there := s.rootless(append(second, args...)...), s.run("nowhere.nft", args...)
		c, err := expect.Compare(s.results(here), s.results(there), expect.Options{})
		if err != nil || len(c.Pairs) != len(names)*len(firewalls) || len(c.OldOnly)+len(c.NewOnly) > 0 {
			s.Fatalf("%d pairs of %d scenarios behind %d firewalls: %v", len(c.Pairs), len(names), len(firewalls), err)
		}
		if names = differing(c); len(names) == 0 && here.status == there.status {
			s.Logf("%d results are the same in both labs", len(c.Pairs))
			return
		}
		var table strings.Builder
		if err := report.Comparison(&table, c, report.Options{Details: true}); err != nil {
			s.Fatal(err)
		}
		s.Logf("%v differ; exit statuses are %d and %d; old is the rootless lab, new is Compose\n%s", names, here.status, there.status, table.String())
		if len(names) == 0 {
			break
		}
	}
	s.Error("the labs do not agree")
}

// differing are the scenarios of which the labs tell different things. Where only
// a sample of a range is tried, the samples differ: that is no difference.
func differing(c expect.Comparison) []string {
	var out []string
	for _, p := range c.Pairs {
		told := func(x expect.Change) bool {
			return x.Kind != expect.Untold || x.Old.Verdict == "" || x.New.Verdict == ""
		}
		if p.Paths == 0 || len(p.Outcomes)+len(p.Doubts) > 0 || slices.ContainsFunc(p.Changes, told) {
			out = append(out, p.Scenario)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

const (
	ownScenario = `schema: wallprobe/scenario/1
name: own
title: a system of one's own
version: 1
sources:
  - {id: D, file: letter.txt, title: letter, language: en}
roles:
  - {name: pc, title: a computer, site: office}
  - {name: far, title: a server, site: internet}
paths:
  - {id: O-1, title: web, from: [pc], to: [far], direction: out, transport: [tcp], ports: 28443, need: req}
  - {id: O-2, title: media, from: [pc], to: [far], direction: out, transport: [udp], ports: 28444-28449, need: req}
outcomes:
  - {id: sign-in, title: sign-in, roles: [pc], ways: [{title: web, paths: [O-1]}]}
`
	ownRules = `table inet own {
	chain forward {
		type filter hook forward priority filter; policy accept;
		include "./part.nft"
		iifname "lan0" udp dport 28447 counter reject
	}
}
`
	farRules = `table inet far {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "wan0" tcp dport 28443 accept
		iifname "wan0" udp dport 28444-28447 accept
	}
}
`
	ownPart = `iifname "lan0" udp dport 28445-28446 counter drop` + "\n"
)

func TestComposeSaysWhatTheRootlessLabSays(t *testing.T) {
	s := newStage(t)
	s.both([]string{"open", "https-only", "drop-udp-remote-40001"},
		[]string{"chrome-remote-desktop", "screenconnect", "timesensor-legal"})
}

func TestComposeSaysWhatTheRootlessLabSaysOfFilesOfOnesOwn(t *testing.T) {
	s := newStage(t)
	s.write("own.yaml", ownScenario)
	s.write("own.nft", ownRules)
	s.write("part.nft", ownPart)
	s.write("shut.nft", "table inet own {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n")
	s.write("office.nft", strings.ReplaceAll(ownRules, "lan0", "br-lan"))
	s.both([]string{"own.nft", "office.nft", "shut.nft", "stateful"}, []string{"own.yaml"})
	s.both([]string{"own.nft"}, []string{"own.yaml"}, "--ipv6")
	s.both([]string{"office.nft"}, []string{"own.yaml"}, "--inside", "br-lan=192.168.7.1/24", "--outside", "ppp0=203.0.113.1/24")
}

// A port is open if both firewalls let it pass, and if only those.
func TestTwoSitesHaveAFirewallEach(t *testing.T) {
	s := newStage(t)
	s.service = "two-sites"
	s.write("own.yaml", ownScenario)
	s.write("own.nft", ownRules)
	s.write("part.nft", ownPart)
	s.write("far.nft", farRules)
	s.both([]string{"own.nft"}, []string{"own.yaml"})
	verdicts := map[client.Verdict]string{}
	for _, p := range s.results(s.run("own.nft", "own.yaml", "--json", "-"))[0].Findings[1].Parts {
		verdicts[p.Verdict] = p.Ports.String()
	}
	want := map[client.Verdict]string{client.Open: "28444", client.RequestLost: "28445-28446,28448-28449", client.Rejected: "28447"}
	if !maps.Equal(verdicts, want) {
		t.Errorf("%v, want %v", verdicts, want)
	}
}

// Containers stay between runs, so a run must not be told of the rules of the
// one before, nor of the connections that those let through.
func TestEveryRunHasTheRulesThatItNames(t *testing.T) {
	s := newStage(t)
	s.write("own.yaml", ownScenario)
	s.write("own.nft", ownRules)
	for _, c := range []struct{ part, want string }{
		{"", "open 28444-28446,28448-28449"},
		{ownPart, "request-lost 28445-28446"},
		{"", "open 28444-28446,28448-28449"},
	} {
		s.write("part.nft", c.part)
		var parts []string
		for _, r := range s.results(s.run("own.nft", "own.yaml", "--json", "-")) {
			for _, p := range r.Findings[1].Parts {
				parts = append(parts, fmt.Sprintf("%s %s", p.Verdict, p.Ports))
			}
		}
		if !slices.Contains(parts, c.want) {
			t.Errorf("with %q: %v, want %s", c.part, parts, c.want)
		}
	}
}

func TestTroubleIsSaidAndEnds(t *testing.T) {
	s := newStage(t)
	s.write("bad.nft", "table inet own {\n\tchain forward {\n\t\tbogus\n\t}\n}\n")
	s.write("box.nft", "# wallprobe: intercept 443/tcp\n"+strings.Replace(ownRules, `include "./part.nft"`, "", 1))
	for _, c := range []struct {
		firewall string
		args     []string
		status   int
		want     string
	}{
		{"nowhere.nft", []string{"screenconnect"}, 2, "wallprobe: firewall: open nowhere.nft: no such file or directory"},
		{"nobody", []string{"screenconnect"}, 2, `wallprobe: no firewall "nobody": neither a file nor one of`},
		{"bad.nft", []string{"screenconnect"}, 2, "firewall bad.nft:\nbad.nft:3:8-8: Error: syntax error"},
		{"box.nft", []string{"screenconnect"}, 2, "box.nft, line 1: tcp proxy on firewall: host firewall is kept by another process"},
		{"stateful", []string{"diff", "--old", "open", "--new", "stateful"}, 2, "diff: needs labs of namespaces"},
		{"stateful", []string{"nothing"}, 2, `no scenario and no file is named "nothing"`},
		{"stateful", []string{"exec", "--host", "server", "--", "sh", "-c", "exit 42"}, 42, ""},
		{"stateful", []string{"exec", "--host", "lan2", "--", "no-such-program"}, 2, "no-such-program"},
	} {
		e := s.run(c.firewall, c.args...)
		if e.status != c.status || !strings.Contains(e.errors, c.want) {
			t.Errorf("FIREWALL=%s %v: exit status %d, want %d with %q:\n%s", c.firewall, c.args, e.status, c.status, c.want, e.errors)
		}
	}
}

func TestNobodyMayDoMoreThanItsTaskAsks(t *testing.T) {
	s := newStage(t)
	if e := s.compose(nil, "up", "--detach"); e.status != 0 {
		t.Fatal(e.errors)
	}
	containers := strings.Fields(s.compose(nil, "ps", "--quiet", "--all").out)
	if len(containers) < 7 {
		t.Fatalf("containers: %v", containers)
	}
	for _, id := range containers {
		e := play(t, s.folder, nil, "docker", "inspect", "--format",
			`{{.Config.Labels}} {{.HostConfig.NetworkMode}} {{.HostConfig.Privileged}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.CapAdd}}`, id)
		labels, rest, _ := strings.Cut(e.out, "] ")
		want := "none false [ALL] [no-new-privileges] [" // and its network's capabilities
		if strings.Contains(labels, "service:client") {
			_, rest, _ = strings.Cut(rest, " ") // the host's network, by that container's id
			want = "false [ALL] [no-new-privileges] []"
		}
		if !strings.HasPrefix(rest, want) {
			t.Errorf("%s] %s: want %s", labels, rest, want)
		}
	}
	for host, want := range map[string]string{
		"host": "0000000000000000", "lan2": "0000000000003000", "firewall": "0000000000003000", "server": "0000000000003000",
	} {
		e := s.run("open", "exec", "--bare", "--host", host, "--", "cat", "/proc/self/status")
		if !strings.Contains(e.out, "CapEff:\t"+want) || !strings.Contains(e.out, "NoNewPrivs:\t1") || strings.Contains(e.out, "Uid:\t0") {
			t.Errorf("%s: want the capabilities %s (NET_ADMIN and NET_RAW are 3000), and no root\n%s%s", host, want, e.out, e.errors)
		}
	}
}

func TestNoLinkLeadsOutOfTheContainers(t *testing.T) {
	s := newStage(t)
	for host, want := range map[string]string{
		"host": "eth0 lo", "lan2": "eth0 lo", "firewall": "lan0 lo wan0", "server": "eth0 lo", "other": "eth0 lo",
	} {
		e := s.run("open", "exec", "--bare", "--host", host, "--", "cat", "/proc/net/dev")
		var links []string
		for line := range strings.Lines(e.out) {
			if name, _, ok := strings.Cut(line, ":"); ok {
				links = append(links, strings.TrimSpace(name))
			}
		}
		slices.Sort(links)
		if got := strings.Join(links, " "); got != want {
			t.Errorf("%s has the links %q, want %q\n%s", host, got, want, e.errors)
		}
	}
}
