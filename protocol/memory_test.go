package protocol

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// memoryPair is a connection that no system knows of, with addresses of
// loopback. Unlike net.Pipe's, its ends have buffers, as a network has.
func memoryPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	up, down := newQueue(), newQueue()
	client, server := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443}
	a, b := &memoryConn{down, up, client, server}, &memoryConn{up, down, server, client}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

type memoryConn struct {
	in, out       *queue
	local, remote net.Addr
}

func (c *memoryConn) LocalAddr() net.Addr  { return c.local }
func (c *memoryConn) RemoteAddr() net.Addr { return c.remote }

func (c *memoryConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memoryConn) Write(b []byte) (int, error) { return c.out.write(b) }

func (c *memoryConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}

func (c *memoryConn) SetDeadline(t time.Time) error {
	c.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

func (c *memoryConn) SetReadDeadline(t time.Time) error  { c.in.readUntil.set(c.in, t); return nil }
func (c *memoryConn) SetWriteDeadline(t time.Time) error { c.out.writeUntil.set(c.out, t); return nil }

// A queue holds the bytes of one direction.
type queue struct {
	mu                    sync.Mutex
	changed               *sync.Cond
	held                  bytes.Buffer
	closed                bool
	readUntil, writeUntil deadline
}

const room = 64 << 10

func newQueue() *queue {
	q := &queue{}
	q.changed = sync.NewCond(&q.mu)
	return q
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(q *queue, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at = at
	if !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.changed.Broadcast()
		})
	}
	q.changed.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (q *queue) read(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.readUntil.passed():
			return 0, os.ErrDeadlineExceeded
		case q.held.Len() > 0:
			defer q.changed.Broadcast()
			return q.held.Read(b)
		case q.closed:
			return 0, io.EOF
		}
		q.changed.Wait()
	}
}

func (q *queue) write(b []byte) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n < len(b) {
		switch {
		case q.writeUntil.passed():
			return n, os.ErrDeadlineExceeded
		case q.closed:
			return n, io.ErrClosedPipe
		case q.held.Len() < room:
			k, _ := q.held.Write(b[n:min(len(b), n+room-q.held.Len())])
			n += k
			q.changed.Broadcast()
			continue
		}
		q.changed.Wait()
	}
	return n, nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.changed.Broadcast()
}
