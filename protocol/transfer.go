package protocol

import (
	"context"
	"net"
	"sync"
	"time"
)

// A bounded connection takes no deadline any more once its context has ended,
// so that a transfer, which sets one for each piece, cannot outlive it.
type bounded struct {
	net.Conn
	ctx context.Context
}

// bind bounds a connection by a context; stop ends the watch.
func bind(ctx context.Context, c net.Conn) (_ net.Conn, stop func() bool) {
	return bounded{c, ctx}, context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
}

func (b bounded) SetDeadline(t time.Time) error      { return b.set(b.Conn.SetDeadline, t) }
func (b bounded) SetReadDeadline(t time.Time) error  { return b.set(b.Conn.SetReadDeadline, t) }
func (b bounded) SetWriteDeadline(t time.Time) error { return b.set(b.Conn.SetWriteDeadline, t) }

// set looks at the context only after it set: whichever of the two comes last,
// the deadline of an ended context stands.
func (b bounded) set(set func(time.Time) error, t time.Time) error {
	err := set(t)
	if b.ctx.Err() != nil {
		return set(time.Unix(1, 0))
	}
	return err
}

// minRate is the least that a transfer has to make on the whole, in bytes per
// second: who sends a byte now and then gains nothing.
const minRate = 1 << 10

// A metered connection carries one transfer: it notes the longest pause and
// keeps deadlines from adding up beyond what minRate allows.
type metered struct {
	net.Conn
	until time.Time
	mu    sync.Mutex
	began time.Time
	last  time.Time
	pause time.Duration
}

func meter(c net.Conn, n uint32, stall time.Duration) *metered {
	now := time.Now()
	return &metered{Conn: c, began: now, last: now, until: now.Add(stall + time.Duration(n/minRate)*time.Second)}
}

func (m *metered) moved(n int) {
	if n == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.pause, m.last = max(m.pause, now.Sub(m.last)), now
}

func (m *metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.moved(n)
	return n, err
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.moved(n)
	return n, err
}

func (m *metered) cap(t time.Time) time.Time {
	if t.After(m.until) {
		return m.until
	}
	return t
}

func (m *metered) SetDeadline(t time.Time) error      { return m.Conn.SetDeadline(m.cap(t)) }
func (m *metered) SetReadDeadline(t time.Time) error  { return m.Conn.SetReadDeadline(m.cap(t)) }
func (m *metered) SetWriteDeadline(t time.Time) error { return m.Conn.SetWriteDeadline(m.cap(t)) }

// measured adds a transfer of n bytes that ended now to a result.
func (r *Result) measured(m *metered, n uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.Pause = max(r.Pause, m.pause)
	if rate := float64(n) / max(time.Since(m.began).Seconds(), 1e-9); n > 0 && (r.Rate == 0 || rate < r.Rate) {
		r.Rate = rate
	}
}
