package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client/survey"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// kinds are ways in which a port can fare.
var kinds = []survey.Answer{
	{Sent: 1, Answered: 1, RTT: time.Millisecond},
	{Sent: 3, Fault: survey.Timeout},
	{Sent: 3, Fault: survey.Unreachable, ICMP: survey.ICMP{Type: 3, Code: 13, From: netip.MustParseAddr("10.0.0.1")}},
	{Sent: 3, Fault: survey.Unreachable, ICMP: survey.ICMP{Type: 3, Code: 3, From: netip.MustParseAddr("10.0.0.1")}},
	{Sent: 3, Invalid: 3, Fault: survey.Timeout},
}

// rules give every port its kind; they stand for a firewall.
type rules []byte

// survey answers by the rules and counts the ports that were asked.
func (r rules) survey(asked *int) surveyor {
	return func(_ context.Context, ports scenarios.PortSet, progress func(int)) (out []survey.Answer) {
		for port := range ports.All {
			a := kinds[r[port]]
			a.Port = port
			out = append(out, a)
		}
		*asked += len(out)
		progress(len(out))
		return out
	}
}

// randomRules cuts a set into runs of at least a length.
func randomRules(r *rand.Rand, set scenarios.PortSet, least int) rules {
	out := make(rules, 65536)
	left, kind := 0, byte(0)
	for port := range set.All {
		if left == 0 {
			left = least + r.IntN(2000)
			kind = byte(r.IntN(len(kinds)))
		}
		out[port] = kind
		left--
	}
	return out
}

func fill(o *Observation, a survey.Answer) {
	o.Sent, o.Answered, o.Invalid = int(a.Sent), int(a.Answered), int(a.Invalid)
	o.fault(a)
}

func newSweep(cfg Config) *runner { return &runner{cfg: cfg, progress: make(map[uint32]int)} }

func (r rules) told(t *testing.T, set scenarios.PortSet, obs []Observation) (wrong int) {
	t.Helper()
	fared := make(map[uint16]Observation)
	for _, o := range obs {
		for port := range o.Ports.All {
			if _, twice := fared[port]; twice {
				t.Fatalf("port %d is in two runs", port)
			}
			fared[port] = o
		}
	}
	for port := range set.All {
		want := Observation{}
		fill(&want, kinds[r[port]])
		got, ok := fared[port]
		if !ok {
			t.Fatalf("port %d is in no run", port)
		}
		if got.Sent != want.Sent || got.Answered != want.Answered || got.Fault != want.Fault || got.icmpKey() != want.icmpKey() || got.Invalid != want.Invalid {
			wrong++
		}
	}
	return wrong
}

// Every run of rules that is long enough to hold a sample is found to its edges,
// with far fewer ports asked than there are.
func TestBisectionFindsEveryExactBoundary(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		first := uint16(1024 + r.IntN(30000))
		set := scenarios.PortSet{{First: first, Last: first + uint16(1000+r.IntN(30000))}}
		if seed%2 == 0 {
			set = append(set, scenarios.PortRange{First: 64000, Last: 65535})
		}
		fw := randomRules(r, set, (set.Len()+sample-1)/sample)
		asked := 0
		run := newSweep(Config{})
		p := Probe{ID: 1, Ports: set}
		got, probed := run.range_(t.Context(), p, set, fw.survey(&asked))
		obs := runs(p, got, probed, fill)
		if wrong := fw.told(t, set, obs); wrong > 0 {
			t.Errorf("seed %d: %d ports of %s are told wrong", seed, wrong, set)
		}
		if asked != len(got) || probed.Len() != asked {
			t.Errorf("seed %d: asked %d times, %d ports in the set of those asked, %d answers", seed, asked, probed.Len(), len(got))
		}
		if asked > 1000 {
			t.Errorf("seed %d: %d ports were asked", seed, asked)
		}
		if run.progress[1] != asked {
			t.Errorf("seed %d: progress %d of %d", seed, run.progress[1], asked)
		}
	}
}

// A run that holds no sample may be overlooked, but a port that was asked is
// never told wrong, and no boundary lies anywhere but between two asked ports.
func TestAskedPortsAreNeverToldWrong(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		set := scenarios.PortSet{{First: 1024, Last: 20000}}
		fw := randomRules(r, set, 1)
		asked := 0
		p := Probe{ID: 1, Ports: set}
		got, probed := newSweep(Config{}).range_(t.Context(), p, set, fw.survey(&asked))
		obs := runs(p, got, probed, fill)
		fw.told(t, set, obs)
		if wrong := fw.told(t, probed, obs); wrong > 0 {
			t.Errorf("seed %d: %d asked ports are told wrong", seed, wrong)
		}
		for _, o := range obs {
			for _, run := range o.Ports {
				if !o.Probed.Contains(run.First) {
					t.Errorf("seed %d: a run begins at %d, which was not asked", seed, run.First)
				}
			}
		}
	}
}

func TestSweepAsksEveryPort(t *testing.T) {
	set := ports(t, "1024-5000")
	fw := randomRules(rand.New(rand.NewPCG(1, 1)), set, 1)
	asked := 0
	p := Probe{ID: 1, Ports: set}
	got, probed := newSweep(Config{Sweep: true}).range_(t.Context(), p, set, fw.survey(&asked))
	if wrong := fw.told(t, set, runs(p, got, probed, fill)); wrong > 0 || asked != set.Len() || probed != nil {
		t.Errorf("%d wrong, %d asked of %d, asked set %v", wrong, asked, set.Len(), probed)
	}
}

func TestSweepThatIsCancelledEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	set := ports(t, "1-65535")
	times := 0
	ask := func(context.Context, scenarios.PortSet, func(int)) []survey.Answer {
		times++
		cancel()
		return nil
	}
	got, probed := newSweep(Config{}).range_(ctx, Probe{ID: 1, Ports: set}, set, ask)
	if times != 1 || len(got) > 0 || len(runs(Probe{Ports: set}, got, probed, fill)) > 0 {
		t.Errorf("asked %d times, %d answers", times, len(got))
	}
}

func TestSamplesHoldEveryEdge(t *testing.T) {
	for set, want := range map[string]string{
		"1": "1", "1-2": "1-2", "1-3": "1-3", "7,9,20-21": "7,9,20-21",
		"1000-1099":           "1000,1025,1050,1075,1099",
		"1000-1049,2000-2049": "1000,1025,1049,2000,2025,2049",
		"65532-65535":         "65532-65535",
	} {
		if diff := cmp.Diff(want, samples(ports(t, set), 4, nil).String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", set, diff)
		}
	}
}

func TestEdgesOfEveryPathOfASweepAreTried(t *testing.T) {
	edges := ports(t, "1030-1040")
	if diff := cmp.Diff("1000,1025,1030,1040,1050,1075,1099", samples(ports(t, "1000-1099"), 4, edges).String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSurveyThatCouldNotBeTriedIsExplainedForEveryPort(t *testing.T) {
	broken := errors.New("no socket")
	got := explained(nil, ports(t, "1-2"), broken)
	want := []survey.Answer{{Port: 1, Fault: survey.Other, Err: broken}, {Port: 2, Fault: survey.Other, Err: broken}}
	if diff := cmp.Diff(len(want), len(got)); diff != "" || got[0].Err != broken || got[1].Port != 2 || got[1].Fault != survey.Other {
		t.Errorf("%+v", got)
	}
	if got := explained(nil, ports(t, "1-2"), context.Canceled); len(got) > 0 {
		t.Errorf("a cancelled survey: %+v", got)
	}
}

// A path that shares a sweep begins where no port may have been asked.
func TestPartOfASharedSweepHasAVerdictForEveryPort(t *testing.T) {
	set := ports(t, "1024-65535")
	fw := make(rules, 65536)
	for port := 40001; port < 65536; port++ {
		fw[port] = 1
	}
	asked := 0
	plan := planOf(Setting{}, path(t, "WIDE", scenarios.UDP, "1024-65535"), path(t, "PART", scenarios.UDP, "33333-44444"))
	p := plan.Probes[0]
	got, probed := newSweep(Config{}).range_(t.Context(), p, set, fw.survey(&asked))
	fs := findings(plan, map[uint32][]Observation{1: runs(p, got, probed, func(o *Observation, a survey.Answer) {
		fill(o, a)
		if o.Stage = "token"; o.Answered > 0 {
			o.Stage = "done"
		}
	})})
	far := seenFar(t, func(l *wire.Ledger) {
		l.UDP = set
		l.Probes = []wire.ProbeRecord{{Probe: 1, Counts: []wire.Count{{Ports: intersect(probed, ports(t, "1024-40000")), Seen: 1, Answered: 1}}}}
	})
	Judge(fs, map[Where]*wire.Ledger{WhereFar: far}, Control{})
	want := []string{"open 1024-40000, request-lost 40001-65535", "open 33333-40000, request-lost 40001-44444"}
	if diff := cmp.Diff(want, []string{fs[0].Sentence(), fs[1].Sentence()}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
