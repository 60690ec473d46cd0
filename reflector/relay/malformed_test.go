package relay

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

func relength(b []byte, n int) []byte {
	b = append([]byte(nil), b...)
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return b
}

// malformedMessages are variants of attack 13, each by what is wrong with it.
func malformedMessages(t testing.TB) map[string][]byte {
	plain := build(t, stun.BindingRequest, padding(60))
	signed, _, err := protocol.Binding("wp-a", "secret of wp-a", "")
	if err != nil {
		t.Fatal(err)
	}
	many := build(t, stun.BindingRequest)
	for range 10000 {
		many = append(many, 0x80, 0, 0, 0)
	}
	return map[string][]byte{
		"odd length":           relength(append(plain[:len(plain):len(plain)], 0), len(plain)-19),
		"odd and not padded":   append(plain[:len(plain):len(plain)], 0),
		"length too long":      relength(plain, len(plain)),
		"length 65532":         relength(plain, 65532),
		"length too short":     relength(plain, len(plain)-24),
		"length zero":          relength(plain, 0),
		"trailing bytes":       append(plain[:len(plain):len(plain)], 0, 0, 0, 0),
		"10,000 attributes":    relength(many, len(many)-20),
		"attribute overruns":   append(relength(plain[:20], 4), 0, 6, 0, 1),
		"attribute at 65535":   append(relength(plain[:20], 4), 0, 6, 0xff, 0xff),
		"after the integrity":  append(relength(signed[:len(signed)-8], len(signed)-20), 0, 0x20, 0, 4, 1, 2, 3, 4),
		"after fingerprint":    append(relength(signed, len(signed)-12), 0x80, 0x22, 0, 4, 1, 2, 3, 4),
		"integrity of 4 bytes": build(t, stun.BindingRequest, attr(stun.AttrMessageIntegrity, 1, 2, 3, 4)),
		"integrity twice":      append(relength(signed[:len(signed)-8], len(signed)-4), signed[len(signed)-32:len(signed)-8]...),
		"fingerprint of 0":     build(t, stun.BindingRequest, attr(stun.AttrFingerprint)),
	}
}

// Attack 13.
func TestMalformedMessagesCostNothingAndAreCounted(t *testing.T) {
	for name, b := range malformedMessages(t) {
		w := newWorld(t, func(cfg *Config) { cfg.PlainSTUN = true })
		w.pay("wp-a", localAddr, remoteAddr)
		if !w.s.Datagram(b, localAddr, remoteAddr) {
			t.Errorf("%s: left to another protocol", name)
		}
		if out := w.drain(); len(out) > 0 {
			t.Errorf("%s: answered", name)
		}
		if d := cmp.Diff(map[string]int{"stun-malformed": 1}, w.counts); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		w.stop()
	}
}

// pion v2.1.6 reads past the end of a peer address that is too short; none
// may get that far, with or without credentials.
func TestMalformedTURNAttributesDoNotReachTheRelay(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	number := attr(stun.AttrChannelNumber, 0x40, 1, 0, 0)
	peer := xorPeer(netip.MustParseAddrPort("203.0.113.77:9"))
	for _, v := range [][]byte{{}, {0}, {0, 1}, {0, 1, 2, 3}, {0, 1, 2, 3, 4, 5, 6}, {0, 2, 2, 3, 4, 5, 6, 7},
		{0, 3, 2, 3, 4, 5, 6, 7}, make([]byte, 20), make([]byte, 200)} {
		bad := attr(stun.AttrXORPeerAddress, v...)
		for typ, attrs := range map[stun.MessageType][]stun.Setter{permissionType: {bad}, channelType: {number, bad}} {
			if code, _ := u.ask(typ, attrs...); code != stun.CodeBadRequest {
				t.Errorf("%v with a peer of %x: %v", typ, v, code)
			}
		}
		w.s.Datagram(build(t, sendIndication, attr(stun.AttrData, 1), bad), u.local, u.remote)
		w.s.Datagram(build(t, sendIndication, bad, attr(stun.AttrData)), u.local, u.remote)
	}
	for _, n := range [][]byte{{}, {0x40, 1}, {0x3f, 0xff, 0, 0}, {0x80, 0, 0, 0}, {0xff, 0xff, 0, 0}, {0, 0, 0, 0}} {
		if code, _ := u.ask(channelType, attr(stun.AttrChannelNumber, n...), peer); code != stun.CodeBadRequest {
			t.Errorf("channel %x: %v", n, code)
		}
	}
	w.s.Datagram(build(t, sendIndication, peer), u.local, u.remote) // no data
	if got := w.count("turn-bad-indication"); got != 19 {
		t.Errorf("%d bad indications counted", got)
	}
	for _, b := range [][]byte{{0x40, 1, 0, 5, 1, 2, 3, 4}, {0x40, 1, 0xff, 0xff}, {0x40, 1, 0, 0, 1, 2, 3, 4}, {0x4f, 0xff, 0x80, 0, 1}} {
		w.s.Datagram(b, u.local, u.remote)
	}
	if got := w.count("turn-bad-channel-data"); got != 4 {
		t.Errorf("%d bad channel data counted", got)
	}
	if a := w.s.lookup(tuple{local: localAddr, remote: remoteAddr}); len(a.peers) > 0 || len(a.queue) > 0 {
		t.Errorf("peers %v, %d messages queued", a.peers, len(a.queue))
	}
	if code, _ := u.ask(permissionType, peer); code != 0 {
		t.Errorf("the relay has stopped: %v", code)
	}
}

func TestChannelDataWithoutAllocationIsLeftToOtherProtocols(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	u := w.newUser("wp-a", remoteAddr)
	u.allocate()
	data := []byte{0x40, 1, 0, 0}
	got := []bool{w.s.Datagram(data, u.local, u.remote), w.s.Datagram(data, u.local, from(1)),
		w.s.Datagram([]byte{0x50, 1, 0, 0}, u.local, u.remote), w.s.Datagram(make([]byte, 64), u.local, u.remote)}
	if d := cmp.Diff([]bool{true, false, false, false}, got); d != "" {
		t.Error(d)
	}
}

// FuzzDatagram feeds what strangers may send: whatever it is, it must not
// crash the service nor draw more bytes than it has.
func FuzzDatagram(f *testing.F) {
	for _, b := range malformedMessages(f) {
		if len(b) < 2000 {
			f.Add(b)
		}
	}
	f.Add(build(f, stun.BindingRequest))
	f.Add(build(f, allocateType, udpTransport, padding(60)))
	f.Add(build(f, sendIndication, xorPeer(remoteAddr), attr(stun.AttrData, 1)))
	f.Add([]byte{0x40, 1, 0, 4, 1, 2, 3, 4})
	var mu sync.Mutex
	var out int
	s := New(Config{
		Credentials: func(u string, _ time.Time) (string, string, bool) { return "unguessable", "a", true },
		Send: func(b []byte, _, _ netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			out += len(b)
			return nil
		},
		Event: func(e Event) { f.Errorf("a stranger causes %+v", e) },
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		out = 0
		mu.Unlock()
		for _, remote := range []string{"203.0.113.9:40001", "[2001:db8::9]:40001"} {
			s.Datagram(b, localAddr, netip.MustParseAddrPort(remote))
		}
		mu.Lock()
		if out > 2*len(b) {
			t.Errorf("%d bytes drew %d", len(b), out)
		}
	})
}
