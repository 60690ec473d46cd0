package client

import (
	"context"
	"fmt"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// maxInward is the number of ports that one inward path is tried on: its edges
// and a sample, since each needs a listener here.
const maxInward = 16

// inward listens on the path's ports and asks the reflector to call them.
func (r *runner) inward(ctx context.Context, p Probe) []Observation {
	f := r.ends[WhereFar]
	ports := p.Ports
	if ports.Len() > maxInward {
		ports = samples(ports, maxInward-2*len(ports), nil)
	}
	obs := make(map[uint16]*Observation)
	for port := range ports.All {
		o := r.observe(p, port)
		o.Inward, o.Sent, o.Local = true, tries, f.hello.Source.Addr()
		obs[port] = &o
		at := doorway{p.Transport, port, p.Addr.Is6()}
		if err := r.doors.enter(at, &f.keys); err != nil {
			o.Detail = fmt.Sprintf("this end cannot listen on %d/%s: %v", port, p.Transport, err)
			continue
		}
		defer r.doors.leave(at)
	}
	var calls *callers
	if p.Transport == scenarios.TCP {
		calls = watchCalls(p.Addr)
	}
	var reply wire.InwardReply
	call, cancel := context.WithTimeout(ctx, r.cfg.Timeout+tries*2*time.Second)
	defer cancel()
	err := f.call(call, f.base, wire.CallInward, wire.InwardRequest{
		Session: r.res.Session, Time: time.Now(), Probe: p.ID, Transport: p.Transport, Ports: ports, Attempts: tries,
	}, &reply)
	calls.end() // while the ports still listen
	var out []Observation
	for port := range ports.All {
		o := obs[port]
		o.Arrived = r.doors.arrived(p.ID, port)
		o.called(p.Transport, port, reply, err)
		calls.tell(o, port)
		if err != nil && ctx.Err() != nil {
			o.breakOff()
		}
		out = append(out, *o)
		r.advance(p.ID, 1)
	}
	return out
}

// called takes over what the reflector met on one port.
func (o *Observation) called(t scenarios.Transport, port uint16, reply wire.InwardReply, err error) {
	if err != nil && o.Detail == "" {
		o.Detail = "the reflector could not be asked to call: " + sentence(err)
		return
	}
	for _, m := range reply.Made {
		if m.Ports.Contains(port) {
			o.Sent = m.N
		}
	}
	o.Stage = protocol.StageConnect
	if t == scenarios.UDP || reply.Up.Contains(port) {
		o.Stage = protocol.StageToken
	}
	if reply.Open.Contains(port) {
		o.Stage, o.Answered = protocol.StageDone, 1
	}
	for _, x := range reply.Fault {
		if x.Ports.Contains(port) {
			o.Fault = x.Fault
		}
	}
}
