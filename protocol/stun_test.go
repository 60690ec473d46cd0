package protocol

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"
)

const (
	stunUser = "wp-a0a1a2a3a4a5a6a7a8a9aaabacadaeaf-1b9a2c3"
	stunPass = "short-lived"
)

// bindingAnswer is what a STUN server makes (RFC 8489 section 10).
func bindingAnswer(t testing.TB, id [12]byte, typ stun.MessageType, password string, seen netip.AddrPort) []byte {
	t.Helper()
	m, err := stun.Build(typ, stun.NewTransactionIDSetter(id),
		&stun.XORMappedAddress{IP: net.IP(seen.Addr().AsSlice()), Port: int(seen.Port())}, stun.NewShortTermIntegrity(password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

func TestBindingIsPaddedAndProven(t *testing.T) {
	for _, label := range []string{"", "1", "4294967295"} {
		b, id, err := Binding(stunUser, stunPass, label)
		if err != nil {
			t.Fatal(err)
		}
		m := stun.New()
		if err := stun.Decode(b, m); err != nil {
			t.Fatal(err)
		}
		var user stun.Username
		if err := user.GetFrom(m); err != nil {
			t.Fatal(err)
		}
		type binding struct {
			Size             int
			Type             stun.MessageType
			ID               [12]byte
			User             string
			Integrity, Print error
		}
		want := binding{256, stun.BindingRequest, id, stunUser + ":" + label, nil, nil}
		got := binding{len(b), m.Type, m.TransactionID, user.String(), stun.NewShortTermIntegrity(stunPass).Check(m), stun.Fingerprint.Check(m)}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Errorf("label %q (-want +got):\n%s", label, diff)
		}
	}
}

func TestBindingsAreNeverAlike(t *testing.T) {
	_, a, _ := Binding(stunUser, stunPass, "1")
	_, b, _ := Binding(stunUser, stunPass, "1")
	if a == b {
		t.Error("two Bindings have one transaction id")
	}
}

func TestBindingExplainsAnOversizeUserName(t *testing.T) {
	_, _, err := Binding(strings.Repeat("u", 600), stunPass, "1")
	if err == nil || !strings.HasPrefix(err.Error(), "stun binding: user name: ") {
		t.Errorf("%v", err)
	}
}

func TestBindingAnswersGiveTheAddressThatWasSeen(t *testing.T) {
	for seen, want := range map[string]string{
		"192.0.2.7:50000": "192.0.2.7:50000", "[2001:db8::7]:1": "[2001:db8::7]:1", "192.0.2.7:65535": "192.0.2.7:65535",
	} {
		id := [12]byte{1, 2, 3}
		got, err := ParseBinding(bindingAnswer(t, id, stun.BindingSuccess, stunPass, netip.MustParseAddrPort(seen)), stunPass, id)
		if err != nil || got.String() != want {
			t.Errorf("%s: %v, %v", seen, got, err)
		}
	}
}

func TestBindingAnswersThatAreNotOursAreTold(t *testing.T) {
	id, at := [12]byte{1}, netip.MustParseAddrPort("192.0.2.7:50000")
	good := bindingAnswer(t, id, stun.BindingSuccess, stunPass, at)
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":             {nil, ErrForeign},
		"a short one":         {good[:19], ErrForeign},
		"one byte more":       {append(good[:len(good):len(good)], 0), ErrForeign},
		"another transaction": {bindingAnswer(t, [12]byte{2}, stun.BindingSuccess, stunPass, at), ErrForeign},
		"an error":            {bindingAnswer(t, id, stun.BindingError, stunPass, at), ErrForeign},
		"a request":           {bindingAnswer(t, id, stun.BindingRequest, stunPass, at), ErrForeign},
		"another password":    {bindingAnswer(t, id, stun.BindingSuccess, "other", at), errAltered},
		"a TURN channel":      {append([]byte{0x40}, good[1:]...), ErrForeign},
	} {
		if _, err := ParseBinding(c.b, stunPass, id); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for bit := range 8 * len(good) {
		good[bit/8] ^= 1 << (bit % 8)
		if got, err := ParseBinding(good, stunPass, id); err == nil {
			t.Errorf("bit %d flipped: taken for %v", bit, got)
		}
		good[bit/8] ^= 1 << (bit % 8)
	}
}

func FuzzParseBinding(f *testing.F) {
	id := [12]byte{1}
	f.Add(bindingAnswer(f, id, stun.BindingSuccess, stunPass, netip.MustParseAddrPort("192.0.2.7:50000")))
	f.Add(bindingAnswer(f, id, stun.BindingSuccess, stunPass, netip.MustParseAddrPort("[2001:db8::7]:1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseBinding(b, stunPass, id)
		if err == nil && (!got.IsValid() || len(b) < 20 || int(binary.BigEndian.Uint16(b[2:])) != len(b)-20) {
			t.Errorf("%x is taken for %v", b, got)
		}
	})
}
