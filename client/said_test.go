package client

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func TestFirstTellingLineThatChangedIsNamed(t *testing.T) {
	mail := protocol.Named("submission")
	meaning := ": " + mail.Means("STARTTLS", "")
	far := []string{"220 far", "250-far", "250-STARTTLS", "250 SIZE"}
	near := []string{"EHLO near", "STARTTLS"}
	long := strings.Repeat("x", 70)
	many := slices.Repeat([]string{"250-x"}, wire.MaxSaid)
	ftp := &protocol.Protocol{Harmless: func(sent, heard string) bool { return strings.HasPrefix(sent, "PORT") }}
	for name, c := range map[string]struct {
		about               *protocol.Protocol
		nearHeard, farHeard []string // nil: as sent
		want, helped        string
	}{
		"nothing":               {mail, nil, nil, "", ""},
		"nothing heard":         {mail, []string{}, []string{}, "", ""},
		"an unfinished line":    {mail, []string{"220 far", "250-f"}, nil, "", ""},
		"a banner":              {mail, []string{"220 ****", "250-far", "250-STARTTLS", "250 SIZE"}, nil, `"220 far" was sent, "220 ****" arrived here`, ""},
		"the offer taken away":  {mail, []string{"220 far", "250-far", "250 SIZE"}, nil, `"250-STARTTLS" was sent and taken away` + meaning, ""},
		"the offer and banner":  {mail, []string{"220 ****", "250-far", "250-XXXXXXXA", "250 SIZE"}, nil, `"250-STARTTLS" was sent, "250-XXXXXXXA" arrived here` + meaning, ""},
		"the command":           {mail, nil, []string{"EHLO near", "XXXXXXXX"}, `"STARTTLS" was sent, "XXXXXXXX" arrived at the reflector` + meaning, ""},
		"an answer put in":      {mail, append(slices.Clone(far), "454 no TLS"), []string{"EHLO near"}, `"454 no TLS" was put in before it arrived here` + meaning, ""},
		"a line put in between": {mail, []string{"220 far", "250-far", "250-AD", "250-STARTTLS", "250 SIZE"}, nil, `"250-AD" was put in before it arrived here`, ""},
		"a command put in":      {mail, nil, []string{"EHLO near", "STARTTLS", "QUIT"}, `"QUIT" was put in before it arrived at the reflector`, ""},
		"a long line":           {mail, []string{long, "250-far", "250-STARTTLS", "250 SIZE"}, nil, `"220 far" was sent, "` + long[:57] + `..." arrived here`, ""},
		"two that say nothing":  {ftp, []string{"220 a", "250-b", "250-STARTTLS", "250 SIZE"}, nil, `"220 far" was sent, "220 a" arrived here`, ""},
	} {
		nh, fh := c.nearHeard, c.farHeard
		if nh == nil {
			nh = far
		}
		if fh == nil {
			fh = near
		}
		changed, helped := differences(&wire.Said{Sent: near, Heard: nh}, &wire.Said{Sent: far, Heard: fh}, c.about)
		if diff := cmp.Diff([]string{c.want, c.helped}, []string{changed, helped}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	changed, helped := differences(&wire.Said{Sent: []string{"PORT 1"}, Heard: []string{}}, &wire.Said{Heard: []string{"PORT 2"}}, ftp)
	if changed != "" || helped != `"PORT 1" was sent, "PORT 2" arrived at the reflector` {
		t.Errorf("a helper's work: %q, %q", changed, helped)
	}
	// Beyond the lines that are kept nothing is known.
	if got := compare(many, append(slices.Clone(many), "more")); got != nil {
		t.Errorf("%+v", got)
	}
}

// Control, or another run, may have spoken at the same port: a dialogue that
// fits shows that nothing was changed.
func TestDialogueThatFitsSpeaksForThePort(t *testing.T) {
	said := func(line string) wire.Event { return wire.Event{Said: &wire.Said{Sent: []string{line}}} }
	o := Observation{Said: &wire.Said{Heard: []string{"220 far"}}}
	e := portEvidence{near: &o, transport: scenarios.TCP, speak: "submission", strays: []wire.Event{{}, said("220 other"), said("220 far")}}
	if changed, helped := e.rewritten(); changed+helped != "" {
		t.Errorf("%q, %q", changed, helped)
	}
	e.strays = e.strays[:2]
	if changed, _ := e.rewritten(); changed != `"220 other" was sent, "220 far" arrived here` {
		t.Errorf("%q", changed)
	}
	e.strays = e.strays[:1]
	if changed, _ := e.rewritten(); changed != "" {
		t.Errorf("%q", changed)
	}
}

func TestLedgerIsAskedForAgainWhileItLagsBehind(t *testing.T) {
	r := runner{seen: map[uint32][]Observation{1: {{Stage: protocol.StageDone}}, 2: {{Stage: protocol.StageData}}}}
	for name, c := range map[string]struct {
		probe      uint32
		unfinished bool
		want       bool
	}{
		"done here alone":       {1, true, true},
		"done at both ends":     {1, false, false},
		"under way at both":     {2, true, false},
		"of a probe of another": {3, true, false},
	} {
		l := &wire.Ledger{Probes: []wire.ProbeRecord{{Probe: c.probe, Events: []wire.Event{{Unfinished: c.unfinished}}}}}
		if got := r.ahead(l); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
