package protocol

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// bearer is the head of a request with a token.
func bearer(start, token, more string) string {
	return start + " HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer " + token + "\r\n" + more + "\r\n"
}

func TestFarEndOfHTTPTellsWhatStrangersSend(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	x, foreign := f.exchange(), other.exchange()
	x.Bytes = 1000
	reply := x.message(wire.Reply)
	stream := make([]byte, x.Bytes)
	f.keys.NewStream(wire.Request, x.Probe, x.Attempt).Read(stream)
	changed := bytes.Clone(stream)
	changed[500] ^= 1
	type told struct {
		Stage, Fault string
		Named        bool
		In           int64
		Answered     bool
	}
	data := func(length int, body []byte) string {
		return bearer("POST /data", x.Token(), fmt.Sprintf("Content-Length: %d\r\n", length)) + string(body)
	}
	for name, c := range map[string]struct {
		send string
		want told
	}{
		"nothing":                   {"", told{StageToken, FaultEOF, false, 0, false}},
		"half a line":               {"GET / HT", told{StageToken, FaultEOF, false, 8, false}},
		"half a head":               {"GET / HTTP/1.1\r\nHost: a", told{StageToken, FaultEOF, false, 23, false}},
		"rubbish":                   {"GET \x00\x01\x02\r\n\r\n", told{StageToken, FaultForeign, false, 11, false}},
		"no token":                  {"GET / HTTP/1.0\r\n\r\n", told{StageToken, FaultForeign, false, 18, false}},
		"another key's token":       {bearer("GET /", foreign.Token(), ""), told{StageToken, FaultAltered, true, 0, false}},
		"a reply":                   {bearer("GET /", textOf(&reply, &f.keys), ""), told{StageToken, FaultAltered, true, 0, false}},
		"no message":                {bearer("GET /", strings.Repeat("A", tokenText), ""), told{StageToken, FaultForeign, false, 0, false}},
		"a truncated body":          {data(1000, stream[:600]), told{StageData, FaultEOF, true, 600, true}},
		"a changed body":            {data(1000, changed), told{StageData, FaultAltered, true, 500, true}},
		"a body too short":          {data(999, stream[:999]), told{StageData, FaultAltered, true, 0, true}},
		"a body too long":           {data(1001, append(bytes.Clone(stream), 0)), told{StageData, FaultAltered, true, 0, true}},
		"chunk rubbish":             {bearer("POST /data", x.Token(), "Transfer-Encoding: chunked\r\n") + "zz\r\nabc", told{StageData, FaultForeign, true, 0, true}},
		"more chunks than agreed":   {bearer("POST /data", x.Token(), "Transfer-Encoding: chunked\r\n") + "3e8\r\n" + string(stream) + "\r\n1\r\nx\r\n0\r\n\r\n", told{StageData, FaultAltered, true, 1000, true}},
		"two lengths":               {bearer("POST /data", x.Token(), "Content-Length: 1\r\nContent-Length: 2\r\n"), told{StageToken, FaultForeign, false, 0, false}},
		"CONNECT without a token":   {"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", told{StageToken, FaultForeign, false, 0, false}},
		"a frame of another length": {"POST /SolutionCenter HTTP/1.1\r\nHost: a\r\nContent-Length: 88\r\n\r\n" + strings.Repeat("x", 88), told{StageToken, FaultForeign, false, 0, false}},
		"no WebSocket":              {bearer("GET /ws", x.Token(), ""), told{StageToken, FaultForeign, true, 0, false}},
	} {
		_, events := say(t, plainHTTP, f, []byte(c.send))
		if len(events) != 1 {
			t.Errorf("%s: %+v", name, events)
			continue
		}
		e := events[0]
		got := told{e.Stage, e.Fault, e.Session == f.keys.ID, e.BytesIn, e.Answered}
		if c.want.In == 0 {
			got.In = 0
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestEndlessHeadIsRefusedByBothEnds(t *testing.T) {
	f := newFar()
	near, far := pair(t)
	var wg sync.WaitGroup
	var sent int
	wg.Go(func() {
		io.WriteString(near, "GET / HTTP/1.1\r\nX: ")
		for range 4096 {
			n, err := near.Write(make([]byte, 1024))
			if sent += n; err != nil {
				return
			}
		}
	})
	events := serveHTTP(t.Context(), far, f)
	far.Close()
	wg.Wait()
	if len(events) != 1 || events[0].Fault != FaultForeign || events[0].BytesIn > 256<<10 {
		t.Errorf("%+v", events)
	}
	near, far = pair(t)
	wg.Go(func() {
		far.Read(make([]byte, 4096))
		io.WriteString(far, "HTTP/1.1 200 OK\r\n")
		for range 4096 {
			if _, err := io.WriteString(far, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
				return
			}
		}
	})
	got := probeHTTP(t.Context(), near, f.exchange())
	near.Close()
	wg.Wait()
	if got.Stage != StageToken || got.Fault != FaultForeign || len(got.Sample) != sampleSize {
		t.Errorf("%+v", got)
	}
}

func TestNearEndOfHTTPTellsWhatStrangersAnswer(t *testing.T) {
	f := newFar()
	x := f.exchange()
	other := x
	other.Probe++
	answer := func(x Exchange, k wire.Kind) string {
		m := x.message(k)
		return answerHeader + ": rspauth=" + textOf(&m, x.Keys) + "\r\n"
	}
	ours := "HTTP/1.1 200 OK\r\n" + answer(x, wire.Reply)
	whole := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(page), page)
	for name, c := range map[string]struct{ answer, fault string }{
		"nothing":                   {"", FaultEOF},
		"half a status":             {"HTTP/1.", FaultEOF},
		"a banner":                  {"SSH-2.0-OpenSSH_9.2p1\r\n", FaultForeign},
		"a captive portal":          {"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 0\r\n\r\n", FaultForeign},
		"a proxy with a password":   {"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno", FaultForeign},
		"a proxy without a way":     {"HTTP/1.0 502 Bad Gateway\r\n\r\nno", FaultForeign},
		"another probe's answer":    {"HTTP/1.1 200 OK\r\n" + answer(other, wire.Reply) + whole, FaultForeign},
		"our own token":             {"HTTP/1.1 200 OK\r\n" + answer(x, wire.Request) + whole, FaultForeign},
		"a changed page":            {ours + strings.Replace(whole, "far end", "fat end", 1), FaultAltered},
		"a longer page":             {ours + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(page)+4, page+"more"), FaultAltered},
		"a truncated page":          {ours + whole[:60], FaultEOF},
		"another status":            {strings.Replace(ours, "200 OK", "203 Hm", 1) + whole, FaultAltered},
		"chunk rubbish":             {ours + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", FaultForeign},
		"a head split in two":       {"HTTP/1.1 200 OK\r\nX: a\r\n\r\n" + ours + whole, FaultForeign},
		"a folded line without any": {"HTTP/1.1 200 OK\r\n : \r\n\r\n", FaultForeign},
		"interim answers only":      {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), FaultForeign},
	} {
		near, far := pair(t)
		go func() {
			far.Read(make([]byte, 4096))
			io.WriteString(far, c.answer)
			far.CloseWrite()
		}()
		got := probeHTTP(t.Context(), near, x)
		near.Close()
		if got.Stage != StageToken || got.Fault != c.fault || !bytes.HasPrefix([]byte(c.answer), got.Sample) || len(c.answer) > 0 && len(got.Sample) == 0 {
			t.Errorf("%s: %s %s, %v, sample %q", name, got.Stage, got.Fault, got.Err, got.Sample)
		}
	}
}

// Libraries set deadlines of their own, which must not put off the end.
func TestNoDeadlineOutlivesTheContextOfHTTP(t *testing.T) {
	near, _ := memoryPair(t)
	ctx, cancel := contextFor(t)
	h := newHTTPConn(ctx, near)
	cancel()
	for name, set := range map[string]func(time.Time) error{"both": h.SetDeadline, "read": h.SetReadDeadline} {
		set(time.Now().Add(time.Minute))
		began := time.Now()
		if _, err := h.Read(make([]byte, 1)); faultOf(err) != FaultTimeout || time.Since(began) > 10*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(began))
		}
	}
	h.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := h.Write(make([]byte, 1<<20)); faultOf(err) != FaultTimeout {
		t.Errorf("write: %v", err)
	}
}

func TestSilenceOverHTTPIsKeptAndItsLossTold(t *testing.T) {
	for _, p := range every(t) {
		if !strings.HasPrefix(p.name, "http") && p.Protocol != controlCenter {
			continue
		}
		inBubble(t, func(t *testing.T, near, far net.Conn) {
			f := newFar()
			x := f.exchange()
			x.Idle, x.Variant = 5*time.Minute, p.variant
			var events []wire.Event
			var wg sync.WaitGroup
			wg.Go(func() { events = f.serve(t.Context(), p.Protocol, far); far.Close() })
			res := p.TCP.Probe(t.Context(), near, x)
			near.Close()
			wg.Wait()
			if res.Stage != StageDone || res.Took != x.Idle || len(events) != 1 || events[0].Stage != StageDone {
				t.Errorf("%s: %+v, %+v", p, res, events)
			}
		})
		inBubble(t, func(t *testing.T, near, far net.Conn) {
			f := newFar()
			x := f.exchange()
			x.Idle, x.Variant = time.Hour, p.variant
			ctx, cancel := contextFor(t)
			time.AfterFunc(time.Minute, cancel)
			var events []wire.Event
			var wg sync.WaitGroup
			wg.Go(func() { events = f.serve(ctx, p.Protocol, far); far.Close() })
			res := p.TCP.Probe(t.Context(), near, x)
			near.Close()
			wg.Wait()
			if res.Stage != StageIdle || res.Fault != FaultEOF || res.Took != time.Minute {
				t.Errorf("%s, near end: %+v", p, res)
			}
			if len(events) != 1 || events[0].Stage != StageIdle || events[0].Fault != FaultTimeout {
				t.Errorf("%s, far end: %+v", p, events)
			}
		})
	}
}

// A proxy that nobody here wrote passes everything on, and is seen by what it
// writes into the heads.
func TestTransparentProxyShowsInTheHeads(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes, x.Idle = 100_000, 10*time.Millisecond
	near, a := pair(t)
	c, far := pair(t)
	var events []wire.Event
	var wg sync.WaitGroup
	wg.Go(func() { events = f.serve(t.Context(), plainHTTP, far); far.Close() })
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	forward := &httputil.ReverseProxy{Transport: tr, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: "cache.local"})
		r.SetXForwarded()
		r.Out.Header.Set("Via", "1.1 squid")
	}}
	proxy := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Else the server closes the request's body when the answer begins, maybe
		// before the transport has seen its end; that then gives up its connection,
		// and here there is no other.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		forward.ServeHTTP(w, r)
	})}
	between := newHTTPConn(t.Context(), a)
	wg.Go(func() { proxy.Serve(&oneConn{conn: between}) })
	res := probeHTTP(t.Context(), near, x)
	near.Close()
	a.Close()
	wg.Wait()
	if res.Stage != StageDone || len(events) != 1 || events[0].Stage != StageDone {
		t.Fatalf("%+v, %+v", res, events)
	}
	var put []string
	for _, line := range events[0].Said.Heard {
		if !slices.Contains(res.Said.Sent, line) && !slices.Contains(put, line) {
			put = append(put, line)
		}
	}
	want := []string{"Accept-Encoding: gzip", "Host: cache.local", "Via: 1.1 squid", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: a.example:443", "X-Forwarded-Proto: http"}
	if diff := cmp.Diff(want, put); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// 64 MiB each way pass through a few.
func TestDataOverHTTPIsStreamed(t *testing.T) {
	const most = 24 << 20
	for _, p := range every(t) {
		if !strings.HasPrefix(p.name, "http") {
			continue
		}
		var heap, begin runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&begin)
		stop, peak := make(chan struct{}), make(chan uint64)
		go func() {
			var top uint64
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					peak <- top
					return
				case <-tick.C:
					runtime.ReadMemStats(&heap)
					top = max(top, heap.HeapAlloc)
				}
			}
		}()
		f := newFar()
		x := f.exchange()
		x.Bytes = 64 << 20
		res, _, events := play(t, loopback, p, f, x, box{})
		close(stop)
		if res.Stage != StageDone || res.Rate <= 0 || res.Pause <= 0 || res.Pause > res.Took || len(events) != 1 || events[0].BytesIn != 64<<20 || events[0].BytesOut != 64<<20 {
			t.Errorf("%s: %+v, %+v", p, res, events)
		}
		if top := <-peak; top > begin.HeapAlloc+most {
			t.Errorf("%s: the heap grew by %d MiB", p, (top-begin.HeapAlloc)>>20)
		}
	}
}

func TestHTTPWithoutH2IsNotH2(t *testing.T) {
	for _, agreed := range []string{"", "http/1.1"} {
		f := newFar()
		near, far := pair(t)
		go answerTLS(far, f, agreed)
		x := f.exchange()
		x.Variant = variantH2
		got := probeHTTPS(t.Context(), near, x)
		near.Close()
		want := notH2(agreed).Error()
		if got.Stage != StageTLS || got.Fault != FaultAltered || got.Err.Error() != want || got.TLS.ALPN != agreed {
			t.Errorf("%q: %+v", agreed, got)
		}
	}
}

// FuzzHeads: whatever comes in whatever pieces, the heads are the same, and
// nothing is kept that has no end.
func FuzzHeads(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\nGET /late HTTP/1.1\r\n\r\n",
		"POST /data HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /GET / HTTP/1.1\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\nuntil the end\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x82\x01\n\n",
		"CONNECT a:443 HTTP/1.1\r\n\r\n\x16\x03\x01\n\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\r\n\r\nGET / HTTP/1.1\nContent-Length: -1\n\n",
		"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		var whole, pieces []string
		h := heads{keep: func(l string) { whole = append(whole, l) }}
		h.feed(b)
		p := heads{keep: func(l string) { pieces = append(pieces, l) }}
		for part := range slices.Chunk(b, int(piece)+1) {
			p.feed(part)
		}
		if diff := cmp.Diff(whole, pieces); diff != "" || h.ended != p.ended || h.body != p.body {
			t.Errorf("(-whole +pieces):\n%s", diff)
		}
		if len(h.line)+len(strings.Join(h.lines, "")) > maxHead {
			t.Errorf("%d bytes are kept", len(h.line))
		}
		if n := len(whole); n > 0 && strings.TrimSuffix(whole[n-1], "\n") != "" {
			t.Errorf("a head without an end: %q", whole)
		}
	})
}

// FuzzHTTPFarEnd: nobody is proven by chance, and everybody is let go of.
func FuzzHTTPFarEnd(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /SolutionCenter HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\x00\x00\x00\x54",
		"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Bearer x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	far := newFar()
	f.Fuzz(func(t *testing.T, b []byte) {
		endsWithin(t, goAway, func(t *testing.T) {
			c := said(t, b)
			events := serveHTTP(t.Context(), c, far)
			c.Close()
			for _, e := range events {
				if e.Answered || e.Stage == StageDone || e.Fault == "" {
					t.Errorf("%q: %+v", b, e)
				}
			}
		})
	})
}

// answerTLS agrees on one ALPN name, whatever was offered.
func answerTLS(c net.Conn, f *testFar, agreed string) {
	config := &tls.Config{Certificates: []tls.Certificate{*f.cert}}
	if agreed != "" {
		config.NextProtos = []string{agreed}
	}
	tc := tls.Server(c, config)
	tc.Handshake()
	io.Copy(io.Discard, tc)
	c.Close()
}

// Nobody is led on by the far end, with a token or without one: a tunnel ends
// here, and a proxy's request gets the page.
func TestHTTPLeadsNowhereElse(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes = 0
	for name, c := range map[string]struct{ ask, has string }{
		"CONNECT without a token":      {"CONNECT www.example:443 HTTP/1.1\r\nHost: www.example:443\r\n\r\n", "HTTP/1.1 407 "},
		"CONNECT with half of one":     {"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer " + x.Token()[:100] + "\r\n\r\n", "HTTP/1.1 407 "},
		"CONNECT with a password":      {"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic YTpi\r\n\r\n", "HTTP/1.1 407 "},
		"CONNECT in HTTP/1.0":          {"CONNECT 127.0.0.1:22 HTTP/1.0\r\n\r\n", "407 "},
		"a whole URL":                  {"GET http://www.example/ HTTP/1.1\r\nHost: www.example\r\nConnection: close\r\n\r\n", page},
		"a whole URL of another host":  {"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n", "HTTP/1.1 404 "},
		"another scheme":               {"GET ftp://www.example/ HTTP/1.1\r\nHost: www.example\r\nConnection: close\r\n\r\n", page},
		"TRACE":                        {"TRACE / HTTP/1.1\r\nHost: x\r\nX-Secret: s\r\n\r\n", "HTTP/1.1 405 "},
		"CONNECT with a token, and no": {"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer " + x.Token() + "\r\n\r\nSSH-2.0-x\r\n", "HTTP/1.1 200 Connection established\r\n"},
	} {
		near, far := pair(t)
		done := make(chan struct{})
		go func() { defer close(done); serveHTTP(t.Context(), far, f); far.Close() }()
		io.WriteString(near, c.ask)
		near.CloseWrite()
		b, _ := io.ReadAll(near)
		near.Close()
		<-done
		if !strings.Contains(string(b), c.has) || strings.Contains(string(b), "OpenSSH") || strings.Contains(string(b), "X-Secret") {
			t.Errorf("%s: %q", name, b)
		}
	}
	if n := f.further.Load(); n > 0 {
		t.Errorf("%d further connections were made", n)
	}
}
