package client

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// said is one end's record: sent and heard, line by line.
func said(sent, heard string) *wire.Said {
	return &wire.Said{Sent: splitLines(sent), Heard: splitLines(heard)}
}

// ports and addresses of FTP's commands are a helper's to rewrite.
func ftpHelper(sent, heard string) bool {
	return strings.HasPrefix(sent, "PORT ") && strings.HasPrefix(heard, "PORT ")
}

func TestFirstLineThatArrivesAsAnotherIsNamed(t *testing.T) {
	const greeting, offer = "220 mail ESMTP", "220 mail ESMTP\n250-mail\n250-STARTTLS\n250 HELP"
	long := "AUTH " + strings.Repeat("x", 60)
	ftp := &protocol.Protocol{Harmless: ftpHelper}
	for _, c := range []struct {
		name            string
		near, far       *wire.Said
		changed, helped string
	}{
		{"nothing", said("", ""), said("", ""), "", ""},
		{"alike", said("EHLO a", offer), said(offer, "EHLO a"), "", ""},
		{"removed", said("EHLO a", "220 mail ESMTP\n250-mail\n250 HELP"), said(offer, "EHLO a"), `"250-STARTTLS" was sent and taken away`, ""},
		{"offer cut out of its line", said("", "* CAPABILITY IMAP4rev1 \nx"), said("* CAPABILITY IMAP4rev1 STARTTLS\nx", ""),
			`"* CAPABILITY IMAP4rev1 STARTTLS" was sent, "* CAPABILITY IMAP4rev1 " arrived here`, ""},
		{"overwritten", said("STARTTLS", greeting), said(greeting, "XXXXXXXX"), `"STARTTLS" was sent, "XXXXXXXX" arrived at the reflector`, ""},
		{"put in", said("GET /\nHost: a", ""), said("", "GET /\nVia: 1.1 box\nHost: a"), `"Via: 1.1 box" was put in before it arrived at the reflector`, ""},
		{"put in at the end", said("GET /", ""), said("", "GET /\nVia: 1.1 box"), `"Via: 1.1 box" was put in before it arrived at the reflector`, ""},
		{"end not heard", said("", greeting), said(greeting+"\n250 HELP", ""), "", ""},
		{"unfinished", said("", "220 mail ESMTP\n250-ma"), said(offer, ""), "", ""},
		{"helped", said("USER a\nPORT 10,77,1,2,4,1\nRETR x", ""), said("", "USER a\nPORT 198,51,100,1,4,1\nRETR x"),
			"", `"PORT 10,77,1,2,4,1" was sent, "PORT 198,51,100,1,4,1" arrived at the reflector`},
		{"helped, then rewritten", said("PORT 1,1,1,1,4,1\nRETR x", ""), said("", "PORT 2,2,2,2,4,1\nRETR y"),
			`"RETR x" was sent, "RETR y" arrived at the reflector`, `"PORT 1,1,1,1,4,1" was sent, "PORT 2,2,2,2,4,1" arrived at the reflector`},
		{"both directions", said("EHLO a", "220 b"), said("220 a", "EHLO b"), `"220 a" was sent, "220 b" arrived here`, ""},
		{"end of a long line", said(long+"1", ""), said("", long+"2"),
			`"...` + strings.Repeat("x", 12) + `1" was sent, "...` + strings.Repeat("x", 12) + `2" arrived at the reflector`, ""},
		{"a line of the next message", said("GET /\nA: b\n\nVia: x", ""), said("", "GET /\nVia: x\n\nVia: x"), `"A: b" was sent, "Via: x" arrived at the reflector`, ""},
		{"a line that the next message has", said("GET /\nA: b\n\nX", ""), said("", "GET /\nC: d\n\nA: b"), `"A: b" was sent, "C: d" arrived at the reflector`, ""},
	} {
		changed, helped := differences(c.near, c.far, ftp)
		if diff := cmp.Diff([]string{c.changed, c.helped}, []string{changed, helped}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestRewrittenLineMakesAnOpenPathAltered(t *testing.T) {
	near := Observation{Sent: 1, Answered: 1, Stage: "done", Said: said("EHLO a", "220 mail\n250 HELP")}
	heard := func(s *wire.Said) func(*wire.Ledger) {
		return arrival("done", "", func(e *wire.Event) { e.Said = s })
	}
	both := func(list ...*wire.Said) func(*wire.Ledger) {
		return func(l *wire.Ledger) {
			var events []wire.Event
			for _, s := range list {
				heard(s)(l)
				events = append(events, l.Probes[len(l.Probes)-1].Events...)
			}
			l.Probes = []wire.ProbeRecord{{Probe: 1, Events: events}}
		}
	}
	cut := near
	cut.Stage, cut.Fault = "banner", protocol.FaultEOF
	for _, c := range []struct {
		name string
		near Observation
		far  *wire.Ledger
		want conclusion
	}{
		{"alike", near, of(t, heard(said("220 mail\n250 HELP", "EHLO a"))), conclusion{Open, ""}},
		{"rewritten", near, of(t, heard(said("220 mail\n250 HELP", "EHLO b"))), conclusion{Altered, `"EHLO a" was sent, "EHLO b" arrived at the reflector`}},
		{"rewritten, then broken off", cut, of(t, heard(said("220 mail\n250 HELP", "EHLO b"))), conclusion{Altered, `"EHLO a" was sent, "EHLO b" arrived at the reflector`}},
		{"another connection fits", near, of(t, both(said("220 mail", "POST /"), said("220 mail\n250 HELP", "EHLO a"))), conclusion{Open, ""}},
		{"another connection fits as well", cut, of(t, both(said("220 mail\n250 HELP", ""), said("220 mail\n250 HELP", "EHLO b"))),
			conclusion{Cut, "stage banner: the connection was closed"}},
		{"another connection fits for want of lines", near, of(t, both(said("", ""), said("220 mail\n250 HELP", "EHLO b"))),
			conclusion{Altered, `"EHLO a" was sent, "EHLO b" arrived at the reflector`}},
		{"end taken away", near, of(t, heard(said("220 mail\n250 HELP\n250 more", "EHLO a"))), conclusion{Altered, `"250 more" was sent and taken away`}},
		{"end taken away from what was broken off", cut, of(t, heard(said("220 mail\n250 HELP\n250 more", "EHLO a"))),
			conclusion{Cut, "stage banner: the connection was closed"}},
		{"no dialogue at the reflector", near, of(t, arrival("done", "", nil)), conclusion{Open, ""}},
		{"no ledger", near, nil, conclusion{Open, ""}},
	} {
		c.near.Probe, c.near.Addr, c.near.Target, c.near.Ports = 1, farAddr, farAddr.String(), ports(t, "443")
		f := judged(t, scenarios.TCP, []Observation{c.near}, c.far)
		if diff := cmp.Diff(c.want, conclusion{f.Verdict, f.Why}, cmp.AllowUnexported(conclusion{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}
