package protocol

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go"
)

// vector gives the frame and the packet of RFC 9001 appendix A.2.
func vector(t testing.TB) (frame, packet []byte) {
	t.Helper()
	text, err := os.ReadFile("testdata/rfc9001-a2.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("\n"))
	parts := strings.Split(string(text), "\n\n")
	for i, p := range []*[]byte{&frame, &packet} {
		if *p, err = hex.DecodeString(strings.ReplaceAll(parts[i], "\n", "")); err != nil {
			t.Fatal(err)
		}
	}
	return frame, packet
}

func TestInitialOfRFC9001IsRead(t *testing.T) {
	frame, packet := vector(t)
	var r InitialReader
	r.Read(packet)
	const crypto = 4 // type, offset, and a length of two bytes
	if got := r.Record(); !bytes.Equal(got, append([]byte{0x16, 3, 1, 0, byte(len(frame) - crypto)}, frame[crypto:]...)) {
		t.Fatalf("%x", got)
	}
	got, err := ParseHello(r.Record())
	if diff := cmp.Diff(Hello{"example.com", []string{"alpn"}, []uint16{0x304}}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for at := range packet { // header and payload are authenticated
		changed := bytes.Clone(packet)
		changed[at] ^= 0x41
		var r InitialReader
		if r.Read(changed); r.Record() != nil {
			t.Errorf("a hello is read of a packet whose byte %d was changed", at)
		}
	}
}

// firstFlight gives the datagrams that the library sends for a name before
// anything is answered.
func firstFlight(t *testing.T, name string) (list [][]byte) {
	t.Helper()
	near, far := udpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tr := &quic.Transport{Conn: &datagramLink{Conn: near}}
		defer tr.Close()
		x := Exchange{ServerName: name, Stall: 10 * time.Second}
		var r Result
		if _, err := x.shakeHands(ctx, tr, near.RemoteAddr(), x.Stall, &r); err == nil {
			t.Error("a handshake without an answer")
		}
	}()
	defer func() { cancel(); <-ended }()
	var r InitialReader
	buf := make([]byte, 2048)
	for r.Record() == nil && len(list) < maxInitials {
		far.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := far.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, bytes.Clone(buf[:n]))
		r.Read(list[len(list)-1])
	}
	return list
}

// The library's hello is read from its datagrams in whatever order they come,
// and not before all are there.
func TestHelloOfSeveralInitialsIsPutTogether(t *testing.T) {
	list := firstFlight(t, "a.example")
	if len(list) < 2 {
		t.Fatalf("the hello takes %d datagrams: nothing is put together", len(list))
	}
	backwards := slices.Clone(list)
	slices.Reverse(backwards)
	for name, order := range map[string][][]byte{"as sent": list, "backwards": backwards, "each twice": slices.Concat(list[:1], list)} {
		var r InitialReader
		for i, d := range order {
			if r.Record() != nil {
				t.Errorf("%s: whole after %d datagrams", name, i)
			}
			r.Read(d)
		}
		got, err := ParseHello(r.Record())
		if diff := cmp.Diff(Hello{"a.example", []string{"h3"}, []uint16{0x304}}, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

// seal makes an Initial packet with the keys of one connection id and another one
// in its header, as clients send them once the server has chosen its own.
func seal(t *testing.T, keysOf, id []byte, number byte, payload []byte) []byte {
	t.Helper()
	k, err := clientKeys(keysOf)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte{0xc0, 0, 0, 0, 1, byte(len(id))}, id...)
	b = append(b, 0, 0) // no connection id of its own, no token
	n := 1 + len(payload) + k.aead.Overhead()
	b = append(b, 0x40|byte(n>>8), byte(n), number)
	at := len(b) - 1
	nonce := bytes.Clone(k.iv)
	nonce[len(nonce)-1] ^= number
	b = k.aead.Seal(b, nonce, payload, b)
	mask := make([]byte, 16)
	k.header.Encrypt(mask, b[at+4:][:16])
	b[0] ^= mask[0] & 0x0f
	b[at] ^= mask[1]
	return b
}

// After the server's first answer a client names the server's connection id and
// keeps its keys; after a Retry it has new ones.
func TestInitialsAreReadWithTheKeysThatHold(t *testing.T) {
	frame, _ := vector(t)
	hello := frame[4:]
	drawn, chosen := []byte("drawn-id"), []byte("chosen")
	half := func(from, to int) []byte {
		n := to - from
		return append([]byte{6, 0x40 | byte(from>>8), byte(from), 0x40 | byte(n>>8), byte(n)}, hello[from:to]...)
	}
	for name, list := range map[string][][]byte{
		"the server's connection id": {seal(t, drawn, drawn, 0, half(0, 100)), seal(t, drawn, chosen, 1, half(100, len(hello)))},
		"a Retry":                    {seal(t, drawn, drawn, 0, half(0, 100)), seal(t, chosen, chosen, 1, half(100, len(hello)))},
		"both in one datagram":       {slices.Concat(seal(t, drawn, drawn, 0, half(0, 100)), seal(t, drawn, chosen, 1, half(100, len(hello))))},
	} {
		var r InitialReader
		for _, d := range list {
			r.Read(d)
		}
		if got := r.Record(); len(got) < 5 || !bytes.Equal(got[5:], hello) {
			t.Errorf("%s: %x", name, got)
		}
	}
}

// The reader of what anybody sends reads no more than its bounds.
func TestInitialReaderIsBounded(t *testing.T) {
	list := firstFlight(t, "b.example")
	var r InitialReader
	for range maxInitials {
		r.Read(list[0])
	}
	for _, d := range list {
		r.Read(d)
	}
	if r.Record() != nil || r.tried != maxInitials {
		t.Errorf("%d packets were tried", r.tried)
	}
	r = InitialReader{}
	far := append([]byte{6}, 0x7f, 0xff, 0x41, 0x00) // 256 bytes of a hello beyond its bound
	r.frames(append(far, make([]byte, 256)...))
	if len(r.hello) > 0 {
		t.Errorf("%d bytes are kept", len(r.hello))
	}
}

func FuzzInitial(f *testing.F) {
	frame, packet := vector(f)
	f.Add(packet, frame)
	f.Add(packet[:100], []byte{2, 1, 2, 1, 0, 3, 3, 6, 0, 2, 1, 0})
	f.Add([]byte{0xc0, 0, 0, 0, 1, 0, 0, 0, 0x14}, []byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0x7f, 0xff, 0x40})
	f.Fuzz(func(t *testing.T, datagram, payload []byte) {
		var r InitialReader
		r.Read(datagram)
		r.frames(payload)
		if len(r.hello) > maxQUICHello || len(r.have) != len(r.hello) || r.tried > maxInitials {
			t.Errorf("%d and %d bytes, %d packets", len(r.hello), len(r.have), r.tried)
		}
		if record := r.Record(); record != nil && len(record) > 5+maxQUICHello {
			t.Errorf("a record of %d bytes", len(record))
		}
	})
}
