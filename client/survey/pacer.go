package survey

import "time"

// Adaptive pace. A path that answers within localRTT is a lab or a LAN and gets
// localRate; any other gets politeRate, which a 64,512-port sweep in the field
// was measured to survive without loss.
const (
	localRTT   = 2 * time.Millisecond
	localRate  = 250_000 // packets per second
	politeRate = 10_000
	// window bounds the answers expected but not here yet. A socket with
	// Linux's default receive buffer of 208 KiB holds about 270 small
	// datagrams, so this cannot overrun a reader that is briefly away.
	window = 256
	// quietShare: below this share of answers a survey is no load for a reader.
	// The share begins at 1 and gets there after about a thousand packets.
	quietShare = 0.02
	settle     = 10 * time.Millisecond  // age at which a packet stops counting, at least
	stall      = 200 * time.Millisecond // how long a reader may be away
)

// A pacer says how many packets may leave now.
//
// Two limits hold at once: a rate, and a window on the answers that are owed.
// How many are owed follows from the share of settled packets that were
// answered: with every port open it is a plain window that follows the far
// end's reader, with everything dropped nothing is owed and the rate decides.
// This needs ports in an order in which open ones are spread evenly (stride);
// then a sudden silence is not a blocked range but a reader that is away, and
// the sender waits for it up to the stall time.
type pacer struct {
	fixed float64       // packets per second; 0 adapts
	rtt   time.Duration // smallest known; 0 unknown

	window  float64
	smooth  time.Duration // smoothed round-trip time
	heard   time.Duration // when the last answer of this round came; 0 none yet
	since   int           // packets sent since
	tokens  float64
	last    time.Duration // when tokens were counted
	share   float64       // of settled packets that were answered
	hits    int           // packets in the ring that were answered
	ring    []flight      // packets younger than the settle time, in order of sending
	head, n int
	state   []packetState // by key
}

type flight struct {
	key int
	at  time.Duration
}

type packetState uint8

const (
	inFlight packetState = iota + 1
	resolved             // answered within the settle time
	settled              // older than the settle time
)

// newPacer paces packets with keys 0 to keys-1.
func newPacer(rate int, rtt time.Duration, keys int) *pacer {
	return &pacer{fixed: float64(rate), rtt: rtt, window: window, share: 1, ring: make([]flight, 1<<14), state: make([]packetState, keys)}
}

// round begins a further round over the ports that have not answered. Nothing
// is known of how many will. Those that do were lost before, so it is gentler.
func (p *pacer) round() {
	p.heard, p.share = 0, 1
	p.window = max(32, p.window/2)
}

func (p *pacer) rate() float64 {
	switch {
	case p.fixed > 0:
		return p.fixed
	case p.rtt > 0 && p.rtt < localRTT:
		return localRate
	}
	return politeRate
}

// allow returns how many packets, at most limit, may leave now; when none, how
// long to wait for that if nothing arrives before.
func (p *pacer) allow(now time.Duration, limit int) (int, time.Duration) {
	p.expire(now)
	rate := p.rate()
	burst := 0.002 // seconds
	if rate == localRate {
		burst = 0.008 // makes up for a time slice that another process had
	}
	p.tokens = min(p.tokens+rate*(now-p.last).Seconds(), max(1, rate*burst))
	p.last = now
	// Waiting for a handful at a time keeps system calls few at high rates.
	quantum := min(max(1, rate*0.0003), 64)
	if p.tokens < quantum {
		return 0, time.Duration((quantum - p.tokens) / rate * float64(time.Second))
	}
	n := min(limit, int(p.tokens))
	if p.fixed == 0 {
		// The share only ever nears 0; below one in a thousand nothing is owed.
		share := max(p.share, 0.001)
		owed := share*float64(p.n) - float64(p.hits)
		n = min(n, int((p.window-owed)/share))
	}
	if n <= 0 {
		return 0, max(100*time.Microsecond, p.ring[p.head].at+p.age()-now)
	}
	return n, 0
}

func (p *pacer) sent(key int, now time.Duration) {
	if p.n == len(p.ring) {
		p.pop()
	}
	p.ring[(p.head+p.n)%len(p.ring)] = flight{key, now}
	p.n++
	p.tokens--
	p.since++
	p.state[key] = inFlight
}

// answered tells that something came back for a packet; rtt is 0 if unknown.
func (p *pacer) answered(key int, now, rtt time.Duration) {
	p.heard, p.since = now, 0
	if p.state[key] == inFlight {
		p.hits++
		p.state[key] = resolved
	}
	if rtt == 0 {
		return
	}
	p.smooth += (rtt - p.smooth) / 8
	if p.rtt == 0 || rtt < p.rtt {
		p.rtt = rtt
	}
}

// expire lets packets stop counting that are old, unless the reader is away:
// answers came until lately, and some twenty more should have come since.
func (p *pacer) expire(now time.Duration) {
	if p.heard > 0 && now-p.heard < stall && p.share*float64(p.since) > 20 {
		return
	}
	for p.n > 0 && now-p.ring[p.head].at >= p.age() {
		p.pop()
	}
}

// age is when a packet stops counting: a loaded reader is a slow one.
func (p *pacer) age() time.Duration { return min(max(settle, 4*p.smooth), stall) }

func (p *pacer) pop() {
	key := p.ring[p.head].key
	p.head = (p.head + 1) % len(p.ring)
	p.n--
	hit := 0.0
	if p.state[key] == resolved {
		hit = 1
		p.hits--
	}
	p.state[key] = settled
	p.share += (hit - p.share) / 256
}

// A stride visits 0 to n-1 once each, neighbours far apart, so that a blocked
// range is met evenly over the whole survey and a burst of loss never falls on
// one range.
type stride struct{ n, step int }

func newStride(n int) stride {
	step := max(1, int(float64(n)*0.618))
	for gcd(step, n) != 1 {
		step++
	}
	return stride{n, step}
}

func (s stride) at(k int) int { return int(uint64(k) * uint64(s.step) % uint64(s.n)) }

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
