package protocol

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// asking are the protocols that ask for TLS.
var asking = []string{"submission", "imap", "pop3", "xmpp"}

// mailEnd is where and how an end of a dialogue ended.
type mailEnd struct{ Stage, Fault string }

func endOf(events []wire.Event) mailEnd {
	if len(events) != 1 {
		return mailEnd{Fault: fmt.Sprintf("%d events", len(events))}
	}
	return mailEnd{events[0].Stage, events[0].Fault}
}

const (
	xmppOpen = `<stream:stream to="a.example" version="1.0" xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams">`
	long     = "line longer than 1024 bytes"
	many     = "more commands than a client needs"
)

// Whatever a stranger says, the far end names the stage and the fault, and ends.
func TestFarEndsOfMailTellWhatStrangersSend(t *testing.T) {
	half := func(s string) string { return s[:len(s)/2] }
	for name, c := range map[string]map[string]mailEnd{
		"submission": {
			"":                                    {StageBanner, FaultEOF},
			"EHLO exam":                           {StageBanner, FaultEOF},
			"QUIT\r\n":                            {StageSTARTTLS, FaultEOF},
			"\r\n\r\nQUIT\n":                      {StageSTARTTLS, FaultEOF},
			"XXXXXXXX\r\n":                        {StageSTARTTLS, FaultEOF},
			"GET / HTTP/1.1\r\nHost: x\r\n":       {StageSTARTTLS, FaultEOF},
			string(alert):                         {StageBanner, FaultEOF},
			string(alert) + "\n":                  {StageBanner, FaultForeign},
			"EHLO x\r\n\xff\xfe\x00\n":            {StageSTARTTLS, FaultForeign},
			strings.Repeat("A", 1<<16):            {StageBanner, long},
			"EHLO " + strings.Repeat("A", 1<<16):  {StageBanner, long},
			strings.Repeat("NOOP\r\n", 10_000):    {StageSTARTTLS, many},
			strings.Repeat("\r\n", 10_000):        {StageSTARTTLS, many},
			"STARTTLS\r\n":                        {StageTLS, FaultEOF},
			"STARTTLS\r\nEHLO evil\r\n":           {StageSTARTTLS, FaultAltered},
			"STARTTLS\r\n" + string(alert):        {StageSTARTTLS, FaultAltered},
			"AUTH PLAIN AGEAYg==\r\nQUIT\r\n":     {StageSTARTTLS, FaultEOF},
			"MAIL FROM:<a@b>\r\nDATA\r\nQUIT\r\n": {StageSTARTTLS, FaultEOF},
		},
		"smtps": { // what is spoken inside
			"":                                      {StageBanner, FaultEOF},
			"STARTTLS\r\nQUIT\r\n":                  {StageLogin, FaultEOF},
			"AUTH PLAIN\r\n":                        {StageLogin, FaultEOF},
			"AUTH PLAIN !!\r\nQUIT\r\n":             {StageLogin, FaultForeign},
			"AUTH LOGIN YQ==\r\nYQ==\r\nQUIT\r\n":   {StageLogin, FaultForeign},
			"AUTH PLAIN\r\n\x00\r\n":                {StageLogin, FaultForeign},
			strings.Repeat("AUTH PLAIN YQ\r\n", 99): {StageLogin, FaultForeign},
			strings.Repeat("NOOP\r\n", 10_000):      {StageLogin, many},
		},
		"imap": {
			"":                                   {StageBanner, FaultEOF},
			"a LOGOUT\r\n":                       {StageSTARTTLS, FaultEOF},
			"a\r\n":                              {StageSTARTTLS, FaultEOF},
			"* BYE\r\n+\r\n":                     {StageSTARTTLS, FaultEOF},
			"a LOGIN {5}\r\nhello\r\n":           {StageSTARTTLS, FaultEOF},
			"a SELECT INBOX\r\n":                 {StageSTARTTLS, FaultEOF},
			"a STARTTLS\r\nb LOGIN x y\r\n":      {StageSTARTTLS, FaultAltered},
			"a " + strings.Repeat("(", 1<<16):    {StageBanner, long},
			strings.Repeat("a NOOP\r\n", 10_000): {StageSTARTTLS, many},
			string(alert) + "\n":                 {StageBanner, FaultForeign},
		},
		"imaps": {
			"a LOGIN x y\r\nb LOGOUT\r\n":             {StageLogin, FaultForeign},
			"a AUTHENTICATE PLAIN\r\n":                {StageLogin, FaultEOF},
			"a AUTHENTICATE NTLM\r\nb LOGOUT\r\n":     {StageLogin, FaultEOF},
			"a FETCH 1 BODY[]\r\nb LOGOUT\r\n":        {StageLogin, FaultEOF},
			strings.Repeat("a LOGIN x y\r\n", 10_000): {StageLogin, FaultForeign},
		},
		"pop3": {
			"":                                 {StageBanner, FaultEOF},
			"QUIT\r\n":                         {StageSTARTTLS, FaultEOF},
			"USER x\r\nPASS y\r\n":             {StageSTARTTLS, FaultEOF},
			"RETR 1\r\n":                       {StageSTARTTLS, FaultEOF},
			"STLS\r\nUSER evil\r\n":            {StageSTARTTLS, FaultAltered},
			strings.Repeat("A", 1<<16):         {StageBanner, long},
			strings.Repeat("CAPA\r\n", 10_000): {StageSTARTTLS, many},
			string(alert) + "\n":               {StageBanner, FaultForeign},
			"CAPA\r\n\x1b[2J\r\n":              {StageSTARTTLS, FaultForeign},
		},
		"pop3s": {
			"USER x\r\nPASS y\r\nQUIT\r\n":               {StageLogin, FaultForeign},
			"PASS y\r\nSTAT\r\nQUIT\r\n":                 {StageLogin, FaultEOF},
			strings.Repeat("USER x\r\nPASS y\r\n", 9999): {StageLogin, FaultForeign},
		},
		"xmpp": {
			"":                                    {StageBanner, FaultEOF},
			half(xmppOpen):                        {StageBanner, FaultEOF},
			xmppOpen:                              {StageSTARTTLS, FaultEOF},
			xmppOpen + streamEnd:                  {StageSTARTTLS, FaultEOF},
			xmppOpen + startTLS:                   {StageTLS, FaultEOF},
			xmppOpen + startTLS + "<auth/>":       {StageSTARTTLS, FaultAltered},
			xmppOpen + startTLS + string(alert):   {StageSTARTTLS, FaultAltered},
			string(alert):                         {StageBanner, FaultForeign},
			"GET / HTTP/1.1\r\n":                  {StageBanner, FaultForeign},
			"<!DOCTYPE lolz [<!ENTITY a \"b\">]>": {StageBanner, FaultForeign},
			"<stream:stream to='" + strings.Repeat("A", 1<<16): {StageBanner, errElement.Error()},
			strings.Repeat(" ", 1<<16):                         {StageBanner, FaultEOF},
			strings.Repeat("<a>", 1<<16):                       {StageBanner, errElement.Error()},
			xmppOpen + "<a></b>":                               {StageSTARTTLS, FaultForeign},
			xmppOpen + "<a>\x00</a>":                           {StageSTARTTLS, FaultForeign},
			xmppOpen + "<iq/>":                                 {StageSTARTTLS, FaultForeign},
			strings.Repeat(xmppOpen, 10_000):                   {StageSTARTTLS, many},
		},
		"xmpps": {
			xmppOpen + startTLS:                              {StageLogin, FaultForeign},
			xmppOpen + "<auth/>" + streamEnd:                 {StageLogin, FaultEOF},
			xmppOpen + `<auth mechanism="PLAIN">YQ==</auth>`: {StageLogin, FaultForeign},
		},
	} {
		for send, want := range c {
			t.Run(fmt.Sprintf("%s/%.40q", name, send), func(t *testing.T) {
				t.Parallel()
				base, events := say(t, protocols[name], newFar(), []byte(send))
				if diff := cmp.Diff(want, endOf(events)); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
				e := events[0]
				if e.Answered || e.Session != (wire.SessionID{}) || e.Remote != base.Remote || len(e.Said.Heard) > wire.MaxSaid {
					t.Errorf("%+v", e)
				}
			})
		}
	}
}

// A token that does not verify logs nobody in, and the ledger tells whose it was.
func TestDamagedTokenLogsNobodyIn(t *testing.T) {
	f := newFar()
	x := f.exchange()
	token := []byte(x.Token())
	if token[60]++; notToken(rune(token[60])) {
		token[60] = 'A'
	}
	want, events := say(t, pop3s, f, []byte("USER "+string(token)+"\r\nPASS x\r\nSTAT\r\nQUIT\r\n"))
	want.Stage, want.Fault, want.Session, want.Probe, want.Attempt, want.Said = StageLogin, FaultAltered, f.keys.ID, x.Probe, x.Attempt, events[0].Said
	if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if heard := strings.Join(events[0].Said.Sent, "\n"); !strings.Contains(heard, "-ERR [AUTH]") || !strings.Contains(heard, "-ERR log in first") {
		t.Errorf("answers %q", heard)
	}
}

func TestThirdFailedLoginIsTheLast(t *testing.T) {
	for name, c := range map[string]struct{ send, refusal, bye string }{
		"smtps": {"AUTH PLAIN YQ==\r\n", "535 ", "421 4.7.0 more than 2 logins failed"},
		"imaps": {"a LOGIN x y\r\n", "a NO ", "* BYE more than 2 logins failed"},
		"pop3s": {"USER x\r\nPASS y\r\n", "-ERR [AUTH]", "-ERR more than 2 logins failed"},
		"xmpps": {"<auth xmlns='" + nsSASL + "' mechanism='PLAIN'>YQ==</auth>", noLogin, streamEnd},
	} {
		_, events := say(t, protocols[name], newFar(), []byte(strings.Repeat(c.send, 10)))
		refused, sent := 0, events[0].Said.Sent
		for _, line := range sent {
			if strings.HasPrefix(line, c.refusal) {
				refused++
			}
		}
		if refused != 3 || sent[len(sent)-1] != c.bye || endOf(events) != (mailEnd{StageLogin, FaultForeign}) {
			t.Errorf("%s: %d refusals, then %q; %+v", name, refused, sent[len(sent)-1], endOf(events))
		}
	}
}

// Without TLS's own end a client cannot tell that nothing was cut off.
func TestTLSBehindSTARTTLSIsEndedInOrder(t *testing.T) {
	near, far := pair(t)
	done := make(chan struct{})
	go func() { defer close(done); pop3.TCP.Serve(t.Context(), far, newFar()); far.Close() }()
	r := bufio.NewReader(near)
	r.ReadString('\n')
	io.WriteString(near, "STLS\r\n")
	r.ReadString('\n')
	rec := &recorder{Conn: near}
	c := tls.Client(rec, &tls.Config{InsecureSkipVerify: true})
	io.WriteString(c, "QUIT\r\n")
	if text, err := io.ReadAll(c); string(text) != "+OK goodbye\r\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	// A protected alert: a header, 2 bytes, the type, 16 bytes of authentication.
	b := rec.received.Bytes()
	if last := b[max(0, len(b)-24):]; !bytes.HasPrefix(last, []byte{23, 3, 3, 0, 19}) {
		t.Errorf("the last record is %x", last)
	}
	<-done
}

// answered runs a near end against bytes that are sent at once.
func mailAnswered(t *testing.T, name string, b []byte) Result {
	t.Helper()
	near, far := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		far.Write(b)
		far.CloseWrite()
		io.Copy(io.Discard, far)
	}()
	r := protocols[name].TCP.Probe(t.Context(), near, newFar().exchange())
	near.Close()
	<-done
	return r
}

func TestNearEndsOfMailTellWhatStrangersAnswer(t *testing.T) {
	const page = "HTTP/1.0 400 Bad Request\r\n\r\n"
	smtp, imap, pop := "220 x\r\n", "* OK x\r\n", "+OK x\r\n"
	xmppX := xmppOpen
	for name, c := range map[string]map[string]mailEnd{
		"submission": {
			"22":                                {StageBanner, FaultEOF},
			"554 go away\r\n":                   {StageBanner, FaultForeign},
			"2200 what\r\n":                     {StageBanner, FaultForeign},
			smtp:                                {StageSTARTTLS, FaultEOF},
			smtp + "250-x\r\n":                  {StageSTARTTLS, FaultEOF},
			smtp + "500 no\r\n":                 {StageSTARTTLS, FaultForeign},
			smtp + "250 x\r\n":                  {StageSTARTTLS, FaultForeign}, // not offered
			smtp + "250 STARTTLS":               {StageSTARTTLS, FaultEOF},
			smtp + "250 STARTTLS\r\n454 no\r\n": {StageSTARTTLS, FaultForeign},
			smtp + "250 STARTTLS\r\n220 ok\r\n250 evil\r\n":        {StageSTARTTLS, FaultAltered},
			smtp + "250 x\r\n220 ok\r\n":                           {StageSTARTTLS, FaultForeign},
			smtp + strings.Repeat("250-x\r\n", 10_000):             {StageSTARTTLS, errManyLines.Error()},
			smtp + "250 " + strings.Repeat("x", 1<<16):             {StageSTARTTLS, long},
			smtp + "250 STARTTLS\r\n220 ok\r\n" + string(alert):    {StageSTARTTLS, FaultAltered},
			smtp + "250-\x00\x01\xff\r\n250 STARTTLS\r\n220 x\r\n": {StageTLS, FaultEOF},
		},
		"imap": {
			"* BYE\r\n":                              {StageBanner, FaultForeign},
			imap:                                     {StageSTARTTLS, FaultEOF},
			imap + "a1 OK\r\na2 OK\r\n":              {StageSTARTTLS, FaultForeign},
			imap + "a1 NO\r\n":                       {StageSTARTTLS, FaultForeign},
			imap + strings.Repeat("* x\r\n", 10_000): {StageSTARTTLS, errManyLines.Error()},
			imap + "* CAPABILITY STARTTLS\r\na1 OK\r\na2 BAD\r\n":          {StageSTARTTLS, FaultForeign},
			imap + "* CAPABILITY STARTTLS\r\na1 OK\r\na2 OK\r\n* evil\r\n": {StageSTARTTLS, FaultAltered},
			imap + "* CAPABILITY STARTTLS\r\na1 OK\r\na2 OK\r\n":           {StageTLS, FaultEOF},
		},
		"pop3": {
			"-ERR\r\n":                           {StageBanner, FaultForeign},
			pop:                                  {StageSTARTTLS, FaultEOF},
			pop + "+OK\r\n.\r\n+OK\r\n":          {StageSTARTTLS, FaultForeign},
			pop + "+OK\r\nSTLS\r\n.\r\n-ERR\r\n": {StageSTARTTLS, FaultForeign},
			pop + "+OK\r\nSTLS\r\n.\r\n+OK\r\nx": {StageSTARTTLS, FaultAltered},
			pop + "+OK\r\nSTLS\r\n.\r\n+OK\r\n":  {StageTLS, FaultEOF},
			pop + "+OK\r\n" + strings.Repeat("x\r\n", 10_000): {StageSTARTTLS, errManyLines.Error()},
		},
		"xmpp": {
			"<a/>":                            {StageBanner, FaultForeign},
			xmppX:                             {StageSTARTTLS, FaultEOF},
			xmppX + offersLogin + proceed:     {StageSTARTTLS, FaultForeign},
			xmppX + offersTLS + "<failure/>":  {StageSTARTTLS, FaultForeign},
			xmppX + offersTLS + proceed:       {StageTLS, FaultEOF},
			xmppX + offersTLS + proceed + " ": {StageSTARTTLS, FaultAltered},
			xmppX + "<stream:features>" + strings.Repeat("<x/>", 10_000): {StageSTARTTLS, errElement.Error()},
			xmppX + strings.Repeat("<", 100):                             {StageSTARTTLS, FaultForeign},
		},
	} {
		c[""] = mailEnd{StageBanner, FaultEOF}
		c[page] = mailEnd{StageBanner, FaultForeign}
		c[string(alert)+"\n"] = mailEnd{StageBanner, FaultForeign}
		if name != "xmpp" {
			c[string(alert)] = mailEnd{StageBanner, FaultEOF}
			c[strings.Repeat("A", 1<<16)] = mailEnd{StageBanner, long}
		}
		for send, want := range c {
			t.Run(fmt.Sprintf("%s/%.60q", name, send), func(t *testing.T) {
				t.Parallel()
				r := mailAnswered(t, name, []byte(send))
				if diff := cmp.Diff(want, mailEnd{r.Stage, r.Fault}); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
				if (r.Fault == FaultForeign) != (len(r.Sample) > 0) || r.Err == nil || r.Said == nil || len(r.Said.Sent) > wire.MaxSaid {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

// injected puts bytes behind others, in one piece with them.
func injected(behind, more string) func(int64, []byte) ([]byte, bool) {
	return func(_ int64, b []byte) ([]byte, bool) {
		return bytes.Replace(b, []byte(behind), []byte(behind+more), 1), true
	}
}

// CVE-2011-0411 and CVE-2021-38371: commands or answers that somebody puts in
// before TLS begins must not be taken for protected ones.
func TestPlaintextPutInBehindSTARTTLSEndsTheDialogueAtBothEnds(t *testing.T) {
	for name, c := range map[string]struct{ request, command, agreed, answer string }{
		"submission": {"STARTTLS\r\n", "EHLO evil\r\n", "ready for TLS\r\n", "250 evil\r\n"},
		"imap":       {"STARTTLS\r\n", "a4 LOGIN x y\r\n", "ready for TLS\r\n", "* CAPABILITY evil\r\n"},
		"pop3":       {"STLS\r\n", "USER evil\r\n", "ready for TLS\r\n", "+OK evil\r\n"},
		"xmpp":       {startTLS, "<auth/>", proceed, "<stream:stream>"},
	} {
		p := spoken{name, "", protocols[name]}
		res, _, _ := play(t, loopback, p, newFar(), newFar().exchange(), box{down: injected(c.agreed, c.answer)})
		want := fmt.Sprintf("%d bytes came before TLS began: %v", len(c.answer), errAltered)
		if res.Stage != StageSTARTTLS || res.Fault != FaultAltered || res.Err.Error() != want || res.TLS != nil {
			t.Errorf("%s, near end: %+v", name, res)
		}
		_, _, events := play(t, loopback, p, newFar(), newFar().exchange(), box{up: injected(c.request, c.command)})
		if diff := cmp.Diff(mailEnd{StageSTARTTLS, FaultAltered}, endOf(events)); diff != "" {
			t.Errorf("%s, far end (-want +got):\n%s", name, diff)
		}
	}
}

// The near end asks for TLS even where it is not offered: the answer is evidence.
func TestSTARTTLSIsAskedForWhereItIsNotOffered(t *testing.T) {
	for name, offer := range map[string]string{
		"submission": "250-STARTTLS\r\n", "imap": " STARTTLS LOGIN", "pop3": "STLS\r\n", "xmpp": startTLS[:len(startTLS)-2] + "><required/></starttls>",
	} {
		away := func(_ int64, b []byte) ([]byte, bool) { return bytes.ReplaceAll(b, []byte(offer), nil), true }
		res, _, events := play(t, loopback, spoken{name, "", protocols[name]}, newFar(), newFar().exchange(), box{down: away})
		if res.Stage != StageSTARTTLS || res.Fault != FaultForeign || !strings.Contains(res.Err.Error(), "is not offered; asked for all the same, the answer is") {
			t.Errorf("%s: %+v", name, res)
		}
		if diff := cmp.Diff(mailEnd{StageTLS, FaultEOF}, endOf(events)); diff != "" {
			t.Errorf("%s, far end (-want +got):\n%s", name, diff)
		}
	}
}

// A TLS alert may come in any state; crypto/tls names it.
func TestAlertsInAnyStateAreNamed(t *testing.T) {
	for _, name := range asking {
		p := spoken{name, "", protocols[name]}
		for stage, at := range map[string]int{StageTLS: 1, StageLogin: 2} {
			down := 0
			alerted := func(_ int64, b []byte) ([]byte, bool) {
				if len(b) > 0 && b[0] >= 20 && b[0] <= 23 { // a record
					if down++; down == at {
						return alert, true
					}
				}
				return b, true
			}
			res, _, events := play(t, loopback, p, newFar(), newFar().exchange(), box{down: alerted})
			if res.Stage != stage || !strings.Contains(res.Fault, "tls: ") {
				t.Errorf("%s: %+v", name, res)
			}
			if len(events) != 1 || events[0].Stage == StageDone || events[0].Answered {
				t.Errorf("%s: %+v", name, events)
			}
		}
	}
}

// insideTLS is a connection to a far end that has come through its handshake.
func mailInsideTLS(t *testing.T, f *testFar, name string) (c *tls.Conn, events func() []wire.Event) {
	t.Helper()
	near, far := pair(t)
	done := make(chan []wire.Event, 1)
	go func() { e := f.serve(t.Context(), protocols[name], far); far.Close(); done <- e }()
	c = tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	return c, func() []wire.Event { c.Close(); near.Close(); return <-done }
}

func TestSMTPClientOfTheFieldHandsInMail(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes = 0
	raw, end := mailInsideTLS(t, f, "smtps")
	c := smtp.NewClient(raw)
	if err := c.SendMail("a@b.example", []string{"c@d.example"}, strings.NewReader("hello")); err == nil {
		t.Error("mail was taken without a login")
	}
	if err := c.Auth(sasl.NewPlainClient("", "somebody", "secret")); err == nil {
		t.Error("somebody was let in")
	}
	if err := c.Auth(sasl.NewPlainClient("", x.Token(), "secret")); err != nil {
		t.Fatal(err)
	}
	if err := c.SendMail("a@b.example", []string{"c@d.example"}, strings.NewReader(".hello\r\n.\r\n")); err != nil {
		t.Error(err)
	}
	err := c.SendMail("a@b.example", []string{"c@d.example"}, strings.NewReader(strings.Repeat("0123456789\r\n", 6000)))
	if no, ok := errors.AsType[*smtp.SMTPError](err); !ok || no.Code != 421 {
		t.Errorf("72,000 bytes of mail: %v", err)
	}
	if diff := cmp.Diff(mailEnd{StageDone, ""}, endOf(end())); diff != "" {
		t.Errorf("far end (-want +got):\n%s", diff)
	}
}

// A mailbox holds one message and gives it, whole, to who has logged in.
func TestMailboxesHoldOneMessageForWhoHasLoggedIn(t *testing.T) {
	f := newFar()
	x := f.exchange()
	body := fmt.Sprintf("{%d}\r\n%s)", len(onlyMail), onlyMail)
	for name, c := range map[string][]struct{ send, last, has string }{
		"imaps": {
			{"a SELECT INBOX", "a ", "a NO log in first"},
			{"b LOGIN \"" + x.Token() + "\" \"secret\"", "b ", "b OK"},
			{"b LOGIN " + x.Token() + " secret", "b ", "b NO"},
			{"c FETCH 1 BODY[]", "c ", "c BAD"},
			{"d SELECT Trash", "d ", "d NO"},
			{"e SELECT \"inbox\"", "e ", "* 1 EXISTS"},
			{"f FETCH 1 BODY.PEEK[]", "f ", "* 1 FETCH (BODY[] " + body},
			{"g UID FETCH 1:* (FLAGS RFC822.SIZE BODY[])", "g ", fmt.Sprintf("* 1 FETCH (UID 1 FLAGS (\\Seen) RFC822.SIZE %d BODY[] %s", len(onlyMail), body)},
			{"h FETCH 2 BODY[]", "h ", "h OK there is no such message"},
			{"i STORE 1 +FLAGS (\\Deleted)", "i ", "i BAD"},
			{"j LOGOUT", "j ", "* BYE"},
		},
		"pop3s": {
			{"STAT", "", "-ERR log in first"},
			{"USER " + x.Token(), "", "+OK"},
			{"PASS secret", "", "+OK"},
			{"STAT", "", fmt.Sprintf("+OK 1 %d", len(onlyMail))},
			{"LIST", ".", fmt.Sprintf("\r\n1 %d", len(onlyMail))},
			{"UIDL 1", "", "+OK 1 only"},
			{"RETR 1", ".", "\r\n" + onlyMail + "."},
			{"RETR 2", "", "-ERR there is no such message"},
			{"DELE 1", "", "-ERR"},
			{"QUIT", "", "+OK goodbye"},
		},
	} {
		near, far := pair(t)
		done := make(chan []wire.Event, 1)
		go func() { e := protocols[name].TCP.Serve(t.Context(), far, f); far.Close(); done <- e }()
		r := bufio.NewReader(near)
		r.ReadString('\n')
		for _, step := range c {
			io.WriteString(near, step.send+"\r\n")
			var answer string
			for {
				line, err := r.ReadString('\n')
				answer += line
				if err != nil || strings.HasPrefix(line, step.last) {
					break
				}
			}
			if !strings.Contains(answer, step.has) {
				t.Errorf("%s: %q is answered by %q, want %q", name, step.send, answer, step.has)
			}
		}
		near.Close()
		if diff := cmp.Diff(mailEnd{StageDone, ""}, endOf(<-done)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// aBackend takes everybody.
type aBackend struct{ smtp.Session }

func (b aBackend) NewSession(*smtp.Conn) (smtp.Session, error) { return b, nil }
func (aBackend) Logout() error                                 { return nil }
func (aBackend) AuthMechanisms() []string                      { return []string{sasl.Plain} }
func (aBackend) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, _, _ string) error { return nil }), nil
}

// A mail server that lets everybody in is not the reflector.
func TestMailServerOfTheFieldIsNotTakenForTheReflector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := smtp.NewServer(aBackend{})
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*certificate()}}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	defer func() { server.Close(); <-ended }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := submission.TCP.Probe(t.Context(), c, newFar().exchange())
	if diff := cmp.Diff(mailEnd{StageLogin, FaultForeign}, mailEnd{r.Stage, r.Fault}); diff != "" || !strings.HasPrefix(string(r.Sample), "235 ") || r.TLS == nil {
		t.Errorf("%+v (-want +got):\n%s", r, diff)
	}
}

func TestXMPPClientBindsAfterItsLogin(t *testing.T) {
	f := newFar()
	n := nearMail{x: f.exchange()}
	near, far := pair(t)
	done := make(chan []wire.Event, 1)
	go func() { e := xmppInTLS.TCP.Serve(t.Context(), far, f); far.Close(); done <- e }()
	r := bufio.NewReader(near)
	for _, step := range []struct {
		send string
		want []string
	}{
		{"<?xml version='1.0'?>" + xmppOpen, []string{"stream:stream", "stream:features"}},
		{`<auth xmlns="` + nsSASL + `" mechanism="PLAIN">` + n.plainLogin() + `</auth>`, []string{"success"}},
		{xmppOpen, []string{"stream:stream", "stream:features"}},
		{`<iq id="a&amp;b" type="set"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></iq>`, []string{"iq"}},
		{`<presence/><iq id="2" type="get"><query xmlns="jabber:iq:roster"/></iq>`, []string{"iq"}},
		{streamEnd, []string{"/stream:stream"}},
	} {
		io.WriteString(near, step.send)
		for _, want := range step.want {
			text, err := readElement(r)
			if elementName(text) != want || err != nil || want == "iq" && !strings.Contains(step.send, `"`+escaped(attribute(text, "id"))+`"`) {
				t.Fatalf("%q answered by %q, %v", step.send, text, err)
			}
		}
	}
	near.Close()
	if diff := cmp.Diff(mailEnd{StageDone, ""}, endOf(<-done)); diff != "" {
		t.Errorf("far end (-want +got):\n%s", diff)
	}
}
