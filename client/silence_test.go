package client

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
)

// searched plays the rounds against a firewall that forgets after a timeout (0 is
// never), and counts what they cost.
func searched(timeout time.Duration, list []time.Duration) (b bracket, rounds, flows int, took time.Duration) {
	points := list
	for ; rounds <= silenceRounds && len(points) > 0; rounds++ {
		ended := make(map[time.Duration]bool)
		longest := time.Duration(0)
		for _, d := range points {
			ended[d] = timeout == 0 || d < timeout
			longest = max(longest, d)
			flows += silenceFlows
		}
		took += longest
		b = b.narrow(ended)
		points = b.points()
	}
	return b, rounds, flows, took
}

func TestBisectionFindsTheTimeout(t *testing.T) {
	list := []time.Duration{50 * time.Second, 5 * time.Minute, 30 * time.Minute}
	for _, timeout := range []time.Duration{time.Second, 2500 * time.Millisecond, 30 * time.Second, 49 * time.Second, 51 * time.Second, 180 * time.Second,
		299 * time.Second, 350 * time.Second, 15 * time.Minute, 1799 * time.Second} {
		b, _, flows, took := searched(timeout, list)
		if b.lo >= timeout || b.hi < timeout {
			t.Errorf("timeout %v: %+v", timeout, b)
		}
		if gap := b.hi - b.lo; gap > max(silenceStep, b.lo/silenceShare) {
			t.Errorf("timeout %v is known only to %v: %+v", timeout, gap, b)
		}
		// 64 attempts of a probe are told apart, of which one is the probe's own.
		shortest := list[slices.IndexFunc(list, func(d time.Duration) bool { return d >= timeout })]
		if flows > 63 || took > list[2]+3*shortest {
			t.Errorf("timeout %v took %d flows and %v", timeout, flows, took)
		}
	}
}

func TestLongestListLeavesAttemptsForEveryRound(t *testing.T) {
	if n := (MaxSilences + silenceRounds*silencePoints) * silenceFlows; n > 63 {
		t.Errorf("%d attempts; the reflector tells 63 apart", n)
	}
}

func TestWhatSurvivesEverythingHasNoBracket(t *testing.T) {
	b, rounds, _, _ := searched(0, []time.Duration{time.Second, time.Minute})
	if diff := cmp.Diff(bracket{lo: time.Minute}, b, cmp.AllowUnexported(bracket{})); diff != "" || rounds != 1 {
		t.Errorf("%d rounds (-want +got):\n%s", rounds, diff)
	}
}

// A shorter silence that seemed to kill the flow was a lost packet.
func TestLongerSilenceThatWasSurvivedCounts(t *testing.T) {
	got := bracket{}.narrow(map[time.Duration]bool{10: false, 20: true, 30: false, 40: false})
	if diff := cmp.Diff(bracket{20, 30}, got, cmp.AllowUnexported(bracket{})); diff != "" {
		t.Error(diff)
	}
	if got = got.narrow(map[time.Duration]bool{35: true}); got != (bracket{lo: 35}) {
		t.Errorf("%+v", got)
	}
}

func TestSilenceIsSaidInWords(t *testing.T) {
	for want, s := range map[string]Silence{
		"survives 30m0s of silence":              {Survived: 1800},
		"dies within 50s of silence":             {Died: 50},
		"dies after 2m50s to 2m58.4s of silence": {Survived: 170, Died: 178.41},
		"dies after 900ms to 1.3s of silence":    {Survived: 0.9, Died: 1.3},
	} {
		if got := s.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSilencesAreChecked(t *testing.T) {
	for want, list := range map[string][]time.Duration{
		"":                                       {time.Second, time.Hour},
		"a silence of 999ms: from 1s to 1h0m0s":  {999 * time.Millisecond},
		"a silence of 1h0m1s: from 1s to 1h0m0s": {time.Minute, time.Hour + time.Second},
		"9 silences are too many: at most 8":     make([]time.Duration, 9),
	} {
		got := ""
		if err := CheckSilences(list); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Only a run that has the time for it keeps the rhythm of an application.
func TestRhythmIsKeptWhereSilencesAreAskedFor(t *testing.T) {
	for speak, want := range map[string]time.Duration{"automate-heartbeat": 5 * time.Second, "automate-tray": 0, protocol.Datagram: 0} {
		r := &runner{ends: map[Where]*farEnd{WhereFar: {}}}
		p := Probe{Speak: speak, Where: WhereFar}
		if got := r.exchange(p, 75).Idle; got != 0 {
			t.Errorf("%s idles for %v unasked", speak, got)
		}
		if r.cfg.Silences = []time.Duration{time.Minute}; r.exchange(p, 75).Idle != want {
			t.Errorf("%s idles for %v, want %v", speak, r.exchange(p, 75).Idle, want)
		}
	}
}
