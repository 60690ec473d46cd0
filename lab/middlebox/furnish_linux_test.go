package middlebox

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/lab"
)

// A witness is a TLS server with a certificate of its own, which tells by HTTP
// what it was asked for.
func (s *scene) witness(port uint16) {
	a, err := newAuthority("witness CA")
	if err != nil {
		s.Fatal(err)
	}
	l := s.listenOn("server", port)
	config := &tls.Config{NextProtos: []string{"h2", "http/1.1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.leaf(h.ServerName) }}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s over %s from %s via %s", r.TLS.ServerName, r.TLS.NegotiatedProtocol, from, r.Header.Get("Via"))
	}), TLSConfig: config}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ServeTLS(l, "", "")
	}()
	s.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

func (s *scene) listenOn(host string, port uint16) net.Listener {
	var l net.Listener
	s.do(host, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	return l
}

// page gets a page from the server, and tells what it says and who issued the
// certificate that was shown.
func (s *scene) page(port uint16, name, alpn string) (said, issuer string) {
	s.Helper()
	v4, _ := s.world.Host("server").Addrs()
	var conn net.Conn
	s.do("host", func() (err error) {
		conn, err = net.Dial("tcp", net.JoinHostPort(v4.String(), fmt.Sprint(port)))
		return err
	})
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	tc := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{alpn}})
	if err := tc.Handshake(); err != nil {
		s.Fatalf("port %d, %s: %v", port, name, err)
	}
	issuer = tc.ConnectionState().PeerCertificates[0].Issuer.CommonName
	if got := tc.ConnectionState().PeerCertificates[0].DNSNames; len(got) != 1 || got[0] != name {
		s.Errorf("port %d: the certificate is for %v, asked for was %s", port, got, name)
	}
	if alpn != "http/1.1" {
		return tc.ConnectionState().NegotiatedProtocol, issuer
	}
	fmt.Fprintf(tc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
	answer, err := io.ReadAll(tc)
	if err != nil {
		s.Errorf("port %d, %s: %v", port, name, err)
	}
	_, said, _ = strings.Cut(string(answer), "\r\n\r\n")
	return said, issuer
}

// furnish puts the boxes of a file in the way, until the returned function is called.
func (s *scene) furnish(text string) (stop func()) {
	s.Helper()
	file := filepath.Join(s.TempDir(), "own.nft")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
	f, err := lab.OpenFirewall(file)
	if err != nil {
		s.Fatal(err)
	}
	end, err := Furnish(s.Context(), s.world, f)
	if err != nil {
		s.Fatal(err)
	}
	return func() {
		if err := end(); err != nil {
			s.Error(err)
		}
	}
}

func TestBoxesOfAFileLookIntoTLSAndLeaveTheRest(t *testing.T) {
	s := newScene(t)
	for _, port := range []uint16{443, 444, 445} {
		s.witness(port)
	}
	stop := s.furnish("# wallprobe: intercept 443,7/tcp\n# wallprobe: inspect 444/tcp\n")
	cases := []struct {
		port                   uint16
		alpn, said, issuer, by string
	}{
		{443, "http/1.1", "a.example over http/1.1 from 10.77.1.2 via ", Issuer, "our own interceptor"},
		{443, "h2", "h2", Issuer, "our own interceptor"},
		{445, "http/1.1", "a.example over http/1.1 from 10.77.1.2 via ", "witness CA", "nobody"},
	}
	for _, c := range cases {
		said, issuer := s.page(c.port, "a.example", c.alpn)
		if said != c.said || issuer != c.issuer {
			t.Errorf("%s on port %d: %q, issued by %q", c.by, c.port, said, issuer)
		}
	}
	said, issuer := s.page(444, "a.example", "http/1.1")
	if !strings.Contains(said, "(squid/") || issuer != Issuer {
		t.Errorf("squid on port 444: %q, issued by %q", said, issuer)
	}
	s.rawEcho()
	stop()
	if said, _ := s.page(444, "a.example", "http/1.1"); strings.Contains(said, "squid") {
		t.Errorf("squid is still in the way: %q", said)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "wallprobe-squid-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("squid left %v behind", left)
	}
}

// rawEcho sends what is not TLS through an interceptor, client first.
func (s *scene) rawEcho() {
	l := s.listenOn("server", 7)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	v4, _ := s.world.Host("server").Addrs()
	var c net.Conn
	s.do("host", func() (err error) {
		c, err = net.Dial("tcp", net.JoinHostPort(v4.String(), "7"))
		return err
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, "not a handshake"); err != nil {
		s.Error(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "not a handshake" || err != nil {
		s.Errorf("what is not TLS came back as %q, %v", got, err)
	}
}

func TestAMissingProgramIsNamedWithItsPackage(t *testing.T) {
	s := newScene(t)
	kept := squidPrograms["squid"]
	squidPrograms["squid"] = []string{"squid-that-nobody-has"}
	t.Cleanup(func() { squidPrograms["squid"] = kept })
	f := lab.Firewall{Name: "own.nft", Boxes: []lab.Box{{Kind: lab.BoxInspect, Line: 3}}}
	_, err := Furnish(context.Background(), s.world, f)
	want := "firewall own.nft, line 3: the box inspect needs squid, which is missing: apt-get install squid-openssl"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSquidThatCannotStartLeavesItsLog(t *testing.T) {
	s := newScene(t)
	var taken net.Listener
	s.do("firewall", func() (err error) {
		taken, err = net.Listen("tcp", fmt.Sprintf(":%d", squidPort))
		return err
	})
	defer taken.Close()
	_, err := Squid{Ports: "444"}.Open(s.world.Host("firewall"))
	if err == nil {
		t.Fatal("it started on a port that is taken")
	}
	_, rest, ok := strings.Cut(err.Error(), "its log is kept in ")
	log, _, _ := strings.Cut(rest, ": ")
	if text, readErr := os.ReadFile(log); !ok || readErr != nil || !strings.Contains(string(text), "3129") {
		t.Errorf("%v: no log: %v", err, readErr)
	}
	_ = os.RemoveAll(filepath.Dir(log))
}

func TestEveryKindOfBoxCanBeOpened(t *testing.T) {
	for kind := range lab.BoxKinds {
		if openers[kind] == nil {
			t.Errorf("nothing opens %s", kind)
		}
	}
	if len(openers) != len(lab.BoxKinds) {
		t.Errorf("%d boxes can be opened, %d are described", len(openers), len(lab.BoxKinds))
	}
}
