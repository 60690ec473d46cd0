// Package monitor measures the same again and again, tells what changed since
// the round before, and shows the state to Prometheus.
//
// Rounds never overlap, and what a round found is shown only as long as the
// next one ends as well as it did: a reflector out of reach withdraws the
// findings instead of leaving old ones that look fresh. However long it runs, a
// monitor keeps no more than its last results.
package monitor

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/wire"
)

// A Round is one measurement of all that is watched.
type Round struct {
	Number  int // from 1
	Started time.Time
	Took    time.Duration
	Results []*client.Result
	Err     error // why it ended early, if it did
}

// The reasons for which rounds fail: the values of a metric's label, so the
// list is closed.
const (
	Unreachable = "unreachable" // no port let control through
	Incomplete  = "incomplete"  // begun, and then the reflector was lost
	Refused     = "refused"     // the reflector refused the session
	Failed      = "error"       // it could not be tried at all
)

// Reasons lists them all.
var Reasons = []string{Unreachable, Incomplete, Refused, Failed}

// Failure is why a round proves nothing of some of what it should; empty where
// it is whole. A path that is blocked is no failure.
func (r *Round) Failure() string {
	for _, res := range r.Results {
		if reason := failure(res); reason != "" {
			return reason
		}
	}
	if _, ok := errors.AsType[*wire.ControlError](r.Err); ok {
		return Refused
	}
	if r.Err != nil {
		return Failed
	}
	return ""
}

// failure is why a result proves nothing.
func failure(r *client.Result) string {
	switch {
	case r.Control.Via == "":
		return Unreachable
	case !r.Complete:
		return Incomplete
	}
	return ""
}

// A Monitor measures in rounds. Measure must be set.
type Monitor struct {
	// Interval is the time from the beginning of a round to that of the next,
	// give or take a tenth, so that many monitors do not fall into step. After a
	// round that took longer there is a pause of a second, or of the interval
	// where that is shorter.
	Interval time.Duration

	// Measure is one round. A blocked path is data; an error means that not
	// everything could be tried. What was measured by then comes with it.
	Measure func(context.Context) ([]*client.Result, error)

	// Tell is given each round as it ends. Its error ends the monitor.
	Tell func(*Round) error

	Metrics *Metrics // nil is none
}

// Run goes on until ctx ends, and gives the last round that came to its end; or
// the first, where not even that did. The error is one of Tell.
func (m *Monitor) Run(ctx context.Context) (*Round, error) {
	var last *Round
	for number := 1; ; number++ {
		r := &Round{Number: number, Started: time.Now()}
		m.Metrics.begin(r.Started)
		r.Results, r.Err = m.Measure(ctx)
		r.Took = time.Since(r.Started)
		if ctx.Err() != nil {
			if last == nil {
				last = r
			}
			return last, nil
		}
		last = r
		m.Metrics.end(r)
		if err := m.Tell(r); err != nil {
			return last, err
		}
		select {
		case <-ctx.Done():
			return last, nil
		case <-time.After(pause(m.Interval, r.Took, rand.Float64())):
		}
	}
}

// pause is how long to wait after a round; at is where in the span of the
// jitter, from 0 to 1.
func pause(interval, took time.Duration, at float64) time.Duration {
	jitter := time.Duration((at - 0.5) / 5 * float64(interval))
	return max(interval+jitter-took, min(interval, time.Second))
}
