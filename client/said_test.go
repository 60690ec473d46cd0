package client

import (
	"net/netip"
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
	o.Said.Sent, e.strays[1] = []string{"EHLO a"}, wire.Event{Said: &wire.Said{Sent: []string{"220 far"}, Heard: []string{"EHLO b"}}}
	e.strays = append(e.strays[:1], said("220 other"), e.strays[1], said("220 third"))
	if changed, _ := e.rewritten(); changed != `"EHLO a" was sent, "EHLO b" arrived at the reflector` {
		t.Errorf("of several the one that fits best: %q", changed)
	}
	e.strays = e.strays[:1]
	if changed, _ := e.rewritten(); changed != "" {
		t.Errorf("%q", changed)
	}
}

// What a helper rewrote may be why a connection broke off, and is told beside it.
func TestHelpersHandIsToldOfWhatBrokeOff(t *testing.T) {
	o := Observation{Ports: ports(t, "21"), Sent: 1, Stage: "data", Fault: "refused", Step: "PASV", Said: &wire.Said{Sent: []string{"PASV"}, Heard: []string{"227 (1,1,1,1,4,1)"}}}
	e := portEvidence{near: &o, transport: scenarios.TCP, speak: "ftp", ledger: true, bound: true,
		events: []wire.Event{{Stage: "data", Fault: "eof", Said: &wire.Said{Sent: []string{"227 (1,1,1,1,4,2)"}, Heard: []string{"PASV"}}}}}
	want := conclusion{Cut, `before the first byte of data: refused (PASV); at the reflector, stage data: the connection was closed; rewritten by a helper on the way: "227 (1,1,1,1,4,2)" was sent, "227 (1,1,1,1,4,1)" arrived here`}
	verdict, why := e.judge()
	if diff := cmp.Diff(want, conclusion{verdict, why}, cmp.AllowUnexported(conclusion{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLedgerIsAskedForAgainWhileItLagsBehind(t *testing.T) {
	at := wire.Event{Local: netip.AddrPortFrom(farAddr, 443), Unfinished: true}
	ended, elsewhere := at, at
	ended.Unfinished, elsewhere.Local = false, netip.AddrPortFrom(farAddr, 444)
	observed := func(fault string, said *wire.Said) Observation {
		return Observation{Ports: ports(t, "443"), Fault: fault, Said: said}
	}
	of := func(e wire.Event) *wire.Ledger {
		return &wire.Ledger{Probes: []wire.ProbeRecord{{Probe: 1, Events: []wire.Event{e}}}}
	}
	stray := func(e wire.Event) *wire.Ledger { return &wire.Ledger{Strays: []wire.Event{e}} }
	for name, c := range map[string]struct {
		near Observation
		far  *wire.Ledger
		want bool
	}{
		"done here alone":               {observed("", nil), of(at), true},
		"done at both ends":             {observed("", nil), of(ended), false},
		"reset here alone":              {observed(protocol.FaultReset, nil), of(at), false},
		"timed out here alone":          {observed(protocol.FaultTimeout, nil), of(at), false},
		"at another port":               {observed("", nil), of(elsewhere), false},
		"a dialogue given up here":      {observed(protocol.FaultForeign, new(wire.Said)), stray(at), true},
		"a dialogue reset here":         {observed(protocol.FaultReset, new(wire.Said)), stray(at), false},
		"a dialogue ended at both ends": {observed(protocol.FaultForeign, new(wire.Said)), stray(ended), false},
		"a dialogue that went well":     {observed("", new(wire.Said)), stray(at), false},
		"no dialogue":                   {observed(protocol.FaultForeign, nil), stray(at), false},
	} {
		r := runner{seen: map[uint32][]Observation{1: {c.near}}}
		if got := r.ahead(c.far); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestBrokenDialogueNamesItsLastLine(t *testing.T) {
	e := portEvidence{near: &Observation{Stage: protocol.StageSTARTTLS, Fault: protocol.FaultReset, Said: &wire.Said{Sent: []string{"EHLO a", "STARTTLS"}}}}
	if got := e.cutWhy(); got != `stage starttls: a reset came after "STARTTLS" was sent` {
		t.Errorf("%q", got)
	}
	for _, change := range []func(){func() { e.near.Stage = protocol.StageTLS }, func() { e.near.Said.Sent = nil }, func() { e.near.Said = nil }} {
		if change(); e.lastWords() != "" {
			t.Errorf("%q", e.lastWords())
		}
		e.near.Stage = protocol.StageLogin
	}
}
