package lab_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
)

// A flow is what rules match of one path of testdata/truth.
type flow struct {
	transport string
	remote    string // port of the reflector
	local     string // own ports, where the path is about them
}

var flows = map[string]flow{
	"CONTROL":   {"tcp", "443", ""},
	"UDP":       {"udp", "8001", ""},
	"TCP":       {"tcp", "8002", ""},
	"TLS":       {"tcp", "8003", ""},
	"STUN":      {"udp", "3478", ""},
	"QUIC":      {"udp", "443", ""},
	"HTTPS":     {"tcp", "8443", ""},
	"UDP-RANGE": {"udp", "31000-31127", ""},
	"TCP-RANGE": {"tcp", "31200-31327", ""},
	"OWN-RANGE": {"udp", "8005", "32000-32127"},
	"CALL":      {"tcp", "12000", ""}, // of this end
	"CALL-UDP":  {"udp", "12001", ""},
}

// singles and ranges are the paths of two of the scenarios; datagrams and
// streams are those of singles by transport.
var (
	datagrams = []string{"UDP", "STUN"}
	streams   = []string{"TCP", "TLS"}
	singles   = []string{"UDP", "STUN", "TCP", "TLS"}
	ranges    = []string{"UDP-RANGE", "TCP-RANGE", "OWN-RANGE"}
)

// out is a rule for what goes out on each path, back one for what comes back.
// The rule's comment is the path.
func out(action string, paths ...string) string {
	var b strings.Builder
	for _, id := range paths {
		f := flows[id]
		match := fmt.Sprintf("%s dport %s", f.transport, f.remote)
		if f.local != "" {
			match += fmt.Sprintf(" udp sport %s", f.local)
		}
		fmt.Fprintf(&b, "\t\tiifname \"lan0\" %s %s comment \"%s\"\n", match, action, id)
	}
	return b.String()
}

func back(action string, paths ...string) string {
	var b strings.Builder
	for _, id := range paths {
		f := flows[id]
		match := fmt.Sprintf("%s sport %s", f.transport, f.remote)
		if f.local != "" {
			match += fmt.Sprintf(" udp dport %s", f.local)
		}
		fmt.Fprintf(&b, "\t\tiifname \"wan0\" %s %s comment \"%s\"\n", match, action, id)
	}
	return b.String()
}

// firewall makes a file of the rules of its forward chain.
func firewall(forward string) string {
	return "table inet firewall {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n" + forward + "\t}\n}\n"
}

// redirected sends paths to another host than the reflector's.
func redirected(paths ...string) string {
	var b strings.Builder
	b.WriteString("table inet firewall {\n\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n")
	for _, id := range paths {
		f := flows[id]
		for family, to := range map[string]string{"ip": "198.51.100.20", "ip6": "2001:db8:64::14"} {
			nfproto := map[string]string{"ip": "ipv4", "ip6": "ipv6"}[family]
			fmt.Fprintf(&b, "\t\tiifname \"lan0\" meta nfproto %s %s dport %s counter dnat %s to %s comment \"%s\"\n", nfproto, f.transport, f.remote, family, to, id)
		}
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// translator gives everything that leaves the firewall's own address.
const translator = `table inet translator {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan0" masquerade
	}
}
`

// A scene is a world on which a row is played.
type scene struct {
	testing.TB
	world *lab.World
}

func (s *scene) firewall() *lab.Host { return s.world.Host("firewall") }

// serve runs a middlebox until the test ends.
func (s *scene) serve(box interface{ Serve(context.Context) error }, err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- box.Serve(ctx) }()
	s.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.Error(err)
		}
	})
}

// resets forge resets on paths after so many payload bytes.
func resets(to middlebox.Side, after int, ports ...uint16) func(*scene) {
	return func(s *scene) {
		for _, port := range ports {
			s.serve(middlebox.Reset{Port: port, To: to, After: after}.Open(s.firewall()))
		}
	}
}

// tcpBox puts the same box into the way of all streams, udpBox of all datagrams.
func tcpBox(box middlebox.TCP) func(*scene) {
	box.Ports = "{ 8002, 8003 }"
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

func udpBox(box middlebox.UDP) func(*scene) {
	box.Ports = "{ 8001, 3478 }"
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

// interceptor speaks TLS to both ends of path TLS.
func interceptor(s *scene) { intercepted("8003")(s) }

// intercepted is interceptor on other ports.
func intercepted(ports string) func(*scene) {
	return func(s *scene) {
		s.serve(middlebox.TCP{Ports: ports, Between: new(middlebox.Interceptor).Between}.Open(s.firewall()))
	}
}

func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// elsewhere lets the host that is not the reflector answer on all paths.
func elsewhere(stream func(net.Conn), datagram func([]byte) []byte) func(*scene) {
	return func(s *scene) {
		for _, port := range []uint16{8001, 3478} {
			s.answerUDP(port, datagram)
		}
		for _, port := range []uint16{8002, 8003} {
			s.answerTCP(port, stream)
		}
	}
}

func (s *scene) answerTCP(port uint16, answer func(net.Conn)) {
	var l net.Listener
	err := s.world.Host("other").Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answer(c)
			c.Close()
		}
	}()
	s.Cleanup(func() { l.Close(); <-done })
}

func (s *scene) answerUDP(port uint16, answer func([]byte) []byte) {
	var c *net.UDPConn
	err := s.world.Host("other").Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if reply := answer(buf[:n]); reply != nil {
				_, _ = c.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
	s.Cleanup(func() { c.Close(); <-done })
}

// banner is a server that speaks first, as an SSH server does, and then waits.
func banner(c net.Conn) {
	if _, err := io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"); err == nil {
		_, _ = io.Copy(io.Discard, c)
	}
}

// names of the addresses of the world.
func hostOf(a netip.Addr) string {
	switch a.String() {
	case "10.77.1.1", "198.51.100.1", "fd77:0:0:1::1", "2001:db8:64::1":
		return "the firewall"
	case "198.51.100.10", "2001:db8:64::a":
		return "the reflector"
	}
	return a.String()
}
