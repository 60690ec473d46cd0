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

// maxIdle bounds the goroutines that wait for a further connection.
const maxIdle = 256

// connTable knows the connections being served, so that their number is
// bounded and the end of Serve ends them.
//
// A goroutine that has served one connection waits for the next: its stack has
// grown by then, which takes longer than a short exchange.
type connTable struct {
	max  int
	mu   sync.Mutex
	open map[net.Conn]struct{}
	next chan net.Conn // to goroutines that wait; nil until the first connection
	idle int           // how many may be waiting
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
	if t.next == nil {
		t.next = make(chan net.Conn)
	}
	select {
	case t.next <- c:
	default:
		next := t.next
		t.wg.Go(func() { t.work(c, next, h) })
	}
}

// work calls h.Conn for one connection and for those that come later.
func (t *connTable) work(c net.Conn, next <-chan net.Conn, h Handler) {
	for more := true; more; {
		t.serveOne(c, h)
		if !t.rest(1) {
			return
		}
		c, more = <-next
		t.rest(-1)
	}
}

func (t *connTable) serveOne(c net.Conn, h Handler) {
	defer t.end(c)
	h.Conn(c)
}

// rest counts the goroutines that wait and tells whether one more may.
func (t *connTable) rest(by int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle+by > maxIdle || by > 0 && t.shut {
		return false
	}
	t.idle += by
	return true
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
	if t.next != nil {
		close(t.next)
		t.next = nil
	}
	t.mu.Unlock()
	t.wg.Wait()
}
