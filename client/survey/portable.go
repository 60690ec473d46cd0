package survey

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
)

// The portable surveys use one goroutine and one connected socket per port, a
// thousand at a time. They are for systems without a faster way, and are
// tested on all.
const portableInFlight = 1000

func (u UDP) portable(ctx context.Context) ([]Answer, error) {
	t := u.tally()
	s := &portableUDP{tally: t, start: time.Now(), gate: gate{rate: u.Rate}}
	each(ctx, len(t.answers), min(defaulted(u.InFlight, portableInFlight), portableInFlight), func(i int) { s.port(ctx, i) })
	return t.finish(ctx, time.Since(s.start), s.RTT)
}

// each calls do for 0 to n-1 in stride order, at most limit at once, until ctx ends.
func each(ctx context.Context, n, limit int, do func(i int)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	order, slots := newStride(n), make(chan struct{}, limit)
	for k := range n {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			do(order.at(k))
		})
	}
}

// A gate lets callers through at a rate, the polite one if it is 0.
type gate struct {
	rate int
	mu   sync.Mutex
	next time.Time
}

// pass waits for the caller's turn and tells whether ctx still stands.
func (g *gate) pass(ctx context.Context) bool {
	g.mu.Lock()
	now := time.Now()
	if g.next.Before(now) {
		g.next = now
	}
	turn := g.next.Sub(now)
	g.next = g.next.Add(time.Second / time.Duration(defaulted(g.rate, politeRate)))
	g.mu.Unlock()
	return pause(ctx, turn)
}

// pause waits and tells whether ctx still stands.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

type portableUDP struct {
	mu sync.Mutex // of the tally
	*tally
	start time.Time
	gate  gate
}

func (s *portableUDP) port(ctx context.Context, i int) {
	s.mu.Lock()
	port := s.answers[i].Port
	s.mu.Unlock()
	local, remote := s.ends(port)
	c, err := net.DialUDP("udp", udpAddr(local), net.UDPAddrFromAddrPort(remote))
	if err != nil {
		s.lock(func() { s.fail(i, outcome{fault: faultOf(err), err: err}) })
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	s.lock(func() { s.answers[i].Local = c.LocalAddr().(*net.UDPAddr).AddrPort() })
	for attempt := range s.Attempts {
		if !s.gate.pass(ctx) {
			return
		}
		s.attempt(c, i, attempt)
		listen := s.Spacing
		if attempt == s.Attempts-1 {
			listen = s.wait(s.RTT)
		}
		if s.listen(ctx, c, i, attempt, listen) {
			return
		}
	}
}

func (s *portableUDP) lock(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	s.progress.update(len(s.answers)-s.undecided, time.Since(s.start))
}

func (s *portableUDP) attempt(c *net.UDPConn, i, attempt int) {
	var b []byte
	s.lock(func() { b = s.Request(nil, s.answers[i].Port, attempt) })
	for range 2 { // an errno may belong to the datagram before
		_, err := c.Write(b)
		if err == nil {
			s.lock(func() { s.sent(i, attempt, time.Since(s.start)) })
			return
		}
		s.lock(func() { s.fail(i, refused(err)) })
	}
	s.lock(func() { s.pending-- })
}

// listen reads replies for a while and tells whether the port is done. It gives
// late answers their time: they are no loss.
func (s *portableUDP) listen(ctx context.Context, c *net.UDPConn, i, attempt int, d time.Duration) bool {
	end := time.Now().Add(d)
	c.SetReadDeadline(end)
	b := make([]byte, s.MaxReply)
	for ctx.Err() == nil {
		answered, done := false, false
		s.lock(func() {
			a := &s.answers[i]
			answered = s.skip(i)
			done = answered && (a.Fault != None || a.Answered >= a.Sent) || s.All && attempt == s.Attempts-1 && int(a.Answered) == s.Attempts
		})
		if done {
			return true
		}
		n, err := c.Read(b)
		if err == nil || n > 0 { // Windows calls a reply that was cut short an error
			s.lock(func() { s.reply(i, b[:n], time.Since(s.start)) })
			continue
		}
		if o := refused(err); o.fault != Timeout && !errors.Is(err, net.ErrClosed) {
			s.lock(func() { s.fail(i, o) })
			if s.All && pause(ctx, time.Until(end)) {
				return false
			}
			continue
		}
		return answered
	}
	return true
}

// ends are the local and remote end for a surveyed port.
func (u *UDP) ends(port uint16) (local, remote netip.AddrPort) {
	if len(u.LocalPorts) > 0 {
		return netip.AddrPortFrom(u.Local.Addr(), port), netip.AddrPortFrom(u.Target, u.RemotePort)
	}
	return netip.AddrPortFrom(u.Local.Addr(), 0), netip.AddrPortFrom(u.Target, port)
}

func udpAddr(a netip.AddrPort) *net.UDPAddr {
	if !a.Addr().IsValid() {
		return &net.UDPAddr{Port: int(a.Port())}
	}
	return net.UDPAddrFromAddrPort(a)
}

// refused is the outcome of an error on a connected UDP socket, where what
// TCP calls a reset can only be an ICMP error of unknown type and sender.
func refused(err error) outcome {
	o := outcome{fault: faultOf(err), err: err}
	if o.fault == Reset {
		o.fault = Unreachable
	}
	return o
}

func (t TCP) portable(ctx context.Context) ([]Answer, error) {
	answers, _ := blank(t.ports())
	s := &portableTCP{TCP: t, answers: answers, start: time.Now(), gate: gate{rate: t.Rate},
		progress: meter{tell: t.Progress, total: len(answers)}}
	each(ctx, len(answers), min(t.InFlight, portableInFlight), func(i int) { s.port(ctx, i) })
	for i := range answers {
		if answers[i].Answered == 0 {
			answers[i].note(outcome{fault: Unfinished})
		}
	}
	s.progress.finish(s.decided)
	return answers, context.Cause(ctx)
}

type portableTCP struct {
	TCP
	answers []Answer // each touched by its own goroutine only
	start   time.Time
	gate    gate

	mu       sync.Mutex
	decided  int
	progress meter
}

func (s *portableTCP) port(ctx context.Context, i int) {
	a := &s.answers[i]
	local, remote := s.ends(a.Port)
	for attempt := range s.Attempts {
		if attempt > 0 && !pause(ctx, s.Spacing) || !s.gate.pass(ctx) {
			return
		}
		dialling, cancel := context.WithTimeout(ctx, s.Timeout)
		c, one := portableDial(dialling, local, remote)
		cancel()
		if ctx.Err() != nil && c == nil {
			return
		}
		one.Port, one.Sent = a.Port, uint16(attempt+1)
		if *a = one; one.Fault == Timeout {
			continue
		}
		if c != nil {
			if a.Exchanged, a.ExchangeErr = s.exchange(ctx, c, a.Port); a.ExchangeErr != nil && ctx.Err() != nil {
				a.note(outcome{fault: Unfinished})
			}
		}
		break
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decided++
	s.progress.update(s.decided, time.Since(s.start))
}

// portableDial is Dial by the standard library, which hides ICMP errors.
func portableDial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, Answer) {
	d := plaintcp.Dialer()
	if local.Addr().IsValid() || local.Port() != 0 {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	a := Answer{Port: remote.Port(), Sent: 1}
	start := time.Now()
	c, err := d.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		if o := ended(ctx); ctx.Err() != nil {
			a.note(o)
		} else {
			a.note(outcome{fault: faultOf(err), err: err})
		}
		return nil, a
	}
	a.Answered, a.RTT = 1, time.Since(start)
	a.Local = c.LocalAddr().(*net.TCPAddr).AddrPort()
	return c, a
}
