package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// talking listens on loopback and gives each connection to a function.
func talking(t *testing.T, talk func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); talk(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// says answers the first bytes of a connection and goes on as its peer likes.
func says(answers ...string) func(net.Conn) {
	return func(c net.Conn) {
		buf := make([]byte, 4096)
		for _, a := range answers {
			if _, err := c.Read(buf); err != nil {
				return
			}
			io.WriteString(c, a)
		}
		io.Copy(io.Discard, c)
	}
}

// status answers one HTTP request with a status.
func status(code int) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", code, http.StatusText(code))
		}
	}
}

func TestWhatAProxyAnswersIsTold(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, c := range map[string]struct {
		scheme, at string
		secure     bool // the port of the reflector
		want       string
		fault      ProxyFault
	}{
		"nobody":               {"http", closed.Addr().String(), true, "the proxy: connect: connection refused", ProxyAway},
		"nobody, without TLS":  {"http", closed.Addr().String(), false, "the proxy: connect: connection refused", ProxyAway},
		"nobody of SOCKS":      {"socks5", closed.Addr().String(), true, "the proxy: connect: connection refused", ProxyAway},
		"mute":                 {"http", talking(t, says()), true, "the proxy took the connection and did not answer", ProxyInVain},
		"mute, without TLS":    {"http", talking(t, says()), false, "the proxy took the connection and did not answer", ProxyInVain},
		"forbidden":            {"http", talking(t, status(403)), true, "the proxy answered CONNECT with 403 Forbidden", ProxyForbids},
		"method not allowed":   {"http", talking(t, status(405)), true, "the proxy answered CONNECT with 405 Method Not Allowed", ProxyForeign},
		"login":                {"http", talking(t, status(407)), true, "the proxy answered CONNECT with 407 Proxy Authentication Required", ProxyLogin},
		"bad gateway":          {"http", talking(t, status(502)), true, "the proxy answered CONNECT with 502 Bad Gateway", ProxyInVain},
		"forbidden call":       {"http", talking(t, status(403)), false, "the proxy answered the call with 403 Forbidden", ProxyForbids},
		"unreached by a call":  {"http", talking(t, status(504)), false, "the proxy answered the call with 504 Gateway Timeout", ProxyInVain},
		"another server":       {"http", talking(t, status(404)), false, "through the proxy: control call hello: the answer is not from the reflector: HTTP status 404 Not Found", ""},
		"hangs up":             {"http", talking(t, func(c net.Conn) { c.Read(make([]byte, 1)) }), true, "the proxy closed the connection without an answer", ProxyForeign},
		"SSH":                  {"http", talking(t, says("SSH-2.0-x\r\n")), true, `what answers there is no HTTP proxy: malformed HTTP response "SSH-2.0-x"`, ProxyForeign},
		"TLS asked for":        {"https", talking(t, says("HTTP/1.1 400 Bad Request\r\n\r\n")), true, "the proxy: tls: first record does not look like a TLS handshake", ProxyForeign},
		"TLS not asked for":    {"http", talking(t, says("\x15\x03\x01\x00\x02\x02\x46\r\n")), true, `what answers there is no HTTP proxy: malformed HTTP response "\x15\x03\x01\x00\x02\x02F"`, ProxyForeign},
		"a web server":         {"http", talking(t, status(400)), true, "the proxy answered CONNECT with 400 Bad Request", ProxyForeign},
		"no TLS behind":        {"http", talking(t, says("HTTP/1.1 200 OK\r\n\r\n", "220 mail\r\n")), true, "through the proxy: tls: first record does not look like a TLS handshake", ""},
		"silence behind":       {"http", talking(t, says("HTTP/1.1 200 OK\r\n\r\n")), true, "through the proxy: no answer", ""},
		"SOCKS forbids":        {"socks5", talking(t, says("\x05\x00", "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00")), true, "the proxy: connection not allowed by ruleset", ProxyForbids},
		"SOCKS did not get on": {"socks5", talking(t, says("\x05\x00", "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00")), true, "the proxy: connection refused", ProxyInVain},
		"SOCKS wants a name":   {"socks5", talking(t, says("\x05\xff")), true, "the proxy: no acceptable authentication methods", ProxyLogin},
		"no SOCKS":             {"socks5", talking(t, says("HTTP/1.1 400 Bad Request\r\n\r\n")), true, "what answers there is no SOCKS proxy: unexpected protocol version 72", ProxyForeign},
		"mute SOCKS":           {"socks5", talking(t, says()), true, "the proxy took the connection and did not answer", ProxyInVain},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := &url.URL{Scheme: c.scheme, Host: c.at}
			f := newFarEnd(WhereFar, netip.MustParseAddr("127.0.0.2"), wire.Key{7}, wire.SessionID{1}, proxy)
			defer f.close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got, err := f.connect(ctx, []controlPort{{port: 9, secure: c.secure}}, 0, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Tried{{Port: 9, Error: c.want, Proxy: c.fault}}, got.tried); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A connection that never came up is the proxy's own silence.
func TestProxyThatIsNotThereIsTold(t *testing.T) {
	f := &farEnd{proxy: &url.URL{Scheme: "http", Host: "proxy.example:3128"}}
	if text, fault := f.failed(context.DeadlineExceeded, new(reach)); text != "the proxy does not answer" || fault != ProxyAway {
		t.Errorf("%s, %q", text, fault)
	}
	f.proxy = nil
	if text, fault := f.failed(context.DeadlineExceeded, new(reach)); text != noAnswer || fault != "" {
		t.Errorf("without one: %s, %q", text, fault)
	}
}

// A result names the proxy and keeps its password to itself.
func TestResultNamesItsProxy(t *testing.T) {
	f := startFar(t, 50*time.Millisecond)
	proxy := &url.URL{Scheme: "http", Host: talking(t, status(407)), User: url.UserPassword("me", "secret")}
	got, err := Run(t.Context(), Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Proxy: proxy, Timeout: 800 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if want := "http://me:xxxxx@" + proxy.Host; got.Control.Proxy != want || strings.Contains(fmt.Sprint(got), "secret") {
		t.Errorf("%q, want %q", got.Control.Proxy, want)
	}
	for _, x := range got.Control.Tried {
		if x.Proxy != ProxyLogin {
			t.Errorf("port %d: %s, %q", x.Port, x.Error, x.Proxy)
		}
	}
}
