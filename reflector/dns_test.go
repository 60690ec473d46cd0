package reflector

import (
	"encoding/base32"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// speaking is a live reflector whose one port speaks a protocol over UDP.
func speaking(t *testing.T, name string) *live {
	t.Helper()
	speaks := make(map[protocol.Port]string)
	for n := range 1 << 16 { // the port is not known beforehand
		speaks[protocol.Port{Transport: scenarios.UDP, Number: uint16(n)}] = name
	}
	return start(t, Config{Speaks: speaks})
}

func TestDNSExchangeIsWholeAtBothEndsOverUDP(t *testing.T) {
	l := speaking(t, "dns")
	_, x, p := l.exchange(testID, "dns")
	u := l.udp(t)
	res := p.UDP.Probe(t.Context(), u, x)
	if res.Stage != protocol.StageDone || res.Sent != 1 || res.Heard != 1 || !strings.HasPrefix(res.Detail, "A: A 192.0.2.") {
		t.Fatalf("%+v", res)
	}
	ledger := l.ledger(l.sessions.find(testID))
	if len(ledger.Probes) != 1 || len(ledger.Probes[0].Events) != 1 {
		t.Fatalf("%+v", ledger)
	}
	e := ledger.Probes[0].Events[0]
	want := wire.Event{Time: e.Time, Transport: scenarios.UDP, Remote: netip.MustParseAddrPort(u.LocalAddr().String()), Local: l.at, Session: testID,
		Probe: x.Probe, Stage: protocol.StageToken, Length: 384, TTL: e.TTL, TOS: e.TOS, Answered: true, Said: &wire.Said{Sent: res.Said.Heard, Heard: res.Said.Sent}}
	if diff := cmp.Diff(want, e, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	counts := []wire.Count{{Ports: scenarios.PortSet{{First: l.at.Port(), Last: l.at.Port()}}, Seen: 1, Answered: 1}}
	if diff := cmp.Diff(counts, ledger.Probes[0].Counts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// tokenQuery is a query of a session for its own name.
func tokenQuery(b *bench, id, edns uint16) []byte {
	text := strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b.request(testID, nil)))
	q := new(dns.Msg).SetQuestion(text[:63]+"."+text[63:126]+"."+text[126:]+".t.wallprobe.invalid.", dns.TypeA)
	q.Id = id
	q.SetEdns0(1232, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, edns)}}
	p, err := q.Pack()
	if err != nil {
		panic(err)
	}
	return p
}

// The id of a query is random, and its first byte must not make QUIC, STUN or
// TURN of it.
func TestDNSQueryIsKnownByItsPortWhateverItsId(t *testing.T) {
	for first := range 256 {
		b := newBench(t, Config{Speaks: map[protocol.Port]string{{Transport: scenarios.UDP, Number: local.Port()}: "dns"}})
		p := tokenQuery(b, uint16(first)<<8|0x77, 200)
		out := b.deliver(near, p)
		if len(out) != 1 || len(out[0].Payload) > len(p) || out[0].Local != local || out[0].Remote != near {
			t.Fatalf("id %02x77: %v", first, out)
		}
		if again := b.deliver(near, p); len(again) != 0 {
			t.Fatalf("id %02x77: replayed, it is answered with %v", first, again)
		}
	}
}

func TestUnprovenDNSIsNeverAnsweredWithMoreBytes(t *testing.T) {
	b := newBench(t, Config{Speaks: map[protocol.Port]string{{Transport: scenarios.UDP, Number: local.Port()}: "dns"}})
	answered := 0
	for _, qtype := range []uint16{dns.TypeA, dns.TypeANY, dns.TypeTXT, dns.TypeRRSIG, dns.TypeDNSKEY} {
		for _, name := range []string{".", "isc.org.", "t.wallprobe.invalid.", strings.Repeat("a.", 100)} {
			q := new(dns.Msg).SetQuestion(name, qtype)
			for _, edns := range []bool{false, true} {
				if edns {
					q.SetEdns0(65535, true)
				}
				p, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range b.deliver(near, p) {
					answered++
					if len(d.Payload) > len(p) {
						t.Errorf("%s %d: %d bytes are answered with %d", name, qtype, len(p), len(d.Payload))
					}
					if again := b.deliver(local, d.Payload); len(again) > 0 {
						t.Errorf("%s: the answer is answered: %v", name, again)
					}
				}
			}
		}
	}
	if answered == 0 {
		t.Error("nothing was answered, so nothing was tested")
	}
	if len(b.sessions.all()) > 0 {
		t.Error("a session was made")
	}
}

// dig is a client that nobody here wrote: it is answered with the known address
// where its query holds a token, over UDP when it pays by padding, else over TCP.
func TestDigGetsTheAnswerToAToken(t *testing.T) {
	need.Program(t, "dig")
	for n, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"+notcp", "+ignore", "+padding=468"}, []string{"NOERROR", "ANSWER: 1", "192.0.2.", "TXT"}},
		{[]string{"+notcp", "+ignore", "+noedns"}, []string{"NOERROR", "ANSWER: 0", " tc "}},
		{[]string{"+noedns"}, []string{"retrying in TCP", "ANSWER: 1", "192.0.2."}},
		{[]string{"+tcp"}, []string{"ANSWER: 1", "192.0.2.", "TXT"}},
	} {
		l := speaking(t, "dns")
		k := wire.Derive(testKey, testID, wire.Nonce{})
		m := wire.Message{Kind: wire.Request, Offline: true, Port: l.at.Port(), Session: testID, Probe: uint32(n + 1), Size: wire.MessageSize, Time: l.now()}
		text := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(m.Append(nil, &k)) // in capitals, which is the same
		name := text[:63] + "." + text[63:126] + "." + text[126:] + ".t.wallprobe.invalid."
		args := append([]string{"@127.0.0.1", "-p", fmt.Sprint(l.at.Port()), "+tries=1", "+time=5", name, "A"}, c.args...)
		out, err := exec.CommandContext(t.Context(), "dig", args...).CombinedOutput()
		for _, part := range c.want {
			if err != nil || !strings.Contains(string(out), part) {
				t.Errorf("dig %v: no %q: %v\n%s", c.args, part, err, out)
			}
		}
	}
}
