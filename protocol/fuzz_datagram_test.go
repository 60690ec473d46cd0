package protocol

import (
	"maps"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// overUDP are the protocols over UDP of which want is true; there must be some.
func overUDP(t testing.TB, want func(*Ends) bool) []spoken {
	t.Helper()
	var all []spoken
	for _, name := range slices.Sorted(maps.Keys(protocols)) {
		if p := protocols[name]; p.UDP != nil && want(p.UDP) {
			all = append(all, spoken{name, "", p})
		}
	}
	if len(all) == 0 {
		t.Fatal("no protocols")
	}
	return all
}

// No datagram is answered by a longer one unless a token in it proved good.
func FuzzDatagramFarEnds(f *testing.F) {
	all := overUDP(f, func(e *Ends) bool { return e.Answer != nil })
	far := newFar()
	m := far.exchange().message(wire.Request)
	for i := range all {
		f.Add(uint8(i), m.Append(nil, &far.keys))
		f.Add(uint8(i), []byte(far.exchange().Token()))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		p := all[int(which)%len(all)]
		reply, e := p.UDP.Answer(b, mediaFrom, mediaFrom, far)
		if len(reply) > len(b) && e.Probe != 7 || e.Answered && reply == nil || e.Stage == StageDone && !e.Answered {
			t.Errorf("%s: %d bytes for %d, %+v", p, len(reply), len(b), e)
		}
	})
}

// An answering socket is one over UDP, in memory, whose every datagram draws the
// same one while none is waiting.
type answering struct {
	*memoryConn
	with []byte
}

func answeringWith(with []byte) answering {
	c, _ := remembered(ftpNearAddr, ftpFarAddr)
	c.local, c.remote = net.UDPAddrFromAddrPort(ftpNearAddr), net.UDPAddrFromAddrPort(ftpFarAddr)
	return answering{c, with}
}

func (c answering) Write(b []byte) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.closed {
		return 0, net.ErrClosed
	}
	if c.in.held.Len() == 0 {
		c.in.held.Write(c.with)
		c.in.changed.Broadcast()
	}
	return len(b), nil
}

// Whatever a datagram is answered with, no near end takes it for the far end's,
// nor waits longer than one stall for another.
func FuzzDatagramNearEnds(f *testing.F) {
	all := overUDP(f, func(*Ends) bool { return true })
	far := newFar()
	x := far.exchange()
	m := x.message(wire.Request)
	for i := range all {
		f.Add(uint8(i), m.Append(nil, &far.keys))
		f.Add(uint8(i), []byte("HTTP/1.1 302 Found"))
		f.Add(uint8(i), []byte{})
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		p := all[int(which)%len(all)]
		defer hangs()()
		synctest.Test(t, func(t *testing.T) {
			c := answeringWith(b[:min(len(b), 1500)])
			defer c.Close()
			began := time.Now()
			r := p.UDP.Probe(t.Context(), c, x)
			if r.Stage == StageDone || r.Fault == "" || r.Seen.Probe != 0 {
				t.Errorf("%s: %+v", p, r)
			}
			if d := time.Since(began); d > x.Stall {
				t.Errorf("%s: after %v", p, d)
			}
		})
	})
}
