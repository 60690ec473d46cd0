package reflector

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Datagrams shares every UDP port between the project's own probes, STUN,
// TURN and QUIC, by first byte (RFC 9443). What proves nothing gets no answer.
func (r *Reflector) Datagrams(batch []steer.Datagram, reply func([]steer.Datagram)) {
	var out []steer.Datagram
	var sent []arrived
	for i := range batch {
		d := &batch[i]
		reply, a := r.datagram(d)
		if reply == nil {
			continue
		}
		answer := steer.Datagram{Local: d.Local, Remote: d.Remote, Payload: reply}
		if a.marks(d) {
			answer.TTL, answer.TOS = wire.MarkTTL, wire.MarkTOS
		}
		out = append(out, answer)
		if a.s != nil {
			sent = append(sent, a)
		}
	}
	if len(out) == 0 {
		return
	}
	reply(out)
	for _, a := range sent {
		a.s.answered(a.m.Probe, a.port, a.m.Attempt)
	}
}

// datagram gives the answer to one datagram, nil when there is none or others
// give it. a is what it proved, where it is one of the project's own.
func (r *Reflector) datagram(d *steer.Datagram) (reply []byte, a arrived) {
	defer r.guard("datagram", d.Remote)
	if wire.IsMessage(d.Payload) {
		a, ok := r.message(d)
		if !ok {
			return nil, a
		}
		return a.reply(d, r.now()).Append(nil, a.keys), a
	}
	if len(d.Payload) > 0 && (d.Payload[0] < 4 || d.Payload[0]&0xc0 == 0x40) && r.relay.Datagram(d.Payload, d.Local, d.Remote) {
		return nil, a
	}
	if r.spoken(d) == nil && r.quic.take(d) {
		return nil, a
	}
	return r.answer(d), a
}

// answer is what the protocol of the port has to say to a datagram, nil when it
// has none or nothing to say.
func (r *Reflector) answer(d *steer.Datagram) []byte {
	ends := r.spoken(d)
	if ends == nil {
		r.strayDatagram(d, wire.SessionID{}, protocol.FaultForeign)
		return nil
	}
	far := &aimed{untouched: untouched{r}, port: d.Local.Port()}
	reply, e := ends.Answer(d.Payload, d.Remote, d.Local, far)
	e.Time, e.Transport, e.Remote, e.Local = r.now(), scenarios.UDP, d.Remote, d.Local
	e.Length, e.TTL, e.TOS = len(d.Payload), d.TTL, d.TOS
	if s := r.sessions.find(e.Session); e.Answered && s != nil {
		if !s.arrival(e.Probe, far.port, e.Attempt) {
			return nil // replayed
		}
		r.sessions.touch(s, d.Remote.Addr())
		e.Bound()
		s.event(e)
		s.answered(e.Probe, far.port, e.Attempt)
		return reply
	}
	e.Answered = false
	r.note(e)
	if len(reply) > len(d.Payload) {
		return nil // an unproven source never gets more than it sent
	}
	return reply
}

// spoken is the protocol that answers single datagrams on the port that one was
// aimed at, nil when there is none.
func (r *Reflector) spoken(d *steer.Datagram) *protocol.Ends {
	ends := protocol.On(r.cfg.Speaks[protocol.Port{Transport: scenarios.UDP, Number: d.Local.Port()}], scenarios.UDP)
	if ends == nil || ends.Answer == nil {
		return nil
	}
	return ends
}

// untouched is protocol.Far for a datagram: its source is not the session's
// before it is known not to be replayed, from wherever.
type untouched struct{ *Reflector }

// Prove is protocol.Far.
func (u untouched) Prove(p []byte, _ net.Addr) (wire.Message, *wire.Keys, error) {
	m, s, err := u.sessions.prove(p)
	if err != nil {
		return m, nil, err
	}
	return m, s.keysFor(m), nil
}

// aimed is untouched and keeps the port that a proven message says it was aimed
// at: one that was recorded is no other when it comes to another port.
type aimed struct {
	untouched
	port uint16
}

// Prove is protocol.Far.
func (a *aimed) Prove(p []byte, from net.Addr) (wire.Message, *wire.Keys, error) {
	m, k, err := a.untouched.Prove(p, from)
	if err == nil {
		a.port = m.Port
	}
	return m, k, err
}

// arrived is a proven request.
type arrived struct {
	m    wire.Message
	s    *session
	keys *wire.Keys
	port uint16 // that tells the probe's attempts apart
}

func (a arrived) reply(d *steer.Datagram, now time.Time) *wire.Message {
	m := a.m
	m.Kind, m.Seen, m.TTL, m.TOS, m.Marked, m.Time = wire.Reply, d.Remote, d.TTL, d.TOS, a.marks(d), now
	return &m
}

// marks tells whether the reply to a request leaves with marks: where it is asked
// for and the socket is one that tells of those that arrive, for it takes them too.
func (a arrived) marks(d *steer.Datagram) bool { return a.m.Marked && d.TTL != 0 }

// message proves a request and notes it. ok is false when it gets no answer.
func (r *Reflector) message(d *steer.Datagram) (a arrived, ok bool) {
	m, s, err := r.sessions.prove(d.Payload)
	if err != nil || m.Kind != wire.Request {
		if errors.Is(err, wire.ErrAltered) {
			r.strayDatagram(d, m.Session, protocol.FaultAltered)
		}
		return a, false
	}
	a = arrived{m: m, s: s, keys: s.keysFor(m), port: m.Port}
	if m.ByLocal {
		a.port = m.Seen.Port()
	}
	if !s.arrival(m.Probe, a.port, m.Attempt) {
		return a, false // replayed
	}
	r.sessions.touch(s, d.Remote.Addr()) // not before: a reflected or replayed message can come from anywhere
	s.event(wire.Event{
		Time: r.now(), Transport: scenarios.UDP, Remote: d.Remote, Local: d.Local, Session: m.Session, Probe: m.Probe,
		Attempt: m.Attempt, Stage: protocol.StageToken, Length: len(d.Payload), TTL: d.TTL, TOS: d.TOS, Answered: true,
	})
	if m.Idle > 0 && m.Idle <= protocol.MaxIdle {
		local, remote := d.Local, d.Remote
		if s.waits(1); !r.late.schedule(m.Idle, func() { defer r.guard("late message", remote); defer s.waits(-1); r.sendLate(a, local, remote) }) {
			s.waits(-1)
		}
	}
	return a, true
}

// sendLate sends the packet after the silence.
func (r *Reflector) sendLate(a arrived, local, remote netip.AddrPort) {
	m := a.m
	m.Kind, m.Seen, m.Marked, m.Time = wire.Late, remote, false, r.now()
	e := wire.Event{
		Time: r.now(), Transport: scenarios.UDP, Remote: remote, Local: local, Session: m.Session, Probe: m.Probe,
		Attempt: m.Attempt, Stage: protocol.StageIdle, Answered: true,
	}
	r.sessions.touch(a.s, remote.Addr()) // a long silence is no absence
	if err := r.set.WriteTo(m.Append(nil, a.keys), local, remote); err != nil {
		e.Fault = err.Error()
	}
	a.s.event(e)
}

// strayDatagram keeps a datagram that proves nothing with the session that it
// claims and those that came from its address; nobody else's ledger grows by it.
func (r *Reflector) strayDatagram(d *steer.Datagram, claimed wire.SessionID, fault string) {
	m, _ := wire.ParseHead(d.Payload)
	r.note(wire.Event{
		Time: r.now(), Transport: scenarios.UDP, Remote: d.Remote, Local: d.Local, Session: claimed, Probe: m.Probe,
		Attempt: m.Attempt, Stage: protocol.StageToken, Fault: fault, Length: len(d.Payload), TTL: d.TTL, TOS: d.TOS,
		Digest: digest(d.Payload),
	})
}

// maxLate bounds the late packets that wait at one time.
const maxLate = 4096

// A later runs functions after a while and can be stopped.
type later struct {
	mu      sync.Mutex
	closed  bool
	waiting map[*time.Timer]struct{}
	running sync.WaitGroup
}

// schedule says no when too many wait already.
func (l *later) schedule(d time.Duration, fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.waiting) >= maxLate {
		return false
	}
	if l.waiting == nil {
		l.waiting = make(map[*time.Timer]struct{})
	}
	l.running.Add(1)
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		defer l.running.Done()
		l.mu.Lock()
		delete(l.waiting, t)
		closed := l.closed
		l.mu.Unlock()
		if !closed {
			fn()
		}
	})
	l.waiting[t] = struct{}{}
	return true
}

// stop cancels what waits and returns when nothing runs any more.
func (l *later) stop() {
	l.mu.Lock()
	l.closed = true
	for t := range l.waiting {
		if t.Stop() {
			l.running.Done()
		}
	}
	l.waiting = nil
	l.mu.Unlock()
	l.running.Wait()
}
