package protocol

import (
	"bytes"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// What files carry is streamed at both ends: neither holds more of it than what
// is under way.
func TestLargeFilesAreStreamed(t *testing.T) {
	const (
		allowed = 32 << 20 // of both ends, whatever the size
		size    = uint32(64 << 20)
	)
	for _, p := range every(t) {
		if !p.Bulk || p.name == "ftp" && p.variant != ftpPassive { // FTP's modes differ in who calls
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			f := newFar()
			x := f.exchange()
			x.Bytes = size
			defer debug.SetGCPercent(debug.SetGCPercent(10)) // what is held counts, not what waits to be collected
			runtime.GC()
			before := heap()
			stop := make(chan struct{})
			var most uint64
			var wg sync.WaitGroup
			wg.Go(func() {
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-stop:
						return
					case <-tick.C:
						most = max(most, heap())
					}
				}
			})
			began := time.Now()
			res, _, events := play(t, loopback, p, f, x, box{})
			took := time.Since(began)
			close(stop)
			wg.Wait()
			if res.Stage != StageDone || res.Up != int64(size) || res.Down != int64(size) || len(events) != 1 || events[0].Stage != StageDone {
				t.Fatalf("%+v, %+v", res, events)
			}
			if most > before+allowed {
				t.Errorf("%d MiB were held of %d", (most-before)>>20, size>>20)
			}
			if least := float64(size) / took.Seconds(); res.Rate < least || res.Rate > 100*least || res.Pause <= 0 || res.Pause > took {
				t.Errorf("%.0f bytes/s, pause %v; %v for both", res.Rate, res.Pause, took)
			}
			t.Logf("%.0f MiB/s, longest pause %v, at most %d MiB held", res.Rate/(1<<20), res.Pause, int64(most-min(most, before))>>20)
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// A slowReader is an end that needs a second for whatever it reads.
type slowReader struct{ net.Conn }

func (s slowReader) Read(b []byte) (int, error) {
	time.Sleep(time.Second)
	return s.Conn.Read(b)
}

// Where one direction is done long before the other, what was done did not
// stand still meanwhile.
func TestWaitingForTheSlowerDirectionIsNoPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar()
		x := f.exchange()
		x.Bytes = 512 << 10
		near, far := memoryPair(t)
		var wg sync.WaitGroup
		wg.Go(func() { plain.TCP.Serve(t.Context(), slowReader{far}, f); far.Close() })
		began := time.Now()
		r := plain.TCP.Probe(t.Context(), near, x)
		near.Close()
		wg.Wait()
		if took := time.Since(began); r.Stage != StageDone || took < 10*time.Second || r.Pause >= time.Second {
			t.Errorf("%v of pause in %v: %+v", r.Pause, took, r)
		}
	})
}

// A transfer sets a new deadline for every piece: the end of its context must
// not be lost among them.
func TestCancelledTransfersStopAtOnce(t *testing.T) {
	for _, p := range every(t) {
		if p.name != "sftp" && p.name != "ftp" {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			f := newFar()
			x := f.exchange()
			x.Bytes, x.Variant = MaxBytes, p.variant
			for _, end := range []string{"near", "far"} {
				// A busy machine may take long until data flows.
				for after := 100 * time.Millisecond; ; after *= 5 {
					got, events, took := cancelled(t, p, f, x, end, after)
					inData := got.Stage == StageData && len(events) == 1 && events[0].Stage == StageData
					if inData && took <= 5*time.Second {
						break
					}
					if inData || after > 10*time.Second {
						t.Fatalf("%s end: %+v, %+v, %v after the end of its context", end, got, events, took)
					}
				}
			}
		})
	}
}

// leastBeforeCut is how much of 500,000 bytes that go through before a cut must
// be counted by who reads them: all but a frame of HTTP/2 and what TLS and HTTP
// take of them.
func leastBeforeCut(fault string) int64 {
	if fault == FaultReset {
		return 1 // it takes with it what was not read by then
	}
	return 350_000
}

// cutUnderWay is cutAfter once what came before had its time: a library may not
// yet have begun with what arrives together with the end.
func cutUnderWay(n int64) func(int64, []byte) ([]byte, bool) {
	cut := cutAfter(n)
	return func(offset int64, b []byte) ([]byte, bool) {
		out, ok := cut(offset, b)
		if !ok {
			time.Sleep(200 * time.Millisecond)
		}
		return out, ok
	}
}

// Other than files, what is carried goes through the connection that is cut.
func TestCutOfBulkIsCountedByWhoReadsIt(t *testing.T) {
	for _, p := range every(t) {
		if !p.Bulk || p.name == "sftp" || p.name == "ftp" {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			f := newFar()
			x := f.exchange()
			x.Bytes, x.Stall = 1<<20, 5*time.Second
			res, _, _ := play(t, loopback, p, f, x, box{down: cutUnderWay(500_000)})
			if res.Stage != StageData || res.Fault != FaultEOF && res.Fault != FaultReset || res.Down < leastBeforeCut(res.Fault) || res.Down > 500_000 {
				t.Errorf("near end: %+v", res)
			}
			_, _, events := play(t, loopback, p, f, x, box{up: cutUnderWay(500_000)})
			if len(events) != 1 || events[0].Stage != StageData {
				t.Fatalf("far end: %+v", events)
			}
			if e := events[0]; e.Fault != FaultEOF && e.Fault != FaultReset || e.BytesIn < leastBeforeCut(e.Fault) || e.BytesIn > 500_000 {
				t.Errorf("far end: %+v", e)
			}
		})
	}
}

// What was cut inside of a message's mask is not altered.
func TestCutWebSocketIsNotTakenForAltered(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes, x.Variant = 1<<18, variantSocket
	for n := int64(60_000); n < 200_000; n += 7_000 {
		_, _, events := play(t, loopback, spoken{"https", variantSocket, secureHTTP}, f, x, box{up: cutAfter(n)})
		if len(events) != 1 || events[0].Stage != StageData || events[0].Fault != FaultEOF && events[0].Fault != FaultReset || events[0].BytesIn > n {
			t.Errorf("cut after %d: %+v", n, events)
		}
	}
}

// cancelled ends the context of one end after a while, and gives how long both
// went on.
func cancelled(t *testing.T, p spoken, f *testFar, x Exchange, end string, after time.Duration) (Result, []wire.Event, time.Duration) {
	near, far := pair(t)
	nearCtx, farCtx := t.Context(), t.Context()
	ctx, cancel := contextFor(t)
	if end == "near" {
		nearCtx = ctx
	} else {
		farCtx = ctx
	}
	ended := make(chan time.Time, 1)
	time.AfterFunc(after, func() {
		ended <- time.Now()
		cancel()
	})
	var events []wire.Event
	var wg sync.WaitGroup
	wg.Go(func() { events = p.TCP.Serve(farCtx, far, f); far.Close() })
	got := p.TCP.Probe(nearCtx, near, x)
	near.Close()
	wg.Wait()
	return got, events, time.Since(<-ended)
}

// The byte at which a path was cut is in the results of both ends.
//
// Files go in pieces of 32 KiB, of which an end counts those that came whole.
// The path is cut in the middle of the sixteenth: all that SSH adds has room in
// the other half, so fifteen came. After a reset it may be fewer: the box's
// socket throws away what it did not send yet, and no more than that.
func TestCutOfFilesIsCountedExactly(t *testing.T) {
	const (
		piece = 32 << 10
		whole = 15 * piece
		at    = whole + piece/2
		lost  = (boxHolds + piece - 1) / piece * piece // by a reset, in pieces
	)
	for _, p := range every(t) {
		if p.name != "sftp" {
			continue
		}
		for name, c := range map[string]struct {
			ending    ending
			near, far string // the fault at the end that was reading, and at the other one
			least     int64
		}{
			"closed":  {closes, FaultEOF, FaultEOF, whole},
			"reset":   {resets, FaultReset, FaultReset, whole - lost},
			"stalled": {stalls, FaultTimeout, FaultEOF, whole},
		} {
			f := newFar()
			x := f.exchange()
			x.Bytes, x.Stall = 1<<20, 5*time.Second
			t.Run("read, "+name, func(t *testing.T) {
				t.Parallel()
				res, _, events := play(t, loopback, p, f, x, box{down: cutAfter(at), ending: c.ending})
				if res.Stage != StageData || res.Fault != c.near || res.Down < c.least || res.Down > whole || res.Step != "reading /1048576.bin" {
					t.Errorf("near end: %+v", res)
				}
				if len(events) != 1 || events[0].Stage != StageData || events[0].Fault != c.far || events[0].BytesOut < res.Down {
					t.Errorf("far end: %+v", events)
				}
			})
			t.Run("written, "+name, func(t *testing.T) {
				t.Parallel()
				res, _, events := play(t, loopback, p, newFar(), x, box{up: cutAfter(at), ending: c.ending})
				if res.Stage != StageData || res.Fault != c.near || res.Down != int64(x.Bytes) || res.Step != "writing /1048576.bin" {
					t.Errorf("near end: %+v", res)
				}
				if len(events) != 1 || events[0].Stage != StageData || events[0].Fault != c.far || events[0].BytesIn < c.least || events[0].BytesIn > whole {
					t.Errorf("far end: %+v", events)
				}
			})
		}
	}
}

func TestComparedStreamsNameTheByte(t *testing.T) {
	k := newFar().keys
	good := make([]byte, 100_000)
	k.NewStream(wire.Reply, 7, 1).Read(good)
	for _, at := range []int{0, 1, chunk - 1, chunk, 99_999, -1} {
		b := bytes.Clone(good)
		if at >= 0 {
			b[at] ^= 0x80
		}
		c := &compared{want: k.NewStream(wire.Reply, 7, 1)}
		n, err := 0, error(nil)
		for n < len(b) && err == nil {
			var m int
			m, err = c.Write(b[n:min(n+33_333, len(b))])
			n += m
		}
		want := at
		if at < 0 {
			want = len(b)
		}
		if n != want || c.n != int64(want) || (err == nil) != (at < 0) {
			t.Errorf("byte %d: %d, %d, %v", at, n, c.n, err)
		}
	}
}
