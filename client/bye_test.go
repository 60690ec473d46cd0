package client

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// An overhearing proxy passes control on and notes the calls. It knows no
// CONNECT, so that control goes over a port without TLS.
type overhearing struct {
	mu    sync.Mutex
	calls []string
}

func (o *overhearing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, ok := strings.CutPrefix(r.URL.Path, wire.ControlPath)
	if !ok {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	o.mu.Lock()
	o.calls = append(o.calls, call)
	o.mu.Unlock()
	r.RequestURI = ""
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.Header().Set(wire.MACHeader, resp.Header.Get(wire.MACHeader))
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body)
}

// overheard are the kinds of calls that were made, in order.
func (o *overhearing) overheard() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Compact(slices.Clone(o.calls))
}

// A far end whose ledger was fetched is told that it may forget the session; one
// whose ledger was not is left alone, for its journal is all that there is.
func TestGoodbyeIsSaidWhereTheLedgerIsHere(t *testing.T) {
	for name, c := range map[string]struct {
		idle time.Duration
		what func(f *far, cancel func()) // while the path of long silence is under way
		want []string
	}{
		"to its end":     {50 * time.Millisecond, nil, []string{wire.CallHello, wire.CallLedger, wire.CallBye}},
		"interrupted":    {time.Minute, func(_ *far, cancel func()) { cancel() }, []string{wire.CallHello, wire.CallLedger, wire.CallBye}},
		"reflector lost": {time.Minute, func(f *far, _ func()) { f.stop() }, []string{wire.CallHello, wire.CallLedger}},
	} {
		f := startFar(t, c.idle)
		ctx, cancel := context.WithCancel(t.Context())
		o := new(overhearing)
		s := httptest.NewServer(o)
		via, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		left := len(MakePlan(f.scenario, Setting{Role: "agent", Reflector: loopback}).Probes) - 1
		var mu sync.Mutex
		Run(ctx, Config{Scenario: f.scenario, Reflector: loopback, Key: testKey, Proxy: via, Timeout: 2 * time.Second, Update: func(func() Result) {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 && c.what != nil {
				c.what(f, cancel)
			}
		}})
		if diff := cmp.Diff(c.want, o.overheard()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		cancel()
		s.Close()
		f.stop()
	}
}
