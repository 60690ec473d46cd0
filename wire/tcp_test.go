package wire

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// SYNs as Linux sends them, from the IP header on.
const (
	syn4 = "4502003c1c46400040066f470a4d0102c633640a" + "a1f41f420fb6e1c200000000a0c2faf000000000" + "020405b40402080a11223344000000000103030a"
	syn6 = "6b80000000280640fd770000000000010000000000000002" + "20010db800640000000000000000000a" + "a1f41f420fb6e1c200000000a002fd2000000000" + "020405a00402080a55667788000000000103030a"
)

func packet(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSYNIsReadWithItsOptions(t *testing.T) {
	for text, want := range map[string]TCPSeen{
		syn4: {TTL: 64, TOS: 2, MSS: 1460, Timestamp: 0x11223344},
		syn6: {TTL: 64, TOS: 0xb8, MSS: 1440, Timestamp: 0x55667788},
	} {
		got, ok := ParseSYN(packet(t, text))
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("%v (-want +got):\n%s", ok, diff)
		}
	}
}

func TestCutOffSYNIsNone(t *testing.T) {
	for _, text := range []string{syn4, syn6} {
		b := packet(t, text)
		for n := range b {
			if got, ok := ParseSYN(b[:n]); ok {
				t.Fatalf("%d of %d bytes were read as %+v", n, len(b), got)
			}
		}
		b[9], b[6] = 17, 17 // UDP
		if got, ok := ParseSYN(b); ok {
			t.Fatalf("UDP was read as %+v", got)
		}
	}
}

func FuzzSYN(f *testing.F) {
	f.Add(packet(f, syn4))
	f.Add(packet(f, syn6))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, ok := ParseSYN(b); !ok && got.MSS != 0 {
			t.Fatalf("not read, but %+v", got)
		}
	})
}
