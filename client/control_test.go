package client

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func TestControlIsTriedInTLSWhereTheProbesSpeakIt(t *testing.T) {
	web := path(t, "X-1", scenarios.TCP, "80")
	web.Protocol = "http"
	secure := path(t, "X-2", scenarios.TCP, "8443")
	secure.Protocol = "https"
	got := controlPorts(planOf(Setting{}, web, secure))
	want := []controlPort{{port: 443, secure: true}, {port: 80}, {port: 8443, secure: true}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(controlPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// answering starts a server on loopback and gives its port.
func answering(t *testing.T, h http.HandlerFunc) controlPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return controlPort{port: netip.MustParseAddrPort(s.Listener.Addr().String()).Port()}
}

func stranger(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusForbidden)
	json.NewEncoder(w).Encode(wire.ControlError{Wallprobe: 1, Code: "key", Message: "another key"})
}

func portal(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "http://"+r.Host+"/login", http.StatusTemporaryRedirect)
}

func TestControlGoesOnAfterStrangersAndFollowsNoPortal(t *testing.T) {
	key := wire.Key{7}
	ours := func(w http.ResponseWriter, r *http.Request) {
		b := []byte(`{}`)
		w.Header().Set(wire.MACHeader, wire.ReplyMAC(key, wire.CallHello, r.Header.Get(wire.MACHeader), b))
		w.Write(b)
	}
	login := false
	greedy := func(w http.ResponseWriter, r *http.Request) {
		login = login || r.URL.Path == "/login"
		portal(w, r)
	}
	f := newFarEnd(WhereFar, netip.MustParseAddr("127.0.0.1"), key, wire.SessionID{1}, nil)
	defer f.close()

	c, err := f.connect(t.Context(), []controlPort{answering(t, greedy), answering(t, stranger), answering(t, ours)}, 50*time.Millisecond, "")
	if err != nil || c.hello == nil || login {
		t.Errorf("a portal and a stranger before ours: %+v, %v, login followed: %v", c, err, login)
	}
	c, err = f.connect(t.Context(), []controlPort{answering(t, greedy)}, 0, "")
	if err != nil || c.hello != nil || len(c.tried) != 1 || !strings.Contains(c.tried[0].Error, "not from the reflector") {
		t.Errorf("a portal alone: %+v, %v", c, err)
	}
	for n := 1; n <= 2; n++ {
		refusing := []controlPort{answering(t, stranger), answering(t, stranger)}
		_, err = f.connect(t.Context(), refusing[:n], time.Millisecond, "")
		if refusal, ok := errors.AsType[*wire.ControlError](err); !ok || refusal.Code != "key" {
			t.Errorf("%d that refuse and none of ours: %v", n, err)
		}
	}
}

// A firewall that forgets a flow may reset it at the next word.
func TestLedgerIsAskedForOnAnotherConnectionWhereOneBroke(t *testing.T) {
	key := wire.Key{7}
	for _, x := range []struct {
		breaks, asked int64
		want          string
	}{
		{0, 1, ""},
		{2, 3, ""},
		{9, 3, "the connection was closed"},
	} {
		var asked atomic.Int64
		p := answering(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) <= x.breaks {
				panic(http.ErrAbortHandler)
			}
			b := []byte(`{}`)
			w.Header().Set(wire.MACHeader, wire.ReplyMAC(key, wire.CallLedger, r.Header.Get(wire.MACHeader), b))
			w.Write(b)
		})
		f := newFarEnd(WhereFar, netip.MustParseAddr("127.0.0.1"), key, wire.SessionID{1}, nil)
		f.base = f.url(p)
		l, err := f.ledger(t.Context())
		f.close()
		if got := sentence(err); got != x.want || (l == nil) != (err != nil) || asked.Load() != x.asked {
			t.Errorf("%d break: %q after %d, want %q after %d", x.breaks, got, asked.Load(), x.want, x.asked)
		}
	}
}
