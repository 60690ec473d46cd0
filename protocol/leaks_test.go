package protocol

import (
	"bytes"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Over memory, where a bubble knows its goroutines: when both ends have
// returned, nothing of an exchange goes on.
func TestNoExchangeInMemoryLeavesAGoroutineBehind(t *testing.T) {
	for _, p := range every(t) {
		for _, idle := range []time.Duration{0, 20 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				f := newFar()
				x := f.exchange()
				x.Bytes, x.Idle = 5000, idle
				if res, _, _ := play(t, memory, p, f, x, box{}); res.Stage != StageDone {
					t.Errorf("%s: %+v", p, res)
				}
				if left := leftBehind(); len(left) > 0 {
					t.Errorf("%s: left behind:\n%s", p, strings.Join(left, "\n\n"))
				}
			})
		}
	}
}

// Over loopback, with the system's sockets: the goroutines are those from before.
func TestNoExchangeOverLoopbackLeavesAGoroutineBehind(t *testing.T) {
	before := running()
	for _, p := range every(t) {
		f := newFar()
		x := f.exchange()
		x.Bytes = 5000
		if res, _, _ := play(t, loopback, p, f, x, box{}); res.Stage != StageDone {
			t.Errorf("%s: %+v", p, res)
		}
		for _, routine := range stillRunning(before) {
			t.Errorf("%s: left behind:\n%s", p, routine)
			before[numberOf(routine)] = true // told once
		}
	}
}

// A lent connection notes what is done to it after it was given back. Libraries
// that end its reads are held up, so that one which ends them twice does so late.
type lent struct {
	*net.TCPConn
	mu    sync.Mutex
	back  bool
	after []string
}

const heldUp = 50 * time.Millisecond

func (l *lent) note(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.back {
		l.after = append(l.after, what)
	}
}

func (l *lent) SetDeadline(t time.Time) error {
	l.note("SetDeadline")
	return l.TCPConn.SetDeadline(t)
}

func (l *lent) SetWriteDeadline(t time.Time) error {
	l.note("SetWriteDeadline")
	return l.TCPConn.SetWriteDeadline(t)
}

func (l *lent) SetReadDeadline(t time.Time) error {
	l.note("SetReadDeadline")
	if !t.IsZero() && t.Before(time.Now()) && bytes.Contains(stacks(false), []byte("net/http.(")) {
		time.Sleep(heldUp)
	}
	return l.TCPConn.SetReadDeadline(t)
}

func (l *lent) giveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.back = true
}

// When an end has returned, no library does anything to its connection any more,
// which others then end in order.
func TestEveryConnectionIsGivenBack(t *testing.T) {
	for _, p := range every(t) {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			f := newFar()
			x := f.exchange()
			x.Bytes, x.Variant = 5000, p.variant
			n, g := pair(t)
			near, far := &lent{TCPConn: n}, &lent{TCPConn: g}
			var wg sync.WaitGroup
			wg.Go(func() { f.serve(t.Context(), p.Protocol, far); far.giveBack(); far.CloseWrite() })
			res := p.TCP.Probe(t.Context(), near, x)
			near.giveBack()
			near.CloseWrite()
			wg.Wait()
			time.Sleep(3 * heldUp) // in which a library that is late would do what it must not
			near.mu.Lock()
			defer near.mu.Unlock()
			far.mu.Lock()
			defer far.mu.Unlock()
			if res.Stage != StageDone || len(near.after)+len(far.after) > 0 {
				t.Errorf("%+v; afterwards %v here, %v at the far end", res, near.after, far.after)
			}
		})
	}
}

// stillRunning are the goroutines that were not there before and do not end
// soon, however busy the machine is.
func stillRunning(before map[string]bool) (left []string) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left = left[:0]
		for routine := range strings.SplitSeq(string(stacks(true)), "\n\n") {
			if !before[numberOf(routine)] && !strings.Contains(routine, "protocol.stillRunning(") {
				left = append(left, routine)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// running are the goroutines of now by their number.
func running() map[string]bool {
	all := make(map[string]bool)
	for routine := range strings.SplitSeq(string(stacks(true)), "\n\n") {
		all[numberOf(routine)] = true
	}
	return all
}

var goroutineNumber = regexp.MustCompile(`^goroutine (\d+)`)

func numberOf(routine string) string { return fmt.Sprint(goroutineNumber.FindStringSubmatch(routine)) }
