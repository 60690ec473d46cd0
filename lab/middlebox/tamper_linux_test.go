package middlebox

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/protocol"
)

// through gives what arrives of what one side says.
func through(rules []Rewrite, from Side, text string) string {
	return string(newEditor(rules, from).edit([]byte(text), true))
}

func TestRewritersDoWhatTheirNamesSay(t *testing.T) {
	const offer = "250-mail\r\n250-STARTTLS\r\n250 HELP\r\n"
	v4, v6 := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	helper4 := FTPHelper(netip.MustParseAddr("10.77.1.2"), v4)
	helper6 := FTPHelper(netip.MustParseAddr("fd77::2"), v6)
	for _, c := range []struct {
		name       string
		rules      []Rewrite
		from       Side
		text, want string
	}{
		{"SMTP offer", StripSTARTTLS(), Server, offer, "250-mail\r\n250 HELP\r\n"},
		{"SMTP offer at the end", StripSTARTTLS(), Server, "250-mail\r\n250 STARTTLS\r\n", "250-mail\r\n250 NOOP\r\n"},
		{"IMAP offer", StripSTARTTLS(), Server, "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\n", "* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n"},
		{"POP3 offer", StripSTARTTLS(), Server, "TOP\r\nSTLS\r\nUIDL\r\n", "TOP\r\nUIDL\r\n"},
		{"XMPP offer", StripSTARTTLS(), Server, "<f><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></f>", "<f></f>"},
		{"command is left", StripSTARTTLS(), Client, "STARTTLS\r\n", "STARTTLS\r\n"},
		{"offer overwritten", OverwriteSTARTTLS(), Server, offer, "250-mail\r\n250-XXXXXXXX\r\n250 HELP\r\n"},
		{"command overwritten", OverwriteSTARTTLS(), Client, "STARTTLS\r\n", "XXXXXXXX\r\n"},
		{"headers", AddHeaders("Via: 1.1 box", "X-Forwarded-For: 10.0.0.1"), Client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET / HTTP/1.1\r\nVia: 1.1 box\r\nX-Forwarded-For: 10.0.0.1\r\nHost: a\r\n\r\n"},
		{"PORT", helper4, Client, "PORT 10,77,1,2,4,1\r\n", "PORT 198,51,100,1,4,1\r\n"},
		{"EPRT", helper4, Client, "EPRT |1|10.77.1.2|1025|\r\n", "EPRT |1|198.51.100.1|1025|\r\n"},
		{"EPRT, IPv6", helper6, Client, "EPRT |2|fd77::2|1025|\r\n", "EPRT |2|2001:db8::1|1025|\r\n"},
	} {
		if diff := cmp.Diff(c.want, through(c.rules, c.from, c.text)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestGatewayPutsAnotherPortIntoItsLines(t *testing.T) {
	g := &FTPGateway{Verbs: []string{"227", "229", "PORT", "EPRT"}}
	for line, want := range map[string]string{
		"227 Entering Passive Mode (198,51,100,10,132,109)\r\n":  "227 Entering Passive Mode (198,51,100,10,132,108)\r\n",
		"227 Entering Passive Mode (198,51,100,10,132,109).\r\n": "227 Entering Passive Mode (198,51,100,10,132,108).\r\n",
		"229 Entering Extended Passive Mode (|||40001|)\r\n":     "229 Entering Extended Passive Mode (|||40000|)\r\n",
		"PORT 10,77,1,2,1,0\r\n":                                 "PORT 10,77,1,2,1,1\r\n",
		"EPRT |2|fd77::2|1025|\r\n":                              "EPRT |2|fd77::2|1024|\r\n",
		"EPSV\r\n":                                               "EPSV\r\n",
		"227\r\n":                                                "227\r\n",
		"227 none\r\n":                                           "227 none\r\n",
		"230 logged in 1,2,3,4,5,6\r\n":                          "230 logged in 1,2,3,4,5,6\r\n",
	} {
		if got := g.edit(line); got != want {
			t.Errorf("%q became %q, want %q", line, got, want)
		}
	}
	at := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("198.51.100.10"), port)
	}
	for shown, want := range map[uint16]uint16{132<<8 | 108: 132<<8 | 109, 40000: 40001, 257: 256, 1024: 1025, 5000: 5000} {
		if got := g.To(at(shown)); got != at(want) {
			t.Errorf("port %d goes on to %s, want %d", shown, got, want)
		}
	}
}

// What looks like the beginning of what is to be rewritten and is all that is
// said for now goes on as it is: the other end may wait for it.
func TestBeginningOfARewriteIsNotHeldForEver(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Rewrites: []Rewrite{{From: Client, Old: "Upgrade", New: "Down"}}})
	client, server := s.pair(l, s.targets()[0])
	s.send(client, server, "first Up", "first Up")
	s.send(client, server, "Upgrade", "Down")
}

func TestLinesAreEditedAndAnswered(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Between: Lines(func(from Side, line string) (on, back string) {
		switch {
		case line == "EPSV\r\n":
			return "", "500 no\r\n"
		case from == Server:
			return "> " + line, ""
		}
		return line, ""
	})})
	client, server := s.pair(l, s.targets()[0])
	s.send(client, server, "PASV\r\n", "PASV\r\n")
	s.send(server, client, "227 there\r\n", "> 227 there\r\n")
	if _, err := io.WriteString(client, "EPSV\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("500 no\r\n"))
	if _, err := io.ReadFull(client, answer); err != nil || string(answer) != "500 no\r\n" {
		t.Errorf("%q, %v", answer, err)
	}
	s.send(client, server, "QUIT\r\n", "QUIT\r\n") // and nothing before it
}

func TestDNSAnswersArriveWithAnotherAddress(t *testing.T) {
	edit := DNSAnswers(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::bad"))
	m := new(dns.Msg)
	m.SetQuestion("a.example.", dns.TypeA)
	for _, text := range []string{"a.example. 60 IN A 198.51.100.10", "a.example. 60 IN AAAA 2001:db8::a", "a.example. 60 IN TXT left"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var got dns.Msg
	if err := got.Unpack(edit(Server, packed)); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, rr := range got.Answer {
		texts = append(texts, strings.Join(strings.Fields(rr.String())[4:], " "))
	}
	if diff := cmp.Diff([]string{"192.0.2.1", "2001:db8::bad", `"left"`}, texts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !bytes.Equal(edit(Client, packed), packed) || string(edit(Server, []byte("no DNS"))) != "no DNS" {
		t.Error("something else was changed")
	}
}

// handshake asks for a name through a box and says how it ended; the server
// tells what it heard.
func (s *scene) handshake(l net.Listener, to netip.AddrPort, name string) (*tls.Conn, protocol.Hello, error) {
	s.Helper()
	client, server := s.pair(l, to)
	heard := make(chan protocol.Hello, 1)
	go func() {
		record, err := readRecord(server)
		h, _ := protocol.ParseHello(record)
		heard <- h
		if err != nil {
			return
		}
		cert, _ := new(Interceptor).leaf("server")
		far := tls.Server(&replayed{server, bytes.NewReader(record)}, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2"}})
		if far.Handshake() == nil {
			_, _ = io.Copy(far, far)
		}
		server.Close()
	}()
	c := tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	err := c.Handshake()
	client.Close()
	return c, <-heard, err
}

// replayed gives a record again that was read from a connection.
type replayed struct {
	net.Conn
	first *bytes.Reader
}

func (r *replayed) Read(b []byte) (int, error) {
	if r.first.Len() > 0 {
		return r.first.Read(b)
	}
	return r.Conn.Read(b)
}

func TestFilterActsOnItsHellosAlone(t *testing.T) {
	for _, c := range []struct {
		name   string
		filter Filter
		ended  func(error) bool
	}{
		{"by name", ByName(ResetBoth, "bad.example"), func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
		{"alert", ByName(Alert, "bad.example"), func(err error) bool { return err != nil && strings.Contains(err.Error(), "access denied") }},
		{"by ALPN", func(record []byte, h protocol.Hello) ([]byte, Action) {
			if h.ServerName == "bad.example" {
				return ByALPN(ResetBoth, "h2")(record, h)
			}
			return ByALPN(ResetBoth, "h3")(record, h)
		}, func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			l := s.listen()
			s.open(TCP{Ports: "7", Filter: c.filter})
			for _, to := range s.targets() {
				if _, heard, err := s.handshake(l, to, "good.example"); err != nil || heard.ServerName != "good.example" {
					t.Errorf("good.example: %v, the server heard %+v", err, heard)
				}
				if _, heard, err := s.handshake(l, to, "bad.example"); !c.ended(err) || heard.ServerName != "" {
					t.Errorf("bad.example: %v, the server heard %+v", err, heard)
				}
			}
		})
	}
}

func TestStripperTakesALPNAway(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Filter: StripALPN})
	_, heard, err := s.handshake(l, s.targets()[0], "a.example")
	if err == nil || heard.ServerName != "a.example" || heard.ALPN != nil {
		t.Errorf("%v, the server heard %+v", err, heard)
	}
}

func TestInterceptorShowsItsOwnAuthority(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Between: (&Interceptor{Authority: "Inspection CA", ALPN: []string{"h2"}}).Between})
	for _, to := range s.targets() {
		c, heard, err := s.handshake(l, to, "a.example")
		if err != nil || heard.ServerName != "a.example" {
			t.Fatalf("%v, the server heard %+v", err, heard)
		}
		leaf := c.ConnectionState().PeerCertificates[0]
		if diff := cmp.Diff([]string{"CN=a.example", "CN=Inspection CA"}, []string{leaf.Subject.String(), leaf.Issuer.String()}); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestBytesThatAreNoHelloPassAFilter(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Filter: AnyHello(ResetBoth)})
	for _, text := range []string{"EHLO a\r\n", "ab"} {
		client, server := s.pair(l, s.targets()[0])
		if text == "ab" { // what ends before it can be told
			_, _ = io.WriteString(client, text)
			client.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(server); string(got) != text || err != nil {
				t.Errorf("%q arrived as %q, %v", text, got, err)
			}
			continue
		}
		s.send(client, server, text, text)
	}
}

func TestInterceptorWaitsForTLSThatIsAskedFor(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Between: (&Interceptor{Later: true}).Between})
	client, server := s.pair(l, s.targets()[0])
	s.send(client, server, "STARTTLS\r\n", "STARTTLS\r\n")
	s.send(server, client, "220 go on\r\n", "220 go on\r\n")
	a, err := newAuthority("the server's CA")
	if err != nil {
		t.Fatal(err)
	}
	own, err := a.leaf("a.example")
	if err != nil {
		t.Fatal(err)
	}
	far := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{*own}, NextProtos: []string{"smtp"}})
	heard := make(chan error, 1)
	go func() { heard <- far.Handshake() }()
	near := tls.Client(client, &tls.Config{ServerName: "a.example", InsecureSkipVerify: true, NextProtos: []string{"smtp"}})
	if err := errors.Join(near.Handshake(), <-heard); err != nil {
		t.Fatal(err)
	}
	st := near.ConnectionState()
	if diff := cmp.Diff([]string{"CN=" + Issuer, "smtp"}, []string{st.PeerCertificates[0].Issuer.String(), st.NegotiatedProtocol}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s.send(near, far, "EHLO a\r\n", "EHLO a\r\n")
}

func TestFilterLooksAtTLSThatIsAskedFor(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Filter: ByName(ResetBoth, "bad.example"), Later: true})
	for name, want := range map[string]error{"good.example": nil, "bad.example": syscall.ECONNRESET} {
		client, server := s.pair(l, s.targets()[0])
		s.send(client, server, "STARTTLS\r\n", "STARTTLS\r\n")
		s.send(server, client, "220 go on\r\n", "220 go on\r\n")
		cert, err := new(Interceptor).leaf("server")
		if err != nil {
			t.Fatal(err)
		}
		var heard string
		far := tls.Server(server, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			heard = h.ServerName
			return &tls.Config{Certificates: []tls.Certificate{*cert}}, nil
		}})
		ended := make(chan error, 1)
		go func() { ended <- far.Handshake() }()
		err = tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		if !errors.Is(err, want) || !errors.Is(<-ended, want) || (heard == name) != (want == nil) {
			t.Errorf("%s: %v, the server heard %q", name, err, heard)
		}
	}
}
