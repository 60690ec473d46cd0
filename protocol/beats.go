package protocol

import (
	"context"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// How often beats are sent: so many, and so many more to measure the loss once
// one of them was lost. The attempt after all of them asks for the late message.
const (
	beatCount = 3
	beatRest  = 17
)

// Beats are small plain datagrams, one after the other: wallprobe's own
// messages, which every UDP port of the reflector answers. They are spaced by
// an eighth of the stall, or in their rhythm when the exchange is to idle. What
// has no rhythm idles at the end, until the reflector's late message.
type beats struct{ rhythm time.Duration }

// probe is the near end.
func (b beats) probe(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	spacing := x.Stall / 8
	if b.rhythm > 0 && x.Idle > 0 {
		spacing = b.rhythm
	}
	p := pulse{ctx: ctx, c: c, x: x, r: &r}
	if !step(StageToken, p.send(beatCount, spacing)) {
		return r
	}
	if r.Heard < r.Sent {
		p.send(beatRest, x.Stall/32) // loss is judged from the counts, an error here proves nothing more
	}
	if x.Idle > 0 && b.rhythm == 0 && !step(StageIdle, p.late()) {
		return r
	}
	step(StageDone, nil)
	return r
}

// A pulse is a sequence of beats under way.
type pulse struct {
	ctx   context.Context
	c     net.Conn
	x     Exchange
	r     *Result
	heard [beatCount + beatRest]bool
	sent  [beatCount + beatRest]time.Time
	buf   [2048]byte
}

// send sends n beats and listens until all of them are answered or the last one
// had its time. The error is nil when one of all was answered.
func (p *pulse) send(n int, spacing time.Duration) error {
	first := p.r.Sent
	due := time.Now()
	end := due.Add(time.Duration(n-1)*spacing + p.x.Stall*3/4)
	var failure error
	for p.ctx.Err() == nil {
		all := p.r.Sent == first+n
		now := time.Now()
		if !all && !now.Before(due) {
			if err := p.beat(now); err != nil {
				failure = firstError(failure, err)
			}
			due = due.Add(spacing)
			continue
		}
		if all && (p.r.Heard >= p.r.Sent || !now.Before(end)) {
			break
		}
		until := due
		if all {
			until = end
		}
		failure = firstError(failure, p.listen(until))
	}
	switch {
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	case p.r.Heard > 0:
		p.r.Sample = nil
		return nil
	case failure != nil:
		return failure
	}
	return context.DeadlineExceeded
}

// firstError keeps the first error that says more than that nothing came.
func firstError(a, b error) error {
	if a != nil || FaultOf(b) == FaultTimeout {
		return a
	}
	return b
}

func (p *pulse) beat(now time.Time) error {
	x := p.x
	x.Attempt, x.Idle, x.Bytes = uint16(p.r.Sent), 0, 0
	m := x.message(wire.Request)
	p.sent[p.r.Sent] = now
	p.r.Sent++
	_, err := p.c.Write(m.Append(nil, x.Keys))
	return err
}

// listen reads one datagram.
func (p *pulse) listen(until time.Time) error {
	p.c.SetReadDeadline(until)
	if p.ctx.Err() != nil {
		return nil
	}
	n, err := p.c.Read(p.buf[:])
	if err != nil {
		return err
	}
	m, err := wire.Parse(p.buf[:n], p.x.Keys)
	if err != nil || m.Kind != wire.Reply || m.Probe != p.x.Probe || m.Port != p.x.Port || int(m.Attempt) >= p.r.Sent {
		if p.r.Sample == nil {
			p.r.Sample = append([]byte{}, p.buf[:min(n, 256)]...)
		}
		return ErrForeign
	}
	if !p.heard[m.Attempt] {
		p.heard[m.Attempt] = true
		if p.r.Heard++; p.r.Heard == 1 {
			p.r.RTT, p.r.Seen = time.Since(p.sent[m.Attempt]), m
		}
	}
	return nil
}

// late asks for a message after the silence, and waits for it.
func (p *pulse) late() error {
	x := p.x
	x.Attempt, x.Bytes = beatCount+beatRest, 0
	m := x.message(wire.Request)
	if _, err := p.c.Write(m.Append(nil, x.Keys)); err != nil {
		return err
	}
	end := time.Now().Add(x.Idle + x.Stall)
	for {
		p.c.SetReadDeadline(end)
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := p.c.Read(p.buf[:])
		if err != nil {
			return err
		}
		if m, err := wire.Parse(p.buf[:n], x.Keys); err == nil && m.Kind == wire.Late && m.Probe == x.Probe {
			return nil
		}
	}
}
