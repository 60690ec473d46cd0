package relay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// useAll lets our own client go through all of TURN on a connection, with so
// many bytes of bulk data.
func useAll(t *testing.T, w *world, c net.Conn, bytes uint32) protocol.Result {
	t.Helper()
	keys := testKeys()
	r := &protocol.Relay{Conn: c, Username: "wp-a", Password: "secret of wp-a", Stall: patience,
		Ahead: func() ([]byte, error) {
			b, _, err := protocol.Binding("wp-a", "secret of wp-a", "17")
			return b, err
		}}
	return r.Use(protocol.Exchange{Keys: &keys, Probe: 17, Bytes: bytes, Stall: patience, Now: time.Now})
}

func testKeys() wire.Keys { return wire.Derive(wire.Key{1}, wire.SessionID{2}, wire.Nonce{}) }

func withEcho(cfg *Config) {
	keys := testKeys()
	cfg.EchoPort = protocol.EchoPort
	cfg.PeerAllowed = func(string, netip.AddrPort) bool { return false }
	cfg.Echo = func(_ string, p []byte, relay netip.AddrPort) []byte {
		return protocol.Echo(p, &keys, relay, time.Now())
	}
}

func TestOurClientGoesThroughAllOfTURN(t *testing.T) {
	const bytes = 1 << 20
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			var w *world
			var c net.Conn
			var err error
			if transport == "udp" {
				var server *net.UDPConn
				w, server = network(t, withEcho)
				c, err = net.Dial("udp", server.LocalAddr().String())
			} else {
				w = newWorld(t, loopbackRelay, withEcho)
				c, err = net.Dial("tcp", listen(t, w).String())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			r := useAll(t, w, c, bytes)
			if r.Stage != protocol.StageDone || r.Err != nil {
				t.Fatalf("stage %s: %v", r.Stage, r.Err)
			}
			want := int64((bytes + 1199) / 1200 * 1200)
			if transport == "udp" {
				want = want * 9 / 10 // loopback may drop some
			}
			if r.Down < want || r.Up < int64(bytes) || r.Rate <= 0 {
				t.Errorf("%d bytes up, %d down of %d, %.0f per second, %s", r.Up, r.Down, want, r.Rate, r.Detail)
			}
			w.until("the allocation ends", func() bool { return w.s.Stats().Allocations == 0 })
			var kinds []Kind
			for _, k := range []Kind{KindAllocate, KindPermission, KindChannel, KindData, KindRefresh, KindEnd} {
				w.mu.Lock()
				for _, e := range w.events {
					if e.Kind == k {
						kinds = append(kinds, k)
						break
					}
				}
				w.mu.Unlock()
			}
			if d := cmp.Diff([]Kind{KindAllocate, KindPermission, KindChannel, KindData, KindRefresh, KindEnd}, kinds); d != "" {
				t.Error(d)
			}
		})
	}
}
