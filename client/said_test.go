package client

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
	at := wire.Event{Local: netip.AddrPortFrom(farAddr, 443), Unfinished: true, Said: said("220 far", "EHLO a")}
	behind, unheard, ended, elsewhere := at, at, at, at
	behind.Said, unheard.Said = said("220 far", ""), nil
	ended.Unfinished, elsewhere.Local = false, netip.AddrPortFrom(farAddr, 444)
	observed := func(fault string, said *wire.Said) Observation {
		return Observation{Ports: ports(t, "443"), Fault: fault, Said: said}
	}
	spoke := said("EHLO a", "220 far")
	of := func(e wire.Event) *wire.Ledger {
		return &wire.Ledger{Probes: []wire.ProbeRecord{{Probe: 1, Events: []wire.Event{e}}}}
	}
	stray := func(e wire.Event) *wire.Ledger { return &wire.Ledger{Strays: []wire.Event{e}} }
	for name, c := range map[string]struct {
		near Observation
		far  *wire.Ledger
		want bool
	}{
		"done here alone":                           {observed("", nil), of(at), true},
		"done at both ends":                         {observed("", nil), of(ended), false},
		"reset here alone":                          {observed(protocol.FaultReset, spoke), of(behind), false},
		"timed out here alone":                      {observed(protocol.FaultTimeout, nil), of(at), false},
		"at another port":                           {observed("", nil), of(elsewhere), false},
		"a dialogue given up here":                  {observed(protocol.FaultForeign, spoke), stray(at), true},
		"a dialogue reset here":                     {observed(protocol.FaultReset, spoke), stray(behind), false},
		"a dialogue ended at both ends":             {observed(protocol.FaultForeign, spoke), stray(ended), false},
		"a dialogue that went well":                 {observed("", spoke), stray(at), false},
		"no dialogue":                               {observed(protocol.FaultForeign, nil), stray(at), false},
		"waited in vain after all was heard":        {observed(protocol.FaultTimeout, spoke), stray(at), false},
		"waited in vain, the last line not heard":   {observed(protocol.FaultTimeout, spoke), stray(behind), true},
		"waited in vain, proven, not heard":         {observed(protocol.FaultTimeout, spoke), of(behind), true},
		"waited in vain, proven, all heard":         {observed(protocol.FaultTimeout, spoke), of(at), false},
		"waited in vain for the first word":         {observed(protocol.FaultTimeout, said("", "")), stray(behind), false},
		"waited in vain, for the dialogue no room":  {observed(protocol.FaultTimeout, spoke), stray(unheard), true},
		"waited in vain, unfinished and then ended": {observed(protocol.FaultTimeout, spoke), stray(ended), false},
	} {
		r := runner{seen: map[uint32][]Observation{1: {c.near}}}
		if got := r.ahead(c.far); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestLedgerIsAskedForAgainForASecondAtTheMost(t *testing.T) {
	event := wire.Event{Local: netip.AddrPortFrom(farAddr, 443), Unfinished: true}
	lags := &wire.Ledger{Strays: []wire.Event{event}}
	event.Unfinished = false
	whole := &wire.Ledger{Strays: []wire.Event{event}}
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		answers []any // ledgers and errors; the last one goes on
		want    *wire.Ledger
		err     error
		asked   int
		took    time.Duration
	}{
		"whole":                    {[]any{whole}, whole, nil, 1, 0},
		"not to be had":            {[]any{gone}, nil, gone, 1, 0},
		"whole at last":            {[]any{lags, lags, whole}, whole, nil, 3, 45 * time.Millisecond},
		"never":                    {[]any{lags}, lags, nil, 7, 945 * time.Millisecond},
		"lost and found":           {[]any{lags, gone, whole}, whole, nil, 3, 45 * time.Millisecond},
		"lost":                     {[]any{lags, gone}, lags, nil, 7, 945 * time.Millisecond},
		"more than there was time": {[]any{lags, nil}, lags, nil, 1, 5 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := runner{seen: map[uint32][]Observation{1: {{Ports: ports(t, "443"), Fault: protocol.FaultForeign, Said: said("", "")}}}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			asked, began := 0, time.Now()
			l, err := r.settled(ctx, func(context.Context) (*wire.Ledger, error) {
				answer := c.answers[min(asked, len(c.answers)-1)]
				if asked++; asked < len(c.answers) && c.answers[asked] == nil {
					time.AfterFunc(c.took, cancel)
				}
				if err, ok := answer.(error); ok {
					return nil, err
				}
				return answer.(*wire.Ledger), nil
			})
			if l != c.want || err != c.err || asked != c.asked || time.Since(began) != c.took {
				t.Errorf("%s: %+v, %v, asked %d times in %v", name, l, err, asked, time.Since(began))
			}
		})
	}
}

// A far end that goes on has said what it said: a near end that heard something
// else and waited in vain need not wait for the end to know that.
func TestDialogueUnderWayShowsWhatWasRewritten(t *testing.T) {
	near := Observation{Probe: 1, Ports: ports(t, "443"), Addr: farAddr, Sent: 1, Stage: protocol.StageBanner, Fault: protocol.FaultTimeout,
		Said: said("EHLO a", "220 mail\n250-MAIL 250 HELP")}
	under := func(s *wire.Said) *wire.Ledger {
		return of(t, func(l *wire.Ledger) {
			l.Strays = append(l.Strays, wire.Event{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 443), Stage: protocol.StageBanner, Unfinished: true, Said: s})
		})
	}
	for name, c := range map[string]struct {
		far  *wire.Said
		want conclusion
	}{
		"rewritten":     {said("220 mail\n250-mail", "EHLO a"), conclusion{Altered, `"250-mail" was sent, "250-MAIL 250 HELP" arrived here`}},
		"not rewritten": {said("220 mail\n250-MAIL 250 HELP", "EHLO a"), conclusion{Cut, "stage banner: nothing more came; the reflector knows the connection as open"}},
		"no room":       {nil, conclusion{Cut, "stage banner: nothing more came; the reflector knows the connection as open"}},
	} {
		f := judged(t, scenarios.TCP, []Observation{near}, under(c.far))
		if diff := cmp.Diff(c.want, conclusion{f.Verdict, f.Why}, cmp.AllowUnexported(conclusion{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
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
