package protocol

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

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

// Whatever a stranger says, the far end names the stage and the fault, and ends.
func TestFarEndsOfMailTellWhatStrangersSend(t *testing.T) {
	for name, c := range mailStrangers {
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
	for name, c := range strangeAnswers {
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

func lastOf(lines []string) string { return lines[len(lines)-1] }

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
		if res.Stage != StageSTARTTLS || res.Fault != FaultAltered || res.Err.Error() != want || res.TLS != nil || lastOf(res.Said.Heard) != strings.TrimSpace(c.answer) {
			t.Errorf("%s, near end: %+v", name, res)
		}
		_, _, events := play(t, loopback, p, newFar(), newFar().exchange(), box{up: injected(c.request, c.command)})
		if diff := cmp.Diff(mailEnd{StageSTARTTLS, FaultAltered}, endOf(events)); diff != "" || lastOf(events[0].Said.Heard) != strings.TrimSpace(c.command) {
			t.Errorf("%s, far end: %+v (-want +got):\n%s", name, events[0].Said, diff)
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

// SMTP is no relay: without a token nothing is taken for anybody, and what is
// taken with one goes nowhere.
func TestMailIsRelayedToNobody(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes = 0
	recipients := []string{"<you@example.com>", "<you@" + mailDomain + ">", "<postmaster>", "<you%example.com@" + mailDomain + ">", "<@" + mailDomain + ":you@example.com>", `<"you@example.com"@` + mailDomain + ">"}
	for _, name := range []string{"smtps", "submission"} { // in TLS, and before it
		near, far := pair(t)
		done := make(chan []wire.Event, 1)
		go func() { e := protocols[name].TCP.Serve(t.Context(), far, f); far.Close(); done <- e }()
		c := newDialogue(near, 10*time.Second)
		ask := func(line string) string {
			c.say("%s", line)
			answer, _ := c.hear()
			return answer
		}
		c.hear()
		ask("HELO x")
		for _, to := range recipients {
			for _, line := range []string{"MAIL FROM:<me@example.com>", "RCPT TO:" + to, "DATA"} {
				if answer := ask(line); !strings.HasPrefix(answer, "530 ") {
					t.Errorf("%s, without a token, %q is answered by %q", name, line, answer)
				}
			}
		}
		for _, line := range []string{"ETRN example.com", "TURN", "EXPN all", "XCLIENT ADDR=127.0.0.1", "XFORWARD ADDR=127.0.0.1", "BDAT 5 LAST"} {
			if answer := ask(line); !strings.HasPrefix(answer, "5") {
				t.Errorf("%s: %q is answered by %q", name, line, answer)
			}
		}
		if name == "smtps" {
			_, b, _ := sasl.NewPlainClient("", x.Token(), "x").Start()
			ask("AUTH PLAIN " + base64.StdEncoding.EncodeToString(b))
			ask("MAIL FROM:<me@example.com>")
			ask("RCPT TO:" + recipients[0])
			ask("DATA")
			if answer := ask("Subject: relayed?\r\n."); answer != "250 2.0.0 thrown away" {
				t.Errorf("a message is answered by %q", answer)
			}
		}
		near.Close()
		<-done
	}
	if n := f.further.Load(); n > 0 {
		t.Errorf("%d further connections were made", n)
	}
}

// Who has logged in may look around, but not for ever.
func TestMailboxesBearWithSoManyCommands(t *testing.T) {
	f := newFar()
	for name, c := range map[string]struct{ login, command, last string }{
		"imaps": {"a LOGIN %s x\r\n", "b NOOP\r\n", "* BYE " + errManyCommands.Error()},
		"pop3s": {"USER %s\r\nPASS x\r\n", "NOOP\r\n", "-ERR " + errManyCommands.Error()},
		"smtps": {"EHLO x\r\nAUTH LOGIN\r\n%s\r\neA==\r\n", "NOOP\r\n", "421 4.7.0 " + errManyCommands.Error()},
	} {
		near, far := memoryPair(t)
		done := make(chan []wire.Event, 1)
		go func() { e := protocols[name].TCP.Serve(t.Context(), far, f); far.Close(); done <- e }()
		token := f.exchange().Token()
		if name == "smtps" {
			token = base64.StdEncoding.EncodeToString([]byte(token))
		}
		go func() { io.WriteString(near, fmt.Sprintf(c.login, token)+strings.Repeat(c.command, 2*mailCommandsIn)) }()
		answers, _ := io.ReadAll(near)
		lines := strings.Split(strings.TrimSpace(string(answers)), "\r\n")
		if n := len(lines); n < mailCommandsIn || n > mailCommandsIn+20 || lines[n-1] != c.last {
			t.Errorf("%s: after %d lines %q", name, n, lines[n-1])
		}
		if diff := cmp.Diff(mailEnd{StageDone, ""}, endOf(<-done)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// Who has nothing to carry ends the dialogue with a word, and hears the answer:
// what is left unread makes a system answer with a reset.
func TestMailLeavesWithAGoodbye(t *testing.T) {
	for name, want := range map[string][2]string{
		"smtps": {"QUIT", "221 2.0.0 goodbye"}, "submission": {"QUIT", "221 2.0.0 goodbye"},
		"imaps": {"a3 LOGOUT", "a3 OK"}, "imap": {"a5 LOGOUT", "a5 OK"},
		"pop3s": {"QUIT", "+OK goodbye"}, "pop3": {"QUIT", "+OK goodbye"},
		"xmpps": {streamEnd, streamEnd}, "xmpp": {streamEnd, streamEnd},
	} {
		for _, n := range []uint32{0, 1} {
			f := newFar()
			x := f.exchange()
			x.Bytes, x.Idle = n, 0
			got, _, events := play(t, networks[0], spoken{name: name, Protocol: protocols[name]}, f, x, box{})
			last := func(lines []string) string { return lines[len(lines)-1] }
			said := [2]string{last(got.Said.Sent), last(got.Said.Heard)}
			if got.Stage != StageDone || (said == want) != (n == 0) {
				t.Errorf("%s with %d bytes ends in %s with %q", name, n, got.Stage, said)
			}
			if diff := cmp.Diff(got.Said, &wire.Said{Sent: events[0].Said.Heard, Heard: events[0].Said.Sent}); diff != "" {
				t.Errorf("%s (-near +far):\n%s", name, diff)
			}
		}
	}
}
