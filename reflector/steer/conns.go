package steer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
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

// acceptPause is how long accepting rests after a failure, as when descriptors or
// memory ran out.
const acceptPause = 20 * time.Millisecond

// accept serves what comes to a listener until ctx ends, for which somebody must
// wake it. wanted tells which connections are the listener's own. Only an error that
// can never pass is returned.
func (t *connTable) accept(ctx context.Context, l net.Listener, wanted func(net.Conn) bool, n *counters, h Handler) error {
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EINVAL): // which says of accept(2) that the socket listens no more
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		case err != nil:
			n.accepts.Add(1)
			pause(ctx, acceptPause)
		case t.full():
			n.refused.Add(1)
			c.Close()
		case !wanted(c):
			c.Close()
		default:
			n.conns.Add(1)
			t.serve(c, h)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
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
