package protocol

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// inBubble runs both ends over a synchronous pipe where time is not real.
func inBubble(t *testing.T, test func(t *testing.T, near, far net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		test(t, near, far)
	})
}

// trickle sends one byte a second until the other end has enough.
func trickle(c net.Conn, b []byte) {
	for i := range b {
		time.Sleep(time.Second)
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
	}
}

func TestPeerThatSendsByteByByteIsBoundedByTheDeadline(t *testing.T) {
	f := newFar()
	x := f.exchange()
	q, a := x.message(wire.Request), x.message(wire.Reply)
	inBubble(t, func(t *testing.T, near, far net.Conn) {
		request := q.Append(nil, &f.keys)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer near.Close()
		wg.Go(func() { trickle(near, request) })
		began := time.Now()
		events := servePlain(t.Context(), far, f)
		want := wire.Event{Time: farClock, Transport: "tcp", Stage: StageToken, Fault: FaultTimeout}
		if len(events) == 1 && (events[0].BytesIn == 9 || events[0].BytesIn == 10) { // the tenth byte comes with the deadline
			want.BytesIn, want.Digest = events[0].BytesIn, digest(request[:events[0].BytesIn])
		}
		if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
			t.Errorf("far end (-want +got):\n%s", diff)
		}
		if d := time.Since(began); d != farStall {
			t.Errorf("far end: after %v", d)
		}
		far.Close()
	})
	inBubble(t, func(t *testing.T, near, far net.Conn) {
		var wg sync.WaitGroup
		defer wg.Wait()
		defer far.Close()
		wg.Go(func() {
			io.ReadFull(far, make([]byte, wire.MessageSize))
			trickle(far, a.Append(nil, &f.keys))
		})
		x.Stall = 5500 * time.Millisecond
		got := probePlain(t.Context(), near, x)
		if got.Stage != StageToken || got.Fault != FaultTimeout || got.Took != x.Stall || len(got.Sample) != 5 {
			t.Errorf("near end: %+v", got)
		}
		near.Close()
	})
}

// play2 runs the plain exchange in a bubble with what stands between changed.
func play2(t *testing.T, f *testFar, x Exchange, near, far net.Conn) (Result, []wire.Event) {
	t.Helper()
	var events []wire.Event
	var wg sync.WaitGroup
	wg.Go(func() { events = servePlain(t.Context(), far, f); far.Close() })
	res := probePlain(t.Context(), near, x)
	near.Close()
	wg.Wait()
	return res, events
}

func TestSilenceIsKeptForAsLongAsAsked(t *testing.T) {
	inBubble(t, func(t *testing.T, near, far net.Conn) {
		f := newFar()
		x := f.exchange()
		x.Idle = 50 * time.Second
		res, events := play2(t, f, x, near, far)
		if res.Stage != StageDone || res.Took != x.Idle || len(events) != 1 || events[0].Stage != StageDone {
			t.Errorf("%+v, %+v", res, events)
		}
	})
}

// swallow lets a connection's first bytes through and then nothing more, in
// both directions: a flow entry that expired.
func swallow(f net.Conn, letThrough int64) net.Conn {
	a, b := net.Pipe()
	go func() {
		io.CopyN(b, f, letThrough)
		io.Copy(io.Discard, f)
		b.Close()
	}()
	go func() {
		io.CopyN(f, b, letThrough)
		io.Copy(io.Discard, b)
		f.Close()
	}()
	return a
}

func TestBrokenSilenceIsToldAtBothEnds(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Idle, x.Stall = 50*time.Second, 3*time.Second
	base := wire.Event{Time: farClock, Transport: "tcp", Session: f.keys.ID, Probe: x.Probe, Attempt: x.Attempt, Answered: true, Stage: StageIdle}
	t.Run("the late message is lost", func(t *testing.T) {
		inBubble(t, func(t *testing.T, near, far net.Conn) {
			res, events := play2(t, f, x, near, swallow(far, wire.MessageSize))
			if res.Stage != StageIdle || res.Fault != FaultTimeout || res.Took != x.Idle+x.Stall {
				t.Errorf("near end: %+v", res)
			}
			want := base
			want.Fault = FaultTimeout
			if len(events) == 1 && events[0].Fault == FaultEOF {
				want.Fault = FaultEOF // the near end gave up first
			}
			if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
				t.Errorf("far end (-want +got):\n%s", diff)
			}
		})
	})
	for name, c := range map[string]struct {
		during []byte
		fault  string
	}{
		"the near end speaks": {[]byte("x"), FaultAltered},
		"the near end goes":   {nil, FaultEOF},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, near, far net.Conn) {
				go func() {
					m := x.message(wire.Request)
					near.Write(m.Append(nil, &f.keys))
					io.ReadFull(near, make([]byte, wire.MessageSize))
					time.Sleep(20 * time.Second)
					if c.during != nil {
						near.Write(c.during)
					}
					near.Close()
				}()
				began := time.Now()
				events := servePlain(t.Context(), far, f)
				want := base
				want.Fault = c.fault
				if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if d := time.Since(began); d != 20*time.Second {
					t.Errorf("after %v", d)
				}
			})
		})
	}
}

func TestCancelledEndsStopAtOnce(t *testing.T) {
	for _, p := range every(t) {
		synctest.Test(t, func(t *testing.T) {
			near, nearPeer := net.Pipe()
			far, farPeer := net.Pipe()
			defer near.Close()
			defer far.Close()
			defer nearPeer.Close()
			defer farPeer.Close()
			go io.Copy(io.Discard, nearPeer)
			ctx, cancel := contextFor(t)
			began := time.Now()
			time.AfterFunc(time.Second, cancel)
			var wg sync.WaitGroup
			f := newFar()
			wg.Go(func() { p.TCP.Serve(ctx, far, f) })
			wg.Go(func() { p.TCP.Probe(ctx, near, f.exchange()) })
			wg.Wait()
			if d := time.Since(began); d != time.Second {
				t.Errorf("%s: ended after %v", p, d)
			}
		})
	}
}

// A far end that is stopped must not pretend that the silence was survived.
func TestSilenceBrokenOffByTheFarEndItselfIsNotSurvived(t *testing.T) {
	inBubble(t, func(t *testing.T, near, far net.Conn) {
		f := newFar()
		x := f.exchange()
		x.Idle = time.Hour
		ctx, cancel := contextFor(t)
		time.AfterFunc(time.Minute, cancel)
		var events []wire.Event
		var wg sync.WaitGroup
		wg.Go(func() { events = servePlain(ctx, far, f); far.Close() })
		res := probePlain(t.Context(), near, x)
		wg.Wait()
		if res.Stage != StageIdle || res.Fault != FaultEOF || res.Took != time.Minute {
			t.Errorf("near end: %+v", res)
		}
		if len(events) != 1 || events[0].Stage != StageIdle || events[0].Fault != FaultTimeout {
			t.Errorf("far end: %+v", events)
		}
	})
}

// Where both ends answer at once, no time passes: an end that waits for what
// never comes would show here.
func TestNoProtocolWaitsForNothing(t *testing.T) {
	for _, p := range every(t) {
		t.Run(p.String(), func(t *testing.T) {
			for range 20 {
				synctest.Test(t, func(t *testing.T) {
					f := newFar()
					x := f.exchange()
					x.Bytes = 16 << 10
					began := time.Now()
					res, _, _ := play(t, memory, p, f, x, box{})
					if d := time.Since(began); d != 0 || res.Stage != StageDone {
						t.Errorf("%v for %+v", d, res)
					}
				})
			}
		})
	}
}
