package protocol

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/wallprobe/wallprobe/wire"
)

// throughProxy asks the far end as if it were the site's proxy (GT-4): for a
// tunnel that leads to the far end itself and to nowhere else.
var throughProxy = &Protocol{
	Names:    true,
	Doc:      "CONNECT (RFC 9110 section 9.3.6) for the path's name, port 443, then TLS and data in the tunnel; the token is in Proxy-Authorization, its answer in Proxy-Authentication-Info",
	Claims:   func(peek Peek, inTLS bool) bool { return !inTLS && kindOfHTTP(peek) == kindConnect },
	Patience: httpTime,
	TCP:      &Ends{Probe: probeConnect, Serve: serveHTTP},
}

// proxyAnswer is the far end's answer in a proxy's stead (RFC 7615).
const proxyAnswer = "Proxy-Authentication-Info"

// probeConnect is the near end.
func probeConnect(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	h := newHTTPConn(ctx, c)
	defer context.AfterFunc(ctx, func() { h.SetDeadline(past) })()
	began := time.Now()
	step := r.steps()
	q := requests{x: x, r: &r, conn: h, token: x.Token()}
	h1 := newHTTP1(h, x.Stall)
	target := x.base(c, "https", x.Port)
	if !step(StageToken, q.tunnel(h1, target.Host+":443")) {
		r.Said = h.record()
		return r
	}
	rtt := r.RTT
	tc, seen, r := x.overTLS(ctx, &tunnelled{h, h1.r})
	shaken := time.Since(began)
	if tc == nil {
		r.Said = h.record()
		return r
	}
	x.overHTTP1(ctx, tc, target, &r)
	r.RTT, r.TLS, r.Took, r.Said = rtt, seen, r.Took+shaken, joined(h.record(), r.Said)
	if r.Stage == StageDone {
		leave(c, x.Stall)
	}
	return r
}

// joined is one record of what was said outside and inside a tunnel.
func joined(outside, inside *wire.Said) *wire.Said {
	var both wire.Transcript
	for _, said := range []*wire.Said{outside, inside} {
		for _, line := range said.Sent {
			both.Say(line)
		}
		for _, line := range said.Heard {
			both.Hear(line)
		}
	}
	return both.Said()
}

// tunnel asks for the tunnel.
func (q *requests) tunnel(h *http1, target string) error {
	q.conn.extend(q.x.Stall)
	sent := time.Now()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {userAgent}, "Proxy-Authorization": {"Bearer " + q.token}}}
	resp, err := h.RoundTrip(req)
	q.r.RTT = time.Since(sent)
	if err != nil {
		return q.ended(err)
	}
	err = q.x.CheckToken(resp.Header.Get(proxyAnswer), q.r)
	switch {
	case errors.Is(err, ErrForeign):
		err = foreign("the reflector's answer", strings.TrimSpace(resp.Proto+" "+resp.Status))
	case err == nil && resp.StatusCode != http.StatusOK:
		err = errAltered
	}
	return q.ended(err)
}

// A tunnelled connection begins with what was read ahead.
type tunnelled struct {
	*httpConn
	r *bufio.Reader
}

func (t *tunnelled) Read(b []byte) (int, error) { return t.r.Read(b) }

// connect is the far end of CONNECT. No tunnel leads anywhere else: what is
// spoken inside is served here.
func (s *httpServer) connect(a *answer) {
	s.step.Lock()
	defer s.step.Unlock()
	text := a.r.Header.Get("Proxy-Authorization")
	x := (*httpExchange)(nil)
	if text != "" && a.r.ProtoMajor == 1 {
		x, _ = s.exchange(text)
	}
	if x == nil || x.event.Fault != "" {
		a.Header().Set("Proxy-Authenticate", "Bearer")
		a.Header().Set("Connection", "close")
		a.page(http.StatusProxyAuthRequired, page)
		return
	}
	c, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		s.ended(x, err)
		return
	}
	defer c.Close()
	s.ended(x, s.serveTunnel(&tunnelled{s.conn, rw.Reader}, x))
}

// serveTunnel answers the token, shakes hands and serves the HTTP inside, whose
// event becomes that of the exchange.
func (s *httpServer) serveTunnel(c net.Conn, x *httpExchange) error {
	c.SetDeadline(time.Now().Add(farStall))
	head := "HTTP/1.1 200 Connection established\r\n" + proxyAnswer + ": rspauth=" + textOf(&x.reply, x.keys) + "\r\n\r\n"
	if _, err := c.Write([]byte(head)); err != nil {
		return err
	}
	s.reached(x, StageTLS)
	tc, seen, err := acceptTLS(s.ctx, c, s.far, nil)
	x.event.TLS = seen
	if err != nil {
		return err
	}
	for _, e := range serveHTTPOn(s.ctx, recorded(s.ctx, tc, s.conn.said), s.far) {
		x.event.Stage, x.event.Fault, x.event.BytesIn, x.event.BytesOut, x.event.Pause = e.Stage, e.Fault, e.BytesIn, e.BytesOut, e.Pause
	}
	tc.SetDeadline(time.Now().Add(time.Second))
	return tc.CloseWrite()
}

// serveSocket is the far end of WebSocket.
func (s *httpServer) serveSocket(a *answer, x *httpExchange) error {
	x.prove(a, wire.Reply, false)
	ws, err := websocket.Accept(a.ResponseWriter, a.r, &websocket.AcceptOptions{
		CompressionMode: websocket.CompressionDisabled, InsecureSkipVerify: true}) // #nosec: the origin is whatever name the path has
	if err != nil {
		return foreign("a request for a WebSocket", a.r.Method)
	}
	s.reached(x, StageToken)
	c := overMessages(ws, s.conn, true)
	defer c.Close()
	e := x.event
	serveCarry(c, x.keys, x.reply, &e)
	if e.Stage == StageDone {
		c.farewell(farStall)
	}
	s.mu.Lock()
	x.event = e
	s.mu.Unlock()
	return nil
}
