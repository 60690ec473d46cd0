package relay

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/wallprobe/wallprobe/protocol"
)

// Whoever recorded a Binding and sends it again from another address is not
// answered and makes no event of the session, over UDP and over TCP; the one
// who sent it may send it again.
func TestRecordedBindingsAreAnsweredOnlyWhereTheyCameFrom(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		w := newWorld(t)
		recorded, _, err := protocol.Binding("wp-a", "secret of wp-a", "7")
		if err != nil {
			t.Fatal(err)
		}
		send := func(from string) (answers int, v verdict) {
			o := origin{tuple: tuple{local: localAddr, remote: netip.MustParseAddrPort(from), tcp: tcp}}
			v = w.s.message(o, recorded)
			return len(w.drain()), v
		}
		for _, from := range []string{"203.0.113.9:40001", "203.0.113.9:40001", "203.0.113.9:40002"} {
			if n, v := send(from); n != 1 || v != authentic {
				t.Errorf("tcp %v: from %s: %d answers, verdict %v", tcp, from, n, v)
			}
		}
		before := len(w.kinds())
		for _, from := range []string{"198.51.100.66:40001", "[2001:db8::66]:40001"} {
			if n, v := send(from); n != 0 || v != unproven {
				t.Errorf("tcp %v: replayed from %s: %d answers, verdict %v", tcp, from, n, v)
			}
		}
		if got := len(w.kinds()); got != before || w.count("stun-replay") != 2 {
			t.Errorf("tcp %v: %d events, %d before; %d replays", tcp, got, before, w.count("stun-replay"))
		}
	}
}

func TestRememberedBindingsAreBounded(t *testing.T) {
	var s seen
	a, b := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.66")
	id := func(i int) (id [12]byte) { binary.BigEndian.PutUint32(id[:], uint32(i)); return id }
	for i := range 5 * maxSeen {
		if !s.first(id(i), a) {
			t.Fatalf("%d is not new", i)
		}
		if s.first(id(i), b) || i > maxSeen && s.first(id(i-maxSeen), b) {
			t.Fatalf("%d: one of the last ones is not known any more", i)
		}
	}
	if n := len(s.young) + len(s.old); n > 2*maxSeen {
		t.Errorf("%d are remembered", n)
	}
}
