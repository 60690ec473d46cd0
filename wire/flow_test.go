package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// random makes a datagram like none of another seed.
func random(seed, n int) []byte {
	k := Derive(Key{byte(seed)}, SessionID{byte(seed >> 8)}, Nonce{})
	b := make([]byte, n)
	k.NewStream(Request, uint32(seed), 0).Read(b)
	return b
}

func printsOf(list ...[]byte) (p Prints) {
	for _, b := range list {
		p.Add(b)
	}
	return p
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0xff
	return b
}

// What was heard is found to be changed wherever its changed byte is, and only
// when something like it was sent.
func TestADatagramThatWasNeverSentIsChanged(t *testing.T) {
	sent := [][]byte{random(1, 1200), random(2, 1200), random(3, 40), random(4, 5)}
	stranger := random(5, 1200)
	longer := append(bytes.Clone(sent[0]), 1)
	var many [][]byte
	for i := range MaxPrints + 1 {
		many = append(many, random(10+i, 60))
	}
	for _, c := range []struct {
		name        string
		sent, heard [][]byte
		want        string
	}{
		{"as sent", sent, sent, "nothing"},
		{"in another order, twice", sent, [][]byte{sent[2], sent[0], sent[0]}, "nothing"},
		{"lost", sent, nil, "nothing"},
		{"first byte", sent, [][]byte{flipped(sent[0], 0)}, "1200 bytes at 0"},
		{"connection id", sent, [][]byte{sent[0], flipped(sent[1], 13)}, "1200 bytes at 13"},
		{"payload", sent, [][]byte{flipped(sent[2], 39)}, "40 bytes at -1"},
		{"short", sent, [][]byte{flipped(sent[3], 4)}, "5 bytes at 4"},
		{"somebody else's of the same length", sent, [][]byte{stranger}, "nothing"},
		{"of another length", sent, [][]byte{longer}, "nothing"},
		{"nothing was sent", nil, [][]byte{stranger}, "nothing"},
		{"empty", [][]byte{{}}, [][]byte{{}}, "nothing"},
		{"more were sent than are kept", many, [][]byte{flipped(many[0], 30)}, "nothing"},
		{"as many were sent as are kept", many[:MaxPrints], [][]byte{flipped(many[0], 30)}, "60 bytes at -1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := "nothing"
			if p, at, ok := printsOf(c.sent...).Changed(printsOf(c.heard...)); ok {
				got = fmt.Sprintf("%d bytes at %d", p.Length, at)
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
	if a := printsOf(sent...); !a.Shares(printsOf(stranger, sent[3])) || a.Shares(printsOf(stranger)) || a.Shares(Prints{}) {
		t.Error("what two ends share is told wrongly")
	}
}

func TestFlowsSurviveJSON(t *testing.T) {
	want := Flow{Sent: printsOf(random(1, 1200), nil, random(2, 3)), Heard: Prints{N: 7}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Flow
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b Print) bool { return a == b }), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", b, diff)
	}
	for _, bad := range []string{"", "3", "3:00:00", "70000:00:0000000000000000", "1:0000:0000000000000000", "2:zz00:0000000000000000", "-1::0000000000000000"} {
		if err := new(Print).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a print", bad)
		}
	}
}
