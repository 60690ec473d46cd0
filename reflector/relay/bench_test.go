package relay

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

// quiet is a service whose answers go nowhere.
func quiet(answered *int) *Server {
	return New(Config{
		Credentials: func(string, time.Time) (string, string, bool) { return "secret of wp-a", "a", true },
		Send:        func([]byte, netip.AddrPort, netip.AddrPort) error { *answered++; return nil },
	})
}

func benchmark(b *testing.B, msg []byte) {
	answered := 0
	s := quiet(&answered)
	b.ReportAllocs()
	for b.Loop() {
		s.Datagram(msg, localAddr, remoteAddr)
	}
	if answered != b.N {
		b.Fatalf("%d of %d answered", answered, b.N)
	}
}

func BenchmarkAuthenticatedBinding(b *testing.B) {
	msg, _, err := protocol.Binding("wp-a", "secret of wp-a", "17")
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, msg)
}

func BenchmarkPaddedPlainBinding(b *testing.B) {
	benchmark(b, build(b, stun.BindingRequest, padding(20)))
}

// BenchmarkChannelData relays to a loopback socket that nobody reads.
func BenchmarkChannelData(b *testing.B) {
	w := newWorld(b, loopbackRelay)
	_, peer := newPeer(b)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, 0x40, 1, 0, 0), xorPeer(peer)); code != 0 {
		b.Fatal(code)
	}
	a := w.s.lookup(tuple{local: localAddr, remote: remoteAddr})
	msg := append([]byte{0x40, 1, 0, 160}, make([]byte, 160)...)
	b.ReportAllocs()
	for b.Loop() {
		for len(a.queue) == queueLen {
			<-time.After(time.Microsecond)
		}
		w.s.Datagram(msg, localAddr, remoteAddr)
	}
}
