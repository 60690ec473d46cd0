package protocol

import (
	"bytes"
	"math"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// A liveFar has a clock that goes, an hour ahead.
type liveFar struct{ *testFar }

func (liveFar) Now() time.Time { return time.Now().Add(time.Hour) }

var mediaFrom = netip.MustParseAddrPort("192.0.2.7:50000")

// mediaFar answers as the reflector does, on a path: there and back say how long
// a datagram takes, less than 0 that it is lost. They are given its size and its
// number among those of that size.
func mediaFar(t *testing.T, f *testFar, there, back func(size, n int) time.Duration) *lane {
	var l *lane
	count := map[int]int{}
	l = newLane(func(_ int, p []byte) [][]byte {
		size, n := len(p), count[len(p)]
		count[size]++
		there, back := there(size, n), back(size, n)
		if there < 0 {
			return nil
		}
		time.AfterFunc(there, func() {
			reply, e := answerMedia(p, mediaFrom, mediaFrom, liveFar{f})
			if len(reply) != size || !e.Answered {
				t.Errorf("%d bytes are answered with %d: %+v", size, len(reply), e)
			}
			if back >= 0 {
				time.AfterFunc(back, func() { l.came <- reply })
			}
		})
		return nil
	})
	return l
}

func steady(d time.Duration) func(int, int) time.Duration {
	return func(int, int) time.Duration { return d }
}

// settled is RFC 3550's jitter after n datagrams of which each differs by d.
func settledAt(d float64, n int) float64 {
	return math.Round(d*(1-math.Pow(15.0/16, float64(n-1)))*1000) / 1000
}

func TestMediaAreMeasuredInEachDirection(t *testing.T) {
	const ms = time.Millisecond
	// Every second datagram takes 8 ms longer, every tenth 50 ms longer, every fourth is lost.
	uneven := func(_, n int) time.Duration { return 10*ms + time.Duration(n%2)*8*ms }
	late := func(_, n int) time.Duration { return 10*ms + time.Duration(n%10/9)*50*ms }
	losing := func(_, n int) time.Duration {
		if n%4 == 3 {
			return -1
		}
		return 10 * ms
	}
	whole := func(name string, n int) wire.Media { return wire.Media{Flow: name, Sent: n, Heard: n} }
	both := func(change func(*wire.Media)) []wire.Media {
		list := []wire.Media{whole("audio", 50), whole("video", 30)}
		for i := range list {
			change(&list[i])
		}
		return list
	}
	for name, c := range map[string]struct {
		there, back func(size, n int) time.Duration
		want        []wire.Media
	}{
		"a steady path":         {steady(10 * ms), steady(30 * ms), both(func(*wire.Media) {})},
		"delay varies there":    {uneven, steady(10 * ms), both(func(m *wire.Media) { m.JitterUp = settledAt(8, m.Sent) })},
		"delay varies back":     {steady(10 * ms), uneven, both(func(m *wire.Media) { m.JitterDown = settledAt(8, m.Sent) })},
		"lost there":            {losing, steady(10 * ms), both(func(m *wire.Media) { m.Heard = m.Sent - m.Sent/4 })},
		"lost back":             {steady(10 * ms), losing, both(func(m *wire.Media) { m.Heard = m.Sent - m.Sent/4 })},
		"out of order, there":   {late, steady(10 * ms), nil},
		"out of order, on back": {steady(10 * ms), late, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFar()
			x := f.exchange()
			x.Stall = 4 * time.Second
			got := probeMedia(t.Context(), mediaFar(t, f, c.there, c.back), x)
			if got.Stage != StageDone || got.Sent != 80 || len(got.Media) != 2 {
				t.Errorf("%s: %+v", name, got)
				return
			}
			if c.want != nil {
				if diff := cmp.Diff(c.want, got.Media); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
				return
			}
			// The last of all is late as well, but nothing follows it.
			for _, m := range got.Media {
				there, back := m.ReorderedUp, m.ReorderedDown
				if name != "out of order, there" {
					there, back = back, there
				}
				if want := m.Sent/10 - 1; there != want || back != 0 {
					t.Errorf("%s: %s: %d of the late and %d of the others are out of order, want %d and 0", name, m.Flow, there, back, want)
				}
			}
		})
	}
}

func TestMediaOfOneSizeThatVanishAreTold(t *testing.T) {
	for lost, passes := range map[int]int{1100: 160, 160: 1100} {
		synctest.Test(t, func(t *testing.T) {
			f := newFar()
			x := f.exchange()
			x.Stall = 2 * time.Second
			got := probeMedia(t.Context(), mediaFar(t, f, func(size, _ int) time.Duration {
				if size == lost {
					return -1
				}
				return 0
			}, steady(0)), x)
			if got.Stage != StageData || got.Fault != FaultTimeout || got.Up != int64(lost) || got.Down != int64(passes) || got.Took != x.Stall {
				t.Errorf("%d: %+v", lost, got)
			}
		})
	}
}

func TestMediaAnsweredTwiceCountOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar()
		x := f.exchange()
		x.Stall = time.Second
		got := probeMedia(t.Context(), newLane(func(_ int, p []byte) [][]byte {
			reply, _ := answerMedia(p, mediaFrom, mediaFrom, liveFar{f})
			return [][]byte{reply, reply}
		}), x)
		if got.Stage != StageDone || got.Sent != 25+15 || got.Heard != got.Sent {
			t.Errorf("%+v", got)
		}
	})
}

func TestMediaFlowForHalfOfAShortStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFar().exchange()
		x.Stall = 600 * time.Millisecond
		l := newLane(func(int, []byte) [][]byte { return nil })
		began := time.Now()
		got := probeMedia(t.Context(), l, x)
		if got.Stage != StageToken || got.Fault != FaultTimeout || got.Sent != 15+9 || got.Took != x.Stall {
			t.Errorf("%+v", got)
		}
		if last := l.sent[len(l.sent)-1].Sub(began); last != 280*time.Millisecond {
			t.Errorf("the last datagram left after %v", last)
		}
	})
}

// Every byte value is about as frequent as any other, and the first byte says
// neither STUN nor QUIC nor wallprobe.
func TestMediaLookRandom(t *testing.T) {
	f := newFar()
	var seen [256]int
	total := 0
	for n := range 400 {
		x := f.exchange()
		x.Attempt = uint16(n)
		m := x.message(wire.Request)
		m.Size = 1100 - mediaNonce
		p := maskMedia(m.Append(nil, x.Keys))
		if len(p) != 1100 || p[0] < 128 || p[0] > 191 || wire.IsMessage(p) {
			t.Fatalf("%d bytes, % x", len(p), p[:4])
		}
		for _, b := range p[1:] {
			seen[b]++
			total++
		}
	}
	// Chi-squared with 255 degrees of freedom: beyond 400 once in 10^8 runs.
	expected, chi := float64(total)/256, 0.0
	for _, n := range seen {
		chi += (float64(n) - expected) * (float64(n) - expected) / expected
	}
	if chi > 400 {
		t.Errorf("chi-squared %.0f: the bytes have a structure", chi)
	}
}

// A source that proves nothing gets nothing.
func TestMediaThatProveNothingAreNotAnswered(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	x := f.exchange()
	message := func(kind wire.Kind, keys *wire.Keys) []byte { m := x.message(kind); return m.Append(nil, keys) }
	good := maskMedia(message(wire.Request, &f.keys))
	for name, c := range map[string]struct {
		p     []byte
		fault string
	}{
		"nothing":             {nil, FaultForeign},
		"a short one":         {good[:99], FaultForeign},
		"one that was cut":    {append(good[:len(good):len(good)], 0), FaultAltered},
		"another first byte":  {append([]byte{good[0] ^ 0xc0}, good[1:]...), FaultForeign},
		"another nonce":       {append([]byte{good[0] ^ 1}, good[1:]...), FaultForeign},
		"no mask":             {message(wire.Request, &f.keys), FaultForeign},
		"a reply":             {maskMedia(message(wire.Reply, &f.keys)), FaultAltered},
		"another key's":       {maskMedia(message(wire.Request, &other.keys)), FaultAltered},
		"random bytes":        {bytes.Repeat([]byte{0x80}, 200), FaultForeign},
		"a changed last byte": {append(slices.Clone(good[:len(good)-1]), good[len(good)-1]^1), FaultAltered},
	} {
		reply, e := answerMedia(c.p, mediaFrom, mediaFrom, f)
		if reply != nil || e.Answered || e.Fault != c.fault || e.Digest != digest(c.p) {
			t.Errorf("%s: %d bytes, %+v", name, len(reply), e)
		}
	}
}

func FuzzMedia(f *testing.F) {
	far := newFar()
	m := far.exchange().message(wire.Request)
	f.Add(maskMedia(m.Append(nil, &far.keys)))
	f.Add(bytes.Repeat([]byte{0x80}, 100))
	f.Fuzz(func(t *testing.T, p []byte) {
		reply, e := answerMedia(p, mediaFrom, mediaFrom, far)
		if (reply != nil) != e.Answered || len(reply) > len(p) {
			t.Errorf("%x: %d bytes, %+v", p, len(reply), e)
		}
		b, err := unmaskMedia(p)
		if err != nil {
			return
		}
		again := slices.Concat(p[:mediaNonce], b)
		applyMask(again)
		if !bytes.Equal(again, p) {
			t.Errorf("%x: unmasked %x, masked %x", p, b, again)
		}
	})
}
