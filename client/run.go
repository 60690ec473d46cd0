package client

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Config says what to measure and how.
type Config struct {
	Scenario  *scenarios.Scenario
	Role      string // near end; empty is the scenario's first
	Reflector netip.Addr
	Name      string // of the reflector's host, where it was named and not its address: said where the document names none
	Key       wire.Key
	LAN       netip.Addr     // reflector on a second machine of this network; zero when there is none
	Loop      netip.Addr     // own loopback address that a reflector listens on; zero when there is none
	Owned     []netip.Prefix // documented ranges that lead to the reflector, as in a lab
	Resolve   func(name string) (netip.Addr, bool)
	Proxy     *url.URL        // for control
	Timeout   time.Duration   // the longest single wait; 0 is DefaultTimeout
	RTT       time.Duration   // round-trip time where it is known beforehand; 0 learns it
	Rate      int             // packets per second of a sweep; 0 adapts
	Sweep     bool            // try every port of a range; else edges, a sample, and bisection
	Bytes     int64           // data phase of paths that carry files; 0 is what the scenario says, or DefaultBytes
	OneByOne  bool            // probe after probe: round trips are then of the way and not of what else is probed
	Silences  []time.Duration // silences to try on every path that works; see CheckSilences
	Program   string          // version, told to the reflector
	Progress  func(Progress)
	// Update is told after every probe that there is more to see; snapshot judges
	// what there is so far, which takes a moment for wide ranges.
	Update func(snapshot func() Result)
}

// DefaultTimeout leaves room for two retransmissions of a SYN (RFC 6298: 1 s, then 2 s).
const DefaultTimeout = 3 * time.Second

// Progress tells how far a run is.
type Progress struct {
	Done, Total int    // ports
	Doing       string // what takes longest now
}

// A runner is one run under way.
type runner struct {
	cfg  Config
	plan Plan
	ends map[Where]*farEnd

	meeting  sync.WaitGroup // attempts at control under way
	hangUp   context.CancelFunc
	partings partings // of probes

	mu       sync.Mutex
	res      Result
	seen     map[uint32][]Observation
	progress map[uint32]int
	total    int
	marked   map[netip.AddrPort]bool // ports that a stream was marked to
	doors    doors
}

// Run measures one scenario. Partial results survive: when ctx ends, the result
// so far comes back together with the cause. A *wire.ControlError says that the
// reflector refused; every other failure of control is in the result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	r, err := newRunner(cfg)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.meet(ctx); err != nil {
		return nil, err
	}
	r.probeAll(ctx)
	r.silences(ctx)
	r.finish(ctx)
	defer r.farewell(ctx)()
	res := r.result()
	if err := r.refused(); err != nil {
		return &res, err
	}
	return &res, context.Cause(ctx)
}

// refused is a refusal that came after probing had begun.
func (r *runner) refused() error {
	for _, f := range r.ends {
		if f.trying == nil {
			continue // told by meet
		}
		select {
		case err := <-f.trying:
			if err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

func newRunner(cfg Config) (*runner, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Role == "" {
		cfg.Role = cfg.Scenario.NearRoles()[0]
	}
	if len(cfg.Scenario.PathsFor(cfg.Role)) == 0 {
		return nil, fmt.Errorf("scenario %s has no near end %q; choose one of %s", cfg.Scenario.Name, cfg.Role, strings.Join(cfg.Scenario.NearRoles(), ", "))
	}
	r := &runner{cfg: cfg, ends: make(map[Where]*farEnd), seen: make(map[uint32][]Observation), progress: make(map[uint32]int), marked: make(map[netip.AddrPort]bool)}
	family := "ipv4"
	if cfg.Reflector.Is6() {
		family = "ipv6"
	}
	r.res = Result{
		Schema: ResultSchema, Program: cfg.Program, Scenario: cfg.Scenario.Name, Version: cfg.Scenario.Version, Role: cfg.Role,
		Family: family, Reflector: cfg.Reflector, Session: wire.NewSessionID(), Started: time.Now(),
	}
	for where, addr := range map[Where]netip.Addr{WhereFar: cfg.Reflector, WhereLAN: cfg.LAN, WhereLoop: cfg.Loop} {
		if addr.IsValid() {
			r.ends[where] = newFarEnd(where, addr, cfg.Key, r.res.Session, cfg.Proxy)
		}
	}
	if f := r.ends[WhereFar]; f != nil {
		f.name = cfg.Name
	}
	return r, nil
}

func (r *runner) close() {
	if r.hangUp != nil {
		r.hangUp()
	}
	r.meeting.Wait()
	for _, f := range r.ends {
		f.close()
	}
	r.partings.wait()
}

// meet opens control with every far end. Probing does not wait for a firewall
// that swallows control: after a part of the timeout it goes on without, and
// control that comes later still serves to fetch the ledger.
func (r *runner) meet(ctx context.Context) error {
	ports := controlPorts(MakePlan(r.cfg.Scenario, r.setting(true)))
	ctx, r.hangUp = context.WithTimeout(ctx, r.cfg.Timeout)
	for _, f := range r.ends {
		f.trying = make(chan error, 1)
		r.meeting.Go(func() {
			c, err := f.connect(ctx, ports, r.cfg.Timeout/time.Duration(8*len(ports)), r.cfg.Program)
			r.mu.Lock()
			f.contact = c
			r.mu.Unlock()
			f.trying <- err
		})
	}
	patience := time.After(r.cfg.Timeout / 4)
	for _, f := range r.ends {
		select {
		case err := <-f.trying:
			if err != nil {
				return err
			}
			f.adopt()
			f.trying = nil
		case <-patience:
			patience = time.After(0)
		}
	}
	far := r.ends[WhereFar]
	r.plan = MakePlan(r.cfg.Scenario, r.setting(!far.offline && far.hello.Inward))
	r.res.Offline = far.offline
	for _, p := range r.plan.Probes {
		r.total += max(p.Ports.Len(), p.LocalPorts.Len())
	}
	return nil
}

func (r *runner) setting(inward bool) Setting {
	c := r.cfg
	return Setting{Role: c.Role, Reflector: c.Reflector, Name: c.Name, LAN: c.LAN, Loop: c.Loop, Inward: inward,
		Owned: c.Owned, Resolve: c.Resolve, Bytes: c.Bytes}
}

// probeAll runs every probe side by side, and after that one by one those that
// carry much, or all of them where that is asked for.
func (r *runner) probeAll(ctx context.Context) {
	var wg sync.WaitGroup
	var alone []Probe
	for _, p := range r.plan.Probes {
		if p.Hauls() || r.cfg.OneByOne {
			alone = append(alone, p)
			continue
		}
		wg.Go(func() { r.probeOne(ctx, p) })
	}
	wg.Wait()
	for i, p := range alone {
		if p.Hauls() {
			r.doing(fmt.Sprintf("carrying %d bytes each way over %s, %d of %d", p.Bytes, p.Speak, i+1, len(alone)))
		}
		r.probeOne(ctx, p)
	}
}

func (r *runner) probeOne(ctx context.Context, p Probe) {
	obs := r.probe(ctx, p)
	if len(obs) == 0 {
		return // interrupted before it began
	}
	r.mu.Lock()
	r.seen[p.ID] = obs
	r.mu.Unlock()
	if r.cfg.Update != nil {
		r.cfg.Update(r.result)
	}
}

// finish fetches the ledgers, trying control once more where it had no way.
func (r *runner) finish(ctx context.Context) {
	wait := r.cfg.Timeout
	if ctx.Err() != nil {
		r.hangUp()
		wait = min(wait, time.Second) // somebody wants the end now
	}
	r.fetch(context.WithoutCancel(ctx), wait)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.res.Seconds = time.Since(r.res.Started).Seconds()
	switch {
	case ctx.Err() != nil:
		r.res.Why = "stopped: " + context.Cause(ctx).Error()
	case r.res.Why == "":
		r.res.Complete = true
	}
}

// fetch asks every far end that control reaches for its ledger.
func (r *runner) fetch(ctx context.Context, wait time.Duration) {
	r.meeting.Wait() // at the most until the timeout of the run's beginning
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for where, f := range r.ends {
		l, err := r.settled(ctx, f.ledger)
		r.mu.Lock()
		if err != nil && f.base != "" {
			r.res.Why = fmt.Sprintf("the reflector %s %s: %s", f.addr, noLedger, sentence(err))
		}
		if l != nil {
			if r.res.Ledgers == nil {
				r.res.Ledgers = make(map[Where]*wire.Ledger)
			}
			r.res.Ledgers[where] = l
		}
		if where == WhereFar {
			r.res.Control = Control{Via: f.via, Tried: f.tried}
			if f.proxy != nil {
				r.res.Control.Proxy = f.proxy.Redacted()
			}
		}
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.ends {
		r.res.Control.Hellos = append(r.res.Control.Hellos, f.hellos.All()...)
		r.res.Control.Spares = append(r.res.Control.Spares, f.spares.all()...)
	}
}

// byeWait is for how long a goodbye is tried. It is a courtesy: without it, the
// session ends when nothing was heard of it for long.
const byeWait = 500 * time.Millisecond

// farewell says goodbye to every far end whose ledger is here, while the run goes
// on; wait returns when that is over. A far end that did not give its ledger keeps
// the session: its journal is all that there is of it.
func (r *runner) farewell(ctx context.Context) (wait func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), byeWait)
	var wg sync.WaitGroup
	r.mu.Lock()
	defer r.mu.Unlock()
	for where, f := range r.ends {
		if r.res.Ledgers[where] != nil {
			wg.Go(func() { f.bye(ctx) }) // that it did not get there changes nothing here
		}
	}
	return func() { wg.Wait(); cancel() }
}

// The pauses between asking for a ledger and asking again: about a second in all.
const (
	firstPause = 15 * time.Millisecond
	lastPause  = 480 * time.Millisecond
)

// settled asks for a ledger, and again for a moment while there may be more in
// it: what a dialogue that goes on has said so far is in every ledger, but not
// what this end sent last.
func (r *runner) settled(ctx context.Context, ask func(context.Context) (*wire.Ledger, error)) (*wire.Ledger, error) {
	l, err := ask(ctx)
	if err != nil {
		return l, err
	}
	for pause := firstPause; pause <= lastPause && r.ahead(l); pause *= 2 {
		select {
		case <-ctx.Done():
			return l, nil
		case <-time.After(pause):
		}
		if again, err := ask(ctx); err == nil {
			l = again
		}
	}
	return l, nil
}

// ahead tells whether a connection that has ended here goes on in the ledger, and
// the far end will learn more of it.
func (r *runner) ahead(l *wire.Ledger) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, seen := range r.seen {
		var own []wire.Event
		if i := slices.IndexFunc(l.Probes, func(p wire.ProbeRecord) bool { return p.Probe == id }); i >= 0 {
			own = l.Probes[i].Events
		}
		for _, o := range seen {
			here := func(e wire.Event) bool { return o.Ports.Contains(e.Local.Port()) && o.ahead(&e) }
			strays := o.Said != nil && o.Fault != "" && slices.ContainsFunc(l.Strays, here)
			if strays || slices.ContainsFunc(own, here) {
				return true
			}
		}
	}
	return false
}

// ahead tells whether the far end will learn more of a connection than it has in
// an event. After a reset it may never do, and where this end waited in vain, no
// more than what was sent before that.
func (o *Observation) ahead(e *wire.Event) bool {
	switch {
	case !e.Unfinished || o.Fault == protocol.FaultReset || o.Fault == faultInterrupted:
		return false
	case o.Fault != protocol.FaultTimeout:
		return true
	}
	return o.Said != nil && (e.Said == nil || len(e.Said.Heard) < len(o.Said.Sent))
}

// result judges what is known so far.
func (r *runner) result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	res := r.res
	res.Findings = findings(r.plan, r.seen)
	Conclude(&res, r.cfg.Scenario)
	return res
}

// Conclude judges the findings of a result from the evidence in it and works
// out the outcomes. It may be called again after evidence was added.
func Conclude(res *Result, s *scenarios.Scenario) {
	Judge(res.Findings, res.Ledgers, res.Control)
	if res.Control.Via != "" && res.Ledgers[WhereFar] == nil && res.Why != "" {
		lost(res.Findings)
	}
	res.Outcomes = Outcomes(s, res.Role, res.Findings)
}

// lost: the reflector was there at first and is gone. What was silent may have
// been silent because of that.
func lost(list []Finding) {
	for i := range list {
		f := &list[i]
		if f.Verdict == Silent && whereOf(f.Direction) == WhereFar {
			f.Verdict, f.Why = Unmeasured, "the reflector was lost during the run"
		}
	}
}

// findings gives every item the observations that answer it.
func findings(p Plan, seen map[uint32][]Observation) []Finding {
	out := make([]Finding, 0, len(p.Items))
	for _, it := range p.Items {
		f := Finding{
			Path: it.Path.ID, Title: it.Path.Title, Need: it.Path.Need, Direction: it.Path.Direction, Transport: it.Transport,
			Ports: it.Path.Ports, LocalPorts: it.Path.LocalPorts, Protocol: it.Path.Protocol, Spoken: it.Spoken, Imitation: it.Imitation,
			Pick: it.Path.Pick, MaxLoss: it.Path.MaxLoss, Note: it.Note, Verdict: Unmeasured, Why: it.Reason,
		}
		for _, part := range it.Parts {
			if _, ended := seen[part.Probe]; !ended {
				f.Evidence.Near = append(f.Evidence.Near, p.untried(part))
			}
			for _, o := range seen[part.Probe] {
				if o.Ports = intersect(o.Ports, part.Ports); len(o.Ports) > 0 {
					if part.Target != "" {
						o.Target = part.Target
					}
					f.Evidence.Near = append(f.Evidence.Near, o)
				}
			}
		}
		out = append(out, f)
	}
	return out
}

// untried stands for a part whose probe has not ended.
func (p Plan) untried(part ItemPart) Observation {
	o := Observation{Probe: part.Probe, Ports: part.Ports, Fault: faultInterrupted}
	if i := slices.IndexFunc(p.Probes, func(pr Probe) bool { return pr.ID == part.Probe }); i >= 0 {
		pr := p.Probes[i]
		o.Addr, o.Target, o.Inward, o.ByLocal = pr.Addr, cmp.Or(part.Target, pr.Addr.String()), pr.Where == WhereInward, len(pr.LocalPorts) > 0
		if o.ByLocal {
			o.Aimed = pr.Ports[0].First
		}
	}
	return o
}

// intersect gives the ports that are in both sets.
func intersect(a, b scenarios.PortSet) scenarios.PortSet {
	var out scenarios.PortSet
	for _, x := range a {
		for _, y := range b {
			first, last := max(x.First, y.First), min(x.Last, y.Last)
			if first <= last {
				out = append(out, scenarios.PortRange{First: first, Last: last})
			}
		}
	}
	slices.SortFunc(out, func(a, b scenarios.PortRange) int { return int(a.First) - int(b.First) })
	return out
}
