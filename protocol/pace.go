package protocol

import (
	"io"
	"net"
	"time"
)

// A pace measures one side of a data phase, mostly the receiving one. One
// goroutine uses it. A nil one measures nothing.
type pace struct {
	began, last time.Time
	longest     time.Duration
}

func newPace() *pace { now := time.Now(); return &pace{began: now, last: now} }

// came notes that n bytes came, or went.
func (p *pace) came(n int) {
	if p != nil && n > 0 {
		now := time.Now()
		p.longest, p.last = max(p.longest, now.Sub(p.last)), now
	}
}

// pause is the longest in which no byte came, the one under way included while
// they are still awaited.
func (p *pace) pause(awaited bool) time.Duration {
	if awaited {
		return max(p.longest, time.Since(p.last))
	}
	return p.longest
}

// stood is the longest pause of an event and of one more transfer, in seconds.
func (p *pace) stood(already float64, awaited bool) float64 {
	return max(already, p.pause(awaited).Round(time.Millisecond).Seconds())
}

// rate is bytes per second, 0 when that cannot be said.
func rate(n int64, took time.Duration) float64 {
	if n <= 0 || took <= 0 {
		return 0
	}
	return float64(n) / took.Seconds()
}

// A pacedConn measures what is read from it.
type pacedConn struct {
	net.Conn
	*pace
}

func (p pacedConn) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.came(n)
	return n, err
}

// A pacedReader is a body under measurement. Deadline sets the deadline of its
// reads. An end that comes together with bytes is told after them.
type pacedReader struct {
	io.Reader
	*pace
	deadline func(time.Time) error
}

func (p pacedReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.came(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (p pacedReader) SetReadDeadline(t time.Time) error { return p.deadline(t) }
