package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Patient gives a connection deadlines that stand for silence: they are put off
// for as long as bytes move, which the system sees although nobody here does. It
// takes more at once than a slow line carries in any deadline, and gives a record
// of TLS on only when all of it is there. A line that is slow, and nothing else,
// is then no stall; one that is cut ends as long after the last byte as the
// deadline was long.
//
// With reads, bytes that come count too. The far end does not let strangers
// have its time in that way; of what it sends itself they can but acknowledge
// what there is.
//
// Where the system does not tell what was acknowledged, what comes counts alone.
// A connection that is not the system's own is given back as it is.
func Patient(c net.Conn, reads bool) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	return &patient{TCPConn: t, reads: reads}
}

// A patient connection is what Patient gives.
type patient struct {
	*net.TCPConn
	reads bool

	mu          sync.Mutex
	came        uint64    // bytes read
	last        time.Time // when some were
	read, write term
}

// A term is one direction's deadline.
type term struct {
	at    time.Time     // zero is none
	since time.Time     // when moved was looked at, or at was set
	wait  time.Duration // from then to at
	moved uint64        // bytes until since; 0 where they were not looked at
}

// patientUnder finds the one that layers were put on; nil is none.
func patientUnder(c net.Conn) *patient {
	for {
		switch l := c.(type) {
		case *patient:
			return l
		case interface{ NetConn() net.Conn }:
			c = l.NetConn()
		default:
			return nil
		}
	}
}

func (p *patient) Read(b []byte) (int, error) {
	for {
		n, err := p.TCPConn.Read(b)
		if n > 0 {
			p.mu.Lock()
			p.came, p.last = p.came+uint64(n), time.Now()
			p.mu.Unlock()
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !p.putOff(&p.read, p.TCPConn.SetReadDeadline) {
			return n, err
		}
	}
}

func (p *patient) Write(b []byte) (total int, err error) {
	for {
		n, err := p.TCPConn.Write(b[total:])
		if total += n; !errors.Is(err, os.ErrDeadlineExceeded) || !p.putOff(&p.write, p.TCPConn.SetWriteDeadline) {
			return total, err
		}
	}
}

// ReadFrom and WriteTo are those of io.Copy, by way of Write and Read.
func (p *patient) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{p}, r)
}

func (p *patient) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{p})
}

func (p *patient) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

func (p *patient) SetReadDeadline(t time.Time) error {
	return p.set(&p.read, t, p.TCPConn.SetReadDeadline)
}

func (p *patient) SetWriteDeadline(t time.Time) error {
	return p.set(&p.write, t, p.TCPConn.SetWriteDeadline)
}

// set sets a deadline of this connection, or of a layer on it.
func (p *patient) set(d *term, t time.Time, set func(time.Time) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	*d = term{at: t, since: now, wait: t.Sub(now)}
	return set(t)
}

// putOff puts a deadline that was met off to where it would be had it been set
// when the last byte moved. It tells whether to go on.
func (p *patient) putOff(d *term, set func(time.Time) error) bool {
	acked, at := acknowledged(p.TCPConn)
	p.mu.Lock()
	defer p.mu.Unlock()
	moved, last := acked, at
	if p.reads {
		moved += p.came
		if p.last.After(last) {
			last = p.last
		}
	}
	next, ok := d.next(moved, last, time.Now())
	if !ok {
		return false
	}
	*d = next
	return set(d.at) == nil
}

// next is the term that takes the place of one that was met, where one does.
// moved bytes were until now, the last of them at some time. Who moves less than
// minRate gains nothing.
func (d term) next(moved uint64, last, now time.Time) (term, bool) {
	if now.Before(d.at) || d.at.IsZero() {
		return d, true // it was set anew meanwhile
	}
	at := last.Add(d.wait)
	slow := d.moved > 0 && float64(moved-d.moved) < minRate*now.Sub(d.since).Seconds()
	if d.wait <= 0 || slow || moved == 0 || !at.After(now) {
		return term{}, false
	}
	return term{at: at, since: now, wait: d.wait, moved: moved}, true
}

// maxParting is how many bytes a peer may still say when this end has ended its
// half.
const maxParting = 64 << 10

// Part ends a connection in order: this end's half at once, the rest when the
// other end has ended its own, or when it has not done so in time. A socket that
// is closed before, or with something left to read, answers with a reset, which
// takes with it what still is on its way, and which firewalls log as an abort.
// When ctx ends, all ends at once.
func Part(ctx context.Context, c net.Conn, wait time.Duration) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(wait)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, maxParting)) // how it ends tells nothing of the path
}
