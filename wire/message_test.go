package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var sameAddr = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func testKeys() Keys { return Derive(testKey(), testSession(), Nonce{}) }

func testMessage() Message {
	return Message{
		Kind: Request, Offline: true, ByLocal: true, Port: 0x1234, Session: testSession(), Probe: 0xdeadbeef, Attempt: 7, Size: 90,
		Time: time.UnixMicro(0x0005e1a2b3c4d5e6), Seen: netip.MustParseAddrPort("192.0.2.1:40000"), TTL: 57, TOS: 0xb9,
		Idle: 50 * time.Second, Bytes: 0x01020304,
	}
}

// kinds is checked against the constants by TestKindsHaveTheirNumbers.
var kinds = []Kind{Request, Reply, Late, Done, Call}

func TestKindsHaveTheirNumbers(t *testing.T) {
	if diff := cmp.Diff([]Kind{1, 2, 3, 4, 5}, kinds); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMessagesAreLaidOutAsDocumented(t *testing.T) {
	want := strings.Join([]string{
		"b7777001",         //  0 magic and version
		"01", "03", "1234", //  4 kind, flags, port
		"a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", //  8 session
		"deadbeef",                         // 24 probe
		"0007", "005a",                     // 28 attempt, size
		"0005e1a2b3c4d5e6",                 // 32 time
		"00000000000000000000ffffc0000201", // 40 address
		"9c40", "39", "b9",                 // 56 port, ttl, tos
		"0000c350",                         // 60 idle
		"01020304",                         // 64 bytes
		"bd00ad5a3db3204c732bb62b69dfc877", // 68 mac
		"545556575859",                     // 84 padding
	}, "")
	m, k := testMessage(), testKeys()
	if diff := cmp.Diff(want, hex.EncodeToString(m.Append(nil, &k))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func randomMessage(r *rand.Rand) Message {
	m := Message{
		Kind: Kind(r.IntN(256)), Offline: r.IntN(2) == 0, ByLocal: r.IntN(2) == 0, Marked: r.IntN(2) == 0, Port: uint16(r.Uint32()), Session: testSession(),
		Probe: r.Uint32(), Attempt: uint16(r.Uint32()), Size: MessageSize + r.IntN(1500), Time: time.UnixMicro(int64(r.Uint64() >> 1)),
		TTL: uint8(r.Uint32()), TOS: uint8(r.Uint32()), Idle: time.Duration(r.Uint32()) * time.Millisecond, Bytes: r.Uint32(),
	}
	switch r.IntN(3) {
	case 0:
		m.Seen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.Uint32())}), uint16(1+r.IntN(65535)))
	case 1:
		a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(r.Uint32())}
		m.Seen = netip.AddrPortFrom(netip.AddrFrom16(a), uint16(1+r.IntN(65535)))
	}
	return m
}

func TestMessagesSurviveTheWire(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	k := testKeys()
	prefix := []byte("before")
	for range 2000 {
		want := randomMessage(r)
		b := want.Append(prefix, &k)
		if !bytes.HasPrefix(b, prefix) || len(b) != len(prefix)+want.Size {
			t.Fatalf("%+v takes %d bytes", want, len(b))
		}
		got, err := Parse(b[len(prefix):], &k)
		if err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func TestMessagesThatAskForNoSizeHaveTheSmallest(t *testing.T) {
	k := testKeys()
	for _, size := range []int{-1, 0, MessageSize - 1, MessageSize} {
		m := testMessage()
		m.Size = size
		got, err := Parse(m.Append(nil, &k), &k)
		if got.Size != MessageSize || err != nil {
			t.Errorf("size %d: %d, %v", size, got.Size, err)
		}
	}
}

func TestAnyFlippedBitIsSeen(t *testing.T) {
	k := testKeys()
	for _, kind := range kinds {
		m := testMessage()
		m.Kind = kind
		b := m.Append(nil, &k)
		for bit := range 8 * len(b) {
			b[bit/8] ^= 1 << (bit % 8)
			want := ErrAltered
			if bit < 32 {
				want = ErrNotMessage // the magic
			}
			if _, err := Parse(b, &k); !errors.Is(err, want) {
				t.Errorf("kind %d, bit %d: %v, want %v", kind, bit, err, want)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		if _, err := Parse(b, &k); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCutOrLengthenedMessagesAreSeen(t *testing.T) {
	m, k := testMessage(), testKeys()
	b := m.Append(nil, &k)
	for n := range len(b) {
		want := ErrAltered
		if n < MessageSize {
			want = ErrNotMessage
		}
		if _, err := Parse(b[:n], &k); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", n, err, want)
		}
	}
	if _, err := Parse(append(b, 0x5a), &k); !errors.Is(err, ErrAltered) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestErrorsOfMessagesReadWell(t *testing.T) {
	want := []string{"not a wallprobe message", "message altered or made with another key"}
	if diff := cmp.Diff(want, []string{ErrNotMessage.Error(), ErrAltered.Error()}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReplyIsNeverLongerThanItsRequest(t *testing.T) {
	k := testKeys()
	for _, size := range []int{0, MessageSize, MessageSize + 1, 1200, 65507} {
		q := testMessage()
		q.Size = size
		request := q.Append(nil, &k)
		got, err := Parse(request, &k)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range kinds {
			got.Kind, got.Seen = kind, netip.MustParseAddrPort("[2001:db8::1]:65535")
			if n := len(got.Append(nil, &k)); n > len(request) {
				t.Errorf("kind %d: %d bytes answer %d", kind, n, len(request))
			}
		}
	}
}

// A reflector that gets another's answer, or its own, must not take it for a
// request, whatever a person in the middle writes over the kind.
func TestReplyReflectedIsNoRequest(t *testing.T) {
	k := testKeys()
	for _, kind := range kinds[1:] {
		m := testMessage()
		m.Kind = kind
		b := m.Append(nil, &k)
		if got, err := Parse(b, &k); err != nil || got.Kind != kind {
			t.Errorf("kind %d is read as %d, %v", kind, got.Kind, err)
		}
		b[4] = byte(Request)
		if _, err := Parse(b, &k); !errors.Is(err, ErrAltered) {
			t.Errorf("kind %d made a request: %v", kind, err)
		}
	}
	m := testMessage()
	b := m.Append(nil, &k)
	for kind := range 256 {
		if b[4] = byte(kind); kind != int(Request) {
			if _, err := Parse(b, &k); !errors.Is(err, ErrAltered) {
				t.Errorf("a request made kind %d: %v", kind, err)
			}
		}
	}
}

func TestMessageOfAnotherSessionOrKeyIsNotAccepted(t *testing.T) {
	other := testKey()
	other[5] ^= 1
	m := testMessage()
	k := testKeys()
	b := m.Append(nil, &k)
	for name, keys := range map[string]Keys{
		"another key":                 Derive(other, testSession(), Nonce{}),
		"another nonce":               Derive(testKey(), testSession(), Nonce{1}),
		"another session":             Derive(testKey(), SessionID{1}, Nonce{}),
		"this one's keys, another id": {ID: SessionID{1}, request: k.request, reply: k.reply},
	} {
		if _, err := Parse(b, &keys); !errors.Is(err, ErrAltered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// RFC 9443 section 3: bytes that STUN, ZRTP, DTLS, TURN channels and QUIC begin with.
func TestMessageNeverLooksLikeAnotherProtocol(t *testing.T) {
	m, k := testMessage(), testKeys()
	switch b := m.Append(nil, &k)[0]; {
	case b < 128 || b > 191:
		t.Errorf("the first byte, %d, is outside 128 to 191", b)
	}
}

func FuzzMessage(f *testing.F) {
	k := testKeys()
	m := testMessage()
	f.Add(m.Append(nil, &k))
	f.Fuzz(func(t *testing.T, b []byte) {
		head, err := ParseHead(b)
		if (err == nil) != (len(b) >= MessageSize && IsMessage(b)) {
			t.Fatalf("head of %x: %v", b, err)
		}
		got, err := Parse(b, &k)
		if err != nil {
			if !errors.Is(err, ErrAltered) && !errors.Is(err, ErrNotMessage) {
				t.Fatalf("%x: %v", b, err)
			}
			if head.Size < MessageSize || head.Kind == 0 {
				return
			}
			head.Session = k.ID // make it ours, so that its fields are tried too
			b = head.Append(nil, &k)
			if got, err = Parse(b, &k); err != nil {
				t.Fatalf("%x: %v", b, err)
			}
		}
		if again := got.Append(nil, &k); !bytes.Equal(again, b) {
			t.Fatalf("\n%x becomes\n%x", b, again)
		}
	})
}

func TestStreamsAreTheSameAtBothEndsAndUnlikeAnyOther(t *testing.T) {
	k, twin := testKeys(), testKeys()
	read := func(s *Stream, sizes ...int) []byte {
		var out []byte
		for _, n := range sizes {
			p := make([]byte, n)
			if got, err := s.Read(p); got != n || err != nil {
				t.Fatalf("%d bytes: %d, %v", n, got, err)
			}
			out = append(out, p...)
		}
		return out
	}
	want := read(k.NewStream(Request, 1, 2), 4096)
	if diff := cmp.Diff(want, read(twin.NewStream(Request, 1, 2), 1, 7, 8, 1000, 3080)); diff != "" {
		t.Errorf("reading in other pieces gives other bytes (-want +got):\n%s", diff)
	}
	otherKey := Derive(testKey(), testSession(), Nonce{1})
	for name, s := range map[string]*Stream{
		"the other direction": k.NewStream(Reply, 1, 2),
		"another probe":       k.NewStream(Request, 2, 2),
		"another attempt":     k.NewStream(Request, 1, 3),
		"another session":     otherKey.NewStream(Request, 1, 2),
	} {
		if got := read(s, 4096); bytes.Equal(got[:16], want[:16]) {
			t.Errorf("%s has the same bytes", name)
		}
	}
}

// An altered byte must show at its own place: no two neighbours may repeat.
func TestStreamBytesLookRandom(t *testing.T) {
	k := testKeys()
	p := make([]byte, 1<<16)
	k.NewStream(Reply, 9, 0).Read(p)
	var count [256]int
	for _, b := range p {
		count[b]++
	}
	for b, n := range count {
		if n < 128 || n > 512 { // 256 expected, standard deviation 16
			t.Errorf("byte %d comes %d times in %d", b, n, len(p))
		}
	}
}
