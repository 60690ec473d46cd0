package protocol

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// A lane is a connection for datagrams in memory. Answer plays the far end: it
// gives what comes back to a datagram, and after how long.
type lane struct {
	net.Conn // only for the methods that nobody calls
	answer   func(n int, p []byte) [][]byte
	after    func(n int) time.Duration // nil is at once
	refuse   bool                      // every read meets an ICMP error

	mu    sync.Mutex
	sent  []time.Time
	until time.Time
	came  chan []byte
	moved chan struct{} // the deadline was set anew
	taken int           // datagrams
}

func newLane(answer func(n int, p []byte) [][]byte) *lane {
	return &lane{answer: answer, came: make(chan []byte, 4096), moved: make(chan struct{}, 1)}
}

func (l *lane) LocalAddr() net.Addr  { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000} }
func (l *lane) RemoteAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

func (l *lane) Write(p []byte) (int, error) {
	l.mu.Lock()
	n := len(l.sent)
	l.sent = append(l.sent, time.Now())
	l.mu.Unlock()
	delay := time.Duration(0)
	if l.after != nil {
		delay = l.after(n)
	}
	for _, b := range l.answer(n, bytes.Clone(p)) {
		if delay == 0 {
			l.came <- b
			continue
		}
		time.AfterFunc(delay, func() { l.came <- b })
	}
	return len(p), nil
}

func (l *lane) Read(p []byte) (int, error) {
	for l.refuse {
		l.mu.Lock()
		sent, late := len(l.sent), !l.until.IsZero() && !time.Now().Before(l.until)
		l.mu.Unlock()
		switch {
		case late:
			return 0, os.ErrDeadlineExceeded
		case sent > 0:
			time.Sleep(time.Millisecond)
			return 0, syscall.ECONNREFUSED
		}
		time.Sleep(time.Millisecond)
	}
	for {
		l.mu.Lock()
		left := time.Until(l.until)
		if l.until.IsZero() {
			left = time.Hour
		}
		l.mu.Unlock()
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(left)
		select {
		case b := <-l.came:
			timer.Stop()
			l.mu.Lock()
			l.taken++
			l.mu.Unlock()
			return copy(p, b), nil
		case <-l.moved:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (l *lane) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	l.until = t
	l.mu.Unlock()
	select {
	case l.moved <- struct{}{}:
	default:
	}
	return nil
}

func (l *lane) SetDeadline(t time.Time) error { return l.SetReadDeadline(t) }

// Close ends all reads.
func (l *lane) Close() error { return l.SetReadDeadline(past) }

func (l *lane) SetWriteDeadline(time.Time) error { return nil }

// plainFar answers messages as every UDP port of the reflector does.
func plainFar(f *testFar, lost func(n int) bool) func(int, []byte) [][]byte {
	return func(n int, p []byte) [][]byte {
		m, err := wire.Parse(p, &f.keys)
		if err != nil || lost != nil && lost(n) {
			return nil
		}
		m.Kind, m.Seen = wire.Reply, netip.MustParseAddrPort("192.0.2.7:5")
		return [][]byte{m.Append(nil, &f.keys)}
	}
}

func TestBeatsAreCountedAndLossIsMeasured(t *testing.T) {
	for name, c := range map[string]struct {
		lost        func(n int) bool
		stage       string
		fault       string
		sent, heard int
		took        time.Duration
	}{
		"all answered":      {nil, StageDone, "", 3, 3, 250 * time.Millisecond},
		"the first lost":    {func(n int) bool { return n == 0 }, StageDone, "", 20, 19, 1000*time.Millisecond + 17*31250*time.Microsecond + 750*time.Millisecond - 31250*time.Microsecond},
		"every second lost": {func(n int) bool { return n%2 == 1 }, StageDone, "", 20, 10, 1000*time.Millisecond + 17*31250*time.Microsecond + 750*time.Millisecond - 31250*time.Microsecond},
		"all lost":          {func(int) bool { return true }, StageToken, FaultTimeout, 3, 0, 1000 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFar()
			x := f.exchange()
			x.Stall = time.Second
			got := beats{}.probe(t.Context(), newLane(plainFar(f, c.lost)), x)
			if got.Stage != c.stage || got.Fault != c.fault || got.Sent != c.sent || got.Heard != c.heard || got.Took != c.took {
				t.Errorf("%s: %+v", name, got)
			}
		})
	}
}

// Ordinary runs beat fast; only with idling asked for does the heartbeat keep
// its rhythm.
func TestHeartbeatKeepsItsRhythmOnlyWhereIdlingIsAskedFor(t *testing.T) {
	for idle, spacing := range map[time.Duration]time.Duration{0: 125 * time.Millisecond, time.Minute: 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := newFar()
			x := f.exchange()
			x.Stall, x.Idle = time.Second, idle
			l := newLane(plainFar(f, nil))
			began := time.Now()
			got := automateHeartbeat.UDP.Probe(t.Context(), l, x)
			var at []time.Duration
			for _, s := range l.sent {
				at = append(at, s.Sub(began))
			}
			if diff := cmp.Diff([]time.Duration{0, spacing, 2 * spacing}, at); diff != "" || got.Stage != StageDone {
				t.Errorf("idle %v: %+v (-want +got):\n%s", idle, got, diff)
			}
		})
	}
}

func TestBeatsWithoutARhythmWaitForTheLateMessage(t *testing.T) {
	for comes, fault := range map[bool]string{true: "", false: FaultTimeout} {
		synctest.Test(t, func(t *testing.T) {
			f := newFar()
			x := f.exchange()
			x.Stall, x.Idle = time.Second, time.Minute
			l := newLane(plainFar(f, nil))
			answer := l.answer
			l.answer = func(n int, p []byte) [][]byte {
				m, err := wire.Parse(p, &f.keys)
				if err != nil || (m.Idle > 0) != (n == 3) {
					t.Errorf("datagram %d asks for %v of idling: %v", n, m.Idle, err)
				}
				if m.Idle > 0 && comes {
					m.Kind = wire.Late
					time.AfterFunc(x.Idle, func() { l.came <- m.Append(nil, &f.keys) })
				}
				return answer(n, p)
			}
			got := automateTray.UDP.Probe(t.Context(), l, x)
			want := map[bool]string{true: StageDone, false: StageIdle}[comes]
			if got.Stage != want || got.Fault != fault || got.Sent != 3 || got.Took < x.Idle {
				t.Errorf("late message comes %v: %+v", comes, got)
			}
		})
	}
}

func TestBeatsTellWhatStrangersAnswer(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	another := func(change func(*wire.Message)) func(int, []byte) [][]byte {
		return func(_ int, p []byte) [][]byte {
			m, _ := wire.Parse(p, &f.keys)
			m.Kind = wire.Reply
			change(&m)
			return [][]byte{m.Append(nil, &f.keys)}
		}
	}
	for name, answer := range map[string]func(int, []byte) [][]byte{
		"its own":          func(_ int, p []byte) [][]byte { return [][]byte{p} },
		"rubbish":          func(int, []byte) [][]byte { return [][]byte{[]byte("rubbish")} },
		"nothing in them":  func(int, []byte) [][]byte { return [][]byte{{}} },
		"another key's":    func(_ int, p []byte) [][]byte { return plainFar(other, nil)(0, p) },
		"of another port":  another(func(m *wire.Message) { m.Port++ }),
		"of another probe": another(func(m *wire.Message) { m.Probe++ }),
		"of no attempt":    another(func(m *wire.Message) { m.Attempt = 99 }),
	} {
		synctest.Test(t, func(t *testing.T) {
			x := f.exchange()
			x.Stall = time.Second
			got := beats{}.probe(t.Context(), newLane(answer), x)
			want := FaultForeign
			if name == "another key's" { // which that far end does not even answer
				want = FaultTimeout
			}
			if got.Stage != StageToken || got.Fault != want || got.Heard != 0 {
				t.Errorf("%s: %+v", name, got)
			}
		})
	}
}

func TestUDPProbesEndSoonAfterTheirContext(t *testing.T) {
	for name, p := range protocols {
		if p.UDP == nil || p.UDP.Stream {
			continue // those have connections of their own: see the tests of QUIC
		}
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			began := time.Now()
			time.AfterFunc(300*time.Millisecond, cancel)
			silent := newLane(func(int, []byte) [][]byte { return nil })
			got := p.UDP.Probe(ctx, silent, newFar().exchange())
			if d := time.Since(began); d != 300*time.Millisecond || got.Stage == StageDone || got.Heard != 0 {
				t.Errorf("%s: after %v: %+v", name, d, got)
			}
		})
	}
}

func TestUDPProbesTellARefusal(t *testing.T) {
	for _, name := range []string{"automate-heartbeat", "automate-mediator", "goto-media"} {
		synctest.Test(t, func(t *testing.T) {
			l := newLane(func(int, []byte) [][]byte { return nil })
			l.refuse = true
			x := newFar().exchange()
			x.Stall = time.Second
			got := protocols[name].UDP.Probe(t.Context(), l, x)
			if got.Stage != StageToken || !errors.Is(got.Err, syscall.ECONNREFUSED) || got.Sent == 0 {
				t.Errorf("%s: %+v", name, got)
			}
		})
	}
}
