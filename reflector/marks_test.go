package reflector

import (
	"testing"

	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/wire"
)

// A reply leaves with marks, and says that it does, where its request asks for
// that and the socket can: one that does not tell how a datagram arrived does not
// send it with marks either.
func TestReplyIsMarkedWhereThatIsAskedForAndCanBe(t *testing.T) {
	b := newBench(t, Config{})
	k := wire.Derive(testKey, testID, wire.Nonce{})
	attempt := uint16(0)
	for _, c := range []struct {
		asked bool
		ttl   uint8 // as it arrived
		want  bool
	}{{true, 57, true}, {false, 57, false}, {true, 0, false}} {
		attempt++
		p := b.request(testID, func(m *wire.Message) { m.Marked, m.Attempt = c.asked, attempt })
		var out []steer.Datagram
		b.Datagrams([]steer.Datagram{{Local: local, Remote: near, TTL: c.ttl, Payload: p}}, func(d []steer.Datagram) { out = d })
		if len(out) != 1 {
			t.Fatalf("%+v: %d answers", c, len(out))
		}
		m, err := wire.Parse(out[0].Payload, &k)
		leaves := out[0].TTL == wire.MarkTTL && out[0].TOS == wire.MarkTOS
		usual := out[0].TTL == 0 && out[0].TOS == 0
		if err != nil || m.Marked != c.want || leaves != c.want || usual == c.want {
			t.Errorf("%+v: %+v leaves with TTL %d, TOS %#x: %v", c, m, out[0].TTL, out[0].TOS, err)
		}
	}
}
