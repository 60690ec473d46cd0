package protocol

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
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
	pacedConn
	until time.Time
}

func meter(c net.Conn, n uint32, stall time.Duration) *metered {
	return &metered{pacedConn{c, newPace()}, atLatest(n, stall)}
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

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.came(n)
	return n, err
}

func (m *metered) cap(t time.Time) time.Time { return sooner(t, m.until) }

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
