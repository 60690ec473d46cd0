package protocol

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// The exchange over HTTP is one to three requests on one connection, the token
// in each:
//
//	GET /        Authorization: Bearer TOKEN   the page, with the answer in Authentication-Info
//	POST /data   bytes of the stream           bytes of the stream      if bytes > 0
//	GET /late                                  the page, after idle     if idle > 0
//
// The two directions of the data phase go one after the other: few proxies can
// do both at once in HTTP/1.1.
const (
	pathToken  = "/"
	pathData   = "/data"
	pathLate   = "/late"
	pathSocket = "/ws"

	// answerHeader carries the far end's answer (RFC 7615).
	answerHeader = "Authentication-Info"
	userAgent    = "Mozilla/5.0 (compatible; wallprobe)"
)

// page is what the far end shows to everybody. The near end compares it: boxes
// that write into pages are known by that.
const page = `<!DOCTYPE html>
<html lang="en">
<head><title>wallprobe</title></head>
<body><p>This is the far end of wallprobe, which measures what a firewall lets through. It serves nothing else.</p></body>
</html>
`

// plainHTTP is HTTP/1.1 without TLS.
var plainHTTP = &Protocol{
	Names:    true,
	Doc:      "HTTP/1.1: a page, a POST both ways; the token is in Authorization, its answer in Authentication-Info",
	Bulk:     true,
	Claims:   func(peek Peek, inTLS bool) bool { return !inTLS && kindOfHTTP(peek) == kindPlain },
	Patience: httpTime,
	TCP:      &Ends{Probe: probeHTTP, Serve: serveHTTP},
}

// methods are how requests begin (RFC 9110 section 9, RFC 5789; "PRI" is HTTP/2
// of who knows beforehand, RFC 9113 section 3.4).
var methods = []string{"GET ", "HEAD", "POST", "PUT ", "DELE", "CONN", "OPTI", "TRAC", "PATC", "PRI "}

// The kinds of what begins as HTTP. All are served alike.
const (
	kindPlain = iota + 1
	kindConnect
	kindFramed
)

// kindOfHTTP tells them by the first bytes; 0 is no HTTP.
func kindOfHTTP(peek Peek) int {
	switch method := string(peek(4)); {
	case !slices.Contains(methods, method):
		return 0
	case method == "CONN":
		return kindConnect
	case method == "POST" && string(peek(len(framedStart))) == framedStart:
		return kindFramed
	}
	return kindPlain
}

// probeHTTP is the near end.
func probeHTTP(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	x.overHTTP1(ctx, c, x.base(c, "http", 80), &r)
	return r
}

// overHTTP1 runs the exchange in HTTP/1.1.
func (x Exchange) overHTTP1(ctx context.Context, c net.Conn, base url.URL, r *Result) {
	x.overHTTP(ctx, c, r, func(h *httpConn) requests {
		return requests{x: x, r: r, conn: h, base: base, send: newHTTP1(h, x.Stall).RoundTrip}
	})
}

// overHTTP runs the requests over a connection.
func (x Exchange) overHTTP(ctx context.Context, c net.Conn, r *Result, begin func(*httpConn) requests) {
	h := newHTTPConn(ctx, c)
	defer context.AfterFunc(ctx, func() { h.SetDeadline(past) })()
	defer func() { r.Said = h.record() }()
	step := r.steps()
	q := begin(h)
	q.token = x.Token()
	if !step(StageToken, q.ask(pathToken, wire.Reply)) {
		return
	}
	if x.Bytes > 0 && !step(StageData, q.data()) {
		return
	}
	if x.Idle > 0 && !step(StageIdle, q.ask(pathLate, wire.Late)) {
		return
	}
	step(StageDone, nil)
	if q.leave != nil {
		q.leave()
		return
	}
	leave(h, x.Stall)
}

// base is the URL of the far end: the path's name or else the address that was
// aimed at, with the port where it is not the usual one.
func (x Exchange) base(c net.Conn, scheme string, usual uint16) url.URL {
	host := x.ServerName
	if host == "" {
		host, _, _ = net.SplitHostPort(c.RemoteAddr().String())
		if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
			host = "[" + host + "]"
		}
	}
	host = cmp.Or(host, "reflector")
	if x.Port != usual && x.Port != 0 {
		host += ":" + strconv.Itoa(int(x.Port))
	}
	return url.URL{Scheme: scheme, Host: host}
}

// requests are what the near end asks over one connection.
type requests struct {
	x      Exchange
	r      *Result
	conn   *httpConn
	base   url.URL
	send   func(*http.Request) (*http.Response, error)
	token  string
	framed bool   // the token is in front of the body, see framedPath
	leave  func() // ends the connection in order; nil waits for the far end to do so
}

// new makes a request with the token.
func (q *requests) new(method, path string, body io.Reader, n int64) *http.Request {
	u := q.base
	u.Path = path
	req := &http.Request{Method: method, URL: &u, Host: u.Host, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {userAgent}, "Accept": {"*/*"}}}
	switch {
	case q.framed:
		message, _ := base64.RawURLEncoding.DecodeString(q.token)
		frame := appendFrame(nil, message)
		req.Method, u.Path = http.MethodPost, framedPath+strings.TrimSuffix(path, "/")
		if body == nil {
			body = http.NoBody
		}
		body, n = io.MultiReader(bytes.NewReader(frame), body), n+int64(len(frame))
	default:
		req.Header.Set("Authorization", "Bearer "+q.token)
	}
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(body), n
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	return req
}

// ask sends a request without data of its own and reads the answer: the token's
// answer of that kind and the page.
func (q *requests) ask(path string, kind wire.Kind) error {
	wait := q.x.Stall
	if kind == wire.Late {
		wait += q.x.Idle
	}
	q.conn.extend(wait)
	q.conn.forget()
	sent := time.Now()
	resp, err := q.send(q.new(http.MethodGet, path, nil, 0))
	if kind == wire.Reply {
		q.r.RTT = time.Since(sent)
	}
	if err == nil {
		defer resp.Body.Close()
		err = q.check(resp, kind)
	}
	if err == nil {
		var b []byte
		b, err = io.ReadAll(io.LimitReader(resp.Body, int64(len(page))+1))
		if err == nil && string(b) != page {
			err = fmt.Errorf("the page of %d bytes: %w", len(b), errAltered)
		}
	}
	return q.ended(err)
}

// ended is how a request ended; of a failed one it keeps the answer's beginning.
func (q *requests) ended(err error) error {
	if err == nil {
		return nil
	}
	err = q.conn.cause(err)
	if q.r.Sample == nil {
		q.r.Sample = q.conn.first()
	}
	return err
}

// check demands that an answer is the far end's.
func (q *requests) check(resp *http.Response, kind wire.Kind) error {
	text := resp.Header.Get(answerHeader)
	if q.framed && resp.StatusCode == http.StatusOK {
		p, err := readFrame(resp.Body)
		if err != nil {
			return err
		}
		text = framedText(p)
	}
	m, err := messageIn(text, func(p []byte) (wire.Message, error) { return wire.Parse(p, q.x.Keys) })
	switch {
	case errors.Is(err, ErrForeign), err == nil && (m.Kind != kind || m.Probe != q.x.Probe):
		if resp.ProtoMajor == 2 {
			q.r.Sample = []byte("HTTP/2 " + resp.Status)
		}
		return foreign("the reflector's answer", strings.TrimSpace(resp.Proto+" "+resp.Status+" "+resp.Header.Get("Location")))
	case err != nil:
		return fmt.Errorf("the answer's token: %w", errAltered)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the status became %s: %w", resp.Status, errAltered)
	}
	if kind == wire.Reply {
		q.r.Seen = m
	}
	return nil
}

// data sends the stream and reads the other end's.
func (q *requests) data() error {
	x, n := q.x, int64(q.x.Bytes)
	up := &streamBody{s: x.Keys.NewStream(wire.Request, x.Probe, x.Attempt), more: func() { q.conn.extend(x.Stall) }}
	up.left.Store(n)
	up.all = func() { q.conn.extend(x.Stall + drain(x.Bytes)) }
	began := time.Now()
	q.conn.extend(x.Stall)
	q.conn.forget()
	resp, err := q.send(q.new(http.MethodPost, pathData, up, n))
	q.r.Up = n - up.left.Load()
	if err != nil {
		return q.ended(err)
	}
	defer resp.Body.Close()
	q.conn.extend(x.Stall)
	if err := q.check(resp, wire.Reply); err != nil {
		return q.ended(err)
	}
	sent, p := time.Since(began), newPace()
	body := pacedReader{resp.Body, p, q.conn.SetDeadline}
	q.r.Down, err = checkStream(body, x.Keys.NewStream(wire.Reply, x.Probe, x.Attempt), x.Bytes, x.Stall)
	q.r.Rate, q.r.Pause = min(rate(n, sent), rate(q.r.Down, time.Since(p.began))), p.pause(err != nil)
	if err == nil {
		err = atEnd(body)
	}
	return q.ended(err)
}

// atEnd demands that nothing is left of a body.
func atEnd(body io.Reader) error {
	switch n, err := io.ReadFull(body, make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("more bytes than were asked for: %w", errAltered)
	case err != io.EOF:
		return err
	}
	return nil
}

// A streamBody is a request's body. Each read means that what went before was
// taken. A library may go on reading while its answer is looked at.
type streamBody struct {
	s         *wire.Stream
	left      atomic.Int64
	more, all func()
}

func (b *streamBody) Read(p []byte) (int, error) {
	left := b.left.Load()
	if left == 0 {
		return 0, io.EOF
	}
	b.more()
	p = p[:min(int64(len(p)), left)]
	b.s.Read(p)
	if b.left.Add(-int64(len(p))) == 0 {
		b.all()
	}
	return len(p), nil
}

// An http1 asks in HTTP/1.1.
type http1 struct {
	conn *httpConn
	r    *bufio.Reader
	wait time.Duration // for an answer to a request that could not be sent whole
}

func newHTTP1(h *httpConn, wait time.Duration) *http1 {
	return &http1{h, bufio.NewReader(h), wait}
}

// maxInterim is how many 1xx answers may come before the one that counts.
const maxInterim = 5

// RoundTrip sends one request and reads the head of its answer. An answer that
// says why not counts more than that the request could not be sent.
func (h *http1) RoundTrip(req *http.Request) (*http.Response, error) {
	// Of its own the library writes 4 KiB at once, each a record of TLS.
	w := bufio.NewWriterSize(h.conn, chunk)
	unsent := req.Write(w)
	if unsent == nil {
		unsent = w.Flush()
	}
	if unsent != nil {
		if faultOf(unsent) == FaultTimeout || h.conn.ctx.Err() != nil {
			return nil, unsent
		}
		h.conn.SetReadDeadline(time.Now().Add(min(h.wait, time.Second)))
	}
	for range maxInterim {
		resp, err := http.ReadResponse(h.r, req)
		switch {
		case err != nil && unsent != nil:
			return nil, unsent
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusSwitchingProtocols:
			resp.Body = &switched{h}
			return resp, nil
		case resp.StatusCode >= 200:
			return resp, nil
		}
	}
	return nil, fmt.Errorf("more than %d interim answers: %w", maxInterim, ErrForeign)
}

// switched is the connection after the answer 101.
type switched struct{ *http1 }

func (s *switched) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *switched) Write(b []byte) (int, error) { return s.conn.Write(b) }
func (s *switched) Close() error                { return s.conn.Close() }

// Frames carry the token in front of a body where there is no header for it:
// the length in 4 bytes, big-endian, and so many bytes.
func appendFrame(b, p []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
}

// readFrame reads the frame of one message. The error is ErrForeign when it is
// of another length.
func readFrame(r io.Reader) ([]byte, error) {
	b := make([]byte, 4+wire.MessageSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if n := binary.BigEndian.Uint32(b); n != wire.MessageSize {
		return nil, fmt.Errorf("a frame of %d bytes: %w", n, ErrForeign)
	}
	return b[4:], nil
}
