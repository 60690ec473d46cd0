package reflector

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// clients are ways in which programs ask over HTTP.
func clients(t *testing.T) map[string]*http.Transport {
	t.Helper()
	prior := &http.Protocols{}
	prior.SetUnencryptedHTTP2(true)
	all := map[string]*http.Transport{
		"http HTTP/1.1":  {},
		"http HTTP/2.0":  {Protocols: prior},
		"https HTTP/1.1": insecure(),
		"https HTTP/2.0": {TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true},
	}
	t.Cleanup(func() {
		for _, tr := range all {
			tr.CloseIdleConnections()
		}
	})
	return all
}

func TestEveryPortShowsAPageToWhoAsksWithoutAToken(t *testing.T) {
	l := start(t, Config{})
	for name, tr := range clients(t) {
		scheme, version, _ := strings.Cut(name, " ")
		type answer struct {
			Status int
			Proto  string
			Page   bool
		}
		for _, c := range []struct {
			method, path string
			want         answer
		}{
			{"GET", "/", answer{200, version, true}},
			{"HEAD", "/", answer{200, version, false}},
			{"GET", "/favicon.ico", answer{404, version, true}},
			{"POST", "/", answer{405, version, true}},
			{"GET", wire.ControlPath + "hello", answer{404, version, false}},
			{"POST", wire.ControlPath + "nothing", answer{404, version, false}},
		} {
			var body io.Reader
			if c.method == "POST" {
				body = strings.NewReader(strings.Repeat("x", 1000))
			}
			req, err := http.NewRequest(c.method, scheme+"://"+l.at.String()+c.path, body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Errorf("%s %s %s: %v", name, c.method, c.path, err)
				continue
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if diff := cmp.Diff(c.want, answer{resp.StatusCode, resp.Proto, strings.Contains(string(b), "<p>This is the far end of wallprobe")}); diff != "" {
				t.Errorf("%s %s %s (-want +got):\n%s", name, c.method, c.path, diff)
			}
		}
	}
}

func TestControlIsAnsweredInEveryVersionOfHTTP(t *testing.T) {
	l := start(t, Config{})
	for name, tr := range clients(t) {
		scheme, version, _ := strings.Cut(name, " ")
		req, err := wire.NewControl(testKey, scheme+"://"+l.at.String(), wire.CallHello, wire.HelloRequest{Session: testID, Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var hello wire.HelloReply
		if err := wire.ReadControl(testKey, req, wire.CallHello, resp, &hello); err != nil || resp.Proto != version || hello.Source.Addr() != loopback {
			t.Errorf("%s: %v, %s, %+v", name, err, resp.Proto, hello)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
	}
	l.end(t)
	for _, e := range l.read(t).Ledgers[testID].Strays {
		if e.Fault != "" { // a handshake that carried control leaves its event
			t.Errorf("a control call is kept as a stray: %+v", e)
		}
	}
}

func TestProbesOverHTTPLeaveOneEventEach(t *testing.T) {
	l := start(t, Config{})
	var want []string
	_, x, _ := l.exchange(testID, "plain")
	for _, name := range []string{"http", "http-connect", "automate-control-center", "https"} {
		p := protocol.Named(name)
		for _, v := range append([]string{""}, p.Variants...)[min(1, len(p.Variants)):] {
			x.Probe++
			x.Variant, x.Bytes = v, 50_000
			c := l.dial(t)
			if res := p.TCP.Probe(t.Context(), c, x); res.Stage != protocol.StageDone {
				t.Errorf("%s %s: %+v", name, v, res)
			}
			c.Close()
			want = append(want, "done 50000 50000 ")
		}
	}
	l.end(t)
	var got []string
	ledger := l.read(t).Ledgers[testID]
	for _, p := range ledger.Probes {
		for _, e := range p.Events {
			got = append(got, strings.Join([]string{e.Stage, fmt.Sprint(e.BytesIn), fmt.Sprint(e.BytesOut), e.Fault}, " "))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(ledger.Strays) > 0 {
		t.Errorf("(-want +got):\n%s\nstrays %+v", diff, ledger.Strays)
	}
}

// The tunnel leads nowhere, whoever asks.
func TestConnectIsNoOpenProxy(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l := start(t, Config{})
	for _, head := range []string{"", "Proxy-Authorization: Bearer " + strings.Repeat("A", 112) + "\r\n"} {
		c := l.dial(t)
		target := other.Addr().String()
		io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+head+"\r\n")
		b, _ := io.ReadAll(c)
		c.Close()
		if !strings.HasPrefix(string(b), "HTTP/1.1 407 ") {
			t.Errorf("%q", b)
		}
	}
	other.(*net.TCPListener).SetDeadline(time.Now())
	if _, err := other.Accept(); err == nil {
		t.Error("the reflector called somebody else")
	}
}
