package protocol

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// The variants of https.
const (
	variantH2     = "h2"
	variantHTTP1  = "http/1.1"
	variantSocket = "websocket"
)

// secureHTTP is HTTP inside TLS. The far end of TLS is protocol tls; inside, all
// HTTP is served alike.
var secureHTTP = &Protocol{
	Doc:      "TLS for the path's name, where it has one, with ALPN as browsers offer it, then HTTP or WebSocket inside; the token is in Authorization, its answer in Authentication-Info",
	Variants: []string{variantH2, variantHTTP1, variantSocket},
	Bulk:     true,
	Secure:   true,
	Means:    socketMeans,
	Claims:   func(peek Peek, inTLS bool) bool { return inTLS && kindOfHTTP(peek) > 0 },
	Patience: httpTime,
	TCP:      &Ends{Probe: probeHTTPS, Serve: serveHTTP},
}

// probeHTTPS is the near end.
func probeHTTPS(ctx context.Context, c net.Conn, x Exchange) Result {
	began := time.Now()
	offer := []string{"http/1.1"}
	if x.Variant == variantH2 {
		offer = []string{"h2", "http/1.1"}
	}
	tc, seen, r := x.overTLS(ctx, c, offer...)
	if tc == nil {
		return r
	}
	shaken := time.Since(began)
	base := x.base(c, "https", 443)
	switch {
	case x.Variant == variantSocket:
		r = x.overWebSocket(ctx, tc, base)
	case !slices.Contains(seen.Offered, "h2"):
		x.overHTTP1(ctx, tc, base, &r)
	case seen.ALPN != "h2":
		r.Stage, r.Err, r.Fault = StageTLS, notH2(seen.ALPN), FaultAltered
	default:
		x.overHTTP2(ctx, tc, base, &r)
	}
	r.TLS, r.Took = seen, r.Took+shaken
	if r.Stage == StageDone {
		leave(c, x.Stall)
	}
	return r
}

// notH2 says what was agreed on instead; the reflector takes h2 where it is offered.
func notH2(agreed string) error {
	if agreed == "" {
		return fmt.Errorf("h2 was offered by ALPN and nothing agreed on: %w", errAltered)
	}
	return fmt.Errorf("h2 was offered by ALPN and %s agreed on: %w", agreed, errAltered)
}

// overHTTP2 runs the requests as streams of one HTTP/2 connection.
func (x Exchange) overHTTP2(ctx context.Context, tc *tls.Conn, base url.URL, r *Result) {
	var h *httpConn
	var cc *http.ClientConn
	x.overHTTP(ctx, tc, r, func(over *httpConn) requests {
		h = over
		h.binary()
		h.extend(x.Stall)
		t := &http.Transport{DisableCompression: true, MaxResponseHeaderBytes: maxHead, Protocols: &http.Protocols{},
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return h, nil }}
		t.Protocols.SetUnencryptedHTTP2(true) // of TLS it need not know
		t.HTTP2 = &http.HTTP2Config{MaxReadFrameSize: 2 * chunk}
		var err error
		cc, err = t.NewClientConn(ctx, base.Scheme, "reflector:443")
		goodbye := func() {
			tc.CloseWrite()
			select {
			case <-h.ended:
			case <-h.closed: // the library left when the far end said that it will
				h.takeBack()
				leave(tc, x.Stall)
			case <-time.After(min(x.Stall, time.Second)):
			}
		}
		return requests{x: x, r: r, conn: h, base: base, leave: goodbye, send: func(req *http.Request) (*http.Response, error) {
			if err != nil {
				return nil, err
			}
			h.note((*wire.Transcript).Say, requestLine(req), fieldsOf(req.Header, req.ContentLength))
			resp, err := cc.RoundTrip(req.WithContext(ctx))
			if err == nil {
				h.note((*wire.Transcript).Hear, statusLine(resp.StatusCode), fieldsOf(resp.Header, 0))
			}
			return resp, err
		}}
	})
	if cc != nil {
		cc.Close()
	}
	h.takeBack()
}

// requestLine is a request in HTTP/2, whose head is no text, as a line.
func requestLine(r *http.Request) string {
	return fmt.Sprintf("%s %s %s HTTP/2", r.Method, r.Host, r.URL.RequestURI())
}

// statusLine is the like of an answer.
func statusLine(code int) string { return fmt.Sprintf("HTTP/2 %d", code) }

// fieldsOf are the fields of a head as lines. length is that of the body, where
// a library adds it by itself.
func fieldsOf(h http.Header, length int64) []string {
	var lines []string
	for name, values := range h {
		if name == "Connection" {
			continue // a wish to the library, never sent (RFC 9113 section 8.2.2)
		}
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	if length > 0 {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", length))
	}
	return lines
}
