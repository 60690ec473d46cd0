package lab

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
)

// Rounds is how often delays are measured that are to be compared.
const Rounds = 25

// A Round is what was measured once behind a firewall, and just before and just
// after that behind the one it is compared with.
type Round struct{ Before, Here, After *client.Result }

// A delay is the round trips of one Round, in milliseconds. What it says of the
// two firewalls is held against what it says of one: the machine is not idle
// for our sake.
type delay struct{ before, here, after float64 }

// slower is how much longer a round trip took here than there, as the logarithm
// of how many times as long.
func (d delay) slower() float64 { return math.Log(d.here) - (math.Log(d.before)+math.Log(d.after))/2 }

// apart is how far two measurements of the same are from each other, the like.
func (d delay) apart() float64 { return math.Abs(math.Log(d.after) - math.Log(d.before)) }

// clearly is from how many times the delay on another firewall counts as slower.
const clearly = 1.25

// fewest is how many rounds it takes to tell anything.
const fewest = 12

// delays are the shortest round trips of exchanges that came through all three
// times: the longer ones say more of what else the machine did meanwhile.
func delays(rounds []Round, paths []string) (list []delay) {
	for _, r := range rounds {
		before, here, after := trips(r.Before, paths), trips(r.Here, paths), trips(r.After, paths)
		var all [3][]float64
		for probe, ms := range here {
			if before[probe] > 0 && after[probe] > 0 {
				all[0], all[1], all[2] = append(all[0], before[probe]), append(all[1], ms), append(all[2], after[probe])
			}
		}
		if len(all[0]) > 0 {
			list = append(list, delay{slices.Min(all[0]), slices.Min(all[1]), slices.Min(all[2])})
		}
	}
	return list
}

// trips are the round trips of each probe on some paths, of exchanges that came
// to their end. Of several the shortest counts.
func trips(r *client.Result, paths []string) map[uint32]float64 {
	out := make(map[uint32]float64)
	if r == nil || !r.Complete {
		return out
	}
	for _, f := range r.Findings {
		if !slices.Contains(paths, f.Path) {
			continue
		}
		for _, o := range f.Evidence.Near {
			if o.Fault == "" && o.RTT > 0 && (out[o.Probe] == 0 || o.RTT < out[o.Probe]) {
				out[o.Probe] = o.RTT
			}
		}
	}
	return out
}

// quantile is the value below which a share of the values are.
func quantile(values []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := share * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// A contrast sums up the delays: how many times as long a round trip took here
// than there, in the middle and at the ends of the middle half of the rounds, and
// how many times two measurements of the same differ by in three rounds of four.
type contrast struct {
	here, there      float64 // milliseconds, in the middle
	low, middle, top float64
	same             float64
}

func contrasted(list []delay) contrast {
	of := func(value func(delay) float64, share float64) float64 {
		var values []float64
		for _, d := range list {
			values = append(values, value(d))
		}
		return quantile(values, share)
	}
	return contrast{
		here:   of(func(d delay) float64 { return d.here }, 0.5),
		there:  of(func(d delay) float64 { return math.Sqrt(d.before * d.after) }, 0.5),
		low:    math.Exp(of(delay.slower, 0.25)),
		middle: math.Exp(of(delay.slower, 0.5)),
		top:    math.Exp(of(delay.slower, 0.75)),
		same:   math.Exp(of(delay.apart, 0.75)),
	}
}

// judge tells whether it is slower here. Both answers are proven only by more
// than what the same firewall differs from itself by: that it is slower, by most
// rounds beyond that; that it is not, by a machine on which it would have shown.
func (c contrast) judge() Status {
	switch {
	case c.low > max(clearly, c.same):
		return Confirmed
	case c.top < clearly && c.same < clearly:
		return Contradicted
	}
	return Unmeasured
}

// judgeSlower judges an expectation about delays.
func (e Expectation) judgeSlower(rounds []Round) (Status, string) {
	list := delays(rounds, e.Slower)
	if len(list) < fewest {
		return Unmeasured, fmt.Sprintf("in %d of %d rounds the exchanges on %s came through both here and behind %s; it takes %d",
			len(list), len(rounds), strings.Join(e.Slower, ", "), e.Than, fewest)
	}
	c := contrasted(list)
	times := fmt.Sprintf("the delay is %.2f times that behind %s (half of the rounds: %.2f to %.2f)", c.middle, e.Than, c.low, c.top)
	switch s := c.judge(); s {
	case Confirmed:
		return s, ""
	case Contradicted:
		return s, times
	default:
		return s, fmt.Sprintf("%s, and %s differs from itself by up to %.2f times in three rounds of four on this machine", times, e.Than, c.same)
	}
}

// tellSlower says what was measured.
func (e Expectation) tellSlower(rounds []Round) string {
	list := delays(rounds, e.Slower)
	if len(list) == 0 {
		return "the delay is unknown"
	}
	c := contrasted(list)
	return fmt.Sprintf("round trip %.2f ms, %.2f ms behind %s: %.1f times (%s against itself: %.1f), %d rounds by turns",
		c.here, c.there, e.Than, c.middle, e.Than, c.same, len(list))
}
