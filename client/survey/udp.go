package survey

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A UDP survey sends a datagram to each of Target's Ports from one socket, or
// from each of LocalPorts to Target's RemotePort. Exactly one of Ports and
// LocalPorts must be set.
type UDP struct {
	Target     netip.Addr
	Ports      scenarios.PortSet // remote ports
	LocalPorts scenarios.PortSet // own ports; needs RemotePort
	RemotePort uint16
	Local      netip.AddrPort // where to send from; zero leaves it to the system; the port counts only with Ports, on Linux

	Attempts int           // datagrams per port, 0 is 3; a port that answered gets no further ones
	All      bool          // send every attempt to every port, to measure loss
	Amid     int           // a port with so many silent ones on each side gets no last attempt: chance does not silence them all; 0 is never; Linux only
	Spacing  time.Duration // between attempts at one port; 0 is 200 ms, or 2 round trips if that is more
	Wait     time.Duration // for answers after the last attempt; 0 is 1 s, or 4 round trips but at least 200 ms if the round-trip time is known
	Rate     int           // packets per second; 0 goes as fast as the answers show the far end can read
	RTT      time.Duration // round-trip time if known beforehand; 0 learns it from the answers, and is polite until then
	InFlight int           // sockets open at once with LocalPorts; 0 is 16,000; no more than the descriptor limit leaves to all surveys

	// Request appends the datagram for a surveyed port; attempts count from 0.
	// Nil sends empty datagrams.
	Request func(dst []byte, port uint16, attempt int) []byte
	// Check verifies a reply from a surveyed port and tells which attempt it
	// answers, -1 if the reply does not say. It must not keep b. Calls never
	// overlap. Nil accepts everything.
	Check func(port uint16, b []byte) (attempt int, ok bool)
	// Progress, if set, is told a few times a second how many ports are decided.
	Progress func(done, total int)

	// Quiet, if set, is called once, when the survey no longer competes for the
	// far end's reader: next to nothing answers, or all has been sent.
	Quiet func()

	MaxReply     int  // bytes of a reply that are read; 0 is 2,048
	DontFragment bool // forbid fragmenting, here and on the way: IP_PMTUDISC_DO; Linux only
}

// maxPackets bounds a survey's memory: about 10 bytes for every datagram.
const maxPackets = 1 << 24

// Run surveys and returns one answer per port, ascending. It ends soon after
// ctx does, with what is known by then and the cause. Any other error means
// that the survey could not be tried at all.
func (u UDP) Run(ctx context.Context) ([]Answer, error) {
	u, err := u.complete()
	if err != nil {
		return nil, fmt.Errorf("udp survey of %s: %w", u.Target, err)
	}
	answers, err := u.run(ctx)
	if err != nil {
		return answers, fmt.Errorf("udp survey of %s: %w", u.Target, err)
	}
	return answers, nil
}

// complete checks the survey and fills in the defaults.
func (u UDP) complete() (UDP, error) {
	ports := u.ports()
	switch {
	case !u.Target.IsValid():
		return u, errors.New("no target")
	case len(u.Ports) > 0 && len(u.LocalPorts) > 0:
		return u, errors.New("both remote and local ports given")
	case len(ports) == 0:
		return u, errors.New("no ports")
	case len(u.LocalPorts) > 0 && u.RemotePort == 0:
		return u, errors.New("local ports given without a remote port")
	}
	u.Target = u.Target.Unmap()
	u.Local = netip.AddrPortFrom(u.Local.Addr().Unmap(), u.Local.Port())
	u.Attempts = defaulted(u.Attempts, 3)
	if u.Attempts > 65535 || u.Attempts*ports.Len() > maxPackets {
		return u, fmt.Errorf("%d attempts at %d ports: at most %d datagrams", u.Attempts, ports.Len(), maxPackets)
	}
	u.Spacing = defaulted(u.Spacing, max(200*time.Millisecond, 2*u.RTT))
	u.MaxReply = defaulted(u.MaxReply, 2048)
	if u.Target.IsLoopback() {
		u.RTT = defaulted(u.RTT, 50*time.Microsecond)
	}
	if u.Request == nil {
		u.Request = func(dst []byte, _ uint16, _ int) []byte { return dst }
	}
	if u.Check == nil {
		u.Check = func(uint16, []byte) (int, bool) { return -1, true }
	}
	return u, nil
}

func defaulted[T int | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

func (u *UDP) ports() scenarios.PortSet {
	if len(u.LocalPorts) > 0 {
		return u.LocalPorts
	}
	return u.Ports
}

// wait is the time to listen after the last datagram, rtt 0 if unknown.
func (u *UDP) wait(rtt time.Duration) time.Duration {
	switch {
	case u.Wait > 0:
		return u.Wait
	case rtt > 0:
		return max(4*rtt, 200*time.Millisecond)
	}
	return time.Second
}

// A tally keeps a UDP survey's books. Times are since the survey's start; a
// datagram's key is attempt*ports + index of its port.
type tally struct {
	UDP
	answers   []Answer
	index     []int32 // by port: index+1 in answers
	sentAt    []time.Duration
	replied   []bool
	undecided int     // ports with neither a valid reply nor a fault
	heard     []uint8 // how many of each block of ports are decided
	pending   int     // datagrams still to be sent or answered
	out, owed int     // datagrams sent; of these, unanswered ones to ports without a fault
	progress  meter
}

func (u UDP) tally() *tally {
	answers, index := blank(u.ports())
	n := len(answers)
	return &tally{
		UDP: u, answers: answers, index: index, undecided: n, pending: n * u.Attempts,
		heard: make([]uint8, n/block+1), sentAt: make([]time.Duration, n*u.Attempts), replied: make([]bool, n*u.Attempts),
		progress: meter{tell: u.Progress, total: n},
	}
}

// blank makes an answer for each port, and the index+1 of each port's answer.
func blank(ports scenarios.PortSet) ([]Answer, []int32) {
	answers := make([]Answer, 0, ports.Len())
	index := make([]int32, 65536)
	for p := range ports.All {
		answers = append(answers, Answer{Port: p})
		index[p] = int32(len(answers))
	}
	return answers, index
}

// all gives every port the same end: nothing was tried because nothing could be.
func all(answers []Answer, o outcome) []Answer {
	for i := range answers {
		answers[i].note(o)
	}
	return answers
}

// quiet tells that the survey leaves the far end's reader alone, once.
func (t *tally) quiet(p *pacer, allSent bool) {
	if t.Quiet != nil && (allSent || p.share < quietShare) {
		t.Quiet()
		t.Quiet = nil
	}
}

func (t *tally) key(i, attempt int) int { return attempt*len(t.answers) + i }

// skip tells whether port i needs no further datagram.
func (t *tally) skip(i int) bool { return !t.All && t.decided(i) }

// block is how many ports amid looks at in one step.
const block = 16

// amid tells whether port i is so deep among silent ones that one attempt less
// proves as much. Of remote ports the rounds before the last have tried every
// neighbour; of own ports, which take turns with the sockets there are, those
// whose turn it was, evenly spread (stride).
func (t *tally) amid(i, attempt int) bool {
	if t.Amid == 0 || t.All || attempt == 0 || attempt < t.Attempts-1 {
		return false
	}
	first, last := i-t.Amid, i+t.Amid
	if first < 0 || last >= len(t.answers) || int(t.answers[last].Port)-int(t.answers[first].Port) != 2*t.Amid {
		return false
	}
	for k := first; k <= last; {
		if k%block == 0 && k+block-1 <= last {
			if t.heard[k/block] > 0 {
				return false
			}
			k += block
			continue
		}
		if t.decided(k) {
			return false
		}
		k++
	}
	return true
}

// decide books that port i has answered or failed.
func (t *tally) decide(i int) {
	t.undecided--
	t.heard[i/block]++
}

func (t *tally) decided(i int) bool { return t.answers[i].Answered > 0 || t.answers[i].Fault != None }

// late tells whether so much of what was sent to ports that have answered is
// itself unanswered that it would look like loss. It may only be slow.
func (t *tally) late() bool { return t.owed*20 > t.out }

// over tells whether waiting longer can change nothing.
func (t *tally) over() bool {
	if t.All {
		return t.pending == 0
	}
	return t.undecided == 0
}

func (t *tally) sent(i, attempt int, now time.Duration) {
	t.answers[i].Sent++
	t.out++
	if t.answers[i].Fault == None {
		t.owed++
	}
	t.sentAt[t.key(i, attempt)] = max(1, now)
}

// reply books a datagram from port i. It returns the key of the datagram that
// it newly answers and the time that took, or -1.
func (t *tally) reply(i int, b []byte, now time.Duration) (int, time.Duration) {
	a := &t.answers[i]
	attempt, ok := t.Check(a.Port, b)
	if ok && attempt < 0 {
		attempt = t.unanswered(i)
	}
	if !ok || attempt >= t.Attempts || t.sentAt[t.key(i, attempt)] == 0 {
		a.Invalid++
		if a.Sample == nil {
			a.Sample = slices.Clone(b[:min(len(b), 256)])
		}
		return -1, 0
	}
	key := t.key(i, attempt)
	if t.replied[key] {
		a.Duplicate++
		return -1, 0
	}
	rtt := max(1, now-t.sentAt[key])
	if a.Fault == None {
		t.owed--
	}
	if a.Answered == 0 {
		a.RTT = rtt
		if a.Fault == None {
			t.decide(i)
		}
	}
	t.replied[key] = true
	t.pending--
	a.Answered++
	return key, rtt
}

// unanswered is the latest attempt sent to port i that has no reply yet, or
// else the latest.
func (t *tally) unanswered(i int) int {
	latest := 0
	for attempt := t.Attempts - 1; attempt >= 0; attempt-- {
		key := t.key(i, attempt)
		if t.sentAt[key] == 0 {
			continue
		}
		if !t.replied[key] {
			return attempt
		}
		latest = max(latest, attempt)
	}
	return latest
}

// fail books an error at port i and returns the key of the datagram that is
// likely to have met it, or -1.
func (t *tally) fail(i int, o outcome) int {
	a := &t.answers[i]
	if a.Fault == None {
		t.owed -= int(a.Sent - a.Answered)
	}
	if !t.decided(i) {
		t.decide(i)
	}
	a.note(o)
	if a.Sent == 0 {
		return -1
	}
	return t.key(i, t.unanswered(i))
}

// unsent books a datagram that this host would not send.
func (t *tally) unsent(i int, o outcome) {
	t.pending--
	t.fail(i, o)
}

// finish names what happened at the ports that stayed silent. Where ctx has ended,
// only those are told as such whose time was over by then.
func (t *tally) finish(ctx context.Context, now, rtt time.Duration) ([]Answer, error) {
	ends := make([]Fault, len(t.answers)) // before any is noted: a port's end depends on what its neighbours met
	for i := range ends {
		if ends[i] = Timeout; ctx.Err() != nil && !t.waited(i, now-t.wait(rtt)) {
			ends[i] = Unfinished
		}
	}
	for i, end := range ends {
		if !t.decided(i) {
			t.answers[i].note(outcome{fault: end})
		}
	}
	t.progress.finish(len(t.answers) - t.undecided)
	return t.answers, context.Cause(ctx)
}

// waited tells whether port i got all the attempts that it is due, and the last
// of them at a time or before.
func (t *tally) waited(i int, by time.Duration) bool {
	attempts := t.Attempts
	if t.amid(i, attempts-1) && t.neighbours(i, attempts-1) {
		attempts--
	}
	last := t.sentAt[t.key(i, attempts-1)]
	return last > 0 && last <= by
}

// neighbours tells whether the ports among which one is amid got so many attempts.
func (t *tally) neighbours(i, attempts int) bool {
	return !slices.ContainsFunc(t.answers[i-t.Amid:i+t.Amid+1], func(a Answer) bool { return int(a.Sent) < attempts })
}

// A meter tells progress five times a second at most.
type meter struct {
	tell  func(done, total int)
	total int
	last  time.Duration
}

func (m *meter) update(done int, now time.Duration) {
	if m.tell == nil || now-m.last < 200*time.Millisecond {
		return
	}
	m.last = now
	m.tell(done, m.total)
}

func (m *meter) finish(done int) {
	if m.tell != nil {
		m.tell(done, m.total)
	}
}
