package scenarios

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPortSetsAreSortedAndJoined(t *testing.T) {
	for text, want := range map[string]string{
		"443":                 "443",
		"80, 20-22":           "20-22,80",
		"1-10,11-20":          "1-20",
		"65535,1":             "1,65535",
		"65534-65535,1-65533": "1-65535",
		"40000-40000":         "40000",
	} {
		set, err := ParsePortSet(text)
		if err != nil || set.String() != want {
			t.Errorf("%s: %s, %v; want %s", text, set, err, want)
		}
	}
}

func TestPortSetsCountAndHold(t *testing.T) {
	set, err := ParsePortSet("20-22,65534-65535")
	if err != nil {
		t.Fatal(err)
	}
	want := []uint16{20, 21, 22, 65534, 65535}
	if got := slices.Collect(set.All); !slices.Equal(got, want) || set.Len() != len(want) {
		t.Errorf("%v, %d", got, set.Len())
	}
	for port, in := range map[uint16]bool{19: false, 20: true, 22: true, 23: false, 65533: false, 65534: true, 65535: true} {
		if set.Contains(port) != in {
			t.Errorf("port %d: %v", port, !in)
		}
	}
	if got := Union(nil, set, PortSet{{10, 19}, {21, 65533}}).String(); got != "10-65535" {
		t.Errorf("union %s", got)
	}
}

// A port set's text is read back as the same set, sorted and apart.
func FuzzParsePortSet(f *testing.F) {
	for _, s := range []string{"443", "40000-41000", "20-22,80", " 1 - 2 , 3", "65535,1-65534", "2-1", "0", "65536", "1,,2", "+1", "1-2-3", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParsePortSet(text)
		if err != nil {
			return
		}
		again, err := ParsePortSet(s.String())
		if diff := cmp.Diff(s, again); err != nil || diff != "" {
			t.Errorf("%q as %q: %v (-first +again):\n%s", text, s, err, diff)
		}
		for i, r := range s {
			if r.First < 1 || r.Last < r.First || i > 0 && int(r.First) <= int(s[i-1].Last)+1 {
				t.Errorf("%q is %v", text, s)
			}
		}
		if text == "" || s.Len() == 0 || strings.Contains(text, "+") {
			t.Errorf("%q is a set", text)
		}
	})
}
