package protocol

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// A stalled far end stops in the middle of one of its writes: the bytes have
// gone out, and nothing after them is done before the near end has ended.
type stalled struct {
	net.Conn
	ended <-chan struct{}
	reach func(bytes int64) // told how many bytes go out in all, before they do

	mu    sync.Mutex
	left  int // writes until then
	bytes int64
}

func (c *stalled) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left--
	if c.left < 0 {
		return 0, net.ErrClosed
	}
	if c.bytes += int64(len(b)); c.left > 0 {
		return c.Conn.Write(b)
	}
	c.reach(c.bytes)
	n, err := c.Conn.Write(b)
	<-c.ended
	return n, err
}

// A deaf near end hears so many bytes and then the end.
type deaf struct {
	net.Conn
	until atomic.Int64 // 0 is all there is
	bytes int64
}

func (c *deaf) Read(b []byte) (int, error) {
	if until := c.until.Load(); until > 0 && c.bytes >= until {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b)
	c.bytes += int64(n)
	return n, err
}

// A near end that fails asks for the ledger at once: whatever it heard has to be
// there, however slow the far end is.
func TestFarEndTellsWhatItSaysBeforeItIsHeard(t *testing.T) {
	for _, p := range every(t) {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			heard := 0
			for write := 1; ; write++ {
				res, said, all := heardUntil(t, p, write)
				if all {
					if res.Stage != StageDone {
						t.Errorf("%+v", res)
					}
					if res.Said != nil && len(res.Said.Heard) > 0 && heard == 0 {
						t.Error("nothing was tried")
					}
					return
				}
				if res.Said == nil {
					continue
				}
				for i, line := range res.Said.Heard {
					heard++
					unfinished := i == len(res.Said.Heard)-1
					if i < len(said) && (said[i] == line || unfinished && strings.HasPrefix(said[i], line)) {
						continue
					}
					t.Fatalf("write %d: %q was heard as line %d, and the far end tells of\n%s", write, line, i, strings.Join(said, "\n"))
				}
			}
		})
	}
}

// heardUntil runs an exchange whose far end stalls in one of its writes, and
// gives what it tells of at that moment. all says that there was no such write.
func heardUntil(t *testing.T, p spoken, write int) (res Result, said []string, all bool) {
	near, far := memoryPair(t)
	f := newFar()
	x := f.exchange()
	x.Variant, x.Stall = p.variant, 3*time.Second // which FTP's data connection waits for
	f.inMemory(&x, near)
	hears := &deaf{Conn: near}
	ended := make(chan struct{})
	stops := &stalled{Conn: far, ended: ended, left: write, reach: hears.until.Store}
	var wg sync.WaitGroup
	wg.Go(func() { f.serve(t.Context(), p.Protocol, stops); far.Close() })
	res = p.TCP.Probe(t.Context(), hears, x)
	if told := f.told.Load(); told != nil {
		said = told.Said().Sent
	}
	near.Close()
	close(ended)
	wg.Wait()
	return res, said, stops.left > 0
}

// A transcript that was taken does not change any more, however much is said.
func TestWhatWasTakenOfATranscriptStays(t *testing.T) {
	var said wire.Transcript
	said.Say("a")
	first := said.Said()
	said.Say("b")
	said.Hear("c")
	second := said.Said()
	said.Say("d")
	if got := strings.Join(append(append(first.Sent, "|"), append(second.Sent, second.Heard...)...), ""); got != "a|abc" || len(first.Heard) > 0 {
		t.Errorf("%q", got)
	}
}
