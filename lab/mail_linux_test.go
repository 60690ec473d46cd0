package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// The paths of testdata/truth/mail.yaml: those that begin with TLS, and those
// that ask for it.
var (
	mailInTLS    = []string{"SMTPS", "IMAPS", "POP3S", "XMPPS"}
	mailSTARTTLS = []string{"SUBMISSION", "IMAP", "POP3", "XMPP"}
)

const portsSTARTTLS = "{ 587, 143, 110, 5222 }"

// ehloReset looks for the first four bytes of what a client says.
const ehloReset = `		iifname "lan0" tcp dport 587 @ih,0,32 0x45484c4f counter reject with tcp reset comment "SUBMISSION"
`

// mailBox puts a box into the way of ports.
func mailBox(ports string, box middlebox.TCP) func(*scene) {
	box.Ports = ports
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

func mailRows(t testing.TB) []row {
	rules := firewall("") + translator
	open := fact{Verdict: client.Open, Why: "TLS 1.3, certificate as sent", Near: "done", Received: "20000", Far: "done"}
	every := join(all(open, mailInTLS...), all(open, mailSTARTTLS...))
	const meaning = ": somebody between keeps the connection from going on in TLS, so programs give up or send passwords in clear"
	starttls := func(why string) fact {
		return fact{Verdict: client.Altered, Why: why + meaning, Near: "starttls foreign"}
	}
	read := fact{Verdict: client.Altered, Why: `issued by "CN=wallprobe lab inspection" was seen`, Near: "done", Far: "done"}
	server := func(old, new string) middlebox.Rewrite {
		return middlebox.Rewrite{From: middlebox.Server, Old: old, New: new}
	}
	return []row{
		{name: "mail behind a stateful firewall", scenario: "mail", rules: builtinFirewall(t, "stateful"), want: every},
		{name: "the offer of STARTTLS taken away", scenario: "mail", rules: rules,
			boxes: mailBox(portsSTARTTLS, middlebox.TCP{Rewrites: []middlebox.Rewrite{
				server("250-STARTTLS\r\n", ""), server("STARTTLS LOGINDISABLED", "LOGINDISABLED"), server("STLS\r\n", ""),
				server(`<starttls xmlns="urn:ietf:params:xml:ns:xmpp-tls"><required/></starttls>`, "")}}),
			want: join(all(open, mailInTLS...), map[string]fact{
				"SUBMISSION": starttls(`"250-STARTTLS" was sent and taken away`),
				"IMAP":       starttls(`"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] wallpr..." was sent, "* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] wallprobe is ready" arrived here`),
				"POP3":       starttls(`"STLS" was sent and taken away`),
				"XMPP":       starttls(`"<stream:features><starttls xmlns=\"urn:ietf:params:xml:ns:..." was sent, "<stream:features></stream:features>" arrived here`),
			})},
		{name: "STARTTLS crossed out", scenario: "mail", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{
				server("220 wallprobe.invalid ESMTP wallprobe", "220 *************************"), server("STARTTLS", "XXXXXXXA"),
				{From: middlebox.Client, Old: "STARTTLS", New: "XXXXXXXX"}}}),
			want: map[string]fact{"SUBMISSION": starttls(`"250-STARTTLS" was sent, "250-XXXXXXXA" arrived here`)}},
		{name: "the command STARTTLS crossed out", scenario: "mail", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{{From: middlebox.Client, Old: "STARTTLS", New: "XXXXXXXX"}}}),
			want:  map[string]fact{"SUBMISSION": starttls(`"STARTTLS" was sent, "XXXXXXXX" arrived at the reflector`)}},
		{name: "the answer to STARTTLS rewritten", scenario: "mail", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{server("220 2.0.0 ready for TLS", "454 4.7.0 TLS not available")}}),
			want:  map[string]fact{"SUBMISSION": starttls(`"220 2.0.0 ready for TLS" was sent, "454 4.7.0 TLS not available" arrived here`)}},
		{name: "STARTTLS refused by a box", scenario: "mail", rules: rules, boxes: smtpRefuser,
			want: map[string]fact{"SUBMISSION": starttls(`"454 4.7.0 TLS not available due to local policy" was put in before it arrived here`)}},
		{name: "an answer put in before TLS", scenario: "mail", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{server("ready for TLS\r\n", "ready for TLS\r\n250 8BITMIME\r\n")}}),
			want:  map[string]fact{"SUBMISSION": {Verdict: client.Altered, Why: `"250 8BITMIME" was put in before it arrived here`, Near: "starttls altered"}}},
		{name: "a command put in before TLS", scenario: "mail", rules: rules,
			boxes: mailBox("143", middlebox.TCP{Rewrites: []middlebox.Rewrite{{From: middlebox.Client, Old: "a2 STARTTLS\r\n", New: "a2 STARTTLS\r\na3 NOOP\r\n"}}}),
			want:  map[string]fact{"IMAP": {Verdict: client.Altered, Why: `"a3 NOOP" was put in before it arrived at the reflector`, Far: "starttls altered"}}},
		{name: "reset at EHLO", scenario: "mail", family: "ipv4", rules: firewall(ehloReset) + translator,
			want: join(all(open, mailInTLS...), map[string]fact{"SUBMISSION": {Verdict: client.Cut, Near: "starttls reset", Far: "banner", Counted: "as unanswered",
				Why: `stage starttls: a reset came after "EHLO [10.77.1.2]" was sent; the reflector never sent a reset: it knows the connection as open`}})},
		{name: "hung up after EHLO", scenario: "mail", family: "ipv4", rules: rules, boxes: smtpHangup,
			want: map[string]fact{"SUBMISSION": {Verdict: client.Cut, Near: "starttls eof",
				Why: `stage starttls: the connection was closed after "EHLO [10.77.1.2]" was sent; at the reflector, stage banner`}}},
		{name: "the greeting swallowed", scenario: "mail", rules: rules,
			boxes: mailBox(portsSTARTTLS, middlebox.TCP{Cut: &middlebox.Cut{From: middlebox.Server, After: 0}}),
			want:  all(fact{Verdict: client.Cut, Why: "stage banner: nothing more came", Near: "banner timeout"}, mailSTARTTLS...)},
		{name: "mail intercepted", scenario: "mail", rules: rules, boxes: intercepted("{ 465, 993, 995, 5223 }"),
			want: join(all(read, mailInTLS...), all(open, mailSTARTTLS...))},
		{name: "mail intercepted behind STARTTLS", scenario: "mail", rules: rules, boxes: interceptLater(portsSTARTTLS),
			want: join(all(open, mailInTLS...), all(read, mailSTARTTLS...))},
	}
}

func TestTamperingWithMailIsNamedExactly(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range mailRows(t) {
		r.holds(t, program)
	}
}

// interceptLater lets all pass until the client begins TLS, and then speaks it
// to both ends, as mail gateways do that look into what is handed in.
func interceptLater(ports string) func(*scene) {
	return func(s *scene) {
		s.serve(middlebox.TCP{Ports: ports, Between: (&middlebox.Interceptor{Later: true}).Between}.Open(s.firewall()))
	}
}

// smtpRefuser answers STARTTLS itself, as mail gateways do that want to read along.
func smtpRefuser(s *scene) {
	s.lines("587", func(line string, near, far net.Conn) bool {
		if line == "STARTTLS\r\n" {
			_, _ = fmt.Fprint(near, "454 4.7.0 TLS not available due to local policy\r\n")
			return true
		}
		_, err := io.WriteString(far, line)
		return err == nil
	})
}

// smtpHangup ends the connection once it has seen what is spoken. EHLO does not
// go on: its answer could come back before the end does.
func smtpHangup(s *scene) {
	s.lines("587", func(line string, _, far net.Conn) bool {
		if strings.HasPrefix(line, "EHLO") {
			return false
		}
		_, err := io.WriteString(far, line)
		return err == nil
	})
}

// lines lets a box see what the client says line by line; it ends the
// connection by false.
func (s *scene) lines(ports string, see func(line string, near, far net.Conn) bool) {
	s.serve(middlebox.TCP{Ports: ports, Between: func(near, far net.Conn) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(near, far)
		}()
		r := bufio.NewReader(near)
		for {
			line, err := r.ReadString('\n')
			if err != nil || !see(line, near, far) {
				break
			}
		}
		far.Close()
		<-done
	}}.Open(s.firewall()))
}

// A mailClient is a program that nobody here wrote, and what it says when the
// reflector's end is as it expects.
type mailClient struct {
	name    string
	command []string // TOKEN stands for one of its own, MESSAGE for a file with a message
	input   string
	says    []string
	fails   bool   // it is to fail, having been refused
	stage   string // and fault, of the reflector's event
}

func mailClients() []mailClient {
	swaks := func(name string, args ...string) mailClient {
		command := []string{"swaks", "--to", "you@wallprobe.invalid", "--from", "me@mail.example", "--server", "mail.example"}
		return mailClient{name: name, command: append(command, args...), stage: "done", says: []string{"235 2.7.0", "250 2.0.0 thrown away", "221 2.0.0 goodbye"}}
	}
	curl := func(says string, args ...string) mailClient {
		return mailClient{name: "curl " + args[len(args)-1], command: append([]string{"curl", "-ksSv", "--max-time", "8"}, args...), stage: "done", says: []string{says}}
	}
	openssl := func(port string, starttls string, input string, says ...string) mailClient {
		command := []string{"openssl", "s_client", "-quiet", "-crlf", "-servername", "mail.example", "-connect", "mail.example:" + port}
		if starttls != "" {
			command = append(command, "-starttls", starttls, "-xmpphost", "mail.example")
		}
		return mailClient{name: strings.TrimSpace("openssl " + port + " " + starttls), command: command, input: input, says: says, stage: "login eof"}
	}
	auth := []string{"--auth-user", "TOKEN", "--auth-password", "secret", "--auth"}
	refused := swaks("swaks with an unknown name", "-tlsc", "-p", "465", "--auth", "PLAIN", "--auth-user", "somebody", "--auth-password", "secret")
	refused.says, refused.fails, refused.stage = []string{"535 5.7.8"}, true, "login foreign"
	return []mailClient{
		swaks("swaks 587 PLAIN", append([]string{"--tls", "-p", "587"}, append(auth, "PLAIN")...)...),
		swaks("swaks 587 LOGIN", append([]string{"--tls", "-p", "587"}, append(auth, "LOGIN")...)...),
		swaks("swaks 465 PLAIN", append([]string{"-tlsc", "-p", "465"}, append(auth, "PLAIN")...)...),
		refused,
		curl("250 2.0.0 thrown away", "--user", "TOKEN:secret", "--mail-from", "me@mail.example", "--mail-rcpt", "you@wallprobe.invalid", "-T", "MESSAGE", "smtps://mail.example"),
		curl("250 2.0.0 thrown away", "--user", "TOKEN:secret", "--ssl-reqd", "--mail-from", "me@mail.example", "--mail-rcpt", "you@wallprobe.invalid", "-T", "MESSAGE", "smtp://mail.example:587"),
		curl("Subject: This mailbox is a test", "--user", "TOKEN:secret", "imaps://mail.example/INBOX;MAILINDEX=1"),
		curl("Subject: This mailbox is a test", "--user", "TOKEN:secret", "--ssl-reqd", "imap://mail.example/INBOX;MAILINDEX=1"),
		curl("Subject: This mailbox is a test", "--user", "TOKEN:secret", "pop3s://mail.example/1"),
		curl("Subject: This mailbox is a test", "--user", "TOKEN:secret", "--ssl-reqd", "pop3://mail.example/1"),
		openssl("465", "", "EHLO me\nNOOP\nQUIT\n", "220 wallprobe.invalid ESMTP", "250-AUTH PLAIN LOGIN", "221 2.0.0 goodbye"),
		openssl("587", "smtp", "EHLO me\nNOOP\nQUIT\n", "250-AUTH PLAIN LOGIN", "221 2.0.0 goodbye"),
		openssl("993", "", "a CAPABILITY\nb LOGOUT\n", "* OK [CAPABILITY IMAP4rev1", "b OK"),
		openssl("143", "imap", "a CAPABILITY\nb LOGOUT\n", "AUTH=PLAIN", "b OK"),
		openssl("995", "", "CAPA\nQUIT\n", "+OK wallprobe is ready", "+OK goodbye"),
		openssl("110", "pop3", "CAPA\nQUIT\n", "UIDL", "+OK goodbye"),
		openssl("5222", "xmpp", xmppHello, "<mechanism>PLAIN</mechanism>", "</stream:stream>"),
		openssl("5223", "", xmppHello, "<mechanism>PLAIN</mechanism>", "</stream:stream>"),
	}
}

const xmppHello = `<?xml version='1.0'?><stream:stream to='mail.example' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'></stream:stream>`

// Where our own client succeeds, programs that are in use do as well.
func TestMailProgramsInUseSpeakWithTheReflector(t *testing.T) {
	lab.NeedLab(t)
	r := row{name: "mail programs", scenario: "mail", rules: builtinFirewall(t, "stateful")}
	w, s := r.stand(t)
	dir := t.TempDir()
	journal, mail := dir+"/journal", dir+"/mail"
	if err := os.WriteFile(mail, []byte("Subject: hello\r\n\r\n.dots and all\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key, stop := startReflector(t, w, s, "--journal", journal)
	id := wire.SessionID{1}
	keys := wire.Derive(key, id, wire.Nonce{})
	clients := mailClients()
	want := make(map[uint32]string)
	t.Run("programs", func(t *testing.T) {
		for i, c := range clients {
			x := protocol.Exchange{Keys: &keys, Offline: true, Probe: uint32(i + 1), Now: time.Now}
			if c.stage == "done" {
				want[x.Probe] = c.stage
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t, w, strings.NewReplacer("TOKEN", x.Token(), "MESSAGE", mail))
			})
		}
	})
	stop()
	file, err := os.Open(journal)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	j, err := client.ReadJournal(file)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[uint32]string)
	for _, p := range j.Ledgers[id].Probes {
		for _, e := range p.Events {
			got[p.Probe] = strings.TrimSpace(e.Stage + " " + e.Fault)
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("logins by probe (-want +got):\n%s", diff)
	}
	ended := make(map[string]int)
	for _, e := range j.Unclaimed[0].Strays {
		ended[strings.TrimSpace(e.Stage+" "+e.Fault)]++
	}
	if diff := gocmp.Diff(map[string]int{"login eof": 8, "login foreign": 1}, ended); diff != "" {
		t.Errorf("connections without a login (-want +got):\n%s", diff)
	}
}

func (c mailClient) run(t *testing.T, w *lab.World, fill *strings.Replacer) {
	need.Program(t, c.command[0])
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var args []string
	for _, a := range c.command[1:] {
		args = append(args, fill.Replace(a))
	}
	host := w.Host("host")
	cmd := host.Command(ctx, c.command[0], args...)
	cmd.Stdin = strings.NewReader(c.input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := host.Run(cmd); (err != nil) != c.fails {
		t.Errorf("ended with %v", err)
	}
	for _, text := range c.says {
		if !strings.Contains(out.String(), text) {
			t.Errorf("did not say %q", text)
		}
	}
	if t.Failed() {
		t.Logf("%s\n%s", strings.Join(cmd.Args, " "), out.String())
	}
}
