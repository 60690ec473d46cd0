package survey

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
)

// A connector surveys TCP ports. One goroutine begins and watches all
// handshakes with raw sockets: 12,000 goroutines in net.Dialer would take
// several times as long and could not read the error queue. Local ports do not
// run out, because the kernel may give one to any number of connections that
// differ in their remote port.
type connector struct {
	TCP
	from  netip.Addr // where connections leave from
	ep    *epoll
	event int // readable when an exchange has ended
	start time.Time
	order stride
	pacer *pacer
	// Of handshakes, and of connections from then until their exchange ends.
	sockets lease

	answers   []Answer
	next      int // position in the order of the next port to begin
	ports     []tcpPort
	byFD      map[int32]int
	decided   int
	expire    timers
	retry     timers
	replies   timers // connections that were asked, by when their answer must be here
	asking    int
	heard     time.Duration // when the last answer came
	out, in   []byte
	connected []int // established, waiting for a worker
	working   int
	progress  meter

	workers sync.WaitGroup
	mu      sync.Mutex
	ended   []exchanged
}

type tcpPort struct {
	fd       int // of a handshake or a connection no worker has yet; else 0
	attempts int
	began    time.Duration
	asked    bool // and began is when
	got      []byte
}

// An exchanged is an exchange that has ended.
type exchanged struct {
	i    int
	took time.Duration
	err  error
	cut  bool // it did not come to its end: the survey did
}

func (t TCP) run(ctx context.Context) ([]Answer, error) {
	answers, _ := blank(t.ports())
	from, err := source(t.Target)
	if err != nil {
		return all(answers, outcome{fault: faultOf(err), err: err}), nil
	}
	if t.Local.IsValid() && !t.Local.IsUnspecified() {
		from = t.Local
	}
	ep, err := newEpoll()
	if err != nil {
		return answers, err
	}
	defer unix.Close(ep.fd)
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return answers, os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(event)
	if err := ep.add(event, unix.EPOLLIN); err != nil {
		return answers, os.NewSyscallError("epoll_ctl", err)
	}
	n := len(answers)
	c := &connector{
		TCP: t, from: from, ep: ep, event: event, start: time.Now(), order: newStride(n),
		pacer: newPacer(t.Rate, t.RTT, n*t.Attempts), sockets: newLease(t.InFlight),
		answers: answers, ports: make([]tcpPort, n), byFD: make(map[int32]int),
		in: make([]byte, t.Reply), progress: meter{tell: t.Progress, total: n},
	}
	defer c.closeAll()
	if err := c.loop(ctx); err != nil {
		return answers, err
	}
	return c.finish(ctx)
}

// local is the own end towards a surveyed port, without a port that the system
// chose: asking for it would be a system call for each.
func (c *connector) local(port uint16) netip.AddrPort {
	own, _ := c.ends(port)
	return netip.AddrPortFrom(c.from, own.Port())
}

func (c *connector) now() time.Duration { return time.Since(c.start) }

func (c *connector) loop(ctx context.Context) error {
	// Exchanges end before the sockets that no worker has yet are closed.
	ctx, cancel := context.WithCancel(ctx)
	defer c.workers.Wait()
	defer cancel()
	for ctx.Err() == nil && c.decided < len(c.answers) {
		now := c.now()
		c.progress.update(c.decided, now)
		c.timeouts(now)
		events, err := c.ep.wait(c.begin(now))
		if err != nil {
			return err
		}
		for _, e := range events {
			if int(e.Fd) == c.event {
				c.collect()
			} else if i, ok := c.byFD[e.Fd]; ok {
				c.happened(i, e.Events)
			}
		}
		c.work(ctx)
	}
	return nil
}

// begin starts the handshakes that are due and allowed, a few at a time so
// that answers are seen early. It returns the time until there may be more.
func (c *connector) begin(now time.Duration) time.Duration {
	idle := 20 * time.Millisecond
	if t, ok := c.expire.peek(); ok {
		idle = min(idle, t.at-now)
	}
	if t, ok := c.replies.peek(); ok {
		idle = min(idle, t.at-now)
	}
	if c.asking >= c.Workers && now-c.heard < stall {
		return idle // its reader is behind; more would only fill its queues
	}
	n, wait := c.pacer.allow(now, batchSize)
	if n == 0 {
		return min(idle, wait)
	}
	for range n {
		if !c.sockets.take() {
			return idle
		}
		i, wait := c.due(now)
		if i < 0 {
			c.sockets.give()
			return min(idle, wait)
		}
		if !c.connect(i) {
			return min(idle, time.Millisecond)
		}
	}
	return 0
}

// due takes the next port to try; without any it returns -1 and the time until
// one is due.
func (c *connector) due(now time.Duration) (int, time.Duration) {
	idle := 20 * time.Millisecond
	if t, ok := c.retry.peek(); ok {
		if t.at <= now {
			c.retry.pop()
			return t.i, 0
		}
		idle = t.at - now
	}
	if c.next < len(c.answers) {
		c.next++
		return c.order.at(c.next - 1), 0
	}
	return -1, idle
}

// connect begins a handshake on a leased socket. It returns false when the
// system has none for now.
func (c *connector) connect(i int) bool {
	local, remote := c.ends(c.answers[i].Port)
	p := &c.ports[i]
	fd, err := tcpSocket(local, remote)
	if err != nil {
		c.sockets.give()
	}
	if exhausted(err) && c.sockets.held > 0 {
		c.retry.push(timer{i: i, at: c.now()})
		return false
	}
	if err != nil {
		c.fail(i, outcome{fault: faultOf(err), err: err})
		return true
	}
	p.fd, p.began = fd, c.now()
	p.attempts++
	c.answers[i].Sent++
	c.pacer.sent(c.key(i), p.began)
	if err = unix.Connect(fd, sockaddr(remote)); err == unix.EINPROGRESS {
		events := uint32(unix.EPOLLOUT)
		if c.Ask != nil {
			events |= unix.EPOLLIN | unix.EPOLLET // told of the answer without another call
		}
		err = c.ep.add(fd, events)
	}
	if err != nil {
		c.fail(i, explain(fd, err))
		return true
	}
	c.byFD[int32(fd)] = i
	c.expire.push(timer{i: i, generation: p.attempts, at: p.began + c.Timeout})
	return true
}

func (c *connector) key(i int) int { return (c.ports[i].attempts-1)*len(c.answers) + i }

// tcpSocket makes a socket bound to local, if that says anything.
func tcpSocket(local, remote netip.AddrPort) (int, error) {
	fd, err := socket(unix.SOCK_STREAM, remote.Addr())
	if err != nil {
		return -1, err
	}
	// The handshake's last acknowledgement rides on the request (tcp(7)); the
	// reflector does the same with that of the request.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	if local == (netip.AddrPort{}) {
		return fd, nil
	}
	if local.Port() != 0 {
		// A port whose last connection is in TIME-WAIT may be used again.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	} else {
		// Let connect pick the port: then connections may share it.
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
	if err == nil {
		err = bind(fd, local, remote.Addr())
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// settle ends the handshake of port i as the socket says.
func (c *connector) settle(i int, events uint32) {
	fd := c.ports[i].fd
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			if err == nil {
				err = unix.Errno(errno)
			}
			c.pacer.answered(c.key(i), c.now(), 0)
			c.fail(i, explain(fd, err))
			return
		}
	}
	a := &c.answers[i]
	a.Answered, a.RTT, a.Local = 1, max(1, c.now()-c.ports[i].began), c.local(a.Port)
	c.pacer.answered(c.key(i), c.now(), a.RTT)
	if c.Ask != nil {
		c.ask(i)
		return
	}
	if c.Exchange == nil {
		c.decided++
		c.close(i)
		return
	}
	c.ep.remove(fd)
	delete(c.byFD, int32(fd))
	c.connected = append(c.connected, i)
}

// timeouts ends the handshakes and questions whose time is over.
func (c *connector) timeouts(now time.Duration) {
	for {
		t, ok := c.replies.peek()
		if !ok || t.at > now {
			break
		}
		c.replies.pop()
		if c.ports[t.i].asked {
			c.told(t.i, os.ErrDeadlineExceeded)
		}
	}
	for {
		t, ok := c.expire.peek()
		if !ok || t.at > now {
			return
		}
		c.expire.pop()
		p := &c.ports[t.i]
		if p.fd == 0 || p.attempts != t.generation || c.answers[t.i].Answered > 0 {
			continue
		}
		if p.attempts < c.Attempts {
			c.close(t.i)
			c.retry.push(timer{i: t.i, at: now + c.Spacing})
		} else {
			c.fail(t.i, outcome{fault: Timeout})
		}
	}
}

func (c *connector) fail(i int, o outcome) {
	c.answers[i].note(o)
	c.decided++
	c.close(i)
}

// work hands established connections to workers.
func (c *connector) work(ctx context.Context) {
	for len(c.connected) > 0 && c.working < c.Workers {
		i := c.connected[0]
		c.connected = c.connected[1:]
		c.working++
		fd := c.ports[i].fd
		c.ports[i].fd = 0
		c.workers.Go(func() {
			e := exchanged{i: i}
			var conn net.Conn
			if conn, e.err = fileConn(fd, c.Target); e.err == nil {
				e.took, e.err = c.exchange(ctx, conn, c.answers[i].Port)
				e.cut = e.err != nil && ctx.Err() != nil
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.ended = append(c.ended, e)
			if len(c.ended) == 1 {
				signal(c.event)
			}
		})
	}
}

// collect books the exchanges that have ended.
func (c *connector) collect() {
	var count [8]byte
	unix.Read(c.event, count[:]) // resets the counter
	c.mu.Lock()
	ended := c.ended
	c.ended = nil
	c.mu.Unlock()
	for _, e := range ended {
		c.answers[e.i].Exchanged, c.answers[e.i].ExchangeErr = e.took, e.err
		if e.cut {
			c.answers[e.i].note(outcome{fault: Unfinished})
		}
		c.working--
		c.sockets.give()
		c.decided++
	}
}

// fileConn makes a Go connection of a connected socket, which it takes over.
// From here on an ICMP error is only a hint, as for any other program: with
// the error queue left on it would end the connection.
func fileConn(fd int, target netip.Addr) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if err := receiveErrors(fd, target, 0); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return plaintcp.FileConn(f)
}

func (c *connector) close(i int) {
	p := &c.ports[i]
	if p.fd == 0 {
		return
	}
	unix.Close(p.fd)
	delete(c.byFD, int32(p.fd))
	p.fd = 0
	c.sockets.give()
}

func (c *connector) closeAll() {
	for i := range c.ports {
		c.close(i)
	}
	c.sockets.end()
}

// finish books what ended last and names what was not decided.
func (c *connector) finish(ctx context.Context) ([]Answer, error) {
	c.collect()
	for i := range c.ports {
		if c.ports[i].asked {
			c.told(i, os.ErrDeadlineExceeded) // as an exchange whose context ends
			c.answers[i].note(outcome{fault: Unfinished})
		}
	}
	for _, i := range c.connected {
		c.answers[i].ExchangeErr = context.Cause(ctx) // no worker got to it
		c.answers[i].note(outcome{fault: Unfinished})
	}
	for i := range c.answers {
		if c.answers[i].Answered == 0 {
			c.answers[i].note(outcome{fault: Unfinished})
		}
	}
	c.progress.finish(c.decided)
	return c.answers, context.Cause(ctx)
}
