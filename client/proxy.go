package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// A ProxyFault is what a proxy did to a call of control.
type ProxyFault string

// The faults: a closed list.
const (
	ProxyAway    ProxyFault = "away"    // no connection with the proxy came up
	ProxyForeign ProxyFault = "foreign" // whoever is there does not speak as the proxy's URL says
	ProxyLogin   ProxyFault = "login"   // it wants another name and password
	ProxyForbids ProxyFault = "forbids" // it does not pass the call on
	ProxyInVain  ProxyFault = "in-vain" // it tried, and did not get to the reflector
)

// ProxyFaults lists them all.
var ProxyFaults = []ProxyFault{ProxyAway, ProxyForeign, ProxyLogin, ProxyForbids, ProxyInVain}

// proxyAnswer is an answer of the proxy's own.
type proxyAnswer struct {
	to     string // "CONNECT", "the call"
	status string // "403 Forbidden"
	code   int
}

func (e *proxyAnswer) Error() string {
	return fmt.Sprintf("the proxy answered %s with %s", e.to, e.status)
}

// onConnect keeps the status line, of which net/http tells but a part.
func onConnect(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyAnswer{"CONNECT", resp.Status, resp.StatusCode}
}

// ownAnswers are the statuses that proxies give of themselves: RFC 9110 sections
// 15.5.4, 15.5.8 and 15.6.3 to 15.6.5. A reflector's own 403 says that it is one.
var ownAnswers = map[int]bool{
	http.StatusForbidden: true, http.StatusProxyAuthRequired: true, http.StatusBadGateway: true,
	http.StatusServiceUnavailable: true, http.StatusGatewayTimeout: true,
}

// viaProxy tells of an answer without TLS that is the proxy's and not the reflector's.
func viaProxy(err error, resp *http.Response) error {
	if errors.Is(err, wire.ErrNotReflector) && ownAnswers[resp.StatusCode] {
		return &proxyAnswer{"the call", resp.Status, resp.StatusCode}
	}
	return err
}

// A reach is how far one call came.
type reach struct {
	start       time.Time
	began, took atomic.Int64 // of the TCP handshake, nanoseconds; a connection may still be tried when the call has ended
	handshakes  atomic.Int32 // of TLS that began
}

// trace follows a call.
func (c *reach) trace(ctx context.Context) context.Context {
	c.start = time.Now()
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectStart: func(string, string) { c.began.Store(int64(time.Since(c.start))) },
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				c.took.Store(int64(time.Since(c.start)) - c.began.Load())
			}
		},
		TLSHandshakeStart: func() { c.handshakes.Add(1) },
	})
}

// failed says why a call failed, and what the proxy had to do with it.
func (f *farEnd) failed(err error, c *reach) (text string, fault ProxyFault) {
	text = sentence(err)
	if f.proxy == nil || err == nil {
		return text, ""
	}
	if answer, ok := errors.AsType[*proxyAnswer](err); ok {
		return text, answer.fault()
	}
	own := int32(0)
	if f.proxy.Scheme == "https" {
		own = 1
	}
	op, _ := errors.AsType[*net.OpError](err)
	switch away, through := c.took.Load() == 0, c.handshakes.Load() > own; {
	case away && text == noAnswer:
		return "the proxy does not answer", ProxyAway
	case away:
		return text, ProxyAway
	case op != nil && op.Op == proxyConnect: // the connection came up; TLS did not
		return text, ProxyForeign
	case op != nil && strings.HasPrefix(op.Op, "socks"):
		return socksSaid(op.Err)
	case through:
		return "through the proxy: " + text, ""
	case text == noAnswer:
		return "the proxy took the connection and did not answer", ProxyInVain
	case hungUp(err):
		return "the proxy closed the connection without an answer", ProxyForeign
	case strings.Contains(text, "malformed HTTP"):
		return "what answers there is no HTTP proxy: " + text, ProxyForeign
	}
	return "through the proxy: " + text, ""
}

// hungUp tells whether a connection ended before all was said.
func hungUp(err error) bool {
	fault := protocol.FaultOf(err)
	return fault == protocol.FaultEOF || fault == protocol.FaultReset
}

// fault is what an answer means (RFC 9110 section 15). Web servers that are no
// proxies call CONNECT a wrong request, name or method.
func (e *proxyAnswer) fault() ProxyFault {
	switch e.code {
	case http.StatusProxyAuthRequired:
		return ProxyLogin
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return ProxyForeign
	}
	switch {
	case e.code >= 500:
		return ProxyInVain
	}
	return ProxyForbids
}

// socksSaid reads what net/http says of a SOCKS proxy, in texts alone.
func socksSaid(err error) (string, ProxyFault) {
	if err == nil {
		return "the proxy refused", ProxyForbids
	}
	said := "the proxy: " + strings.TrimPrefix(sentence(err), "unknown error ")
	switch text := err.Error(); {
	case strings.Contains(text, "authentication"):
		return said, ProxyLogin
	case strings.Contains(text, "not allowed"):
		return said, ProxyForbids
	case strings.Contains(text, "unexpected protocol version"), hungUp(err):
		return "what answers there is no SOCKS proxy: " + sentence(err), ProxyForeign
	case sentence(err) == noAnswer:
		return "the proxy took the connection and did not answer", ProxyInVain
	}
	return said, ProxyInVain
}
