package client

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
)

// parting is how long the far end has to end a connection that this end has
// ended.
const parting = time.Second

// partings are the connections that end in order, see protocol.Part. Nothing
// waits for them but the end of the run. The zero value has none.
type partings struct {
	wg sync.WaitGroup

	mu    sync.Mutex
	over  bool
	loose map[net.Conn]bool // those that even the end of the run does not wait for
}

// part ends a connection; when ctx ends, at once. loose says that something may be
// wrong with it, so that the far end may never be heard again.
func (p *partings) part(ctx context.Context, c net.Conn, loose bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		c.Close()
		return
	}
	if loose {
		if p.loose == nil {
			p.loose = make(map[net.Conn]bool)
		}
		p.loose[c] = true
	}
	p.wg.Go(func() {
		defer p.parted(c)
		protocol.Part(ctx, c, parting)
	})
}

func (p *partings) parted(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.loose, c)
}

// wait waits for all of them. What comes after it is closed at once.
func (p *partings) wait() {
	p.mu.Lock()
	p.over = true
	for c := range p.loose {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// An orderlyConn is closed in order. While its owner has not said that it is not
// needed any more, something may be wrong.
type orderlyConn struct {
	net.Conn
	partings *partings
	leaving  *atomic.Bool
	speaks   func(first []byte) // called with what is written first
	hears    func()             // called when something is read
	spoke    sync.Once
	heard    sync.Once
	once     sync.Once // of Close: the second one must not cut the first one short
}

// Read is net.Conn.
func (c *orderlyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Do(c.hears)
	}
	return n, err
}

// Write is net.Conn.
func (c *orderlyConn) Write(b []byte) (int, error) {
	c.spoke.Do(func() { c.speaks(b) })
	return c.Conn.Write(b)
}

// Close is net.Conn.
func (c *orderlyConn) Close() error {
	c.once.Do(func() { c.partings.part(context.Background(), c.Conn, !c.leaving.Load()) })
	return nil
}
