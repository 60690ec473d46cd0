package protocol

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/wire"
)

var shownChallenge = stun.MustBuild(stun.NewTransactionIDSetter([12]byte{1, 2}), stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse),
	stun.CodeUnauthorized, stun.NewRealm("wallprobe"), stun.NewNonce("n\x00"), stun.NewSoftware("box"),
	&stun.XORMappedAddress{IP: net.IPv4(192, 0, 2, 1), Port: 7}, stun.RawAttribute{Type: stun.AttrLifetime, Value: []byte{0, 0, 2, 88}},
	stun.RawAttribute{Type: stun.AttrPadding, Value: make([]byte, 40)}, stun.RawAttribute{Type: 0x8abc, Value: []byte{1, 2, 3}})

func TestSTUNMessagesAreShownAttributeByAttribute(t *testing.T) {
	want := []string{
		"Allocate error response 010200000000000000000000", "ERROR-CODE 401 Unauthorized", "REALM wallprobe", "NONCE 0x6e00", "SOFTWARE box",
		"XOR-MAPPED-ADDRESS 192.0.2.1:7", "LIFETIME 600 s", "0x26 40 bytes, digest 2c34ce1df23b", "0x8abc 0x010203",
	}
	if diff := cmp.Diff(want, STUNLines(shownChallenge.Raw)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(append(want[:2:2], "4 bytes that are no attribute"), STUNLines(shownChallenge.Raw[:44])); diff != "" {
		t.Errorf("cut short (-want +got):\n%s", diff)
	}
	if got := STUNLines([]byte("GET / HTTP/1.1\r\n\r\n")); got != nil {
		t.Errorf("what is no STUN: %q", got)
	}
}

// Whatever two messages are, they are shown alike only where they are alike but for
// what stands between attributes.
func FuzzSTUNLines(f *testing.F) {
	f.Add(shownChallenge.Raw, 30)
	f.Add(shownChallenge.Raw[:40], 0)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		lines := STUNLines(b)
		if len(b) >= 20 && len(lines) > 2+(len(b)-20)/4 {
			t.Errorf("%d lines of %d bytes", len(lines), len(b))
		}
		said := STUNSaid([][]byte{b}, nil)
		if len(said.Sent) > wire.MaxSaid {
			t.Errorf("%d lines are recorded", len(said.Sent))
		}
		if len(lines) == 0 || at < 8 || at >= 20 {
			return
		}
		other := append([]byte(nil), b...)
		other[at] ^= 1 // in the transaction
		if STUNLines(other)[0] == lines[0] {
			t.Error("two transactions look alike")
		}
	})
}
