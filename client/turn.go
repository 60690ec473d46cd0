package client

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// turnUDP is a Binding and then, from a socket of its own, all that TURN is for.
func (r *runner) turnUDP(ctx context.Context, p Probe, port uint16) Observation {
	o := r.stunUDP(ctx, p, port)
	if o.Stage != protocol.StageDone {
		return o
	}
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(ownPort()), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, port)))
	if err != nil {
		o.Stage, o.Fault, o.Detail = protocol.StageAllocate, "other", err.Error()
		return o
	}
	defer c.Close()
	r.useRelay(ctx, p, c, &o)
	return o
}

// useRelay goes through all of TURN on a connection.
func (r *runner) useRelay(ctx context.Context, p Probe, c net.Conn, o *Observation) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	user, pass := wire.TURN(r.cfg.Key, r.res.Session, r.res.Started)
	b := r.binder(p)
	t := &protocol.Relay{Conn: c, Username: user, Password: pass, Stall: r.cfg.Timeout,
		Ahead: func() ([]byte, error) { return b.request(0) }}
	res := t.Use(r.exchange(p, o.Ports[0].First))
	before := *o
	o.stream(res)
	o.Answered, o.RTT, o.Seen, o.TLS = max(before.Answered, o.Answered), cmp.Or(before.RTT, o.RTT), before.Seen, before.TLS
}

func isTURN(stage string) bool { return strings.HasPrefix(stage, "turn ") }

// judgeTURN: STUN is answered, TURN ends early.
func (e *portEvidence) judgeTURN() (Verdict, string) {
	o := e.near
	if why, _ := e.rewritten(); why != "" {
		return Altered, why
	}
	switch {
	case e.alteredThere(o.Probe) != nil:
		return Altered, fmt.Sprintf("stage %s: the request arrived changed", o.Stage)
	case o.Fault == protocol.FaultAltered, o.Fault == protocol.FaultForeign:
		return Altered, fmt.Sprintf("stage %s: what came back is not what the relay or its peer sent: %s%s", o.Stage, o.Detail, e.gave())
	case strings.HasPrefix(o.Detail, "the relay refuses"):
		return Unmeasured, fmt.Sprintf("stage %s: %s", o.Stage, o.Detail)
	}
	why := fmt.Sprintf("stage %s: %s", o.Stage, ended(o.Fault))
	if o.Stage == protocol.StageAllocate && o.Fault == protocol.FaultTimeout {
		why = "STUN is answered, but the allocation is not"
	}
	if how, _, ok := strings.Cut(o.Detail, ": "); ok && o.Stage == protocol.StageRelayed && strings.HasPrefix(how, "in ") {
		why += " " + how
	}
	return Cut, why + e.turnFar()
}

// turnChanged lays the messages that each end has of a transaction side by side
// and tells the first attribute that arrived as another, was taken away or put in.
func (e *portEvidence) turnChanged() string {
	sent, heard := messages(e.near.Said.Sent), messages(e.near.Said.Heard)
	for _, ev := range e.own() {
		if ev.Said == nil {
			continue
		}
		why := cmp.Or(attribute(sent, messages(ev.Said.Heard), "at the reflector"), attribute(messages(ev.Said.Sent), heard, "here"))
		switch {
		case why != "" && e.near.Stage != protocol.StageDone:
			return fmt.Sprintf("stage %s: %s", e.near.Stage, why)
		case why != "":
			return why
		}
	}
	return ""
}

// attribute tells the first difference of messages that arrived.
func attribute(sent, heard [][]string, to string) string {
	transaction := func(m []string) string { return m[0][strings.LastIndexByte(m[0], ' ')+1:] }
	for _, s := range sent {
		i := slices.IndexFunc(heard, func(h []string) bool { return transaction(h) == transaction(s) })
		if i < 0 {
			continue
		}
		if list := compare(s, heard[i]); len(list) > 0 {
			return list[0].words(to)
		}
	}
	return ""
}

// messages takes a record apart into messages (see protocol.STUNSaid), each of
// which begins with what it is and its transaction.
func messages(lines []string) (list [][]string) {
	for len(lines) > 0 {
		i := slices.Index(lines, "")
		if i < 0 {
			i = len(lines) // as many as are recorded
		}
		if i > 0 {
			list = append(list, lines[:i])
		}
		lines = lines[min(i+1, len(lines)):]
	}
	return list
}

// turnFar says whether the reflector knows of the stage that failed.
func (e *portEvidence) turnFar() string {
	if !e.ledger || e.near.Fault != protocol.FaultTimeout {
		return e.farWhy()
	}
	n := 0
	for _, ev := range e.events {
		if ev.Stage == e.near.Stage || ev.Stage == protocol.StageChallenge && e.near.Stage == protocol.StageAllocate {
			n++
		}
	}
	if e.near.Stage == protocol.StageRelayed {
		return "" // it tells of the first packet alone, which may have been another
	}
	if n > 0 {
		return "; the reflector answered it"
	}
	return "; the reflector saw nothing of it"
}
