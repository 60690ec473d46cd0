package protocol

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// memoryPair is a connection that no system knows of, with addresses of
// loopback. Unlike net.Pipe's, its ends have buffers, as a network has.
func memoryPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	a, b := remembered(netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:443"))
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func remembered(client, server netip.AddrPort) (near, far *memoryConn) {
	up, down := newQueue(), newQueue()
	c, s := net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(server)
	return &memoryConn{down, up, c, s}, &memoryConn{up, down, s, c}
}

// A memoryNet makes further connections between two ends in memory.
type memoryNet struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*memoryListener
	last      uint16
}

func (n *memoryNet) next() uint16 { n.last++; return 50000 + n.last }

func (n *memoryNet) listen(at netip.Addr) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = make(map[netip.AddrPort]*memoryListener)
	}
	l := &memoryListener{at: netip.AddrPortFrom(at, n.next()), calls: make(chan net.Conn, 8), closed: make(chan struct{})}
	n.listeners[l.at] = l
	return l, nil
}

func (n *memoryNet) dial(_ context.Context, from, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil || l.gone() {
		return nil, syscall.ECONNREFUSED
	}
	if from.Port() == 0 {
		from = netip.AddrPortFrom(from.Addr(), n.next())
	}
	a, b := remembered(from, to)
	l.calls <- b
	return a, nil
}

type memoryListener struct {
	at     netip.AddrPort
	calls  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *memoryListener) gone() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.calls:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *memoryListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

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

// inPieces makes reads of a connection give what was written at once, and no
// more with it.
func (c *memoryConn) inPieces() *memoryConn { c.in.whole = true; return c }

// A queue holds the bytes of one direction.
type queue struct {
	mu                    sync.Mutex
	changed               *sync.Cond
	held                  bytes.Buffer
	pieces                []int // lengths of what was written and not yet read, where reads are to keep to it
	whole                 bool  // they are
	taken                 int64 // bytes read
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
			return q.take(b)
		case q.closed:
			return 0, io.EOF
		}
		q.changed.Wait()
	}
}

func (q *queue) take(b []byte) (int, error) {
	if q.whole {
		b = b[:min(len(b), q.pieces[0])]
	}
	n, err := q.held.Read(b)
	q.taken += int64(n)
	if q.whole {
		if q.pieces[0] -= n; q.pieces[0] == 0 {
			q.pieces = q.pieces[1:]
		}
	}
	return n, err
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
			if q.whole {
				q.pieces = append(q.pieces, k)
			}
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
