package lab

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
)

func TestSlownessIsTheEffectBeyondWhatTheSameDiffersBy(t *testing.T) {
	each := func(n int, of func(i int) delay) []delay {
		var list []delay
		for i := range n {
			list = append(list, of(i))
		}
		return list
	}
	for name, c := range map[string]struct {
		list []delay
		want Status
	}{
		"twice as slow":              {each(15, func(int) delay { return delay{1, 2, 1} }), Confirmed},
		"as quick":                   {each(15, func(int) delay { return delay{1, 1, 1} }), Contradicted},
		"a little slower":            {each(15, func(int) delay { return delay{1, 1.1, 1} }), Contradicted},
		"quicker":                    {each(15, func(int) delay { return delay{1, 0.5, 1} }), Contradicted},
		"about the bound":            {each(15, func(i int) delay { return delay{1, 1.1 + 0.02*float64(i), 1} }), Unmeasured},
		"slower on a noisy machine":  {each(15, func(i int) delay { return delay{1, 2, 1 + 3*float64(i%2)} }), Unmeasured},
		"as quick on a noisy one":    {each(15, func(i int) delay { return delay{1, 1, 1 + 3*float64(i%2)} }), Unmeasured},
		"much slower than the noise": {each(15, func(i int) delay { return delay{1, 14, 1 + 3*float64(i%2)} }), Confirmed},
		"slower now and then":        {each(15, func(i int) delay { return delay{1, 1 + 3*float64(i%2), 1} }), Unmeasured},
		"slower at first":            {each(15, func(i int) delay { return delay{1, max(1, 6-float64(i)), 1} }), Unmeasured},
		"a machine that slows down":  {each(15, func(i int) delay { f := math.Pow(2, float64(i)); return delay{f, f * 2.2, f * 1.2} }), Confirmed},
	} {
		if got := contrasted(c.list).judge(); got != c.want {
			t.Errorf("%s: %s, want %s: %+v", name, got, c.want, contrasted(c.list))
		}
	}
}

// However noisy the machine, noise alone proves nothing, neither what is not
// nor the contrary of what is.
func TestNoiseDecidesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, spread := range []float64{0.02, 0.1, 0.3, 1, 2} { // of the logarithm
		decided := make(map[float64]map[Status]int)
		for _, times := range []float64{1, 2} {
			decided[times] = make(map[Status]int)
			for range 2000 {
				took := func(ms float64) float64 { return ms * math.Exp(math.Abs(r.NormFloat64())*spread) }
				var list []delay
				for range Rounds {
					list = append(list, delay{took(1), took(times), took(1)})
				}
				decided[times][contrasted(list).judge()]++
			}
		}
		if decided[1][Confirmed] > 0 || decided[2][Contradicted] > 0 {
			t.Errorf("spread %v: %v", spread, decided)
		}
		if spread < 0.05 && (decided[1][Contradicted] < 1990 || decided[2][Confirmed] < 1990) {
			t.Errorf("a quiet machine, spread %v, and no answer: %v", spread, decided)
		}
	}
}

func TestDelayIsThatOfExchangesThatCameThroughAllThreeTimes(t *testing.T) {
	at := func(complete bool, rtts ...float64) *client.Result {
		return &client.Result{Complete: complete, Findings: []client.Finding{timed("OPEN", client.Open, rtts...), timed("OTHER", client.Open, 99)}}
	}
	failed := at(true, 5)
	failed.Findings[0].Evidence.Near[0].Fault = "timeout" // its round trip is that of the handshake alone
	got := delays([]Round{
		{at(true, 3, 7, 2), at(true, 4, 8), at(true, 5, 9)}, // the shortest of a probe, of both the shorter
		{at(true, 3, 7), at(true, 4), at(true, 5, 9)},       // one probe
		{at(true, 3), failed, at(true, 5)},
		{at(true, 3), at(true, 4), at(false, 5)},
		{at(true, 3), at(true, 0), at(true, 5)},
		{nil, at(true, 4), at(true, 5)},
	}, []string{"OPEN"})
	if diff := cmp.Diff([]delay{{2, 4, 5}, {3, 4, 5}}, got, cmp.AllowUnexported(delay{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTooFewRoundsSayNothing(t *testing.T) {
	e := Expectation{Slower: []string{"SLOW"}, Than: "other"}
	rounds := byTurns()[:fewest]
	if s, why := e.judgeSlower(rounds); s != Confirmed {
		t.Errorf("%s: %s", s, why)
	}
	const want = "in 11 of 12 rounds the exchanges on SLOW came through both here and behind other; it takes 12"
	broken := slices.Clone(rounds)
	broken[0].After = nil
	if s, why := e.judgeSlower(broken); s != Unmeasured || why != want {
		t.Errorf("%s: %s", s, why)
	}
}
