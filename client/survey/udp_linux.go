package survey

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

func (u UDP) run(ctx context.Context) ([]Answer, error) {
	t := u.tally()
	local, err := source(u.Target)
	if err != nil {
		return all(t.answers, outcome{fault: faultOf(err), err: err}), nil
	}
	if len(u.LocalPorts) > 0 {
		return runLocalPorts(ctx, t, local)
	}
	fd, err := u.open()
	if err != nil {
		return all(t.answers, outcome{fault: faultOf(err), err: err}), nil
	}
	defer unix.Close(fd)
	s := &sweep{
		tally: t, fd: fd, start: time.Now(),
		order: newStride(len(t.answers)),
		pacer: newPacer(u.Rate, u.RTT, len(t.sentAt)),
		out:   newBatch(0), in: newBatch(u.MaxReply), errs: newBatch(0),
	}
	s.out.zone = zoneID(u.Target)
	own := localAddr(fd)
	if own.Addr().IsUnspecified() {
		own = netip.AddrPortFrom(local, own.Port())
	}
	for i := range t.answers {
		t.answers[i].Local = own
	}
	if err := s.loop(ctx); err != nil {
		return t.answers, err
	}
	return t.finish(ctx, s.now(), s.pacer.rtt)
}

// open makes the one socket of a sweep.
func (u *UDP) open() (int, error) {
	fd, err := socket(unix.SOCK_DGRAM, u.Target)
	if err != nil {
		return -1, err
	}
	// Best effort: the window keeps within the smallest of buffers.
	const size = 4 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
	if u.DontFragment {
		err = dontFragment(fd, u.Target)
	}
	if err == nil {
		err = bind(fd, u.Local, u.Target)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// A sweep surveys many remote ports from one socket. One goroutine sends and
// receives by turns, so that Check is called from one place and a full batch
// of answers is never left waiting.
type sweep struct {
	*tally
	fd    int
	start time.Time
	order stride
	pacer *pacer

	next          int // position in the order, over all attempts
	rounds        int // begun after the first
	lastSend      time.Duration
	out, in, errs *batch
	slots         [batchSize]int // keys of the datagrams in out
}

func (s *sweep) now() time.Duration { return time.Since(s.start) }

func (s *sweep) loop(ctx context.Context) error {
	for ctx.Err() == nil && (!s.over() || s.late()) {
		s.receive()
		now := s.now()
		if s.over() && now > s.lastSend+s.wait(s.pacer.rtt) {
			break // late is late
		}
		s.progress.update(len(s.answers)-s.undecided, now)
		s.quiet(s.pacer, s.next == len(s.sentAt))
		n, wait := s.fill(now)
		if n > 0 {
			s.send(n)
			continue
		}
		if s.next == len(s.sentAt) {
			if wait = s.lastSend + s.wait(s.pacer.rtt) - now; wait <= 0 {
				break
			}
		}
		events, err := poll(s.fd, unix.POLLIN, wait)
		if err != nil {
			return err
		}
		if events&unix.POLLERR != 0 {
			s.drain()
		}
	}
	return nil
}

// fill puts the datagrams that are due and allowed into the batch. When there
// are none, it says how long that will last.
func (s *sweep) fill(now time.Duration) (int, time.Duration) {
	limit, wait := s.pacer.allow(now, batchSize)
	n := 0
	for n < limit && s.next < len(s.sentAt) {
		if s.next%len(s.answers) == 0 && s.next > s.rounds*len(s.answers) {
			if n > 0 {
				return n, 0 // what the round before still sends counts in this one
			}
			s.rounds++
			s.pacer.round()
		}
		attempt, i := s.next/len(s.answers), s.order.at(s.next%len(s.answers))
		if s.skip(i) || s.amid(i, attempt) {
			s.next++
			continue
		}
		if attempt > 0 {
			// Attempts keep one order, so whatever follows is not due either.
			if due := s.sentAt[s.key(i, attempt-1)] + s.Spacing; due > now {
				return n, due - now
			}
		}
		port := s.answers[i].Port
		s.out.put(n, netip.AddrPortFrom(s.Target, port), s.Request(s.out.bufs[n][:0], port, attempt))
		s.slots[n] = s.key(i, attempt)
		n++
		s.next++
	}
	return n, wait
}

// send sends the first n datagrams of the batch. An errno may belong to an
// earlier datagram's ICMP error, which the kernel reports on whatever call
// comes next: only one that repeats itself belongs to the datagram.
func (s *sweep) send(n int) {
	failed := 0
	for first := 0; first < n; {
		k, err := s.out.send(s.fd, first, n)
		now := s.now()
		for _, key := range s.slots[first : first+k] {
			i := key % len(s.answers)
			s.sent(i, key/len(s.answers), now)
			s.pacer.sent(key, now)
			s.lastSend = now
		}
		first += k
		if k > 0 {
			failed = 0
		}
		if err == nil {
			continue
		}
		switch {
		case err == unix.EAGAIN || err == unix.ENOBUFS || err == unix.ENOMEM:
			poll(s.fd, unix.POLLOUT, time.Millisecond)
			s.receive()
		case failed < 2 || s.drain() > 0 && failed < batchSize:
			s.drain()
			failed++
		default:
			failed = 0
			s.unsent(s.slots[first]%len(s.answers), s.local(err))
			first++
		}
	}
}

// local is the outcome of a datagram that this host would not send.
func (u *UDP) local(err error) outcome {
	o := outcome{fault: faultOf(err), err: err}
	if o.fault == TooBig {
		o.mtu, _ = PathMTU(u.Target)
	}
	return o
}

// receive books what has arrived: at most 16 batches, so that sending goes on.
func (s *sweep) receive() {
	for range 16 {
		n, err := s.in.receive(s.fd, 0, false)
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			s.drain() // the errno belongs to the error queue
			continue
		}
		now := s.now()
		for m := range n {
			from, data := s.in.datagram(m)
			i := s.index[from.Port()] - 1
			if i < 0 || from.Addr() != s.Target.WithZone("") {
				continue
			}
			if key, rtt := s.reply(int(i), data, now); key >= 0 {
				s.pacer.answered(key, now, rtt)
			}
		}
		if n < batchSize {
			return
		}
	}
}

// drain books the error queue and returns how many ICMP errors it held. Queued
// errors share the receive buffer, so none may stay there for long.
func (s *sweep) drain() int {
	total := 0
	for {
		n, err := s.errs.receive(s.fd, unix.MSG_ERRQUEUE, true)
		if err != nil || n == 0 {
			return total
		}
		for m := range n {
			to, o, ok := s.errs.queued(m)
			i := s.index[to.Port()] - 1
			if o.icmp.IsValid() {
				total++
			}
			if !ok || i < 0 {
				continue
			}
			if o.fault == TooBig && (!s.DontFragment || !o.icmp.IsValid()) {
				continue // the next attempt is fragmented; or send met it itself
			}
			if key := s.fail(int(i), o); key >= 0 {
				s.pacer.answered(key, s.now(), 0)
			}
		}
	}
}
