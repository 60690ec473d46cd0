package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client/survey"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// brokenOff answers by the rules until so many ports were asked; then it cancels,
// and the rest does not come to its end.
func (r rules) brokenOff(after int, cancel func()) surveyor {
	asked := 0
	ask := r.survey(new(int))
	return func(ctx context.Context, ports scenarios.PortSet, progress func(int)) []survey.Answer {
		out := ask(ctx, ports, progress)
		for i := range out {
			if asked++; asked > after {
				cancel()
				out[i] = survey.Answer{Port: out[i].Port, Sent: 1, Fault: survey.Unfinished}
			}
		}
		return out
	}
}

// Whenever a bisection or a sweep is broken off, each port is told as it fares, or
// as one that was not measured; and what had come to its end is kept.
func TestSweepThatIsBrokenOffTellsNoPortWrong(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		set := scenarios.PortSet{{First: 1024, Last: 9000}, {First: 64000, Last: 65535}}
		fw := randomRules(r, set, (set.Len()+sample-1)/sample)
		ctx, cancel := context.WithCancel(t.Context())
		p, after := Probe{ID: 1, Ports: set}, 1+r.IntN(60)
		got, probed := newSweep(Config{Sweep: seed%3 == 0}).range_(ctx, p, set, fw.brokenOff(after, cancel))
		cancel()
		told := 0
		for _, o := range runs(p, got, probed, fill) {
			for port := range o.Ports.All {
				want := Observation{}
				fill(&want, kinds[fw[port]])
				switch {
				case o.Fault == faultInterrupted:
				case o.Sent != want.Sent || o.Fault != want.Fault || o.icmpKey() != want.icmpKey():
					t.Errorf("seed %d: port %d is told as %+v, it fares as %+v", seed, port, o, want)
				default:
					told++
				}
			}
		}
		if told == 0 {
			t.Errorf("seed %d: nothing is told of %d ports that were measured", seed, after)
		}
	}
}

// Silence in short runs may be a sweep's own doing. Without a second look at it,
// it is not told.
func TestScatteredSilenceIsDoubtedWithoutASecondLook(t *testing.T) {
	got := make(answers)
	for port := range ports(t, "1000-1999").All {
		a := survey.Answer{Port: port, Sent: 1, Answered: 1}
		switch {
		case port == 1100 || port >= 1300 && port < 1400:
			a = survey.Answer{Port: port, Sent: 3, Fault: survey.Timeout}
		case port >= 1400 && port < 1500:
			a = survey.Answer{Port: port, Sent: 2, Fault: survey.Unfinished}
		case port >= 1500 && port < 1600 && port%2 == 0: // some attempts are due still in a long silence
			a = survey.Answer{Port: port, Sent: 2, Fault: survey.Unfinished}
		case port >= 1500 && port < 1600:
			a = survey.Answer{Port: port, Sent: 3, Fault: survey.Timeout}
		}
		got[port] = &a
	}
	set := ports(t, "1000-1999")
	got.doubt(scattered(set, got, nil))
	var silent scenarios.PortSet
	for port := range set.All {
		if got[port].Fault == survey.Timeout {
			silent = appendPort(silent, port)
		}
	}
	if silent.Contains(1100) || !silent.Contains(1350) || !silent.Contains(1501) || silent.Len() != 150 {
		t.Errorf("silent: %s", silent)
	}
}

// A path of which some is open and the rest was not tried is not open.
func TestWhatWasNotTriedIsNoPartOfWhatIsOpen(t *testing.T) {
	names := path(t, "X-1", scenarios.TCP, "443")
	names.Protocol, names.Names = "tls", []string{"a.example", "b.example"}
	plan := planOf(Setting{}, names)
	done := Observation{Probe: 1, Target: "a.example", Addr: farAddr, Ports: ports(t, "443"), Sent: 1, Answered: 1, Stage: protocol.StageDone}
	for name, c := range map[string]struct {
		seen map[uint32][]Observation
		want string
	}{
		"both":    {map[uint32][]Observation{1: {done}, 2: {done}}, "open"},
		"one":     {map[uint32][]Observation{1: {done}}, "open a.example 443, unmeasured b.example 443"},
		"neither": {nil, "unmeasured"},
	} {
		list := findings(plan, c.seen)
		Judge(list, nil, Control{})
		f := &list[0]
		if diff := cmp.Diff(c.want, f.Sentence()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if f.Verdict == Unmeasured && f.Why != whyInterrupted {
			t.Errorf("%s: %s", name, f.Why)
		}
		if name == "one" && f.Verdict != Partial {
			t.Errorf("%s: %s", name, f.Verdict)
		}
	}
}

// What was measured before the interruption keeps its verdict, whatever that is,
// and what was not is said to be unmeasured, port by port.
func TestSweepThatIsInterruptedKeepsWhatItMeasured(t *testing.T) {
	f := startFar(t, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	most := 0
	got, err := Run(ctx, Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Sweep: true, Rate: 50, Progress: func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		if most = max(most, p.Done); most >= 40 { // of 71 over UDP, and as many over TCP
			cancel()
		}
	}})
	if err == nil || got == nil {
		t.Fatalf("%+v, %v", got, err)
	}
	measured := 0
	for i := range got.Findings {
		f := &got.Findings[i]
		var all scenarios.PortSet
		for _, p := range f.Parts {
			all = scenarios.Union(all, p.Ports)
			if p.Verdict != Open && (p.Verdict != Unmeasured || p.Why != whyInterrupted) {
				t.Errorf("%s %s: %s, %s", f.Path, p.Ports, p.Verdict, p.Why)
			}
		}
		switch {
		case f.Path == "U-6" || f.Path == "U-5" && len(f.Parts) == 0: // one of the two sweeps waits for the other
			if f.Verdict != Unmeasured || f.Why != whyInterrupted {
				t.Errorf("%s/%s: %s, %s", f.Path, f.Transport, f.Sentence(), f.Why)
			}
		case f.Path == "U-5":
			measured++
			if f.Verdict != Partial || !slices.Equal(all, f.Ports) {
				t.Errorf("%s/%s: %s of %s: %s", f.Path, f.Transport, f.Verdict, f.Ports, f.Sentence())
			}
		case f.Verdict != Open:
			t.Errorf("%s/%s: %s, %s", f.Path, f.Transport, f.Sentence(), f.Why)
		}
	}
	if measured == 0 || got.Complete || !strings.HasPrefix(got.Why, "stopped: ") || !got.Outcomes[0].Unknown {
		t.Errorf("%d sweeps measured in part; complete %v, %s; %+v", measured, got.Complete, got.Why, got.Outcomes)
	}
}

// An outcome fails when it fails whatever the unmeasured ports are.
func TestUnmeasuredPartsDecideNothing(t *testing.T) {
	part := func(set string, v Verdict) Part { return Part{Ports: ports(t, set), Verdict: v} }
	for _, c := range []struct {
		pick  scenarios.Pick
		parts []Part
		want  string // works, fails, unknown
	}{
		{"", []Part{part("1-10", Open), part("11-20", Unmeasured)}, "unknown"},
		{"", []Part{part("1-10", Open), part("11", RequestLost), part("12-20", Unmeasured)}, "fails"},
		{"", []Part{part("11", RequestLost), part("12-20", Unmeasured)}, "fails"},
		{scenarios.PickOne, []Part{part("1-10", Open), part("11-20", Unmeasured)}, "works"},
		{scenarios.PickOne, []Part{part("1-2", Open), part("3-12", RequestLost), part("13-20", Unmeasured)}, "unknown"},
		{scenarios.PickOne, []Part{part("1-2", Open), part("3-13", RequestLost), part("14-20", Unmeasured)}, "fails"},
		{scenarios.PickAny, []Part{part("1", Open), part("2-20", Unmeasured)}, "works"},
		{scenarios.PickAny, []Part{part("1-19", RequestLost), part("20", Unmeasured)}, "unknown"},
		{scenarios.PickAny, []Part{part("1-19", RequestLost), part("20", Rejected)}, "fails"},
	} {
		f := Finding{Path: "A", Transport: scenarios.UDP, Pick: c.pick, Parts: c.parts}
		share := passing(c.parts)
		f.Share = &share
		f.Verdict, _ = sumUp(c.parts)
		o := Outcomes(asked("A"), "a", []Finding{f})[0]
		got := map[string]string{"truefalse": "works", "falsefalse": "fails", "falsetrue": "unknown"}[fmt.Sprint(o.Works)+fmt.Sprint(o.Unknown)]
		if got != c.want {
			t.Errorf("%q %s: %s, want %s", c.pick, f.Sentence(), got, c.want)
		}
	}
}

// An observation that was broken off proves nothing, whatever the far end saw.
func TestWhatWasBrokenOffHasNoVerdict(t *testing.T) {
	for _, tr := range []scenarios.Transport{scenarios.UDP, scenarios.TCP} {
		for _, stage := range []string{"", protocol.StageConnect, protocol.StageToken, protocol.StageTLS, protocol.StageData} {
			o := Observation{Probe: 1, Target: "far", Addr: farAddr, Ports: ports(t, "443"), Sent: 2, Stage: stage, Fault: protocol.FaultTimeout, ICMP: &ICMP{}}
			o.breakOff()
			for _, far := range []*wire.Ledger{nil, seenFar(t, func(*wire.Ledger) {})} {
				if f := judged(t, tr, []Observation{o}, far); f.Verdict != Unmeasured || f.Why != whyInterrupted {
					t.Errorf("%s %s: %s, %s", tr, stage, f.Verdict, f.Why)
				}
			}
		}
	}
}

// A run that ends between a sweep and its second look takes nothing for silent
// that would have been looked at again.
func TestSilenceIsNotToldBeforeItsSecondLook(t *testing.T) {
	f := startFar(t, time.Minute)
	i := slices.IndexFunc(f.scenario.Paths, func(p scenarios.Path) bool { return p.ID == "U-5" })
	set := slices.Clone(f.scenario.Paths[i].Ports)
	set[0].Last++ // which says nothing
	mute, err := net.ListenUDP("udp", &net.UDPAddr{IP: loopback.AsSlice(), Port: int(set[0].Last)})
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for _, interrupted := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := newRunner(Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Sweep: true, Timeout: 400 * time.Millisecond, Progress: func(p Progress) {
			if interrupted && p.Done == set.Len() {
				cancel()
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		obs := r.sweepUDP(ctx, Probe{ID: 1, Where: WhereFar, Transport: scenarios.UDP, Speak: protocol.Datagram, Addr: loopback, Ports: set})
		r.close()
		cancel()
		want := map[bool]string{true: faultInterrupted, false: protocol.FaultTimeout}[interrupted]
		at := slices.IndexFunc(obs, func(o Observation) bool { return o.Ports.Contains(set[0].Last) })
		if at < 0 || obs[at].Fault != want || obs[at].Ports.Len() != 1 {
			t.Errorf("interrupted %v: %+v", interrupted, obs)
		}
	}
}

// Calls that the reflector was asked for and did not tell of prove nothing.
func TestCallsThatAreInterruptedProveNothing(t *testing.T) {
	r, err := newRunner(Config{Scenario: ownScenario(t, 10000, time.Second), Reflector: loopback, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	f := r.ends[WhereFar]
	f.base, f.hello = "http://"+talking(t, says()), &wire.HelloReply{Source: netip.AddrPortFrom(loopback, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, o := range r.inward(ctx, Probe{ID: 1, Where: WhereInward, Transport: scenarios.UDP, Addr: loopback, Ports: ports(t, "39411")}) {
		if o.Fault != faultInterrupted || o.Detail != "" {
			t.Errorf("%+v", o)
		}
	}
}
