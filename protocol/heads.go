package protocol

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// maxHead is the longest head of an HTTP message, at both ends.
const maxHead = 16 << 10

// errLongHead ends an exchange with a peer that sends header lines without end.
var errLongHead = errors.New("head longer than 16384 bytes")

// heads finds the heads of HTTP/1.1 messages in one direction of a connection
// (RFC 9112 section 2.1) and gives their lines to keep: the start line as it
// was, the field lines sorted, because their order means nothing and differs
// behind a proxy, and the empty line that ends them. It reads no more than it
// needs to know where the next head begins; where it cannot know that, it stops.
type heads struct {
	keep  func(line string)
	line  []byte   // of which the end has not come yet
	lines []string // of the head under way
	size  int      // bytes of that head
	body  int64    // bytes of the body that are still to come
	ended bool     // nothing that follows is looked at
	long  bool     // because a head had no end
	http2 bool     // because frames follow
}

// feed takes the next bytes of the direction.
func (h *heads) feed(b []byte) {
	for len(b) > 0 && !h.ended {
		if h.body > 0 {
			n := min(h.body, int64(len(b)))
			h.body -= n
			b = b[n:]
			continue
		}
		n := len(b)
		end := slices.Index(b, '\n')
		if end >= 0 {
			n = end + 1
		}
		if h.size += n; h.size > maxHead {
			h.ended, h.long = true, true
			return
		}
		h.line = append(h.line, b[:n]...)
		b = b[n:]
		if end >= 0 {
			h.whole(asHeard(string(h.line)))
			h.line = h.line[:0]
		}
	}
}

// whole takes one line, as asHeard gives it.
func (h *heads) whole(line string) {
	switch text := strings.TrimSuffix(line, "\n"); {
	case strings.HasPrefix(line, "PRI * HTTP/2"):
		h.ended, h.http2 = true, true // RFC 9113 section 3.4
	case text != "":
		h.lines = append(h.lines, line)
	case len(h.lines) > 0: // else an empty line before a head, which is ignored (RFC 9112 section 2.2)
		h.keep(h.lines[0])
		fields := h.lines[1:]
		slices.SortStableFunc(fields, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
		for _, f := range fields {
			h.keep(f)
		}
		h.keep(line)
		h.body, h.ended = framing(h.lines[0], fields)
		h.lines, h.size = nil, 0
	}
}

// framing tells how long the body is that follows a head, and whether it cannot
// be told (RFC 9112 section 6.3).
func framing(start string, fields []string) (length int64, unknown bool) {
	response := strings.HasPrefix(start, "HTTP/")
	length = -1
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		switch strings.ToLower(name) {
		case "transfer-encoding":
			return 0, true
		case "upgrade":
			if !response {
				return 0, true
			}
		case "content-length":
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil || n < 0 {
				return 0, true
			}
			length = n
		}
	}
	if !response {
		return max(length, 0), strings.HasPrefix(start, "CONNECT ")
	}
	switch _, status, _ := strings.Cut(start, " "); {
	case strings.HasPrefix(status, "101"):
		return 0, true
	case strings.HasPrefix(status, "1"), strings.HasPrefix(status, "204"), strings.HasPrefix(status, "304"):
		return 0, false
	}
	return max(length, 0), length < 0
}

// sampleSize is how much of an answer that is not ours is kept.
const sampleSize = wire.MessageSize

// An httpConn is a connection that HTTP is spoken over. It keeps the heads of
// both directions, and what its last read met: libraries give errors of their
// own for that. When ctx ends, no deadline that a library sets keeps it from
// ending too; when it was taken back, nothing that a library does reaches it.
type httpConn struct {
	net.Conn
	said   *wire.Transcript
	begins func() // called before each write; nil does nothing
	ctx    context.Context
	closed chan struct{} // when Close was called
	once   sync.Once
	stop   sync.Once
	calls  sync.WaitGroup // reads and writes that are under way
	ended  chan struct{}  // when nothing more can be read

	mu     sync.Mutex
	back   bool // it was taken back
	sent   heads
	heard  heads
	err    error         // of the last read
	broken error         // of the first write that failed
	in     int64         // bytes read
	last   time.Time     // when some were, or the beginning
	quiet  time.Duration // how long none had come when this end closed
	sample []byte        // first bytes read since the last forget
}

func newHTTPConn(ctx context.Context, c net.Conn) *httpConn {
	return recorded(ctx, c, new(wire.Transcript))
}

// recorded is newHTTPConn with a record that is there already.
func recorded(ctx context.Context, c net.Conn, said *wire.Transcript) *httpConn {
	h := &httpConn{Conn: c, said: said, ctx: ctx, closed: make(chan struct{}), ended: make(chan struct{}), last: time.Now()}
	h.sent.keep, h.heard.keep = h.said.Say, h.said.Hear
	return h
}

func (h *httpConn) Read(b []byte) (int, error) {
	if !h.called() {
		return 0, net.ErrClosed
	}
	defer h.calls.Done()
	n, err := h.Conn.Read(b)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.in += int64(n)
	if err != nil && faultOf(err) != FaultTimeout {
		h.stop.Do(func() { close(h.ended) })
	}
	if n > 0 {
		h.last = time.Now()
	}
	fresh := h.err == nil || faultOf(h.err) == FaultTimeout
	if fresh && (!h.left() || faultOf(err) != FaultTimeout) { // or it is this end's own doing
		if h.err = err; h.broken != nil && faultOf(err) == FaultTimeout {
			h.err = h.broken // it was not waited for any longer because of that
		}
	}
	h.sample = append(h.sample, b[:min(n, sampleSize-len(h.sample))]...)
	h.heard.feed(b[:n])
	h.sent.ended = h.sent.ended || h.heard.http2
	if h.heard.long && err == nil {
		err = errLongHead
		h.err = err
	}
	return n, err
}

func (h *httpConn) Write(b []byte) (int, error) {
	if !h.called() {
		return 0, net.ErrClosed
	}
	defer h.calls.Done()
	h.mu.Lock()
	h.sent.feed(b)
	text := !h.heard.http2
	h.mu.Unlock()
	if text && h.begins != nil {
		h.begins()
	}
	n, err := h.Conn.Write(b)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = cmp.Or(h.broken, err)
	return n, err
}

// Close ends all reads, and lets no further read or write begin: a write that was
// broken off would leave TLS unable to say goodbye. Whoever made the connection closes it: at the
// far end after its event was kept, so that a near end which waits for that can
// ask for the ledger.
func (h *httpConn) Close() error {
	h.once.Do(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.quiet = time.Since(h.last)
		close(h.closed)
	})
	return h.set(h.Conn.SetReadDeadline, past)
}

// called counts a read or a write in, unless this end closed the connection.
func (h *httpConn) called() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left() {
		return false
	}
	h.calls.Add(1)
	return true
}

// takeBack closes the connection and takes it from the library that had it: that
// of HTTP/2 neither waits for its last writes, which a peer that takes nothing
// would hold for good, nor does it close once. A second Close would end at once
// what whoever made the connection still does with it, mostly Part.
func (h *httpConn) takeBack() {
	h.Close()
	h.SetWriteDeadline(time.Now().Add(time.Second))
	h.calls.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.back = true
}

// left tells whether this end closed the connection.
func (h *httpConn) left() bool {
	select {
	case <-h.closed:
		return true
	default:
		return false
	}
}

// giveUp is Close on a peer that is too slow, whatever it says.
func (h *httpConn) giveUp() {
	h.mu.Lock()
	h.last = h.last.Add(-farStall)
	h.mu.Unlock()
	h.Close()
}

// end is what ended the connection of a server: what its reads met or, where
// that was nothing, the silence that it did not bear with any longer, or what it
// could not read.
func (h *httpConn) end() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.err != nil:
		return h.err
	case !h.left():
		return io.EOF
	case h.quiet >= farStall:
		return os.ErrDeadlineExceeded
	}
	return ErrForeign
}

// isHTTP2 tells whether the other end began as HTTP/2.
func (h *httpConn) isHTTP2() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.heard.http2
}

// leave waits for the far end to close the connection after all was done.
func leave(c net.Conn, stall time.Duration) {
	c.SetReadDeadline(time.Now().Add(min(stall, time.Second)))
	io.Copy(io.Discard, io.LimitReader(c, maxHead))
}

// NetConn is what HTTP is spoken over, as that of tls.Conn.
func (h *httpConn) NetConn() net.Conn { return h.Conn }

// CloseWrite ends this end's half, where there are halves.
func (h *httpConn) CloseWrite() error {
	if w, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// past is a deadline that ends every read and write at once.
var past = time.Unix(1, 0)

func (h *httpConn) SetDeadline(t time.Time) error { return h.set(h.Conn.SetDeadline, t) }

func (h *httpConn) SetReadDeadline(t time.Time) error { return h.set(h.Conn.SetReadDeadline, t) }

func (h *httpConn) SetWriteDeadline(t time.Time) error { return h.set(h.Conn.SetWriteDeadline, t) }

func (h *httpConn) set(deadline func(time.Time) error, t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.back {
		return net.ErrClosed
	}
	err := deadline(t)
	if h.ctx.Err() != nil {
		return deadline(past)
	}
	return err
}

// extend gives reads and writes so much more time.
func (h *httpConn) extend(d time.Duration) { h.SetDeadline(time.Now().Add(d)) }

// binary stops looking for heads: what follows is not HTTP/1.1.
func (h *httpConn) binary() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent.ended, h.heard.ended = true, true
}

// note records lines of a head that is not text on the wire.
func (h *httpConn) note(keep func(*wire.Transcript, string), start string, fields []string) {
	slices.Sort(fields)
	keep(h.said, start)
	for _, f := range fields {
		keep(h.said, f)
	}
	keep(h.said, "")
}

// record is what was said so far.
func (h *httpConn) record() *wire.Said { return h.said.Said() }

// forget begins a new sample.
func (h *httpConn) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sample = nil
}

// first gives the sample.
func (h *httpConn) first() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.sample)
}

// met is what the last read met, and how many bytes came in all.
func (h *httpConn) met() (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.in, h.err
}

// cause finds what is behind a library's error: what the connection itself met
// or, where that went well, that what came is not what the other end sends.
func (h *httpConn) cause(err error) error {
	switch faultOf(err) {
	case "", FaultReset, FaultEOF, FaultTimeout, FaultAltered, FaultForeign:
		return err
	}
	if _, met := h.met(); met != nil && !errors.Is(met, errLongHead) {
		if errors.Is(met, io.EOF) {
			met = io.ErrUnexpectedEOF
		}
		return met
	}
	return &foreignError{err}
}

// A foreignError is an answer that cannot be read.
type foreignError struct{ error }

func (e *foreignError) Unwrap() []error { return []error{ErrForeign, e.error} }
