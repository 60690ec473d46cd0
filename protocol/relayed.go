package protocol

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// channelNumber is the channel that a probe binds.
const channelNumber = 0x4001

// relayedSize is a datagram of the bulk phase in bytes: what WebRTC sends at
// most. It is a multiple of four and needs no padding over a stream.
const relayedSize = 1200

// relayedWindow is how many of them are under way at one time: less than what
// the sockets on the way buffer, so that one goroutine can send and receive.
const relayedWindow = 48

// Use goes through all that TURN is for: an allocation, a permission for the
// peer inside the reflector, data both ways in indications, a channel, data
// both ways through it, a refresh and the end.
func (t *Relay) Use(x Exchange) (r Result) {
	defer func() { r.Said = t.said(r.Fault != "") }()
	step := r.steps()
	if !step(StageAllocate, t.Allocate()) {
		return r
	}
	r.Detail = "relayed by " + t.Relayed.String()
	peer := netip.AddrPortFrom(t.Relayed.Addr(), EchoPort)
	if !step(StagePermission, t.Permit(peer)) {
		return r
	}
	sent := time.Now()
	err := t.token(x, &r, func(b []byte) error { return t.Indicate(peer, b) })
	if err != nil {
		err = fmt.Errorf("in indications: %w", err)
	}
	if !step(StageRelayed, err) {
		return r
	}
	r.RTT = time.Since(sent)
	if !step(StageChannel, t.Bind(channelNumber, peer)) {
		return r
	}
	err = t.token(x, &r, func(b []byte) error { return t.Send(channelNumber, b) })
	if err != nil {
		err = fmt.Errorf("in ChannelData, while indications pass: %w", err)
	}
	if !step(StageRelayed, err) {
		return r
	}
	if x.Bytes > 0 && !step(StageRelayed, t.bulk(x, &r)) {
		return r
	}
	if step(StageRefresh, t.Refresh(10*time.Minute)) && step(StageRefresh, t.Refresh(0)) {
		step(StageDone, nil)
	}
	return r
}

// token exchanges the probe's message with the peer. Over UDP it is tried
// three times, each with a number of its own.
func (t *Relay) token(x Exchange, r *Result, send func([]byte) error) error {
	sends := 1
	if !t.stream() {
		sends = 3
	}
	end := time.Now().Add(x.Stall)
	var err error
	for n := range sends {
		m := x.message(wire.Request)
		m.Attempt, m.Bytes, m.Idle = uint16(n), 0, 0
		if err = send(m.Append(nil, x.Keys)); err != nil {
			return err
		}
		until := end
		if n+1 < sends {
			until = time.Now().Add(x.Stall / 8)
		}
		if err = t.echoed(x, until, &r.Seen); err == nil || FaultOf(err) != FaultTimeout {
			return err
		}
	}
	return err
}

// echoed waits for one answer of the peer.
func (t *Relay) echoed(x Exchange, until time.Time, seen *wire.Message) error {
	_, b, err := t.Receive(until)
	if err != nil {
		return err
	}
	m, err := wire.Parse(b, x.Keys)
	switch {
	case err != nil && wire.IsMessage(b):
		return errAltered
	case err != nil, m.Kind != wire.Reply, m.Probe != x.Probe:
		return ErrForeign
	}
	*seen = m
	return nil
}

// bulk sends x.Bytes through the channel and gets them back. Lost datagrams
// are not sent again; when nothing comes for a while, the phase ends.
func (t *Relay) bulk(x Exchange, r *Result) error {
	total := (int64(x.Bytes) + relayedSize - 1) / relayedSize
	began := time.Now()
	last := began
	var sent, lost, got int64
	var m wire.Message
	for got+lost < total { // sent anew by the half window, which wakes the relay less often
		if under := sent - got - lost; under <= relayedWindow/2 {
			n := min(total-sent, relayedWindow-under)
			if err := t.burst(x, sent, n); err != nil {
				return err
			}
			sent += n
			r.Up = sent * relayedSize
		}
		wait := x.Stall
		if !t.stream() {
			wait = x.Stall / 8
		}
		err := t.echoed(x, time.Now().Add(wait), &m)
		now := time.Now()
		switch {
		case err == nil:
			got++
			r.Down = got * relayedSize
			r.Pause, last = max(r.Pause, now.Sub(last)), now
		case t.stream() || FaultOf(err) != FaultTimeout || now.Sub(last) > x.Stall:
			return err
		default:
			lost = sent - got // what is under way for that long does not come any more
		}
	}
	if took := last.Sub(began).Seconds(); took > 0 {
		r.Rate = float64(r.Down) / took
	}
	if lost := total - got; lost > 0 {
		r.Detail += fmt.Sprintf(", %d of %d relayed datagrams lost", lost, total)
	}
	return nil
}

// burst sends n datagrams of the bulk phase through the channel, numbered from
// first; over a stream in one piece.
func (t *Relay) burst(x Exchange, first, n int64) error {
	var b []byte
	for i := range n {
		q := x.message(wire.Request)
		q.Attempt, q.Size, q.Bytes, q.Idle = uint16(first+i), relayedSize, 0, 0
		b = q.Append(channelHead(b, channelNumber, relayedSize), x.Keys)
		if t.stream() && i+1 < n {
			continue
		}
		if err := t.write(b); err != nil {
			return err
		}
		b = b[:0]
	}
	return nil
}
