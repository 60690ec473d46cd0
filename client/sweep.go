package client

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/wallprobe/wallprobe/client/survey"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// answers are what came of the ports of a sweep that were tried.
type answers map[uint16]*survey.Answer

// take puts answers in the place of earlier ones. It keeps the list.
func (as answers) take(list []survey.Answer) {
	for i := range list {
		as[list[i].Port] = &list[i]
	}
}

// A surveyor tries some ports of a sweep.
type surveyor func(ctx context.Context, ports scenarios.PortSet, progress func(done int)) []survey.Answer

// sweepUDP tries a range with bare messages, over remote or own ports.
func (r *runner) sweepUDP(ctx context.Context, p Probe) []Observation {
	f := r.ends[p.Where]
	byLocal := len(p.LocalPorts) > 0
	aimed := p.Ports[0].First
	local := localAddr(p.Addr)
	ports := p.Ports
	if byLocal {
		ports = p.LocalPorts
	}
	base, rate := 0, r.cfg.Rate
	ask := func(ctx context.Context, ports scenarios.PortSet, progress func(int)) []survey.Answer {
		// Two sweeps at once would take each other's packets for lost; one that
		// nothing answers, or that only waits, is in nobody's way.
		f.sweep.Lock()
		done := sync.OnceFunc(f.sweep.Unlock)
		defer done()
		u := survey.UDP{
			Target: p.Addr, Attempts: tries, Amid: shortRun * 2, Spacing: max(r.cfg.Timeout/16, 2*r.rtt(p.Where)), Rate: rate, RTT: r.rtt(p.Where), Wait: r.sweepWait(p.Where),
			Progress: func(done, _ int) { progress(done) }, Quiet: done,
			Request: func(dst []byte, port uint16, attempt int) []byte {
				m := r.message(p, port, base+attempt)
				if byLocal {
					m.Port, m.ByLocal, m.Seen = aimed, true, netip.AddrPortFrom(local, port)
				}
				return m.Append(dst, &f.keys)
			},
			Check: func(port uint16, b []byte) (int, bool) {
				m, err := wire.Parse(b, &f.keys)
				want := port
				if byLocal {
					want = aimed
				}
				return int(m.Attempt) - base, err == nil && m.Kind == wire.Reply && m.Probe == p.ID && m.Port == want
			},
		}
		if byLocal {
			u.LocalPorts, u.RemotePort = ports, aimed
		} else {
			u.Ports, u.Local = ports, ownPort()
		}
		answers, err := u.Run(ctx)
		return explained(answers, ports, err)
	}
	got, probed := r.range_(ctx, p, ports, ask)
	if again := r.secondLook(ctx, p, ports, got); len(again) > 0 && ctx.Err() == nil {
		base, rate = tries, gentleSweep
		list := ask(ctx, again, func(int) {})
		for i := range list {
			a := &list[i]
			a.Sent += got[a.Port].Sent
			got[a.Port] = a
		}
	}
	r.lookAgain(ctx, got, ask)
	if ctx.Err() != nil && r.cfg.Sweep {
		got.doubt(scattered(ports, got, nil))
	}
	return runs(p, got, probed, func(o *Observation, a survey.Answer) {
		if o.ByLocal = byLocal; byLocal {
			o.Aimed = aimed
		}
		o.datagrams(a)
	})
}

// datagrams fills in what a sweep saw of a port.
func (o *Observation) datagrams(a survey.Answer) {
	o.Stage = protocol.StageToken
	o.Sent, o.Invalid = int(a.Sent), int(a.Invalid)
	o.Sample = hex.EncodeToString(a.Sample[:min(len(a.Sample), 16)])
	o.fault(a)
	if o.Answered = int(a.Answered); o.Answered > 0 {
		o.Stage, o.Fault, o.ICMP, o.Detail = protocol.StageDone, "", nil, ""
	}
}

// lookAgain tries own ports that something else on this machine held, such as
// another probe of this run, until the timeout is over.
func (r *runner) lookAgain(ctx context.Context, got answers, ask surveyor) {
	tick := time.NewTicker(r.cfg.Timeout / 5)
	defer tick.Stop()
	for range 5 {
		var held []uint16
		for port, a := range got {
			if a.Fault == survey.Other && errors.Is(a.Err, syscall.EADDRINUSE) {
				held = append(held, port)
			}
		}
		if len(held) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		slices.Sort(held)
		var ports scenarios.PortSet
		for _, port := range held {
			ports = appendPort(ports, port)
		}
		got.take(ask(ctx, ports, func(int) {}))
	}
}

// A sweep may lose packets by its own haste: where no answer comes back nothing
// paces it, and a busy machine may drop what it cannot read. Such a loss is
// scattered, while what a firewall blocks is mostly a range. So silent ports in
// runs shorter than this get a second look at a gentle rate.
const (
	shortRun    = 64
	gentleSweep = 20_000 // packets a second
)

// secondLook lists the ports to look at again after every port was tried.
func (r *runner) secondLook(ctx context.Context, p Probe, ports scenarios.PortSet, got answers) scenarios.PortSet {
	if !r.cfg.Sweep || !got.silent() {
		return nil
	}
	return scattered(ports, got, r.seenBy(ctx, p))
}

// doubt takes back what was found out of silent ports that an interrupted run
// would have looked at again.
func (as answers) doubt(ports scenarios.PortSet) {
	for port := range ports.All {
		as[port].Fault = survey.Unfinished
	}
}

// silent tells whether any port stayed silent.
func (as answers) silent() bool {
	for _, a := range as {
		if a.Fault == survey.Timeout && a.Answered == 0 {
			return true
		}
	}
	return false
}

// scattered lists the silent ports that may be the sweep's own doing. seen,
// nil without a ledger, tells which of them the far end saw. What an interrupted
// sweep has begun with is as silent.
func scattered(ports scenarios.PortSet, got answers, seen *perPort) scenarios.PortSet {
	const other, unseen, unanswered = 0, 1, 2
	class := func(port uint16) int {
		a := got[port]
		switch {
		case a == nil || a.Answered > 0 || a.Fault != survey.Timeout && (a.Fault != survey.Unfinished || a.Sent == 0):
			return other
		case seen != nil && seen[port] > 0:
			return unanswered
		}
		return unseen
	}
	var again, run scenarios.PortSet
	was := other
	end := func() {
		if was != other && run.Len() < shortRun {
			again = append(again, run...)
		}
		run = nil
	}
	for port := range ports.All {
		c := class(port)
		if c != was {
			end()
			was = c
		}
		run = appendPort(run, port)
	}
	end()
	return scenarios.Union(again)
}

// seenBy asks the far end which ports of a probe it saw; nil when it cannot tell.
func (r *runner) seenBy(ctx context.Context, p Probe) *perPort {
	f := r.ends[p.Where]
	if f.offline {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	l, err := f.ledger(ctx)
	if err != nil {
		return nil
	}
	if v := viewOf(l).probes[p.ID]; v != nil {
		return &v.seen
	}
	return nil
}

// rtt is the round-trip time to a far end, as far as it is known; 0 when not.
func (r *runner) rtt(w Where) time.Duration {
	return cmp.Or(r.ends[w].delay, r.cfg.RTT)
}

// sweepWait is the time for answers after a sweep's last attempt; with a known
// round-trip time a survey chooses it.
func (r *runner) sweepWait(w Where) time.Duration {
	if r.rtt(w) > 0 {
		return 0
	}
	return r.cfg.Timeout / 2
}

// sweepTCP connects to every port of a range and exchanges the token.
func (r *runner) sweepTCP(ctx context.Context, p Probe) []Observation {
	f := r.ends[p.Where]
	f.sweep.Lock()
	defer f.sweep.Unlock()
	results := make([]*protocol.Result, 65536)
	ask := func(ctx context.Context, ports scenarios.PortSet, progress func(int)) []survey.Answer {
		t := survey.TCP{
			Target: p.Addr, Ports: ports, Timeout: r.cfg.Timeout / 3, Attempts: tries, Rate: r.cfg.Rate, RTT: r.rtt(p.Where), Limit: r.cfg.Timeout,
			Progress: func(done, _ int) { progress(done) },
		}
		exchange := func(port uint16) protocol.Exchange {
			return protocol.Exchange{Keys: &f.keys, Offline: f.offline, Probe: p.ID, Port: port, Stall: r.cfg.Timeout, Now: time.Now}
		}
		if p.Speak == protocol.Plain { // a goroutine and a net.Conn for each port would be most of the cost
			t.Reply = wire.MessageSize
			t.Ask = func(dst []byte, port uint16) []byte { return exchange(port).AppendAsk(dst) }
			t.Answered = func(port uint16, b []byte, err error, took time.Duration) error {
				res := exchange(port).Answered(b, err, took)
				res.Sample = slices.Clone(res.Sample)
				results[port] = &res
				return res.Err
			}
		} else {
			t.Exchange = func(ctx context.Context, c net.Conn, port uint16) error {
				res := protocol.On(p.Speak, scenarios.TCP).Probe(ctx, c, exchange(port))
				results[port] = &res
				return res.Err
			}
		}
		answers, err := t.Run(ctx)
		return explained(answers, ports, err)
	}
	got, probed := r.range_(ctx, p, p.Ports, ask)
	return runs(p, got, probed, func(o *Observation, a survey.Answer) {
		o.Stage = protocol.StageConnect
		o.Sent = int(a.Sent)
		if res := results[a.Port]; res != nil && a.Fault != survey.Unfinished {
			o.stream(*res)
			o.RTT, o.Seen, o.Seconds = 0, netip.AddrPort{}, 0
			return
		}
		o.fault(a)
	})
}

// explained gives every port an answer although the survey could not be tried.
func explained(answers []survey.Answer, ports scenarios.PortSet, err error) []survey.Answer {
	if len(answers) > 0 || err == nil || errors.Is(err, context.Canceled) {
		return answers
	}
	for port := range ports.All {
		answers = append(answers, survey.Answer{Port: port, Fault: survey.Other, Err: err})
	}
	return answers
}

// sample is how many ports of a range are tried before bisection, edges not counted.
const sample = 32

// range_ tries every port, or the edges and a sample and then bisects to the
// exact boundaries. It returns the answers by port and which ports were tried.
func (r *runner) range_(ctx context.Context, p Probe, ports scenarios.PortSet, ask surveyor) (answers, scenarios.PortSet) {
	got := make(answers)
	last := 0
	try := func(ports scenarios.PortSet) {
		got.take(ask(ctx, ports, func(done int) { r.advance(p.ID, done-last); last = done }))
		r.advance(p.ID, ports.Len()-last)
		last = 0
	}
	if r.cfg.Sweep && p.Where != WhereLAN { // in a LAN nothing is under test
		try(ports)
		return got, nil
	}
	next := samples(ports, sample, p.Edges)
	for len(next) > 0 && ctx.Err() == nil {
		try(next)
		next = between(ports, got)
	}
	if ctx.Err() != nil {
		got.unbounded(ports)
	}
	var probed scenarios.PortSet
	for port := range ports.All {
		if _, ok := got[port]; ok {
			probed = appendPort(probed, port)
		}
	}
	return got, probed
}

// samples are the edges of every range, those of the ranges named besides, and n
// ports spread evenly over all.
func samples(ports scenarios.PortSet, n int, edges []scenarios.PortRange) scenarios.PortSet {
	var all []uint16
	for port := range ports.All {
		all = append(all, port)
	}
	pick := make(map[uint16]bool)
	for _, rg := range slices.Concat(ports, edges) {
		pick[rg.First], pick[rg.Last] = true, true
	}
	for i := range n {
		pick[all[i*len(all)/n]] = true
	}
	var set scenarios.PortSet
	for _, port := range all {
		if pick[port] {
			set = appendPort(set, port)
		}
	}
	return set
}

// between are the ports half-way between neighbours that fared differently.
func between(ports scenarios.PortSet, got answers) scenarios.PortSet {
	var next scenarios.PortSet
	for _, rg := range ports {
		prev := -1
		for port := int(rg.First); port <= int(rg.Last); port++ {
			a, ok := got[uint16(port)]
			if !ok {
				continue
			}
			if prev >= 0 && port-prev > 1 && fared(got[uint16(prev)]) != fared(a) {
				next = appendPort(next, uint16((prev+port)/2))
			}
			prev = port
		}
	}
	return next
}

// unbounded adds what a bisection that was broken off did not come to: every port
// between two that fared differently, where the boundary was still to be looked
// for, or of which one did not come to its end. The others fare as those around them.
func (as answers) unbounded(ports scenarios.PortSet) {
	for _, rg := range ports {
		prev := -1
		for port := int(rg.First); port <= int(rg.Last); port++ {
			a, ok := as[uint16(port)]
			if !ok {
				continue
			}
			for p := prev + 1; prev >= 0 && p < port; p++ {
				if b := as[uint16(prev)]; fared(a) != fared(b) || a.Fault == survey.Unfinished {
					as[uint16(p)] = &survey.Answer{Port: uint16(p), Fault: survey.Unfinished}
				}
			}
			prev = port
		}
	}
}

// fared is what tells two ports apart.
func fared(a *survey.Answer) string {
	if a.Answered > 0 && a.ExchangeErr == nil {
		return "answered"
	}
	return fmt.Sprint(a.Fault, a.ICMP, a.Invalid > 0, a.ExchangeErr)
}

// runs makes observations of answers, one for all ports that fared alike.
// Ports that were not tried join the run of the port before them.
func runs(p Probe, got answers, probed scenarios.PortSet, fill func(*Observation, survey.Answer)) []Observation {
	ports := p.Ports
	if len(p.LocalPorts) > 0 {
		ports = p.LocalPorts
	}
	type fate struct { // of a port; comparing is cheap, there are 65,535
		sent, answered, invalid      int
		stage, fault, sample, detail string
		icmp                         ICMP
	}
	index := make(map[fate]int)
	var out []Observation
	cur := -1
	blank := Observation{Probe: p.ID, Addr: p.Addr, Target: p.Addr.String()}
	var o Observation // one for all: it is large
	for port := range ports.All {
		if a, ok := got[port]; ok {
			o = blank
			fill(&o, *a)
			if o.Local == (netip.Addr{}) {
				o.Local = a.Local.Addr()
			}
			key := fate{o.Sent, o.Answered, o.Invalid, o.Stage, o.Fault, o.Sample, o.Detail, o.icmpKey()}
			if cur, ok = index[key]; !ok {
				cur = len(out)
				index[key] = cur
				out = append(out, o)
			}
			if probed != nil {
				out[cur].Probed = appendPort(out[cur].Probed, port)
			}
			if rtt := ms(a.RTT); rtt > 0 && (out[cur].RTT == 0 || rtt < out[cur].RTT) {
				out[cur].RTT = rtt
			}
		}
		if cur >= 0 {
			out[cur].Ports = appendPort(out[cur].Ports, port)
		}
	}
	return out
}

func (o *Observation) icmpKey() ICMP {
	if o.ICMP == nil {
		return ICMP{}
	}
	return *o.ICMP
}

// localAddr is the address that this machine uses towards another; zero when it has none.
func localAddr(to netip.Addr) netip.Addr {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}
