package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// conn is one client's TCP or TLS connection.
type conn struct {
	s     *Server
	c     net.Conn
	t     tuple
	start time.Time

	mu     sync.Mutex // guards authed and the order of read deadlines
	authed bool

	told told // guarded by Server.mu
}

// ErrFrame ends a stream that goes on as neither STUN nor ChannelData.
var ErrFrame = errors.New("neither stun nor channel data")

var errLimit = errors.New("no further connection is allowed")

// Conn serves a TCP or TLS connection whose first bytes are STUN, with
// messages one after the other (RFC 8489 section 6.2.2, RFC 8656 section
// 12.5). It blocks until the connection is over, and closes it. A connection
// must show valid credentials within Limits.Idle, must complete every message
// it begins within that time, and may be silent for longer only while it has
// an allocation, which ends with it.
//
// What is returned says why it ended: [ErrFrame] when what came is no STUN.
func (s *Server) Conn(c net.Conn) error {
	defer c.Close()
	local, err1 := netip.ParseAddrPort(c.LocalAddr().String())
	remote, err2 := netip.ParseAddrPort(c.RemoteAddr().String())
	if err1 != nil || err2 != nil {
		s.cfg.Count("tcp-address")
		return errors.Join(err1, err2)
	}
	k := &conn{s: s, c: c, start: time.Now(), t: tuple{unmap(local), unmap(remote), true}}
	if !s.enter(k) {
		s.cfg.Count("tcp-limit")
		return errLimit
	}
	defer s.leave(k)
	err := k.serve()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.cfg.Count("tcp-idle")
	case errors.Is(err, ErrFrame):
		s.cfg.Count("tcp-malformed")
	}
	if a := s.lookup(k.t); a != nil {
		a.end()
	}
	return err
}

func (s *Server) enter(k *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := 0
	for other := range s.conns {
		if source(other.t.remote.Addr()) == source(k.t.remote.Addr()) {
			from++
		}
	}
	l := s.cfg.Limits
	if !s.running || len(s.conns) >= l.Conns || from >= l.ConnsPerAddr {
		return false
	}
	s.conns[k] = true
	s.wg.Add(1)
	return true
}

func (s *Server) leave(k *conn) {
	s.mu.Lock()
	delete(s.conns, k)
	s.mu.Unlock()
	s.wg.Done()
}

func (k *conn) serve() error {
	r := bufio.NewReaderSize(k.c, maxFrame)
	buf := make([]byte, maxFrame)
	o := origin{tuple: k.t, conn: k}
	for {
		b, err := k.frame(r, buf)
		if err != nil {
			return err
		}
		if b[0]&0xc0 != 0 {
			a := k.s.lookup(k.t)
			if a == nil {
				return ErrFrame
			}
			k.s.channelData(a, b)
			continue
		}
		switch v := k.s.message(o, b); v {
		case malformed, unproven:
			k.s.tell(o, KindUnproven, b, nil)
			if v == malformed {
				return ErrFrame
			}
		case authentic:
			k.mu.Lock()
			k.authed = true
			k.mu.Unlock()
		}
	}
}

// frame reads one whole message.
func (k *conn) frame(r *bufio.Reader, buf []byte) ([]byte, error) {
	if err := k.await(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return nil, err
	}
	if err := k.hurry(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, buf[1:4]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(buf[2:]))
	switch {
	case buf[0] < 4:
		size += headerLen
	case buf[0]>>6 == 1:
		size = 4 + (size+3)&^3 // over a stream, padded to four bytes
	default:
		return nil, ErrFrame
	}
	if size > len(buf) {
		return nil, ErrFrame
	}
	if _, err := io.ReadFull(r, buf[4:size]); err != nil {
		return nil, err
	}
	if buf[0] < 4 && !looksLikeSTUN(buf[:size]) {
		return nil, ErrFrame
	}
	return buf[:size], nil
}

// await sets the time by which the next message must begin.
func (k *conn) await() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	idle := k.s.cfg.Limits.Idle
	switch {
	case !k.authed:
		return k.c.SetReadDeadline(k.start.Add(idle))
	case k.s.lookup(k.t) != nil:
		return k.c.SetReadDeadline(time.Time{}) // until allocationEnded
	}
	return k.c.SetReadDeadline(time.Now().Add(idle))
}

// hurry sets the time by which a message that has begun must be whole.
func (k *conn) hurry() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	by := time.Now().Add(k.s.cfg.Limits.Idle)
	if first := k.start.Add(k.s.cfg.Limits.Idle); !k.authed && first.Before(by) {
		by = first
	}
	return k.c.SetReadDeadline(by)
}

// allocationEnded takes away the patience that an allocation gave.
func (k *conn) allocationEnded() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.c.SetReadDeadline(time.Now().Add(k.s.cfg.Limits.Idle))
}

// write sends one message. A client that does not read is cut off, so that
// it cannot hold up its relay for ever.
func (k *conn) write(b []byte) error {
	k.c.SetWriteDeadline(time.Now().Add(k.s.cfg.Limits.Idle))
	if _, err := k.c.Write(b); err != nil {
		k.c.Close()
		return err
	}
	return nil
}
