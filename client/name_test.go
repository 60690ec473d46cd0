package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// The documents' names come first, then those of the protocol, then the
// reflector's; of what goes by address, and to others, none is said.
func TestReflectorsNameStandsWhereTheDocumentHasNone(t *testing.T) {
	for name, c := range map[string]struct {
		protocol string
		change   func(*scenarios.Path)
		want     string
	}{
		"TLS":                {"tls", nil, "far.example"},
		"HTTP":               {"http", nil, "far.example"},
		"a documented name":  {"tls", func(p *scenarios.Path) { p.Names = []string{"a.example"} }, "a.example"},
		"one of its own":     {"mcs", nil, ""},
		"none":               {"mysql", nil, ""},
		"by address":         {"tls", func(p *scenarios.Path) { p.Addresses = []netip.Prefix{netip.PrefixFrom(farAddr, 32)} }, ""},
		"within the network": {"tls", func(p *scenarios.Path) { p.Direction = scenarios.LAN }, ""},
		"a range":            {"", func(p *scenarios.Path) { p.Ports = ports(t, "1000-2000") }, ""},
	} {
		p := path(t, "X-1", scenarios.TCP, "443")
		if p.Protocol = c.protocol; c.change != nil {
			c.change(&p)
		}
		plan := planOf(Setting{Name: "far.example", LAN: netip.MustParseAddr("10.0.0.9")}, p)
		if len(plan.Probes) == 0 {
			t.Fatalf("%s: no probe: %+v", name, plan.Items)
		}
		for _, pr := range plan.Probes {
			if pr.ServerName != c.want {
				t.Errorf("%s: %q, want %q", name, pr.ServerName, c.want)
			}
		}
	}
}

// What the reflector heard of each path is the name that its host has, or that of
// the document.
func TestReflectorHearsTheNameOfItsHost(t *testing.T) {
	f := startFar(t, 50*time.Millisecond)
	want := map[string]string{"U-1": "a.example", "U-2": "far.example"}
	for i := range f.scenario.Paths { // on a port that serves both
		switch p := &f.scenario.Paths[i]; p.ID {
		case "U-1":
			p.Protocol, p.Names = "https", []string{"a.example"}
		case "U-2":
			p.Names = nil
		}
	}
	got, err := Run(t.Context(), Config{Scenario: f.scenario, Reflector: loopback, Name: "far.example", Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	heard := 0
	for i := range got.Findings {
		x := &got.Findings[i]
		if want[x.Path] == "" {
			continue
		}
		if x.Verdict != Open {
			t.Errorf("%s: %s, %s", x.Path, x.Verdict, x.Why)
		}
		for _, o := range x.Evidence.Near {
			for _, p := range got.Ledgers[WhereFar].Probes {
				if p.Probe != o.Probe {
					continue
				}
				for _, e := range p.Events {
					if heard++; e.TLS == nil || e.TLS.HelloName != want[x.Path] {
						t.Errorf("%s: heard %+v, want %s", x.Path, e.TLS, want[x.Path])
					}
				}
			}
		}
	}
	if got.Control.Via == "" || heard == 0 {
		t.Errorf("%d handshakes heard, control %+v", heard, got.Control)
	}
}

// Control says the name as well; a filter that drops it for that does not end
// control.
func TestControlSaysTheNameOrElseNone(t *testing.T) {
	key := wire.Key{7}
	for name, dropped := range map[string]bool{"passes": false, "is dropped": true} {
		var mu sync.Mutex
		var heard []string
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			host, _, _ := net.SplitHostPort(r.Host)
			heard = append(heard, r.TLS.ServerName+" "+host)
			b := []byte(`{}`)
			w.Header().Set(wire.MACHeader, wire.ReplyMAC(key, wire.CallHello, r.Header.Get(wire.MACHeader), b))
			w.Write(b)
		}))
		s.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if dropped && h.ServerName != "" {
				return nil, errors.New("this name is not known")
			}
			return nil, nil
		}}
		s.Config.ErrorLog = unheard
		s.StartTLS()
		f := newFarEnd(WhereFar, loopback, key, wire.SessionID{1}, nil)
		f.name = "far.example"
		at := controlPort{port: netip.MustParseAddrPort(s.Listener.Addr().String()).Port(), secure: true}
		c, err := f.connect(t.Context(), []controlPort{at}, 200*time.Millisecond, "")
		f.close()
		s.Close()
		want := []string{"far.example far.example"}
		if dropped {
			want = []string{" 127.0.0.1"}
		}
		if diff := cmp.Diff(want, heard); diff != "" || err != nil || c.hello == nil {
			t.Errorf("%s: %v, %+v (-want +got):\n%s", name, err, c, diff)
		}
	}
}

// A stranger that refuses is one, by name and by address.
func TestOnePortRefusesOnce(t *testing.T) {
	f := newFarEnd(WhereFar, loopback, wire.Key{7}, wire.SessionID{1}, nil)
	defer f.close()
	f.name = "far.example"
	ours := func(w http.ResponseWriter, r *http.Request) {
		b := []byte(`{}`)
		w.Header().Set(wire.MACHeader, wire.ReplyMAC(f.key, wire.CallHello, r.Header.Get(wire.MACHeader), b))
		w.Write(b)
	}
	foreign := answering(t, stranger)
	again := foreign
	again.nameless = true
	c, err := f.connect(t.Context(), []controlPort{foreign, again, answering(t, ours)}, 50*time.Millisecond, "")
	if err != nil || c.hello == nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// Many proxies connect to no bare address, and all look names up themselves.
func TestProxyIsAskedForTheName(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	at := talking(t, func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			mu.Lock()
			asked = append(asked, r.Method+" "+r.Host)
			mu.Unlock()
			c.Write([]byte("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
		}
	})
	r, err := newRunner(Config{Scenario: ownScenario(t, 10000, time.Second), Reflector: loopback, Name: "far.example", Proxy: &url.URL{Scheme: "http", Host: at}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	f := r.ends[WhereFar]
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := f.connect(ctx, []controlPort{{port: 443, secure: true}, {port: 80}}, 20*time.Millisecond, "")
	if err != nil || len(c.tried) != 2 { // what was said twice is told once
		t.Fatalf("%+v, %v", c.tried, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]string{"CONNECT far.example:443", "POST far.example:80", "CONNECT 127.0.0.1:443"}, asked); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// unheard takes what net/http logs of handshakes that are meant to fail.
var unheard = log.New(io.Discard, "", 0)
