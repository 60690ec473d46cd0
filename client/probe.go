package client

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/client/survey"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// What the client adds to a probe's number, of protocol's list.
const (
	sizeStage  = protocol.PartSize
	idleStage  = protocol.PartIdle
	markStage  = protocol.PartMark
	nameStage  = protocol.PartName
	alpnStage  = protocol.PartALPN
	plainStage = protocol.PartPlain
)

// portStages are for the ports that a comparison tries.
var portStages = [...]uint32{protocol.PartPort, protocol.PartAnother}

// probe runs one probe and gives what it saw, for each port or run of ports.
func (r *runner) probe(ctx context.Context, p Probe) []Observation {
	switch {
	case p.Where == WhereInward:
		return r.inward(ctx, p)
	case p.Speak == protocol.ICE:
		defer r.advance(p.ID, p.Ports.Len())
		return []Observation{r.ice(ctx, p)}
	case p.Sweeps() && p.Transport == scenarios.UDP:
		return r.sweepUDP(ctx, p)
	case p.Sweeps():
		return r.sweepTCP(ctx, p)
	}
	obs := make([]Observation, p.Ports.Len())
	var wg sync.WaitGroup
	i := 0
	for port := range p.Ports.All {
		o := &obs[i]
		i++
		wg.Go(func() {
			*o = r.one(ctx, p, port)
			r.advance(p.ID, 1)
		})
	}
	wg.Wait()
	return obs
}

// one probes a single port. What the end of ctx breaks off proves nothing; what
// came to its end before stands, whatever was still to be learnt beside it.
func (r *runner) one(ctx context.Context, p Probe, port uint16) Observation {
	o := r.exchanged(ctx, p, port)
	if ctx.Err() == nil {
		r.beside(ctx, p, port, &o)
	} else if o.Stage != protocol.StageDone {
		o.breakOff()
	}
	return o
}

// breakOff is how a probe ends of which the answer was not waited for.
func (o *Observation) breakOff() {
	o.Fault, o.Detail, o.ICMP = faultInterrupted, "", nil
}

// exchanged is what a probe came to at a port.
func (r *runner) exchanged(ctx context.Context, p Probe, port uint16) Observation {
	switch {
	case p.Speak == protocol.STUN && p.Transport == scenarios.UDP:
		return r.stunUDP(ctx, p, port)
	case p.Speak == protocol.TURN && p.Transport == scenarios.UDP:
		return r.turnUDP(ctx, p, port)
	case p.Speak == protocol.Datagram:
		return r.datagrams(ctx, p, port)
	case p.Transport == scenarios.UDP:
		return r.packets(ctx, p, port)
	}
	return r.stream(ctx, p, port)
}

func (r *runner) observe(p Probe, port uint16) Observation {
	o := Observation{Probe: p.ID, Addr: p.Addr, Target: p.Addr.String(), Ports: scenarios.PortSet{{First: port, Last: port}}}
	if p.ServerName != "" {
		o.Target = p.ServerName
	}
	return o
}

// message begins a plain message of a probe.
func (r *runner) message(p Probe, port uint16, attempt int) wire.Message {
	f := r.ends[p.Where]
	return wire.Message{Kind: wire.Request, Offline: f.offline, Port: port, Session: r.res.Session, Probe: p.ID,
		Attempt: uint16(attempt), Size: wire.MessageSize, Time: time.Now()}
}

// tries spaces attempts so that the last one still has most of the timeout.
const tries = 3

func (r *runner) spacing() time.Duration { return r.cfg.Timeout / 8 }

func (r *runner) wait() time.Duration { return r.cfg.Timeout - (tries-1)*r.spacing() }

// rest is how many further datagrams measure the loss once one was lost.
const rest = 17

// datagrams is the plain exchange over UDP: spaced small datagrams; more of
// them when one was lost; then a large one, and a late one after silence.
func (r *runner) datagrams(ctx context.Context, p Probe, port uint16) Observation {
	o := r.observe(p, port)
	o.Stage = protocol.StageToken
	began := time.Now()
	a := r.survey(ctx, p, port, survey.UDP{Attempts: tries, All: true, Spacing: r.spacing(), Wait: r.wait()}, 0)
	o.udp(a)
	if o.Answered == 0 {
		o.Seconds = time.Since(began).Seconds()
		return o
	}
	if o.Answered < o.Sent {
		more := r.survey(ctx, p, port, survey.UDP{Attempts: rest, All: true, Spacing: r.spacing() / 4, Wait: r.wait()}, tries)
		o.Sent += int(more.Sent)
		o.Answered += int(more.Answered)
	}
	o.Fault, o.ICMP = "", nil
	if p.Datagram > wire.MessageSize && !r.large(ctx, p, port, &o) {
		return o
	}
	if p.Where == WhereFar {
		r.mark(ctx, p, port, &o)
	}
	if p.Idle > 0 {
		if survived, _ := r.silence(ctx, p, port, 0, &o); !survived {
			return o
		}
	}
	o.Stage = protocol.StageDone
	return o
}

// survey sends a probe's small datagrams to one port; attempts count from base.
func (r *runner) survey(ctx context.Context, p Probe, port uint16, u survey.UDP, base int) survey.Answer {
	f := r.ends[p.Where]
	size := max(wire.MessageSize, p.Datagram*b2i(u.DontFragment))
	u.Target, u.Ports, u.Local = p.Addr, scenarios.PortSet{{First: port, Last: port}}, ownPort()
	u.Request = func(dst []byte, port uint16, attempt int) []byte {
		m := r.message(p, port, base+attempt)
		m.Size = size
		return m.Append(dst, &f.keys)
	}
	u.Check = func(port uint16, b []byte) (int, bool) {
		m, err := wire.Parse(b, &f.keys)
		return int(m.Attempt) - base, err == nil && m.Kind == wire.Reply && m.Probe == p.ID && m.Port == port
	}
	answers, err := u.Run(ctx)
	if len(answers) == 0 {
		return survey.Answer{Port: port, Fault: survey.Other, Err: err}
	}
	return answers[0]
}

// Probes that do not vary their own port leave from these: below every range
// that systems and documents use for ephemeral ports (Linux 32768-60999, RFC
// 6335 49152-65535), so that a rule by own port shows in the paths that are
// about own ports, and not by chance in others.
const OwnFirst, OwnLast = 20000, 29999

// ownPort draws a free one; where none is found the system chooses.
func ownPort() netip.AddrPort {
	for range 20 {
		port := OwnFirst + rand.IntN(OwnLast-OwnFirst+1)
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err == nil {
			c.Close()
			return netip.AddrPortFrom(netip.Addr{}, uint16(port))
		}
	}
	return netip.AddrPort{}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// large tries datagrams of the size that the application sends, not to be
// fragmented. A path that says how small its MTU is has no black hole.
func (r *runner) large(ctx context.Context, p Probe, port uint16, o *Observation) bool {
	p.ID += sizeStage
	began := time.Now()
	a := r.survey(ctx, p, port, survey.UDP{Attempts: tries, Spacing: r.spacing(), Wait: r.wait(), DontFragment: true, MaxReply: p.Datagram + 1}, 0)
	switch {
	case a.Answered > 0:
		return true
	case a.Fault == survey.TooBig:
		o.Detail = "path MTU is told"
		return true
	}
	o.Stage, o.Fault, o.Seconds = protocol.StageData, protocol.FaultTimeout, time.Since(began).Seconds()
	o.Up, o.Down = int64(p.Datagram), wire.MessageSize
	o.Invalid, o.Sample = int(a.Invalid), hex.EncodeToString(a.Sample[:min(len(a.Sample), 64)])
	return false
}

// silence asks for a packet after a while and says nothing meanwhile. opened
// tells that the flow was there before.
func (r *runner) silence(ctx context.Context, p Probe, port uint16, attempt int, o *Observation) (survived, opened bool) {
	f := r.ends[p.Where]
	p.ID += idleStage
	o.Stage, o.Fault, o.Seconds = protocol.StageIdle, protocol.FaultTimeout, p.Idle.Seconds()
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(ownPort()), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, port)))
	if err != nil {
		o.Fault, o.Detail = protocol.FaultOf(err), err.Error()
		return false, false
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	m := r.lateMessage(p, port, attempt)
	if _, err := c.Write(m.Append(nil, &f.keys)); err != nil {
		o.Fault, o.Detail = protocol.FaultOf(err), err.Error()
		return false, opened
	}
	c.SetReadDeadline(time.Now().Add(p.Idle + r.cfg.Timeout))
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return false, opened
		}
		got, err := wire.Parse(buf[:n], &f.keys)
		if err != nil || got.Probe != p.ID || got.Attempt != m.Attempt {
			continue
		}
		if opened = true; got.Kind == wire.Late {
			o.Fault, o.Seconds = "", 0
			return true, true
		}
	}
}

// udp takes over what a survey saw of one port.
func (o *Observation) udp(a survey.Answer) {
	o.Sent, o.Answered, o.Invalid = int(a.Sent), int(a.Answered), int(a.Invalid)
	o.RTT = ms(a.RTT)
	o.Sample = hex.EncodeToString(a.Sample[:min(len(a.Sample), 64)])
	o.Local = a.Local.Addr()
	o.fault(a)
}

// fault names what a survey met in the words of package protocol.
func (o *Observation) fault(a survey.Answer) {
	if a.ICMP.IsValid() {
		o.ICMP = &ICMP{Type: a.ICMP.Type, Code: a.ICMP.Code, From: a.ICMP.From, Name: a.ICMP.String()}
	}
	if a.Err != nil {
		o.Detail = a.Err.Error()
	}
	switch a.Fault {
	case survey.None:
	case survey.Timeout:
		o.Fault, o.Detail = protocol.FaultTimeout, ""
	case survey.Unfinished:
		o.breakOff()
	case survey.Reset:
		o.Fault = protocol.FaultRefused
	case survey.Unreachable:
		o.Fault = faultICMP
	case survey.Unroutable:
		o.Fault = faultUnroutable
	default:
		o.Fault = a.Fault.String()
	}
}

// ms is a duration in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// stream connects and runs the probe's exchange.
func (r *runner) stream(ctx context.Context, p Probe, port uint16) Observation {
	o := r.observe(p, port)
	o.Stage = protocol.StageConnect
	began := time.Now()
	c, a := r.dial(ctx, netip.AddrPortFrom(p.Addr, port))
	o.Sent, o.Answered, o.Local = int(a.Sent), 0, a.Local.Addr()
	if c == nil {
		o.fault(a)
		o.Seconds = time.Since(began).Seconds()
		return o
	}
	o.RTT = ms(a.RTT)
	o.TCP, o.From, o.Routed = protocol.SentSYN(c), a.Local, p.Where == WhereFar && routed(p.Addr)
	if p.Speak == protocol.STUN || p.Speak == protocol.TURN || p.Speak == protocol.TURNS {
		r.stunStream(ctx, p, c, &o)
		r.leave(ctx, c, o.Stage)
		return o
	}
	o.stream(protocol.On(p.Speak, scenarios.TCP).Probe(ctx, c, r.exchange(p, port)))
	r.leave(ctx, c, o.Stage)
	return o
}

// beside learns more of a port whose exchange has ended: of one that failed, what
// a firewall goes by; of one that did not, how header fields arrive. wallprobe's
// own datagrams have seen to it themselves.
func (r *runner) beside(ctx context.Context, p Probe, port uint16, o *Observation) {
	if p.Speak == protocol.STUN || p.Speak == protocol.TURN || p.Speak == protocol.TURNS || p.Speak == protocol.Datagram {
		return
	}
	done := p.Where == WhereFar && o.Stage == protocol.StageDone
	if p.Transport == scenarios.TCP {
		r.compare(ctx, p, port, o)
		if done {
			r.markStream(ctx, p, port, o)
		}
		return
	}
	if ends := protocol.Named(p.Speak); ends.UDP.Stream || ends.Says != "" {
		r.compare(ctx, p, port, o)
	}
	if done {
		r.mark(ctx, p, port, o)
	}
}

// leave ends a probe's connection, in order where nothing went wrong.
func (r *runner) leave(ctx context.Context, c net.Conn, stage string) {
	if stage != protocol.StageDone {
		c.Close()
		return
	}
	r.partings.part(ctx, c, false)
}

// exchange is what a probe does with one port.
func (r *runner) exchange(p Probe, port uint16) protocol.Exchange {
	f := r.ends[p.Where]
	idle := p.Idle
	if named := protocol.Named(p.Speak); named != nil && idle == 0 && len(r.cfg.Silences) > 0 {
		idle = named.Rhythm // who asks for silences has the time for it
	}
	return protocol.Exchange{
		Keys: &f.keys, Offline: f.offline, Probe: p.ID, Port: port, ServerName: p.ServerName, Variant: p.Variant,
		Bytes: uint32(p.Bytes), Idle: idle, Stall: r.cfg.Timeout, Now: time.Now,
	}
}

// packets runs the exchange of a protocol over UDP.
func (r *runner) packets(ctx context.Context, p Probe, port uint16) Observation {
	o := r.observe(p, port)
	o.Stage = protocol.StageToken
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(ownPort()), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, port)))
	if err != nil {
		o.Fault, o.Detail = protocol.FaultOf(err), err.Error()
		return o
	}
	defer c.Close()
	if err := survey.QueueErrors(c); err != nil {
		o.Fault, o.Detail = protocol.FaultOf(err), err.Error()
		return o
	}
	res := protocol.On(p.Speak, scenarios.UDP).Probe(ctx, c, r.exchange(p, port))
	o.stream(res)
	if o.Fault != "" && o.Answered == 0 && isErrno(res.Err) {
		o.fault(survey.Explain(c, res.Err))
	}
	return o
}

// stream takes over the result of an exchange.
func (o *Observation) stream(res protocol.Result) {
	o.Stage, o.Fault, o.Up, o.Down, o.TLS = res.Stage, res.Fault, res.Up, res.Down, res.TLS
	o.Seconds = res.Took.Seconds()
	o.Sample = hex.EncodeToString(res.Sample[:min(len(res.Sample), 64)])
	o.Media, o.Flow = res.Media, res.Flow
	o.Seen, o.Said, o.Step, o.Detail, o.Rate, o.Pause = res.Seen.Seen, res.Said, res.Step, res.Detail, res.Rate, res.Pause.Seconds()
	if res.Err != nil {
		o.Detail = res.Err.Error()
	}
	if res.Sent > 0 {
		o.Sent, o.Answered, o.Strays = res.Sent, res.Heard, res.Strays
	}
	if res.Fault == "" {
		o.Answered, o.Seconds, o.Detail = max(o.Answered, 1), 0, res.Detail // of all that were begun, one carries the exchange
		if res.RTT > 0 {
			o.RTT = ms(res.RTT)
		}
	}
	if res.Stage == protocol.StageIdle {
		o.Seconds = res.Took.Seconds()
	}
}

// dial tries to connect, beginning again a little later while nothing is
// heard, so that one lost SYN changes nothing. The first answer of any kind counts.
func (r *runner) dial(ctx context.Context, to netip.AddrPort) (net.Conn, survey.Answer) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	type got struct {
		c net.Conn
		a survey.Answer
	}
	results := make(chan got, tries)
	sent := 0
	begin := func() {
		sent++
		go func() {
			c, a := survey.Dial(ctx, netip.AddrPort{}, to)
			results <- got{c, a}
		}()
	}
	begin()
	again := time.NewTicker(r.spacing())
	defer again.Stop()
	var last got
	for ended := 0; ended < sent; {
		select {
		case <-again.C:
			if sent < tries {
				begin()
			}
			continue
		case last = <-results:
			ended++
		}
		if last.c != nil || last.a.Fault != survey.Timeout && last.a.Fault != survey.Unfinished {
			cancel()
			for ; ended < sent; ended++ {
				if late := <-results; late.c != nil {
					late.c.Close()
				}
			}
			break
		}
	}
	last.a.Sent = uint16(sent)
	if last.c != nil {
		last.c = protocol.Patient(last.c, true)
	}
	return last.c, last.a
}

// advance moves the progress of a probe on.
func (r *runner) advance(id uint32, by int) {
	r.mu.Lock()
	r.progress[id] += by
	r.mu.Unlock()
	r.doing("")
}

// doing tells of the progress and of what takes long now.
func (r *runner) doing(what string) {
	if r.cfg.Progress == nil {
		return
	}
	r.mu.Lock()
	p := Progress{Total: r.total, Doing: what}
	for _, n := range r.progress {
		p.Done += n
	}
	r.mu.Unlock()
	r.cfg.Progress(p)
}
