package protocol

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// gotoMedia looks like what GoTo says of its media: encrypted, its own, and not
// to be classified. Audio and video go side by side, and each datagram is
// answered by one of the far end's own of the same length, with the far end's
// clock, so that each direction is measured by itself: loss from the ledger's
// counts, order and delay variation from the clocks.
//
//	 0  nonce(16)    random; the first byte is 128 to 191, RTP's class in RFC
//	                 9443, because the port is shared with STUN and QUIC
//	16  message      of the datagram's remaining length, under a mask that the
//	                 nonce makes: not secret, but without structure
var gotoMedia = &Protocol{
	Doc:       "datagrams that look random: audio of 160 bytes every 20 ms and video of 1,100 bytes every 33 ms, both ways, for a second; loss, order and delay variation by direction",
	Imitation: "the vendor does not document its media and calls them encrypted and not classifiable: random-looking datagrams in the rhythm of audio and video",
	UDP:       &Ends{Probe: probeMedia, Answer: answerMedia},
}

// mediaFor is how long the media flow, or half of the stall where that is less.
const mediaFor = time.Second

// A flow is one of the streams side by side.
type mediaFlow struct {
	name  string
	every time.Duration
	size  int    // bytes of a datagram
	part  uint32 // added to the probe's number
}

var mediaFlows = []mediaFlow{
	{"audio", 20 * time.Millisecond, 160, 0},
	{"video", 33 * time.Millisecond, 1100, MediaVideo},
}

const mediaNonce = 16

var errMask = errors.New("too short for media")

// maskMedia puts a message under a mask of its own.
func maskMedia(message []byte) []byte {
	p := make([]byte, mediaNonce+len(message))
	copy(p[mediaNonce:], message)
	for {
		rand.Read(p[:mediaNonce])
		p[0] = 0x80 | p[0]&0x3f
		if !wire.IsMessage(p) {
			break
		}
	}
	applyMask(p)
	return p
}

// unmaskMedia gives the message back; it may be anything.
func unmaskMedia(p []byte) ([]byte, error) {
	if len(p) < mediaNonce+wire.MessageSize || p[0]&0xc0 != 0x80 {
		return nil, errMask
	}
	p = slices.Clone(p)
	applyMask(p)
	return p[mediaNonce:], nil
}

func applyMask(p []byte) {
	seed := sha256.Sum256(append([]byte("wallprobe media "), p[:mediaNonce]...))
	mask := make([]byte, len(p)-mediaNonce)
	mrand.NewChaCha8(seed).Read(mask)
	for i := range mask {
		p[mediaNonce+i] ^= mask[i]
	}
}

// answerMedia is the far end: one datagram for one.
func answerMedia(p []byte, from, _ netip.AddrPort, far Far) ([]byte, wire.Event) {
	e := wire.Event{Stage: StageData}
	fail := func(err error) ([]byte, wire.Event) {
		e.Fault, e.Digest = faultOf(err), digest(p)
		return nil, e
	}
	b, err := unmaskMedia(p)
	if err != nil {
		return fail(ErrForeign)
	}
	m, keys, err := far.Prove(b, net.UDPAddrFromAddrPort(from))
	e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	if err == nil && m.Kind != wire.Request {
		err = wire.ErrAltered
	}
	if err != nil {
		return fail(err)
	}
	e.Answered = true
	m.Kind, m.Seen, m.Time = wire.Reply, from, far.Now()
	return maskMedia(m.Append(nil, keys)), e
}

// probeMedia is the near end.
func probeMedia(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	s := &mediaSession{ctx: ctx, c: c, x: x, r: &r, began: time.Now()}
	for _, f := range mediaFlows {
		n := int(min(mediaFor, x.Stall/2) / f.every)
		s.flows = append(s.flows, &mediaState{mediaFlow: f, packets: make([]mediaPacket, max(n, 1))})
	}
	err := s.run()
	silent := ""
	for _, f := range s.flows {
		m := f.measured()
		r.Media = append(r.Media, m)
		r.Sent, r.Heard = r.Sent+m.Sent, r.Heard+m.Heard
		if m.Heard == 0 {
			silent = f.name
		}
	}
	if r.Heard == 0 {
		step(StageToken, err)
		return r
	}
	if silent == "" {
		r.Sample = nil
	}
	if silent != "" { // one flow passes and the other does not: by their size, or their rhythm
		r.Up, r.Down = int64(mediaFlows[1].size), int64(mediaFlows[0].size)
		if silent == mediaFlows[0].name {
			r.Up, r.Down = r.Down, r.Up
		}
		step(StageData, context.DeadlineExceeded)
		return r
	}
	r.Detail = wire.DescribeMedia(r.Media)
	step(StageDone, nil)
	return r
}

// A mediaPacket is one datagram and its answer, in microseconds of the two
// clocks: sent and heard here, answered there.
type mediaPacket struct {
	sent, answered, heard time.Time
	order                 int // of its answer among those heard, from 1; 0 is none
}

type mediaState struct {
	mediaFlow
	packets []mediaPacket
	sent    int
	heard   int
}

type mediaSession struct {
	ctx   context.Context
	c     net.Conn
	x     Exchange
	r     *Result
	began time.Time
	flows []*mediaState
	buf   [2048]byte
}

// run sends every flow in its rhythm and listens until all is answered or the
// stall is over. Only with nothing heard the error counts.
func (s *mediaSession) run() error {
	var failure error
	end := s.began.Add(s.x.Stall)
	for s.ctx.Err() == nil {
		next, due := s.next()
		now := time.Now()
		if next != nil && !now.Before(due) {
			failure = firstError(failure, s.send(next, now))
			continue
		}
		if next == nil && (s.answered() || !now.Before(end)) {
			break
		}
		until := end
		if next != nil {
			until = due
		}
		failure = firstError(failure, s.listen(until))
	}
	switch {
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case failure != nil:
		return failure
	}
	return context.DeadlineExceeded
}

// next is the flow whose datagram is due first, nil when all were sent.
func (s *mediaSession) next() (next *mediaState, due time.Time) {
	for _, f := range s.flows {
		if f.sent == len(f.packets) {
			continue
		}
		if at := s.began.Add(time.Duration(f.sent) * f.every); next == nil || at.Before(due) {
			next, due = f, at
		}
	}
	return next, due
}

func (s *mediaSession) answered() bool {
	return !slices.ContainsFunc(s.flows, func(f *mediaState) bool { return f.heard < f.sent })
}

func (s *mediaSession) send(f *mediaState, now time.Time) error {
	x := s.x
	x.Probe, x.Attempt, x.Idle, x.Bytes = x.Probe+f.part, uint16(f.sent), 0, 0
	m := x.message(wire.Request)
	m.Size = f.size - mediaNonce
	f.packets[f.sent].sent = now
	f.sent++
	_, err := s.c.Write(maskMedia(m.Append(nil, x.Keys)))
	return err
}

// listen reads one datagram.
func (s *mediaSession) listen(until time.Time) error {
	s.c.SetReadDeadline(until)
	if s.ctx.Err() != nil {
		return nil
	}
	n, err := s.c.Read(s.buf[:])
	now := time.Now()
	if err != nil {
		return err
	}
	f, m := s.flowOf(s.buf[:n])
	if f == nil {
		if s.r.Sample == nil {
			s.r.Sample = slices.Clone(s.buf[:min(n, 256)])
		}
		return ErrForeign
	}
	p := &f.packets[m.Attempt]
	if p.order > 0 {
		return nil // a duplicate
	}
	f.heard++
	p.order, p.heard, p.answered = f.heard, now, m.Time
	if rtt := now.Sub(p.sent); s.r.RTT == 0 || rtt < s.r.RTT {
		s.r.RTT, s.r.Seen = rtt, m
	}
	return nil
}

// flowOf finds the flow that an answer belongs to, nil when it is none.
func (s *mediaSession) flowOf(b []byte) (*mediaState, wire.Message) {
	b, err := unmaskMedia(b)
	if err != nil {
		return nil, wire.Message{}
	}
	m, err := wire.Parse(b, s.x.Keys)
	if err != nil || m.Kind != wire.Reply || m.Port != s.x.Port {
		return nil, m
	}
	for _, f := range s.flows {
		if m.Probe == s.x.Probe+f.part && int(m.Attempt) < f.sent {
			return f, m
		}
	}
	return nil, m
}

// measured is what a flow showed.
func (f *mediaState) measured() wire.Media {
	out := wire.Media{Flow: f.name, Sent: f.sent, Heard: f.heard}
	var answered []mediaPacket // in the order of sending
	for _, p := range f.packets {
		if p.order > 0 {
			answered = append(answered, p)
		}
	}
	// There, they arrived in the order of its clock; of equal times, as they were sent.
	there := slices.Clone(answered)
	slices.SortStableFunc(there, func(a, b mediaPacket) int { return a.answered.Compare(b.answered) })
	out.ReorderedUp = reordered(there, func(p mediaPacket) time.Time { return p.sent })
	out.JitterUp = jitter(there, func(p mediaPacket) (from, to time.Time) { return p.sent, p.answered })
	slices.SortFunc(answered, func(a, b mediaPacket) int { return a.order - b.order })
	out.ReorderedDown = reordered(answered, func(p mediaPacket) time.Time { return p.answered })
	out.JitterDown = jitter(answered, func(p mediaPacket) (from, to time.Time) { return p.answered, p.heard })
	return out
}

// reordered counts what arrived after something that was sent later (RFC 4737
// section 4.1, Type-P-Reordered).
func reordered(arrived []mediaPacket, sent func(mediaPacket) time.Time) (n int) {
	var latest time.Time
	for _, p := range arrived {
		if t := sent(p); t.Before(latest) {
			n++
		} else {
			latest = t
		}
	}
	return n
}

// jitter is the interarrival jitter in milliseconds (RFC 3550 section 6.4.1) of
// datagrams in the order of their arrival. The two clocks need not agree.
func jitter(arrived []mediaPacket, times func(mediaPacket) (from, to time.Time)) float64 {
	var j, before float64
	for i, p := range arrived {
		from, to := times(p)
		transit := float64(to.Sub(from).Microseconds()) / 1000
		if i > 0 {
			j += (max(transit-before, before-transit) - j) / 16
		}
		before = transit
	}
	return float64(int64(j*1000+0.5)) / 1000
}
