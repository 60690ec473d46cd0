package protocol

import (
	"testing"

	"github.com/wallprobe/wallprobe/scenarios"
)

func TestEveryPathOfTheScenariosSaysWhatGoesOverTheWire(t *testing.T) {
	list, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, s := range list {
		for _, p := range s.Paths {
			for _, tr := range p.Transport {
				for _, bare := range []bool{false, true} {
					w := Spoken(p.Protocol, tr, bare)
					if w.Protocol == nil || w.Doc == "" || w.Kind == "" {
						t.Errorf("%s over %s, bare %v: nothing is said of %q", p.ID, tr, bare, w.Spoken)
					}
					checked++
				}
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d were checked", checked)
	}
}

func TestEveryProtocolSaysWhatItIs(t *testing.T) {
	for name, p := range protocols {
		if p.Doc == "" {
			t.Errorf("%s has no words", name)
		}
	}
}

func TestKindsOfTheWire(t *testing.T) {
	protocols["test-imitation"] = &Protocol{Doc: "x", Imitation: "y", TCP: plain.TCP}
	defer delete(protocols, "test-imitation")
	for _, c := range []struct {
		name      string
		transport scenarios.Transport
		bare      bool
		spoken    string
		kind      string
	}{
		{"stun", scenarios.UDP, false, "stun", Real},
		{"turns", scenarios.TCP, false, "turns", Real},
		{"tls", scenarios.TCP, false, "tls", Real},
		{"", scenarios.TCP, false, "plain", Undefined},
		{"", scenarios.UDP, true, "datagram", Undefined},
		{"no such protocol", scenarios.TCP, false, "plain", StoodFor},
		{"no such protocol", scenarios.UDP, false, "datagram", StoodFor},
		{"tls", scenarios.TCP, true, "plain", StoodFor},
		{"test-imitation", scenarios.TCP, false, "test-imitation", Imitated},
		{"test-imitation", scenarios.TCP, true, "plain", StoodFor},
		{"test-imitation", scenarios.UDP, false, "datagram", StoodFor},
	} {
		if w := Spoken(c.name, c.transport, c.bare); w.Spoken != c.spoken || w.Kind != c.kind {
			t.Errorf("%q over %s, bare %v: %s %s, want %s %s", c.name, c.transport, c.bare, w.Spoken, w.Kind, c.spoken, c.kind)
		}
	}
}
