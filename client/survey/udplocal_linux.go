package survey

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A localSweep surveys many local ports towards one remote port, with one
// socket per local port, as many at a time as may be open. They are not
// connected: that would cost as much as the sending.
type localSweep struct {
	*tally
	ep      *epoll
	start   time.Time
	order   stride
	pacer   *pacer
	from    netip.Addr // where datagrams leave from
	remote  netip.AddrPort
	to      unix.Sockaddr // remote
	sockets lease

	next   int           // position in the order of the next port to open
	ports  []localPort   // by index of port
	byFD   map[int32]int // index of port
	retry  timers        // ports that wait for their next attempt
	expire timers        // ports that wait for an answer to their last one
	buf    []byte
	in     *batch
	batch  [batchSize]int // ports to send from in one round
}

type localPort struct {
	fd       int // 0 when closed
	attempts int // sent or tried
	lingers  bool
}

func runLocalPorts(ctx context.Context, t *tally, local netip.Addr) ([]Answer, error) {
	ep, err := newEpoll()
	if err != nil {
		return t.answers, err
	}
	defer unix.Close(ep.fd)
	if own := t.Local.Addr(); own.IsValid() && !own.IsUnspecified() {
		local = own
	}
	n := len(t.answers)
	s := &localSweep{
		tally: t, ep: ep, start: time.Now(), order: newStride(n),
		pacer:   newPacer(t.Rate, t.RTT, len(t.sentAt)),
		from:    local,
		remote:  netip.AddrPortFrom(t.Target.WithZone(""), t.RemotePort),
		to:      sockaddr(netip.AddrPortFrom(t.Target, t.RemotePort)),
		sockets: newLease(defaulted(t.InFlight, 16000)),
		ports:   make([]localPort, n), byFD: make(map[int32]int), in: newBatch(t.MaxReply),
	}
	defer s.closeAll()
	if err := s.loop(ctx); err != nil {
		return t.answers, err
	}
	return t.finish(ctx, s.now(), s.pacer.rtt)
}

func (s *localSweep) now() time.Duration { return time.Since(s.start) }

func (s *localSweep) loop(ctx context.Context) error {
	for ctx.Err() == nil && (s.next < len(s.answers) || s.sockets.held > 0) {
		now := s.now()
		s.progress.update(len(s.answers)-s.undecided, now)
		s.quiet(s.pacer, false)
		wait := s.advance(now)
		events, err := s.ep.wait(wait)
		if err != nil {
			return err
		}
		for _, e := range events {
			if i, ok := s.byFD[e.Fd]; ok {
				s.receive(i)
			}
		}
	}
	return nil
}

// advance ends the ports whose time is over and sends what is due and allowed.
// It returns the time until there may be more to do.
func (s *localSweep) advance(now time.Duration) time.Duration {
	idle := 20 * time.Millisecond
	for {
		t, ok := s.expire.peek()
		if !ok {
			break
		}
		if end := t.at + s.wait(s.pacer.rtt); end > now && s.ports[t.i].fd != 0 {
			idle = min(idle, end-now)
			break
		}
		s.expire.pop()
		s.close(t.i)
	}
	n, wait := s.pacer.allow(now, batchSize)
	if n == 0 {
		return min(idle, wait)
	}
	// All are opened before the first datagram leaves, so that they leave close
	// together and the far end reads several at a time.
	list := s.batch[:0]
	wait = 0
	for len(list) < n {
		i, later := s.due(now)
		if i < 0 {
			wait = min(idle, later)
			break
		}
		list = append(list, i)
	}
	for _, i := range list {
		s.send(i)
	}
	return wait
}

// due is the next port to send from: first those that wait for a further
// attempt, then a new one. Without any it returns -1 and the time until then.
func (s *localSweep) due(now time.Duration) (int, time.Duration) {
	idle := 20 * time.Millisecond
	for {
		t, ok := s.retry.peek()
		if !ok {
			break
		}
		if t.at > now {
			idle = t.at - now
			break
		}
		s.retry.pop()
		switch p := &s.ports[t.i]; {
		case p.fd == 0 || p.lingers:
		case s.amid(t.i, p.attempts):
			// It has waited since its last attempt. One before it in the list may
			// not have; then it is heard a little longer.
			s.expire.push(timer{i: t.i, at: t.at - s.Spacing})
		default:
			return t.i, 0
		}
	}
	for s.next < len(s.answers) && s.sockets.take() {
		i := s.order.at(s.next)
		err := s.openPort(i)
		if err != nil {
			s.sockets.give()
		}
		if exhausted(err) && s.sockets.held > 0 {
			return -1, time.Millisecond // other parts of the program hold descriptors too
		}
		s.next++
		if err == nil {
			return i, 0
		}
		s.fail(i, outcome{fault: faultOf(err), err: err})
	}
	return -1, idle
}

func (s *localSweep) openPort(i int) error {
	fd, err := socket(unix.SOCK_DGRAM, s.Target)
	if err != nil {
		return err
	}
	if s.DontFragment {
		err = dontFragment(fd, s.Target)
	}
	if err == nil {
		err = bind(fd, netip.AddrPortFrom(s.Local.Addr(), s.answers[i].Port), s.Target)
	}
	if err == nil {
		err = s.ep.add(fd, unix.EPOLLIN)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	s.answers[i].Local = netip.AddrPortFrom(s.from, s.answers[i].Port)
	s.ports[i].fd = fd
	s.byFD[int32(fd)] = i
	return nil
}

func (s *localSweep) send(i int) {
	p := &s.ports[i]
	attempt := p.attempts
	p.attempts++
	s.buf = s.Request(s.buf[:0], s.answers[i].Port, attempt)
	err := s.write(i)
	now := s.now()
	switch {
	case err == nil:
		s.sent(i, attempt, now)
		s.pacer.sent(s.key(i, attempt), now)
	default:
		s.unsent(i, s.local(err))
	}
	switch {
	case s.skip(i):
		s.close(i)
	case p.attempts < s.Attempts:
		s.retry.push(timer{i: i, at: now + s.Spacing})
	default:
		s.expire.push(timer{i: i, at: now})
	}
}

// write sends the datagram. An errno may belong to an earlier one's ICMP
// error; what repeats itself with an empty error queue belongs to this one.
func (s *localSweep) write(i int) error {
	fd := s.ports[i].fd
	var err error
	for range 4 {
		if err = unix.Sendto(fd, s.buf, unix.MSG_NOSIGNAL, s.to); err == nil {
			return nil
		}
		if err == unix.EAGAIN || err == unix.ENOBUFS {
			poll(fd, unix.POLLOUT, time.Millisecond)
			continue
		}
		s.drain(i, err)
	}
	return err
}

func (s *localSweep) receive(i int) {
	fd := s.ports[i].fd
	for range 64 {
		err := s.in.receiveOne(fd)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			s.drain(i, err)
			continue
		}
		from, data := s.in.datagram(0)
		if from.Addr().WithZone("") != s.remote.Addr() || from.Port() != s.remote.Port() {
			continue // somebody else's
		}
		if key, rtt := s.reply(i, data, s.now()); key >= 0 {
			s.pacer.answered(key, s.now(), rtt)
		}
		if int(s.answers[i].Answered) == s.ports[i].attempts {
			break // there is nothing more to come
		}
	}
	switch p, a := &s.ports[i], &s.answers[i]; {
	case !s.done(i):
	case int(a.Answered) < p.attempts && a.Fault == None && a.Answered > 0:
		// What is late is not lost: its other datagrams may still be answered.
		if !p.lingers {
			p.lingers = true
			s.expire.push(timer{i: i, at: s.now()})
		}
	default:
		s.close(i)
	}
}

// done tells whether port i waits for nothing more.
func (s *localSweep) done(i int) bool {
	if s.All && s.ports[i].attempts == s.Attempts {
		return int(s.answers[i].Answered) == s.Attempts
	}
	return s.skip(i)
}

// drain books the ICMP error behind an errno of port i's socket.
func (s *localSweep) drain(i int, err error) {
	o := explain(s.ports[i].fd, err)
	if !o.icmp.IsValid() || o.fault == TooBig && !s.DontFragment {
		return // send tells this host's own errors; too big ones are fragmented next time
	}
	if key := s.fail(i, o); key >= 0 {
		s.pacer.answered(key, s.now(), 0)
	}
}

func (s *localSweep) close(i int) {
	p := &s.ports[i]
	if p.fd == 0 {
		return
	}
	unix.Close(p.fd)
	delete(s.byFD, int32(p.fd))
	p.fd = 0
	s.sockets.give()
}

func (s *localSweep) closeAll() {
	for i := range s.ports {
		s.close(i)
	}
	s.sockets.end()
}
