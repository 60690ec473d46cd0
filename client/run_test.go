package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Ports of userMade, counted from base.
const userMade = `schema: wallprobe/scenario/1
name: user-made
title: a user's own system
version: 1
sources:
  - {id: D0, file: own.txt, title: own notes, language: en}
roles:
  - {name: agent, title: the agent, site: here}
  - {name: server, title: the server, site: there}
paths:
  - {id: U-1, title: plain, from: [agent], to: [server], direction: out, transport: [tcp], ports: "%[1]d", need: req, source: D0, quote: one}
  - {id: U-2, title: web, from: [agent], to: [server], direction: out, transport: [tcp], ports: "%[2]d", protocol: https, names: [a.example], need: req, source: D0, quote: two}
  - {id: U-3, title: datagrams, from: [agent], to: [server], direction: out, transport: [udp], ports: "%[1]d-%[2]d", need: req, source: D0, quote: three}
  - {id: U-4, title: stun, from: [agent], to: [server], direction: out, transport: [udp, tcp], ports: "%[3]d", protocol: stun, need: req, source: D0, quote: four}
  - {id: U-5, title: a range, from: [agent], to: [server], direction: out, transport: [udp, tcp], ports: "%[4]d-%[5]d", need: req, source: D0, quote: five}
  - {id: U-6, title: long silence, from: [agent], to: [server], direction: out, transport: [tcp], ports: "%[6]d", idle: %[7]s, need: req, source: D0, quote: six}
outcomes:
  - id: all
    title: everything
    roles: [agent]
    ways:
      - {title: direct, paths: [U-1, U-2, U-3, U-4, U-5, U-6]}
`

func ownScenario(t *testing.T, base int, idle time.Duration) *scenarios.Scenario {
	t.Helper()
	s, err := scenarios.Parse("own.yaml", fmt.Appendf(nil, userMade, base, base+1, base+2, base+10, base+80, base+3, idle))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	testKey  = wire.Key{1, 2, 3}
	loopback = netip.MustParseAddr("127.0.0.1")
)

// far runs a reflector for the scenario on loopback.
type far struct {
	scenario *scenarios.Scenario
	stop     func() // and wait
}

func startFar(t *testing.T, idle time.Duration) *far {
	t.Helper()
	for range 20 {
		s := ownScenario(t, 10000+rand.IntN(9000), idle)
		tcp, udp := scenarios.Ports(s)
		r, err := reflector.Listen(reflector.Config{Key: testKey, Addrs: []netip.Addr{loopback}, TCP: tcp, UDP: udp, Mode: steer.Sockets, Inward: true, Journal: io.Discard})
		if _, taken := errors.AsType[*steer.BindError](err); taken {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := r.Serve(ctx); err != nil {
				t.Error(err)
			}
		})
		f := &far{s, sync.OnceFunc(func() { cancel(); wg.Wait() })}
		t.Cleanup(f.stop)
		return f
	}
	t.Fatal("no free ports in 20 tries")
	return nil
}

func verdicts(r *Result) map[string]Verdict {
	got := make(map[string]Verdict)
	for _, f := range r.Findings {
		got[f.Path+"/"+string(f.Transport)] = f.Verdict
	}
	return got
}

func allAre(v Verdict) map[string]Verdict {
	return map[string]Verdict{"U-1/tcp": v, "U-2/tcp": v, "U-3/udp": v, "U-4/udp": v, "U-4/tcp": v, "U-5/udp": v, "U-5/tcp": v, "U-6/tcp": v}
}

func TestRunAgainstAReflectorWithNothingBetween(t *testing.T) {
	for _, sweep := range []bool{false, true} {
		f := startFar(t, 50*time.Millisecond)
		var mu sync.Mutex
		var last Progress
		got, err := Run(t.Context(), Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Sweep: sweep, Program: "test", Progress: func(p Progress) {
			mu.Lock()
			defer mu.Unlock()
			last = p
		}})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range got.Findings {
			if x.Verdict != Open {
				t.Errorf("%s/%s: %s, %s", x.Path, x.Transport, x.Sentence(), x.Why)
			}
			if x.Attempts.Sent == 0 || x.Attempts.Answered == 0 || x.Attempts.Seen == 0 && x.Path != "U-4" {
				t.Errorf("%s/%s: attempts %+v", x.Path, x.Transport, x.Attempts)
			}
		}
		if diff := cmp.Diff(allAre(Open), verdicts(got)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]Outcome{{ID: "all", Title: "everything", Works: true, Via: "direct", Ways: []Way{{Title: "direct", Works: true}}}}, got.Outcomes, same); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if !got.Complete || got.Why != "" || got.Offline || got.Control.Via == "" || len(got.Ledgers) != 1 || got.Schema != ResultSchema || got.Role != "agent" || got.Family != "ipv4" {
			t.Errorf("%+v", got)
		}
		if last.Total == 0 || sweep && last.Done != last.Total {
			t.Errorf("progress %+v", last)
		}
	}
}

func TestWrongKeyIsRefusedBeforeAnythingIsProbed(t *testing.T) {
	f := startFar(t, 50*time.Millisecond)
	got, err := Run(t.Context(), Config{Scenario: f.scenario, Reflector: loopback, Key: wire.Key{9}})
	refusal, ok := errors.AsType[*wire.ControlError](err)
	if !ok || got != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	if diff := cmp.Diff(&wire.ControlError{Wallprobe: 1, Code: "key", Message: "the reflector does not accept this key"}, refusal); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReflectorThatIsNotThereIsLookedForOnEveryPort(t *testing.T) {
	f := startFar(t, 50*time.Millisecond)
	f.stop()
	got, err := Run(t.Context(), Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Timeout: 800 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	want := []uint16{443}
	for _, id := range []string{"U-1", "U-2", "U-4", "U-6"} {
		i := slices.IndexFunc(f.scenario.Paths, func(p scenarios.Path) bool { return p.ID == id })
		want = append(want, f.scenario.Paths[i].Ports[0].First)
	}
	var tried []uint16
	for _, x := range got.Control.Tried {
		tried = append(tried, x.Port)
		if x.Error == "" {
			t.Errorf("port %d says nothing", x.Port)
		}
	}
	if diff := cmp.Diff(want, tried); diff != "" || got.Control.Via != "" || len(got.Ledgers) > 0 {
		t.Errorf("via %q (-want +got):\n%s", got.Control.Via, diff)
	}
	if diff := cmp.Diff(allAre(Unmeasured), verdicts(got)); diff != "" {
		t.Errorf("a refusal without a ledger proves nothing (-want +got):\n%s", diff)
	}
	if o := got.Outcomes[0]; o.Works || !o.Unknown {
		t.Errorf("%+v", o)
	}
}

// during runs while the path of long silence is under way: it calls what once
// everything else is done.
func during(t *testing.T, ctx context.Context, f *far, what func()) (*Result, error) {
	t.Helper()
	var mu sync.Mutex
	left := len(MakePlan(f.scenario, Setting{Role: "agent", Reflector: loopback}).Probes) - 1
	return Run(ctx, Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Timeout: 2 * time.Second, Update: func(func() Result) {
		mu.Lock()
		defer mu.Unlock()
		if left--; left == 0 {
			what()
		}
	}})
}

func TestFindingsAreKeptWhenTheReflectorIsKilledHalfWay(t *testing.T) {
	f := startFar(t, time.Minute)
	got, err := during(t, t.Context(), f, f.stop)
	if err != nil {
		t.Fatal(err)
	}
	want := allAre(Open)
	want["U-6/tcp"] = Cut // it was under way
	if diff := cmp.Diff(want, verdicts(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Complete || len(got.Ledgers) > 0 || got.Why != "the reflector 127.0.0.1 did not give its ledger: connect: connection refused" {
		t.Errorf("complete %v, %d ledgers: %s", got.Complete, len(got.Ledgers), got.Why)
	}
}

func TestResultSoFarIsKeptWhenTheRunIsCancelledHalfWay(t *testing.T) {
	f := startFar(t, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	got, err := during(t, ctx, f, cancel)
	if !errors.Is(err, context.Canceled) || got == nil {
		t.Fatalf("%v, %v", got, err)
	}
	want := allAre(Open)
	want["U-6/tcp"] = Unmeasured // what the run itself broke off says nothing of the path
	if diff := cmp.Diff(want, verdicts(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Complete || got.Why != "stopped: context canceled" {
		t.Errorf("complete %v: %s", got.Complete, got.Why)
	}
}

func TestUnknownRoleIsExplained(t *testing.T) {
	_, err := Run(t.Context(), Config{Scenario: ownScenario(t, 10000, time.Second), Role: "nobody", Reflector: loopback})
	if want := `scenario user-made has no near end "nobody"; choose one of agent`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// Side by side, round trips would be those of what else is probed as well.
func TestProbesOneByOneDoNotMeet(t *testing.T) {
	var paths []scenarios.Path
	for _, id := range []string{"X-1", "X-2", "X-3"} {
		l, err := net.Listen("tcp", "127.0.0.1:0") // the system accepts, and nothing ever answers
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		paths = append(paths, path(t, id, scenarios.TCP, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)))
	}
	const each = 200 * time.Millisecond
	s := ownScenario(t, 10000, time.Second)
	r, err := newRunner(Config{Scenario: s, Reflector: loopback, Timeout: each, OneByOne: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	r.plan = planOf(Setting{Reflector: loopback}, paths...)
	began := time.Now()
	r.probeAll(t.Context())
	if took := time.Since(began); len(r.plan.Probes) != len(paths) || took < time.Duration(len(paths))*each {
		t.Errorf("%d probes in %v", len(r.plan.Probes), took)
	}
	for id, seen := range r.seen {
		if len(seen) != 1 || seen[0].Fault != protocol.FaultTimeout {
			t.Errorf("probe %d: %+v", id, seen)
		}
	}
}
