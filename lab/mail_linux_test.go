package lab_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
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
	server := func(old, new string) middlebox.Rewrite {
		return middlebox.Rewrite{From: middlebox.Server, Old: old, New: new}
	}
	return []row{
		{name: "mail behind a stateful firewall", scenario: "mail", rules: builtinFirewall(t, "stateful"), want: every},
		{name: "the offer of STARTTLS taken away", scenario: "mail", family: "ipv4", rules: rules,
			boxes: mailBox(portsSTARTTLS, middlebox.TCP{Rewrites: []middlebox.Rewrite{
				server("250-STARTTLS\r\n", ""), server("STARTTLS LOGINDISABLED", "LOGINDISABLED"), server("STLS\r\n", ""),
				server(`<starttls xmlns="urn:ietf:params:xml:ns:xmpp-tls"><required/></starttls>`, "")}}),
			want: join(all(open, mailInTLS...), map[string]fact{
				"SUBMISSION": starttls(`"250-STARTTLS" was sent and taken away`),
				"IMAP":       starttls(`"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] wallpr..." was sent, "* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] wallprobe is ready" arrived here`),
				"POP3":       starttls(`"STLS" was sent and taken away`),
				"XMPP":       starttls(`"<stream:features><starttls xmlns=\"urn:ietf:params:xml:ns:..." was sent, "<stream:features></stream:features>" arrived here`),
			})},
		{name: "STARTTLS crossed out", scenario: "mail", family: "ipv4", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{
				server("220 wallprobe.invalid ESMTP wallprobe", "220 *************************"), server("STARTTLS", "XXXXXXXA"),
				{From: middlebox.Client, Old: "STARTTLS", New: "XXXXXXXX"}}}),
			want: map[string]fact{"SUBMISSION": starttls(`"250-STARTTLS" was sent, "250-XXXXXXXA" arrived here`)}},
		{name: "the command STARTTLS crossed out", scenario: "mail", family: "ipv4", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{{From: middlebox.Client, Old: "STARTTLS", New: "XXXXXXXX"}}}),
			want:  map[string]fact{"SUBMISSION": starttls(`"STARTTLS" was sent, "XXXXXXXX" arrived at the reflector`)}},
		{name: "the answer to STARTTLS rewritten", scenario: "mail", family: "ipv4", rules: rules,
			boxes: mailBox("587", middlebox.TCP{Rewrites: []middlebox.Rewrite{server("220 2.0.0 ready for TLS", "454 4.7.0 TLS not available")}}),
			want:  map[string]fact{"SUBMISSION": starttls(`"220 2.0.0 ready for TLS" was sent, "454 4.7.0 TLS not available" arrived here`)}},
		{name: "STARTTLS refused by a box", scenario: "mail", family: "ipv4", rules: rules, boxes: smtpRefuser,
			want: map[string]fact{"SUBMISSION": starttls(`"454 4.7.0 TLS not available due to local policy" was put in before it arrived here`)}},
		{name: "reset at EHLO", scenario: "mail", rules: firewall(ehloReset) + translator,
			want: join(all(open, mailInTLS...), map[string]fact{"SUBMISSION": {Verdict: client.Cut, Near: "starttls reset", Far: "banner", Counted: "as unanswered",
				Why: "stage starttls: a reset came; the reflector never sent a reset: it knows the connection as open"}})},
		{name: "hung up after EHLO", scenario: "mail", family: "ipv4", rules: rules, boxes: smtpHangup,
			want: map[string]fact{"SUBMISSION": {Verdict: client.Cut, Near: "starttls eof", Far: "starttls eof",
				Why: "stage starttls: the connection was closed; at the reflector, stage starttls: the connection was closed"}}},
		{name: "the greeting swallowed", scenario: "mail", family: "ipv4", rules: rules,
			boxes: mailBox(portsSTARTTLS, middlebox.TCP{Cut: &middlebox.Cut{From: middlebox.Server, After: 0}}),
			want:  all(fact{Verdict: client.Cut, Why: "stage banner: nothing more came", Near: "banner timeout"}, mailSTARTTLS...)},
		{name: "mail intercepted", scenario: "mail", family: "ipv4", rules: rules, boxes: func(s *scene) { intercept(s, "{ 465, 993, 995, 5223 }") },
			want: join(all(fact{Verdict: client.Altered, Why: `issued by "CN=interceptor" was seen`, Near: "done", Far: "done"}, mailInTLS...), all(open, mailSTARTTLS...))},
	}
}

func TestTamperingWithMailIsNamedExactly(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range mailRows(t) {
		for _, family := range r.families() {
			t.Run(r.name+"/"+family, func(t *testing.T) {
				t.Parallel()
				res := r.play(t, program, family)
				if diff := r.mismatch(res); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
					r.explain(t, res)
				}
			})
		}
	}
}

// onward connects a box on the firewall to where a connection was aimed.
func (s *scene) onward(c net.Conn) (far net.Conn, err error) {
	err = s.firewall().Do(func() (err error) {
		far, err = net.Dial("tcp", c.LocalAddr().String())
		return err
	})
	return far, err
}

// intercept speaks TLS to both ends of ports.
func intercept(s *scene, ports string) {
	certificate, err := selfSigned("interceptor")
	if err != nil {
		s.Fatal(err)
	}
	s.serve(middlebox.TCP{Ports: ports, Answer: func(c net.Conn) {
		wire, err := s.onward(c)
		if err != nil {
			return
		}
		defer wire.Close()
		near := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
		if near.Handshake() != nil {
			return
		}
		splice(near, tls.Client(wire, &tls.Config{ServerName: near.ConnectionState().ServerName, InsecureSkipVerify: true}))
	}}.Open(s.firewall()))
}

// splice carries bytes both ways until both have ended.
func splice(near, far *tls.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(far, near)
		_ = far.CloseWrite()
	}()
	_, _ = io.Copy(near, far)
	_ = near.Close()
	<-done
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

// smtpHangup ends the connection once it has seen what is spoken.
func smtpHangup(s *scene) {
	s.lines("587", func(line string, _, far net.Conn) bool {
		_, err := io.WriteString(far, line)
		return err == nil && !strings.HasPrefix(line, "EHLO")
	})
}

// lines lets a box see what the client says line by line; it ends the
// connection by false.
func (s *scene) lines(ports string, see func(line string, near, far net.Conn) bool) {
	s.serve(middlebox.TCP{Ports: ports, Answer: func(near net.Conn) {
		far, err := s.onward(near)
		if err != nil {
			return
		}
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
