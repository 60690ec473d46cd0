package reflector

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A wired connection gives what is written to a bench and reads its answers.
type wired struct {
	net.Conn // only for the methods that nobody calls
	b        *bench
	sent     [][]byte
	answers  [][]byte
	until    time.Time
}

func (c *wired) Write(p []byte) (int, error) {
	c.sent = append(c.sent, bytes.Clone(p))
	for _, d := range c.b.deliver(near, p) {
		c.answers = append(c.answers, d.Payload)
	}
	return len(p), nil
}

func (c *wired) Read(p []byte) (int, error) {
	if len(c.answers) == 0 {
		time.Sleep(time.Until(c.until))
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, c.answers[0])
	c.answers = c.answers[1:]
	return n, nil
}

func (c *wired) SetDeadline(time.Time) error       { return nil }
func (c *wired) SetReadDeadline(t time.Time) error { c.until = t; return nil }

// The protocol of a port answers there what the plain exchange does not know:
// once, with no byte more, and only what proves itself.
func TestProtocolOfAPortAnswersItsDatagramsOnce(t *testing.T) {
	b := newBench(t, Config{Speaks: map[protocol.Port]string{{Transport: scenarios.UDP, Number: local.Port()}: "goto-media"}})
	c := &wired{b: b}
	keys := wire.Derive(testKey, testID, wire.Nonce{})
	x := protocol.Exchange{Keys: &keys, Offline: true, Probe: 3, Port: local.Port(), Stall: 200 * time.Millisecond, Now: b.clock.now}
	got := protocol.Named("goto-media").UDP.Probe(t.Context(), c, x)
	if got.Stage != protocol.StageDone || got.Sent != 5+3 || got.Heard != got.Sent || got.Seen.Seen != near {
		t.Fatalf("%+v", got)
	}
	before := b.taken(t, testID)
	var counts []wire.Count
	for _, p := range before.Probes {
		counts = append(counts, p.Counts...)
		if e := p.Events[0]; e.Stage != protocol.StageData || e.TTL != 57 || e.Length != len(c.sent[0]) && e.Length != len(c.sent[1]) {
			t.Errorf("%+v", e)
		}
	}
	if diff := cmp.Diff([]wire.Count{{Ports: ports(t, "3478"), Seen: 5, Answered: 5}, {Ports: ports(t, "3478"), Seen: 3, Answered: 3}}, counts, same); diff != "" {
		t.Errorf("counts of audio and video (-want +got):\n%s", diff)
	}
	for _, p := range c.sent {
		if out := b.deliver(netip.MustParseAddrPort("203.0.113.66:1"), p); len(out) > 0 {
			t.Errorf("%d bytes replayed from elsewhere are answered with %d", len(p), len(out[0].Payload))
		}
		p[len(p)-1] ^= 1
		if out := b.deliver(near, p); len(out) > 0 {
			t.Errorf("%d changed bytes are answered with %d", len(p), len(out[0].Payload))
		}
	}
	after := b.taken(t, testID)
	if diff := cmp.Diff(before.Sources, after.Sources, same); diff != "" {
		t.Errorf("the replay gave the session an address (-before +after):\n%s", diff)
	}
	if len(after.Strays) == 0 {
		t.Error("what was changed is not in the ledger")
	}
}
