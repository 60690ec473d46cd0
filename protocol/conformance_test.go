package protocol

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A spoken is one way of using one protocol over TCP.
type spoken struct {
	name, variant string
	*Protocol
}

func (s spoken) String() string { return strings.TrimSpace(s.name + " " + s.variant) }

// every gives the protocols over TCP, each variant by itself; there must be some.
func every(t testing.TB) []spoken {
	t.Helper()
	var all []spoken
	for _, name := range slices.Sorted(maps.Keys(protocols)) {
		p := protocols[name]
		if p.TCP == nil {
			continue
		}
		for _, v := range slices.Concat(p.Variants, []string{""})[:max(1, len(p.Variants))] {
			all = append(all, spoken{name, v, p})
		}
	}
	if len(all) == 0 {
		t.Fatal("no protocols")
	}
	return all
}

func TestEveryProtocolIsDescribedAndHasBothEnds(t *testing.T) {
	for name, p := range protocols {
		switch {
		case p.Doc == "" || p.TCP == nil && p.UDP == nil || Named(name) != p:
		case p.TCP != nil && (p.TCP.Probe == nil || p.TCP.Serve == nil):
		case p.UDP != nil && p.UDP.Probe == nil:
		case p.TCP != nil && p.Claims == nil && !p.Greets:
		case p.Inside && !p.Greets:
		default:
			continue
		}
		t.Errorf("%s: %+v", name, p)
	}
}

// A port is tried for control the way its protocol begins.
func TestProtocolsThatBeginWithTLSSaySo(t *testing.T) {
	for _, p := range every(t) {
		if p.Greets && !p.Inside {
			if p.Secure {
				t.Errorf("%s waits for a greeting", p)
			}
			continue
		}
		near, far := memoryPair(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		x := newFar().exchange()
		x.Variant = p.variant
		wg.Go(func() { p.TCP.Probe(ctx, near, x) })
		head := make([]byte, 4)
		_, err := io.ReadFull(far, head)
		cancel()
		far.Close()
		wg.Wait()
		if err != nil || isTLS(head) != Secure(p.name) {
			t.Errorf("%s begins with % x (%v), secure %v", p, head, err, Secure(p.name))
		}
	}
}

// Whatever is spoken, both ends tell of the same exchange.
func TestEveryProtocolCarriesItsExchange(t *testing.T) {
	for _, over := range networks {
		for _, p := range every(t) {
			for _, n := range []uint32{0, 1, chunk + 1, 100_000} {
				for _, idle := range []time.Duration{0, 20 * time.Millisecond} {
					t.Run(fmt.Sprintf("%s/%s/%d/%v", over.name, p, n, idle), func(t *testing.T) {
						t.Parallel()
						f := newFar()
						x := f.exchange()
						x.Bytes, x.Idle = n, idle
						got, base, events := play(t, over, p, f, x, box{})
						checkWhole(t, f, x, base, got, events)
					})
				}
			}
		}
	}
}

// checkWhole demands an exchange without trouble at both ends.
func checkWhole(t *testing.T, f *testFar, x Exchange, base wire.Event, got Result, events []wire.Event) {
	t.Helper()
	want, wantEvent := whole(f, x, base, got)
	if diff := cmp.Diff(want, untimed(t, got), same); diff != "" {
		t.Errorf("near end (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]wire.Event{wantEvent}, events, same); diff != "" {
		t.Errorf("far end (-want +got):\n%s", diff)
	}
}

// whole is what an exchange without trouble looks like at both ends. What only
// the exchange itself can say, such as the dialogue, must be alike at both ends.
func whole(f *testFar, x Exchange, base wire.Event, got Result) (Result, wire.Event) {
	res := Result{Stage: StageDone, Up: int64(x.Bytes), Down: int64(x.Bytes), Seen: x.message(wire.Reply), Said: got.Said, Detail: got.Detail}
	res.Seen.Seen, res.Seen.Time = base.Remote, farClock.Local()
	e := base
	e.Session, e.Probe, e.Attempt, e.Answered = f.keys.ID, x.Probe, x.Attempt, true
	e.Stage, e.BytesIn, e.BytesOut, e.Said = StageDone, int64(x.Bytes), int64(x.Bytes), mirrored(got.Said)
	if got.TLS != nil {
		leaf := f.cert.Certificate[0]
		res.TLS = &wire.TLSSeen{ServerName: x.ServerName, Version: "TLS 1.3", ALPN: got.TLS.ALPN, Offered: got.TLS.Offered,
			Certificate: digest(leaf), Issuer: "CN=test", HelloDigest: got.TLS.HelloDigest, Versions: []string{"TLS 1.3", "TLS 1.2"},
			HelloName: x.ServerName, Chain: []wire.Certificate{{Digest: digest(leaf), Subject: "CN=test", Issuer: "CN=test"}}}
		seen := *res.TLS
		seen.Issuer = ""
		e.TLS = &seen
	}
	return res, e
}

// mirrored is the other end's record of a dialogue.
func mirrored(s *wire.Said) *wire.Said {
	if s == nil {
		return nil
	}
	return &wire.Said{Sent: s.Heard, Heard: s.Sent}
}

// Whatever byte is changed, on whatever protocol, never may both ends say that all is well.
func TestNoProtocolOverlooksAChangedByte(t *testing.T) {
	for _, p := range every(t) {
		for _, at := range []int64{0, 5, 83, 100, 300, 1000, 2000} {
			for _, up := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/%v", p, at, up), func(t *testing.T) {
					t.Parallel()
					changed := false
					b := box{up: flip(at, &changed)}
					if !up {
						b = box{down: flip(at, &changed)}
					}
					overlooked(t, p, b, &changed)
				})
			}
		}
	}
}

// Nor when the line ends in clear become others, as some boxes write them.
func TestNoProtocolOverlooksAChangedLineEnd(t *testing.T) {
	for _, p := range every(t) {
		for _, up := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", p, up), func(t *testing.T) {
				t.Parallel()
				changed := false
				bare := func(_ int64, b []byte) ([]byte, bool) {
					if i := bytes.Index(b, []byte("\r\n")); i >= 0 {
						b, changed = slices.Delete(b, i, i+1), true
					}
					return b, true
				}
				b := box{up: bare}
				if !up {
					b = box{down: bare}
				}
				overlooked(t, p, b, &changed)
			})
		}
	}
}

// overlooked fails when the box changed something and neither end, nor a look at
// both their records, shows it.
func overlooked(t *testing.T, p spoken, b box, changed *bool) {
	t.Helper()
	f := newFar()
	x := f.exchange()
	x.Bytes, x.Stall = 4096, 300*time.Millisecond
	res, _, events := play(t, loopback, p, f, x, b)
	if !*changed || len(events) != 1 || res.Stage != StageDone || events[0].Stage != StageDone {
		return
	}
	if res.TLS != nil && res.TLS.HelloDigest != events[0].TLS.HelloDigest {
		return
	}
	if cmp.Equal(mirrored(res.Said), events[0].Said, same) {
		t.Errorf("nobody saw it: %+v, %+v", res, events)
	}
}

func TestProtocolOfAScenarioIsSpokenOrStoodInFor(t *testing.T) {
	type said struct {
		Name string
		Own  bool
	}
	for _, c := range []struct {
		name string
		t    scenarios.Transport
		want said
	}{
		{"", scenarios.TCP, said{"plain", true}},
		{"", scenarios.UDP, said{"datagram", true}},
		{"tls", scenarios.TCP, said{"tls", true}},
		{"tls", scenarios.UDP, said{"datagram", false}},
		{"https", scenarios.TCP, said{"https", true}},
		{"https", scenarios.UDP, said{"datagram", false}},
		{"rtp", scenarios.UDP, said{"datagram", false}},
		{"snmp", scenarios.TCP, said{"plain", false}},
		{"stun", scenarios.UDP, said{"stun", true}},
		{"stun", scenarios.TCP, said{"stun", true}},
		{"turn", scenarios.UDP, said{"turn", true}},
		{"turns", scenarios.TCP, said{"turns", true}},
	} {
		name, own := For(c.name, c.t)
		if diff := cmp.Diff(c.want, said{name, own}); diff != "" {
			t.Errorf("%s over %s (-want +got):\n%s", c.name, c.t, diff)
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
	want, wantEvent := whole(f, x, base, res)
	want.TLS.Certificate, want.TLS.Issuer = digest(mitm.Certificate[0]), "CN=proxy"
	want.TLS.Chain = []wire.Certificate{{Digest: digest(mitm.Certificate[0]), Subject: "CN=proxy", Issuer: "CN=proxy"}}
	if diff := cmp.Diff(want, untimed(t, res), same); diff != "" {
		t.Errorf("near end (-want +got):\n%s", diff)
	}
	if len(events) != 1 || events[0].TLS == nil || events[0].TLS.HelloDigest == res.TLS.HelloDigest {
		t.Fatalf("both ends saw the same ClientHello: %+v", events)
	}
	wantEvent.TLS.HelloName = "b.example"
	wantEvent.TLS.ServerName, wantEvent.TLS.HelloDigest, wantEvent.TLS.Offered, wantEvent.TLS.ALPN = "b.example", events[0].TLS.HelloDigest, []string{"h2"}, "h2"
	if diff := cmp.Diff([]wire.Event{wantEvent}, events, same); diff != "" {
		t.Errorf("far end (-want +got):\n%s", diff)
	}
}
