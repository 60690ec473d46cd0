package client

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A Silence tells how long a flow may say nothing before the reflector's next
// packet no longer comes through, in seconds.
type Silence struct {
	Survived float64 `json:"survived"`       // the longest that was survived; 0 is none
	Died     float64 `json:"died,omitempty"` // the shortest that was not; 0: all were survived
}

// String says it in words.
func (s Silence) String() string {
	long := func(seconds float64) time.Duration {
		return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
	}
	switch {
	case s.Died == 0:
		return fmt.Sprintf("survives %v of silence", long(s.Survived))
	case s.Survived == 0:
		return fmt.Sprintf("dies within %v of silence", long(s.Died))
	}
	return fmt.Sprintf("dies after %v to %v of silence", long(s.Survived), long(s.Died))
}

// A bracket narrows down after how much silence flows die. Both ends are known:
// lo was survived (or is 0), hi was not (or is 0 while none died).
type bracket struct{ lo, hi time.Duration }

// How a bracket is narrowed: in every round so many silences are tried side by
// side, until the bracket is a twentieth of the silence or a second, and in so
// many rounds at the most. Two flows keep each silence, so that one lost packet
// looks like no timeout.
const (
	silencePoints = 7
	silenceRounds = 3
	silenceFlows  = 2
	silenceShare  = 20
	silenceStep   = time.Second

	// MaxSilences bounds the list that a run begins with: the reflector tells 64
	// attempts of a probe apart.
	MaxSilences = 8
)

// points are the silences to try next: evenly spaced, for a timeout is as likely
// at any of them. None means that the bracket is narrow enough.
func (b bracket) points() []time.Duration {
	gap := b.hi - b.lo
	if b.hi == 0 || gap <= max(silenceStep, b.lo/silenceShare) {
		return nil
	}
	var out []time.Duration
	for i := range silencePoints {
		p := (b.lo + gap*time.Duration(i+1)/(silencePoints+1)).Round(time.Millisecond)
		if p > b.lo && p < b.hi && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// narrow takes over how silences ended. Of answers that do not fit together, a
// longer silence that was survived counts: packets get lost, but a dead flow
// does not come back.
func (b bracket) narrow(survived map[time.Duration]bool) bracket {
	for d, ok := range survived {
		if ok {
			b.lo = max(b.lo, d)
		}
	}
	if b.hi <= b.lo {
		b.hi = 0
	}
	for d, ok := range survived {
		if !ok && d > b.lo && (b.hi == 0 || d < b.hi) {
			b.hi = d
		}
	}
	return b
}

// A quiet is one flow to be kept silent: a port of one probe that worked.
type quiet struct {
	probe Probe
	port  uint16
}

// silences finds out for every working path after how long a flow dies. Paths
// that share address, transport and port share the answer.
func (r *runner) silences(ctx context.Context) {
	if len(r.cfg.Silences) == 0 {
		return
	}
	type place struct {
		addr      netip.Addr
		transport scenarios.Transport
		port      uint16
	}
	asked := make(map[place][]*Observation)
	var flows []quiet
	r.mu.Lock()
	for _, p := range r.plan.Probes {
		for i := range r.seen[p.ID] {
			o := &r.seen[p.ID][i]
			if p.Sweeps() || p.Where == WhereInward || o.Stage != protocol.StageDone {
				continue
			}
			at := place{p.Addr, p.Transport, o.Ports[0].First}
			if asked[at] == nil {
				flows = append(flows, quiet{p, at.port})
			}
			asked[at] = append(asked[at], o)
		}
	}
	r.mu.Unlock()
	r.doing(fmt.Sprintf("keeping %d flows silent, first for %v", len(flows), slices.Max(r.cfg.Silences)))
	var wg sync.WaitGroup
	for _, q := range flows {
		wg.Go(func() {
			s := r.bisect(ctx, q)
			if s == nil {
				return
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, o := range asked[place{q.probe.Addr, q.probe.Transport, q.port}] {
				o.Silence = s
			}
		})
	}
	wg.Wait()
}

// bisect tries the run's silences and then those between, side by side. It is
// nil when none came to an end.
func (r *runner) bisect(ctx context.Context, q quiet) *Silence {
	var b bracket
	attempt := uint16(0)
	points := r.cfg.Silences
	for round := 0; round <= silenceRounds && len(points) > 0; round++ {
		ended := r.keepSilent(ctx, q, points, &attempt)
		if ctx.Err() != nil || len(ended) == 0 {
			break
		}
		b = b.narrow(ended)
		points = b.points()
	}
	if b == (bracket{}) {
		return nil
	}
	return &Silence{Survived: rounded(b.lo), Died: rounded(b.hi)}
}

// rounded is a duration in seconds, to the millisecond.
func rounded(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// keepSilent opens flows for each silence and tells which were survived. A flow
// that did not come so far says nothing.
func (r *runner) keepSilent(ctx context.Context, q quiet, points []time.Duration, attempt *uint16) map[time.Duration]bool {
	type end struct{ survived, died bool }
	ends := make([]end, len(points)*silenceFlows)
	var wg sync.WaitGroup
	for i := range ends {
		*attempt++
		n, d := *attempt, points[i/silenceFlows]
		wg.Go(func() { ends[i].survived, ends[i].died = r.quietFlow(ctx, q, d, n) })
	}
	wg.Wait()
	out := make(map[time.Duration]bool)
	for i, e := range ends {
		if d := points[i/silenceFlows]; e.survived || e.died {
			out[d] = out[d] || e.survived
		}
	}
	return out
}

// quietFlow opens one flow, keeps silent and waits for the reflector's packet.
func (r *runner) quietFlow(ctx context.Context, q quiet, d time.Duration, attempt uint16) (survived, died bool) {
	p := q.probe
	p.Idle, p.Bytes = d, 0
	if p.Transport == scenarios.UDP {
		o := r.observe(p, q.port)
		survived, opened := r.silence(ctx, p, q.port, int(attempt), &o)
		return survived, !survived && opened && ctx.Err() == nil
	}
	c, _ := r.dial(ctx, netip.AddrPortFrom(p.Addr, q.port))
	if c == nil {
		return false, false
	}
	ends := protocol.On(p.Speak, scenarios.TCP)
	if ends == nil { // STUN and TURN keep no silence of their own
		ends = protocol.On("plain", scenarios.TCP)
	}
	x := r.exchange(p, q.port)
	x.Probe, x.Attempt = p.ID+idleStage, attempt
	res := ends.Probe(ctx, c, x)
	r.leave(ctx, c, res.Stage)
	return res.Stage == protocol.StageDone, res.Stage == protocol.StageIdle && res.Fault != "" && ctx.Err() == nil
}

// CheckSilences says what is wrong with a list of silences.
func CheckSilences(list []time.Duration) error {
	if len(list) > MaxSilences {
		return fmt.Errorf("%d silences are too many: at most %d", len(list), MaxSilences)
	}
	for _, d := range list {
		if d < time.Second || d > protocol.MaxIdle {
			return fmt.Errorf("a silence of %v: from 1s to %v", d, protocol.MaxIdle)
		}
	}
	return nil
}

// lateMessage is the request for a packet after a silence.
func (r *runner) lateMessage(p Probe, port uint16, attempt int) wire.Message {
	m := r.message(p, port, attempt)
	m.Idle = p.Idle
	return m
}
