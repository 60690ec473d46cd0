package reflector

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// breakIn makes the clock and QUIC's sending panic, as an error in this program
// might, where a function is on the stack and while it is on.
func (b *bench) breakIn(function string, on *atomic.Bool) (log *buffer) {
	now, send := b.cfg.Now, b.quic.send
	check := func() {
		if on.Load() && strings.Contains(string(debug.Stack()), function) {
			panic("an error in wallprobe")
		}
	}
	b.cfg.Now = func() time.Time { check(); return now() }
	b.quic.send = func(p []byte, local, remote netip.AddrPort) error { check(); return send(p, local, remote) }
	log = new(buffer)
	b.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	return log
}

// panicked waits until the log tells of a panic, with the stack of where it was.
func panicked(t *testing.T, log *buffer, what, function string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if text := log.String(); strings.Contains(text, `in="`+what) || strings.Contains(text, "in="+what) {
			if !strings.Contains(text, "an error in wallprobe") || !strings.Contains(text, function) {
				t.Errorf("%s: %.3000s", what, text)
			}
			return
		}
	}
	t.Fatalf("%s: nothing is logged", what)
}

// net/http swallows panics in handlers without a word: here they are told.
func TestPanicInAHandlerOfHTTPEndsItsConnectionAndIsTold(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		b := newBench(t, Config{})
		var on atomic.Bool
		on.Store(true)
		log := b.breakIn("ServeHTTP", &on)
		nearEnd, far := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); b.Conn(far) }()
		protocols := &http.Protocols{}
		protocols.SetHTTP1(!http2)
		protocols.SetUnencryptedHTTP2(http2)
		tr := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return nearEnd, nil }}
		k := wire.Derive(testKey, testID, wire.Nonce{})
		x := protocol.Exchange{Keys: &k, Offline: true, Probe: 1, Now: b.clock.now}
		q, err := http.NewRequest("GET", "http://a.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+x.Token())
		if resp, err := tr.RoundTrip(q); err == nil {
			t.Errorf("HTTP/2 %v: answered with %s", http2, resp.Status)
		}
		tr.CloseIdleConnections()
		nearEnd.Close()
		<-done
		panicked(t, log, "connection", "ServeHTTP")
		if e := b.recent.list; !slices.ContainsFunc(e, func(e wire.Event) bool { return e.Fault == FaultPanic }) {
			t.Errorf("HTTP/2 %v: events: %+v", http2, e)
		}
	}
}

// quic-go calls for certificates and serves requests in goroutines of its own.
func TestPanicInWhatQUICCallsEndsItsConnectionAlone(t *testing.T) {
	for what, function := range map[string]string{"QUIC handshake": "(*quicPort).tls", "QUIC connection": "ServeHTTP", "QUIC packet": "quicConn.WriteTo"} {
		t.Run(what, func(t *testing.T) {
			var on atomic.Bool
			var log *buffer
			s := newSiege(t, func(b *bench) { log = b.breakIn(function, &on) })
			on.Store(true)
			if res := s.connect(1); res.Stage == protocol.StageDone {
				t.Errorf("it went on: %+v", res)
			}
			panicked(t, log, what, "")
			on.Store(false)
			if res := s.connect(2); res.Stage != protocol.StageDone {
				t.Errorf("the next one: %+v", res)
			}
		})
	}
}
