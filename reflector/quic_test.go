package reflector

import (
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
			TLS: &wire.TLSSeen{ServerName: "a.example", Version: "TLS 1.3", ALPN: "h3", Offered: []string{"h3"}, Certificate: res.TLS.Certificate}}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", c.bytes, diff)
		}
		if res.TLS.Certificate == "" || res.TLS.Issuer == "" {
			t.Errorf("near end: %+v", res.TLS)
		}
		l.end(t)
	}
}
