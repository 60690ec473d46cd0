package protocol

import (
	"fmt"
	"regexp"
	"strings"
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
