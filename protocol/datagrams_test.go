package protocol

import (
	"bytes"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// datagramProtocols are those over UDP that need no connection; the conformance
// of QUIC, STUN and TURN is tested where their far ends are. There must be some.
func datagramProtocols(t testing.TB) []string {
	t.Helper()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(protocols)) {
		if p := protocols[name]; p.UDP != nil && !p.UDP.Stream {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		t.Fatal("no protocols")
	}
	return names
}

// A datagramFar is the far end of one protocol's datagrams, and what it noted.
type datagramFar struct {
	*testFar
	p *Protocol

	mu       sync.Mutex
	events   []wire.Event
	answered int
	longer   int // answers that are longer than what they answer
}

// answer is what the reflector does: every port answers wallprobe's own message,
// and the protocol of the port what is none.
func (f *datagramFar) answer(_ int, p []byte) (replies [][]byte) {
	from := netip.MustParseAddrPort("127.0.0.1:40000")
	f.mu.Lock()
	defer f.mu.Unlock()
	if replies = plainFar(f.testFar, nil)(0, p); replies == nil && f.p.UDP.Answer != nil {
		reply, e := f.p.UDP.Answer(bytes.Clone(p), from, from, f)
		f.events = append(f.events, e)
		if reply != nil {
			replies = [][]byte{reply}
		}
	}
	for _, r := range replies {
		f.answered++
		if len(r) > len(p) {
			f.longer++
		}
	}
	return replies
}

// through hands datagrams to the far end and back. between may change them, and
// is told which way they go.
func (f *datagramFar) through(between func(up bool, p []byte)) func(int, []byte) [][]byte {
	return func(i int, p []byte) [][]byte {
		between(true, p)
		replies := f.answer(i, p)
		for _, r := range replies {
			between(false, r)
		}
		return replies
	}
}

// Whatever is spoken in datagrams, both ends tell of the same exchange, and the
// far end sends no byte more than it got.
func TestEveryDatagramProtocolCarriesItsExchange(t *testing.T) {
	play := func(t *testing.T, name string, connect func(*datagramFar) net.Conn) {
		f := &datagramFar{testFar: newFar(), p: protocols[name]}
		x := f.exchange()
		x.Stall = 4 * time.Second
		r := f.p.UDP.Probe(t.Context(), connect(f), x)
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.Stage != StageDone || r.Fault != "" || r.Heard < 1 || r.Heard != r.Sent || r.Seen.Kind != wire.Reply || r.Seen.Probe != x.Probe || r.Seen.Port != x.Port {
			t.Errorf("near end: %+v", r)
		}
		if f.answered != r.Sent || f.longer > 0 {
			t.Errorf("%d sent, %d answered, %d with more", r.Sent, f.answered, f.longer)
		}
		for _, e := range f.events {
			if e.Session != f.keys.ID || e.Fault != "" || !e.Answered {
				t.Errorf("far end: %+v", e)
			}
		}
	}
	unchanged := func(bool, []byte) {}
	for _, name := range datagramProtocols(t) {
		t.Run("memory/"+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				play(t, name, func(f *datagramFar) net.Conn { return newLane(f.through(unchanged)) })
			})
		})
		t.Run("loopback/"+name, func(t *testing.T) {
			t.Parallel()
			play(t, name, func(f *datagramFar) net.Conn {
				near, far := udpPair(t)
				serveUDP(t, far, f.through(unchanged))
				return near
			})
		})
	}
}

// Whatever byte of every datagram is changed, in whatever protocol, never may
// both ends say that all is well.
func TestNoDatagramProtocolOverlooksAChangedByte(t *testing.T) {
	for _, name := range datagramProtocols(t) {
		for _, at := range []int{0, 3, 17, 40, 83} {
			for _, up := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					f := &datagramFar{testFar: newFar(), p: protocols[name]}
					changed := 0
					r := f.p.UDP.Probe(t.Context(), newLane(f.through(func(there bool, p []byte) {
						if there == up {
							p[at] ^= 0x20
							changed++
						}
					})), f.exchange())
					if changed == 0 {
						t.Fatalf("%s: nothing was changed", name)
					}
					if r.Stage == StageDone && !f.tellsOtherThan(r.Said) {
						t.Errorf("%s, byte %d, up %v: nobody saw it: %+v, %+v", name, at, up, r, f.events)
					}
				})
			}
		}
	}
}

// tellsOtherThan tells whether the far end's record of a dialogue differs from
// the near end's: the judge compares them line by line.
func (f *datagramFar) tellsOtherThan(near *wire.Said) bool {
	return near != nil && slices.ContainsFunc(f.events, func(e wire.Event) bool {
		return e.Said != nil && (!slices.Equal(near.Sent, e.Said.Heard) || !slices.Equal(near.Heard, e.Said.Sent))
	})
}
