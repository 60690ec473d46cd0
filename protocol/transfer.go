package protocol

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
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

// A metered connection carries one transfer: it notes the longest pause of what
// comes, for a system takes what goes in one piece or holds it up however evenly
// it goes on from there, and keeps deadlines from adding up beyond what minRate allows.
type metered struct {
	pacedConn
	all *allowance
}

func meter(c net.Conn, stall time.Duration) *metered {
	return &metered{pacedConn{c, newPace()}, allow(stall)}
}

// An allowance is how long a peer may take for all that it does: some time for
// nothing, and a second more for each minRate bytes that were moved. A transfer
// of that pace never meets it sooner than a stall of the free time.
type allowance struct {
	began time.Time
	free  time.Duration
	moved atomic.Int64 // bytes, both ways
}

func allow(free time.Duration) *allowance { return &allowance{began: time.Now(), free: free} }

func (a *allowance) until() time.Time {
	return a.began.Add(a.free + time.Duration(a.moved.Load()/minRate)*time.Second)
}

// Read is net.Conn.
func (m *metered) Read(b []byte) (int, error) {
	n, err := m.pacedConn.Read(b)
	m.all.moved.Add(int64(n))
	return n, err
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.all.moved.Add(int64(n))
	return n, err
}

// atLatest is when a transfer of n bytes that begins now must have ended,
// however short its pauses are.
func atLatest(n uint32, stall time.Duration) time.Time {
	return time.Now().Add(stall + time.Duration(n/minRate)*time.Second)
}

// sooner is the earlier of two times.
func sooner(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (m *metered) cap(t time.Time) time.Time { return sooner(t, m.all.until()) }

func (m *metered) SetDeadline(t time.Time) error      { return m.Conn.SetDeadline(m.cap(t)) }
func (m *metered) SetReadDeadline(t time.Time) error  { return m.Conn.SetReadDeadline(m.cap(t)) }
func (m *metered) SetWriteDeadline(t time.Time) error { return m.Conn.SetWriteDeadline(m.cap(t)) }

// measured adds a transfer of n bytes that ended now to a result.
func (r *Result) measured(m *metered, n uint32) {
	r.Pause = max(r.Pause, m.pause(false))
	if made := rate(int64(n), time.Since(m.began)); made > 0 && (r.Rate == 0 || made < r.Rate) {
		r.Rate = made
	}
}

// compared checks what is written to it against a stream.
type compared struct {
	want io.Reader
	n    int64 // bytes that are as they should be
	buf  []byte
}

func (c *compared) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		if c.buf == nil {
			c.buf = make([]byte, chunk)
		}
		want := c.buf[:min(len(c.buf), len(b)-done)]
		c.want.Read(want)
		if got := b[done : done+len(want)]; !bytes.Equal(got, want) {
			i := differ(got, want)
			c.n += int64(i)
			return done + i, fmt.Errorf("byte %d: %w", c.n, errAltered)
		}
		c.n += int64(len(want))
		done += len(want)
	}
	return done, nil
}

// differ is where two slices of one length first differ.
func differ(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}
