package protocol

import (
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// every gives the protocols by name; there must be some.
func every(t *testing.T) map[string]*Protocol {
	t.Helper()
	if len(protocols) == 0 {
		t.Fatal("no protocols")
	}
	return protocols
}

func TestEveryProtocolIsDescribedAndHasBothEnds(t *testing.T) {
	for name, p := range every(t) {
		if p.Doc == "" || p.Transport == "" || p.Probe == nil || p.Serve == nil || Stream(name) != p {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// whole is what an exchange without trouble looks like at both ends.
func whole(f *testFar, x Exchange, base wire.Event, hello string) (Result, wire.Event) {
	res := Result{Stage: StageDone, Up: int64(x.Bytes), Down: int64(x.Bytes), Seen: x.message(wire.Reply)}
	res.Seen.Seen, res.Seen.Time = base.Remote, farClock.Local()
	e := base
	e.Session, e.Probe, e.Attempt, e.Answered = f.keys.ID, x.Probe, x.Attempt, true
	e.Stage, e.BytesIn, e.BytesOut = StageDone, int64(x.Bytes), int64(x.Bytes)
	if hello != "" {
		leaf := f.cert.Certificate[0]
		res.TLS = &wire.TLSSeen{ServerName: x.ServerName, Version: "TLS 1.3", Certificate: digest(leaf), Issuer: "CN=test", HelloDigest: hello}
		e.TLS = &wire.TLSSeen{ServerName: x.ServerName, Version: "TLS 1.3", Certificate: digest(leaf), HelloDigest: hello}
	}
	return res, e
}

func TestEveryProtocolCarriesItsExchange(t *testing.T) {
	for name, p := range every(t) {
		for _, n := range []uint32{0, 1, chunk, chunk + 1, 100_000} {
			for _, idle := range []time.Duration{0, 20 * time.Millisecond} {
				t.Run(fmt.Sprintf("%s/%d/%v", name, n, idle), func(t *testing.T) {
					f := newFar()
					x := f.exchange()
					x.Bytes, x.Idle = n, idle
					got, base, events := play(t, p, f, x, box{})
					hello := ""
					if got.TLS != nil {
						hello = got.TLS.HelloDigest
					}
					want, wantEvent := whole(f, x, base, hello)
					if diff := cmp.Diff(want, untimed(t, got), same); diff != "" {
						t.Errorf("near end (-want +got):\n%s", diff)
					}
					if diff := cmp.Diff([]wire.Event{wantEvent}, events, same); diff != "" {
						t.Errorf("far end (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// Whatever byte is changed, on whatever protocol, never may both ends say that all is well.
func TestNoProtocolOverlooksAChangedByte(t *testing.T) {
	for name, p := range every(t) {
		for _, at := range []int64{0, 5, 83, 100, 300, 1000, 2000} {
			for _, up := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/%v", name, at, up), func(t *testing.T) {
					f := newFar()
					x := f.exchange()
					x.Bytes, x.Stall = 4096, 300*time.Millisecond
					b := box{up: flip(at)}
					if !up {
						b = box{down: flip(at)}
					}
					res, _, events := play(t, p, f, x, b)
					sound := res.Stage == StageDone && len(events) == 1 && events[0].Stage == StageDone
					if sound && (res.TLS == nil || res.TLS.HelloDigest == events[0].TLS.HelloDigest) {
						t.Errorf("nobody saw it: %+v, %+v", res, events)
					}
				})
			}
		}
	}
}

func TestProtocolOfAScenarioIsSpokenOrStoodInFor(t *testing.T) {
	type spoken struct {
		Name string
		Own  bool
	}
	for _, c := range []struct {
		name string
		t    scenarios.Transport
		want spoken
	}{
		{"", scenarios.TCP, spoken{"plain", true}},
		{"", scenarios.UDP, spoken{"datagram", true}},
		{"tls", scenarios.TCP, spoken{"tls", true}},
		{"tls", scenarios.UDP, spoken{"datagram", false}},
		{"https", scenarios.TCP, spoken{"tls", false}},
		{"https", scenarios.UDP, spoken{"datagram", false}},
		{"rtp", scenarios.UDP, spoken{"datagram", false}},
		{"smtp", scenarios.TCP, spoken{"plain", false}},
		{"stun", scenarios.UDP, spoken{"stun", true}},
		{"stun", scenarios.TCP, spoken{"stun", true}},
		{"turn", scenarios.UDP, spoken{"turn", true}},
		{"turns", scenarios.TCP, spoken{"turns", true}},
	} {
		name, own := For(c.name, c.t)
		if diff := cmp.Diff(c.want, spoken{name, own}); diff != "" {
			t.Errorf("%s over %s (-want +got):\n%s", c.name, c.t, diff)
		}
	}
}

func TestStandInsExistAndAreNotNeededBesideTheProtocolItself(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(standIns)) {
		if protocols[standIns[name]] == nil || protocols[name] != nil {
			t.Errorf("%s is stood in for by %s", name, standIns[name])
		}
	}
}

// A proxy that ends TLS and makes its own passes every byte on, and is seen
// because each end's view of the handshake is another.
func TestInterceptedTLSShowsAsTwoHandshakes(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes = 5000
	mitm := newCertificate("proxy")
	near, a := pair(t)
	c, far := pair(t)
	done := make(chan []wire.Event, 1)
	go func() { e := serveTLS(t.Context(), far, f); far.Close(); done <- e }()
	between := make(chan struct{})
	go func() {
		defer close(between)
		in := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{*mitm}})
		out := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "b.example", NextProtos: []string{"h2"}})
		splice(in, out)
	}()
	res := probeTLS(t.Context(), near, x)
	near.Close()
	events := <-done
	<-between
	base := Arrived(far, farClock)
	want, wantEvent := whole(f, x, base, res.TLS.HelloDigest)
	want.TLS.Certificate, want.TLS.Issuer = digest(mitm.Certificate[0]), "CN=proxy"
	if diff := cmp.Diff(want, untimed(t, res), same); diff != "" {
		t.Errorf("near end (-want +got):\n%s", diff)
	}
	if len(events) != 1 || events[0].TLS == nil || events[0].TLS.HelloDigest == res.TLS.HelloDigest {
		t.Fatalf("both ends saw the same ClientHello: %+v", events)
	}
	wantEvent.TLS.ServerName, wantEvent.TLS.HelloDigest, wantEvent.TLS.Offered = "b.example", events[0].TLS.HelloDigest, []string{"h2"}
	if diff := cmp.Diff([]wire.Event{wantEvent}, events, same); diff != "" {
		t.Errorf("far end (-want +got):\n%s", diff)
	}
}
