package reflector

import (
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// udp connects a socket to the live reflector.
func (l *live) udp(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(l.at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestQUICExchangeIsWholeAtBothEnds(t *testing.T) {
	for _, c := range []struct {
		bytes uint32
		idle  time.Duration
	}{{0, 0}, {1, 0}, {300_000, 0}, {20_000, 50 * time.Millisecond}} {
		l := start(t, Config{})
		_, x, p := l.exchange(testID, protocol.QUIC)
		x.Bytes, x.Idle = c.bytes, c.idle
		u := l.udp(t)
		res := p.UDP.Probe(t.Context(), u, x)
		if res.Stage != protocol.StageDone || res.Fault != "" || res.Up != int64(c.bytes) || res.Down != int64(c.bytes) || res.RTT <= 0 {
			t.Fatalf("%+v", res)
		}
		ledger := l.ledger(l.sessions.find(testID))
		if len(ledger.Probes) != 1 || len(ledger.Probes[0].Events) != 1 {
			t.Fatalf("%+v", ledger)
		}
		got := ledger.Probes[0].Events[0]
		want := wire.Event{Time: got.Time, Transport: scenarios.UDP, Remote: u.LocalAddr().(*net.UDPAddr).AddrPort(), Local: l.at,
			Session: testID, Probe: x.Probe, Stage: protocol.StageDone, BytesIn: int64(c.bytes), BytesOut: int64(c.bytes), Answered: true,
			TLS: &wire.TLSSeen{ServerName: "a.example", Version: "TLS 1.3", ALPN: "h3", Offered: []string{"h3"}, Certificate: res.TLS.Certificate,
				HelloDigest: res.TLS.HelloDigest, HelloName: "a.example", Chain: res.TLS.Chain, Versions: []string{"TLS 1.3"}}}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", c.bytes, diff)
		}
		if res.TLS.Certificate == "" || res.TLS.Issuer == "" || res.TLS.HelloDigest == "" || res.TLS.HelloName != "a.example" || len(res.TLS.Chain) == 0 {
			t.Errorf("near end: %+v", res.TLS)
		}
		l.end(t)
	}
}

// On one port of one reflector plain datagrams, QUIC and TLS all pass at a time.
func TestQUICSharesItsPortWithDatagramsAndTLS(t *testing.T) {
	l := start(t, Config{})
	_, x, p := l.exchange(testID, protocol.QUIC)
	x.Bytes = 1 << 20
	done := make(chan protocol.Result, 1)
	u := l.udp(t)
	go func() { done <- p.UDP.Probe(t.Context(), u, x) }()
	c := l.udp(t)
	keys := wire.Derive(testKey, testID, wire.Nonce{})
	buf := make([]byte, 2048)
	for i := range 10 {
		m := wire.Message{Kind: wire.Request, Offline: true, Port: l.at.Port(), Session: testID, Probe: 5, Attempt: uint16(i), Size: 1200, Time: time.Now()}
		c.Write(m.Append(nil, &keys))
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(buf); n != 1200 || err != nil {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
	_, tx, tp := l.exchange(testID, "tls")
	tx.Probe = 6
	if res := tp.TCP.Probe(t.Context(), l.dial(t), tx); res.Stage != protocol.StageDone {
		t.Errorf("TLS: %+v", res)
	}
	if res := <-done; res.Stage != protocol.StageDone || res.Down != 1<<20 {
		t.Errorf("QUIC: %+v", res)
	}
}

func TestQUICWithoutATokenIsServedAPageAndKeptAsAStray(t *testing.T) {
	l := start(t, Config{})
	_, x, p := l.exchange(testID, protocol.QUIC)
	if res := p.UDP.Probe(t.Context(), l.udp(t), x); res.Stage != protocol.StageDone {
		t.Fatalf("%+v", res) // so that the address is the session's
	}
	other := wire.Derive(wire.Key{9}, wire.SessionID{7}, wire.Nonce{})
	x.Keys = &other
	res := p.UDP.Probe(t.Context(), l.udp(t), x)
	if res.Stage != protocol.StageToken || res.Fault != protocol.FaultForeign || string(res.Sample) != "HTTP/3.0 200 OK" {
		t.Errorf("%+v", res)
	}
	l.end(t)
	var told []string
	for _, line := range l.read(t).Ledgers {
		for _, s := range line.Strays {
			if s.TLS != nil {
				told = append(told, s.Stage+" "+s.Fault+" "+s.TLS.ServerName)
			}
		}
	}
	if diff := cmp.Diff([]string{"token altered a.example"}, told); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A connection that is under way when the reflector ends is in its ledger, and
// nothing is left running.
func TestStopEndsQUICConnections(t *testing.T) {
	l := start(t, Config{})
	_, x, p := l.exchange(testID, protocol.QUIC)
	x.Idle = 30 * time.Second
	done := make(chan protocol.Result, 1)
	u := l.udp(t)
	go func() { done <- p.UDP.Probe(t.Context(), u, x) }()
	for end := time.Now().Add(10 * time.Second); l.sessions.find(testID) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no session began")
		}
	}
	l.end(t)
	if res := <-done; res.Stage == protocol.StageDone {
		t.Errorf("%+v", res)
	}
	j := l.read(t)
	if got := j.Ledgers[testID]; got == nil || len(got.Probes) != 1 {
		t.Errorf("%+v", j)
	}
	if left := running(); len(left) > 0 {
		t.Errorf("still running:\n%s", left)
	}
}

func FuzzKindOfQUIC(f *testing.F) {
	f.Add(unknownVersionPacket(1200))
	f.Add(initial(rand.New(rand.NewPCG(1, 1)), 1200, 0))
	f.Add(initial(rand.New(rand.NewPCG(1, 1)), 1200, 77))
	f.Fuzz(func(t *testing.T, b []byte) {
		if kind := kindOfQUIC(b); kind != quicOther && (len(b) < quicInitial || !looksLikeQUIC(b) && len(b) <= quicLongest) {
			t.Errorf("%x is of kind %d", b, kind)
		}
	})
}
