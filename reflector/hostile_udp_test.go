package reflector

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// spokenOverUDP are the protocols that answer single datagrams by their port.
func spokenOverUDP(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, name := range protocol.Names() {
		if ends := protocol.On(name, scenarios.UDP); ends != nil && ends.Answer != nil {
			names = append(names, name)
		}
	}
	if len(names) < 2 {
		t.Fatalf("only %v", names)
	}
	return names
}

func benchOf(t *testing.T, name string) *bench {
	return newBench(t, Config{Speaks: map[protocol.Port]string{
		{Transport: scenarios.UDP, Number: local.Port()}:     name,
		{Transport: scenarios.UDP, Number: local.Port() + 1}: name,
	}})
}

// recordings are what a near end sends that speaks each protocol, with the
// reflector's answers.
func recordings(t *testing.T, name string, key wire.Key) (b *bench, sent, answers [][]byte) {
	t.Helper()
	b = benchOf(t, name)
	c := &recording{wired: &wired{b: b}}
	k := wire.Derive(key, testID, wire.Nonce{})
	x := protocol.Exchange{Keys: &k, Offline: true, Probe: 3, Port: local.Port(), ServerName: "a.example", Stall: 80 * time.Millisecond, Now: b.clock.now}
	protocol.Named(name).UDP.Probe(t.Context(), c, x)
	for port := range uint16(3) { // of the project's own kind, and STUN
		sent = append(sent, b.request(testID, func(m *wire.Message) { m.Probe, m.Attempt = 9, port }))
	}
	user, pass := wire.TURN(key, testID, b.clock.now())
	binding, _, err := protocol.Binding(user, pass, "7")
	if err != nil {
		t.Fatal(err)
	}
	return b, append(append(sent, binding), c.sent...), c.all
}

// A recording is a wired connection that keeps the answers.
type recording struct {
	*wired
	all [][]byte
}

func (c *recording) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(local) }
func (c *recording) LocalAddr() net.Addr  { return net.UDPAddrFromAddrPort(near) }

func (c *recording) Write(p []byte) (int, error) {
	before := len(c.answers)
	n, err := c.wired.Write(p)
	for _, a := range c.answers[before:] {
		c.all = append(c.all, slices.Clone(a))
	}
	return n, err
}

// flood gives what a victim is sent for datagrams in its name, over an hour.
func (b *bench) flood(victim netip.AddrPort, sent [][]byte) (in, out int) {
	for round := range 60 {
		for _, p := range sent {
			in += len(p)
			for _, d := range b.deliverAt(netip.AddrPortFrom(local.Addr(), local.Port()+uint16(round%2)), victim, p) {
				out += len(d.Payload)
			}
		}
		b.clock.pass(time.Minute)
	}
	return in, out
}

func (b *bench) deliverAt(at, from netip.AddrPort, p []byte) (out []steer.Datagram) {
	b.relayed = nil
	b.Datagrams([]steer.Datagram{{Local: at, Remote: from, Payload: slices.Clone(p)}}, func(d []steer.Datagram) { out = append(out, d...) })
	return append(out, b.relayed...)
}

// Over every UDP protocol, what proves nothing is sent no more than came in its
// name: not for one datagram, and not for an hour of them.
func TestUnprovenSourcesGetNoMoreThanTheySentOverAnHour(t *testing.T) {
	for _, name := range spokenOverUDP(t) {
		_, sent, _ := recordings(t, name, wire.Key{9}) // a key that is not the reflector's
		r := rand.New(rand.NewPCG(3, 4))
		for i := range 200 {
			p := slices.Clone(sent[i%len(sent)])
			for range 1 + i%3 {
				p[r.IntN(len(p))] ^= byte(1 + r.IntN(255))
			}
			sent = append(sent, p[:1+r.IntN(len(p))])
		}
		b := benchOf(t, name)
		if in, out := b.flood(netip.MustParseAddrPort("203.0.113.66:53"), sent); out > in {
			t.Errorf("%s: %d bytes for %d", name, out, in)
		}
	}
}

// What was recorded on the way buys nothing from another address: neither while
// the session is there nor when it has ended, at no port.
func TestRecordedDatagramsReachNoVictim(t *testing.T) {
	victim := netip.MustParseAddrPort("203.0.113.66:53")
	for _, name := range spokenOverUDP(t) {
		b, sent, answers := recordings(t, name, testKey)
		if len(answers) == 0 {
			t.Fatalf("%s: nothing is answered", name)
		}
		for _, p := range sent { // those that no near end sent yet
			b.deliver(near, p)
		}
		for _, ended := range []bool{false, true} {
			if ended {
				if l := b.taken(t, testID); slices.Contains(l.Sources, victim.Addr()) {
					t.Errorf("%s: the session came from the victim's address", name)
				}
				b.sessions.end(testID)
			}
			for i, p := range sent {
				for at := range uint16(2) {
					for _, d := range b.deliverAt(netip.AddrPortFrom(local.Addr(), local.Port()+at), victim, p) {
						if len(d.Payload) > len(p) || name != "dns" {
							t.Errorf("%s: ended %v: number %d at port +%d is answered with %d bytes", name, ended, i, at, len(d.Payload))
						}
					}
				}
			}
		}
		if len(b.late.waiting) > 0 {
			t.Errorf("%s: a late message waits", name)
		}
	}
}

// No answer of a reflector is answered, by itself or by another one, on a port
// of whatever protocol: two of them that were made to send to each other fall
// silent after one round.
func TestNoAnswerIsAnsweredByAnyProtocol(t *testing.T) {
	names := spokenOverUDP(t)
	for _, name := range names {
		b, sent, answers := recordings(t, name, testKey)
		for _, p := range slices.Concat(sent, [][]byte{unknownVersionPacket(1200), make([]byte, 1200)}) {
			for _, d := range b.deliver(near, p) {
				answers = append(answers, d.Payload)
			}
		}
		for i := range 64 { // errors are answers too
			q := slices.Clone(sent[len(sent)-1])
			q[i%len(q)] ^= 0x55
			for _, d := range b.deliver(near, q) {
				answers = append(answers, d.Payload)
			}
		}
		if len(answers) < 2 {
			t.Fatalf("%s: %d answers", name, len(answers))
		}
		for _, other := range names {
			for who, c := range map[string]*bench{"itself": b, "another": benchOf(t, other)} {
				for _, a := range answers {
					for _, d := range c.deliverAt(netip.AddrPortFrom(local.Addr(), local.Port()+1), local, a) {
						t.Errorf("%s's answer is answered by %s's of %s: %s", name, other, who, fmt.Sprintf("%.60x with %.60x", a, d.Payload))
					}
				}
			}
		}
	}
}

// A late message goes where its request came from, once, however often that is
// sent again and from wherever.
func TestLateMessagesCannotBeOrderedForOthers(t *testing.T) {
	b := newBench(t, Config{})
	ask := func(m *wire.Message) { m.Idle = time.Hour }
	b.deliver(near, b.request(testID, ask))
	for i := range 100 {
		b.deliver(spoofed(i), b.request(testID, ask))
	}
	b.late.mu.Lock()
	defer b.late.mu.Unlock()
	if n := len(b.late.waiting); n != 1 {
		t.Errorf("%d late messages wait for one request", n)
	}
}
