package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/report"
)

// A watch shows how far a measurement is: what it tells of itself, and once a
// second the time since it began, so that waiting does not look like hanging.
type watch struct {
	line *report.ProgressLine
	hint string // what was asked for that takes long; empty is nothing

	began time.Time
	mu    sync.Mutex
	text  string
}

// watching shows text until it is stopped, which waits for its end and may be
// done again.
func watching(line *report.ProgressLine, text, hint string) (w *watch, stop func()) {
	w = &watch{line: line, hint: hint, text: text, began: time.Now()}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		second := time.NewTicker(time.Second)
		defer second.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-second.C:
				w.tell(now)
			}
		}
	})
	return w, sync.OnceFunc(func() {
		close(end)
		wg.Wait()
	})
}

// show says how far it is now.
func (w *watch) show(text string) {
	w.mu.Lock()
	w.text = text
	w.mu.Unlock()
	w.tell(time.Now())
}

func (w *watch) tell(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line.Show(w.state(now))
}

// state is the line as it stands: "3 of 4 ports; 12s gone: silences of up to 1m0s".
func (w *watch) state(now time.Time) string {
	gone := now.Sub(w.began).Truncate(time.Second)
	switch {
	case w.hint != "":
		return fmt.Sprintf("%s; %v gone: %s", w.text, gone, w.hint)
	case gone > 0:
		return fmt.Sprintf("%s; %v gone", w.text, gone)
	}
	return w.text
}
