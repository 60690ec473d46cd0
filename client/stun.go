package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/wallprobe/wallprobe/client/survey"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// binder makes STUN Bindings of a probe and knows their answers.
type binder struct {
	username, password, label string
	ids                       map[[12]byte]int // attempt by transaction
}

func (r *runner) binder(p Probe) *binder {
	user, pass := wire.TURN(r.cfg.Key, r.res.Session, r.res.Started)
	return &binder{user, pass, strconv.Itoa(int(p.ID)), make(map[[12]byte]int)}
}

func (b *binder) request(attempt int) ([]byte, error) {
	msg, id, err := protocol.Binding(b.username, b.password, b.label)
	b.ids[id] = attempt
	return msg, err
}

// check finds the attempt that an answer belongs to.
func (b *binder) check(msg []byte) (attempt int, mapped netip.AddrPort, ok bool) {
	if len(msg) < 20 {
		return 0, mapped, false
	}
	attempt, ok = b.ids[[12]byte(msg[8:20])]
	if !ok {
		return 0, mapped, false
	}
	mapped, err := protocol.ParseBinding(msg, b.password, [12]byte(msg[8:20]))
	return attempt, mapped, err == nil
}

// stunUDP sends authenticated Bindings (RFC 8489 section 9.1), and more of them
// when one was lost.
func (r *runner) stunUDP(ctx context.Context, p Probe, port uint16) Observation {
	o := r.observe(p, port)
	o.Stage = protocol.StageToken
	b := r.binder(p)
	o.udp(r.bindings(ctx, p, port, b, tries, r.spacing(), &o))
	if o.Answered == 0 {
		return o
	}
	if o.Answered < o.Sent {
		more := r.bindings(ctx, p, port, b, rest, r.spacing()/4, &o)
		o.Sent += int(more.Sent)
		o.Answered += int(more.Answered)
	}
	o.Stage, o.Fault, o.ICMP, o.Detail = protocol.StageDone, "", nil, "mapped to "+o.Seen.String()
	if p.Where == WhereFar {
		r.mark(ctx, p, port, &o)
	}
	return o
}

// bindings sends n of them to one port.
func (r *runner) bindings(ctx context.Context, p Probe, port uint16, b *binder, n int, spacing time.Duration, o *Observation) survey.Answer {
	answers, err := survey.UDP{
		Target: p.Addr, Ports: scenarios.PortSet{{First: port, Last: port}}, Local: ownPort(), Attempts: n, All: true, Spacing: spacing, Wait: r.wait(),
		Request: func(dst []byte, _ uint16, attempt int) []byte {
			msg, _ := b.request(attempt) // fails only for names that are too long
			return append(dst, msg...)
		},
		Check: func(_ uint16, msg []byte) (int, bool) {
			attempt, mapped, ok := b.check(msg)
			if ok {
				o.Seen = mapped
			}
			return attempt, ok
		},
	}.Run(ctx)
	if len(answers) == 0 {
		return survey.Answer{Port: port, Fault: survey.Other, Err: err}
	}
	return answers[0]
}

// stunStream speaks STUN or TURN over TCP, in TLS for turns.
func (r *runner) stunStream(ctx context.Context, p Probe, c net.Conn, o *Observation) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	o.Stage = protocol.StageToken
	c.SetDeadline(time.Now().Add(r.cfg.Timeout))
	if p.Speak == protocol.TURNS {
		o.Stage = protocol.StageTLS
		tc, res := r.exchange(p, o.Ports[0].First).OverTLS(ctx, c)
		if o.TLS = res.TLS; tc == nil {
			o.Fault, o.Sample = res.Fault, fmt.Sprintf("%x", res.Sample)
			if res.Err != nil {
				o.Detail = res.Err.Error()
			}
			return
		}
		c, o.Stage = tc, protocol.StageToken
	}
	if err := r.bindStream(p, c, o); err != nil {
		o.Fault, o.Detail = protocol.FaultOf(err), err.Error()
		return
	}
	if p.Speak == protocol.STUN {
		o.Stage, o.Answered, o.Detail = protocol.StageDone, 1, "mapped to "+o.Seen.String()
		return
	}
	c.SetDeadline(time.Time{})
	r.useRelay(ctx, p, c, o)
}

// bindStream is a Binding over a stream: messages follow each other without
// further framing (RFC 8489 section 6.2.2).
func (r *runner) bindStream(p Probe, c net.Conn, o *Observation) error {
	b := r.binder(p)
	msg, err := b.request(0)
	if err != nil {
		return err
	}
	if _, err := c.Write(msg); err != nil {
		return err
	}
	head := make([]byte, 20)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	body := make([]byte, int(head[2])<<8|int(head[3]))
	if len(body) <= 512 && len(body)%4 == 0 { // as every message is (section 5)
		if _, err := io.ReadFull(c, body); err != nil {
			return err
		}
	}
	_, mapped, ok := b.check(append(head, body...))
	if !ok {
		o.Sample = fmt.Sprintf("%x", head)
		return protocol.ErrForeign
	}
	o.Seen = mapped
	return nil
}
