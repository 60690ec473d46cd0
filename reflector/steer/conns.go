package steer

import (
	"net"
	"sync"
	"sync/atomic"
)

// counters are the moving parts of Stats.
type counters struct {
	conns, refused, accepts, received, dropped, sent, unsent atomic.Uint64
}

// connTable knows the connections being served, so that their number is
// bounded and the end of Serve ends them.
type connTable struct {
	max  int
	mu   sync.Mutex
	open map[net.Conn]struct{}
	shut bool
	wg   sync.WaitGroup
}

// full tells whether one more connection would be too many.
func (t *connTable) full() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open) >= t.max
}

// serve calls h.Conn in a goroutine of its own.
func (t *connTable) serve(c net.Conn, h Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		c.Close()
		return
	}
	if t.open == nil {
		t.open = make(map[net.Conn]struct{})
	}
	t.open[c] = struct{}{}
	t.wg.Go(func() {
		defer t.end(c)
		h.Conn(c)
	})
}

func (t *connTable) end(c net.Conn) {
	c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// shutdown closes every connection and waits for their handlers.
func (t *connTable) shutdown() {
	t.mu.Lock()
	t.shut = true
	for c := range t.open {
		c.Close()
	}
	t.mu.Unlock()
	t.wg.Wait()
}
