package middlebox

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
)

var enterErr error

func TestMain(m *testing.M) {
	flag.Parse()
	inside, code, err := lab.Enter(context.Background())
	if !inside && err == nil {
		os.Exit(code)
	}
	enterErr = err
	os.Exit(m.Run())
}

// limit bounds every wait of these tests.
const limit = 5 * time.Second

// A scene is a world with an echo on port 7 of the server, TCP and UDP.
type scene struct {
	*testing.T
	world *lab.World
}

func newScene(t *testing.T) *scene {
	t.Helper()
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	firewall, err := lab.OpenFirewall("stateful")
	if err != nil {
		t.Fatal(err)
	}
	w, err := lab.Build(t.Context(), lab.Config{Firewall: firewall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &scene{t, w}
	s.echoUDP()
	return s
}

// targets are port 7 of the server in both families.
func (s *scene) targets() []netip.AddrPort {
	v4, v6 := s.world.Host("server").Addrs()
	return []netip.AddrPort{netip.AddrPortFrom(v4, 7), netip.AddrPortFrom(v6, 7)}
}

func (s *scene) echoUDP() {
	var c *net.UDPConn
	s.do("server", func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: 7})
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	s.Cleanup(func() { c.Close(); <-done })
}

func (s *scene) do(host string, fn func() error) {
	s.Helper()
	if err := s.world.Host(host).Do(fn); err != nil {
		s.Fatal(err)
	}
}

// listen opens TCP port 7 on the server.
func (s *scene) listen() net.Listener {
	s.Helper()
	var l net.Listener
	s.do("server", func() (err error) {
		l, err = net.Listen("tcp", ":7")
		return err
	})
	s.Cleanup(func() { l.Close() })
	return l
}

// serve runs a box until the test ends.
func (s *scene) serve(box interface{ Serve(context.Context) error }) {
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

func (s *scene) open(t TCP) {
	s.Helper()
	p, err := t.Open(s.world.Host("firewall"))
	if err != nil {
		s.Fatal(err)
	}
	s.serve(p)
}

func (s *scene) dial(to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := s.world.Host("host").Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), limit)
		return err
	})
	if err == nil {
		s.Cleanup(func() { c.Close() })
		err = c.SetDeadline(time.Now().Add(limit))
	}
	return c, err
}

// pair makes a connection and returns both its ends.
func (s *scene) pair(l net.Listener, to netip.AddrPort) (client, server net.Conn) {
	s.Helper()
	client, err := s.dial(to)
	if err != nil {
		s.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { server.Close() })
	if err := server.SetDeadline(time.Now().Add(limit)); err != nil {
		s.Fatal(err)
	}
	return client, server
}

// send writes on one end and demands what is read at the other.
func (s *scene) send(from, to net.Conn, text, want string) {
	s.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		s.Fatal(err)
	}
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(to, buf); err != nil || string(buf) != want {
		s.Fatalf("%q arrived as %q, %v; want %q", text, buf, err, want)
	}
}

// silent demands that nothing arrives, neither bytes nor an end.
func (s *scene) silent(c net.Conn) {
	s.Helper()
	if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		s.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		s.Fatalf("read %d bytes, %v; want silence", n, err)
	}
}

func TestResetAtSYNEndsTheClientBeforeAnyByte(t *testing.T) {
	s := newScene(t)
	s.listen()
	box, err := Reset{Port: 7, To: Client}.Open(s.world.Host("firewall"))
	if err != nil {
		t.Fatal(err)
	}
	s.serve(box)
	for _, to := range s.targets() {
		client, err := s.dial(to)
		if err == nil {
			_, err = client.Read(make([]byte, 1))
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v, want refused or reset", to, err)
		}
	}
	if box.Sent() < 2 {
		t.Errorf("%d resets injected, want one for each connection at least", box.Sent())
	}
}

func TestResetAfterBytesReachesTheChosenSide(t *testing.T) {
	for _, side := range []Side{Client, Server} {
		t.Run(side.String(), func(t *testing.T) {
			s := newScene(t)
			l := s.listen()
			box, err := Reset{Port: 7, To: side, After: 10}.Open(s.world.Host("firewall"))
			if err != nil {
				t.Fatal(err)
			}
			s.serve(box)
			for _, to := range s.targets() {
				client, server := s.pair(l, to)
				s.send(client, server, "12345", "12345")
				if box.Sent() != 0 && to.Addr().Is4() {
					t.Fatal("reset before its time")
				}
				if _, err := io.WriteString(client, "67890"); err != nil {
					t.Fatal(err)
				}
				victim, drained := client, 0
				if side == Server {
					victim, drained = server, 5
				}
				n, err := io.Copy(io.Discard, victim)
				if !errors.Is(err, unix.ECONNRESET) || n > int64(drained) {
					t.Errorf("%s: read %d bytes, %v; want connection reset", to, n, err)
				}
			}
		})
	}
}

func TestProxyRewritesBothDirections(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Rewrites: []Rewrite{
		{From: Server, Old: "STARTTLS", New: "XXXXXXXA"},
		{From: Client, At: 2},
	}})
	for _, to := range s.targets() {
		client, server := s.pair(l, to)
		if got := client.RemoteAddr().(*net.TCPAddr).AddrPort(); got != to {
			t.Errorf("the client sees %s, want %s", got, to)
		}
		s.send(client, server, "abcd", "ab\x9cd")
		s.send(server, client, "250-STARTTLS\r\n", "250-XXXXXXXA\r\n")
	}
}

func TestCutProxyForwardsExactlyTheBytesThenKeepsSilent(t *testing.T) {
	s := newScene(t)
	l := s.listen()
	s.open(TCP{Ports: "7", Cut: &Cut{From: Server, After: 4}})
	for _, to := range s.targets() {
		client, server := s.pair(l, to)
		s.send(client, server, "ping", "ping")
		s.send(server, client, "123456", "1234")
		s.silent(client)
		if _, err := io.WriteString(client, "more"); err != nil {
			t.Fatal(err)
		}
		s.silent(server)
	}
}

func TestImpostorsAnswerWhileTheServerSeesNothing(t *testing.T) {
	portal := "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	cases := []struct {
		name   string
		answer func(net.Conn)
		want   string
	}{
		{"portal", Portal("http://portal.example/"), portal},
		{"hangup", Hangup, ""},
		{"echo", Echo, "GET / HTTP/1.1\r\n\r\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			l := s.listen()
			s.open(TCP{Ports: "1-65535", Answer: c.answer})
			for _, to := range s.targets() {
				client, err := s.dial(to)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(client, "GET / HTTP/1.1\r\n\r\n")
				_ = client.(*net.TCPConn).CloseWrite()
				got, err := io.ReadAll(client)
				// A hang-up with the request still unread is a reset.
				if err != nil && !errors.Is(err, unix.ECONNRESET) || string(got) != c.want {
					t.Errorf("%s: got %q, %v", to, got, err)
				}
			}
			_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the server saw a connection: %v", err)
			}
		})
	}
}

func TestPortalAnswersLikeAPortal(t *testing.T) {
	client, server := net.Pipe()
	go func() { defer server.Close(); Portal("http://p/")(server) }()
	if _, err := io.WriteString(client, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil || r.StatusCode != http.StatusFound || r.Header.Get("Location") != "http://p/" {
		t.Fatalf("%v, %v", r, err)
	}
}

// ask sends a datagram from the host and returns the answer and its sender.
func (s *scene) ask(to netip.AddrPort, text string) (string, netip.AddrPort) {
	s.Helper()
	network := "udp6"
	if to.Addr().Is4() {
		network = "udp4"
	}
	var c *net.UDPConn
	s.do("host", func() (err error) {
		c, err = net.ListenUDP(network, nil)
		return err
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
		s.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		s.Fatalf("%s: %v", to, err)
	}
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func TestDatagramsAreRewrittenOrAnsweredByAnImpostor(t *testing.T) {
	cases := []struct {
		name string
		box  UDP
		want string
	}{
		{"request rewritten", UDP{Rewrites: []Rewrite{{From: Client, Old: "you", New: "ewe"}}}, "are ewe there"},
		{"reply rewritten", UDP{Rewrites: []Rewrite{{From: Server, At: 0}}}, "\x9ere you there"},
		{"echo", UDP{Answer: EchoDatagram}, "are you there"},
		{"fixed", UDP{Answer: FixedDatagram([]byte("no"))}, "no"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			c.box.Ports = "7"
			p, err := c.box.Open(s.world.Host("firewall"))
			if err != nil {
				t.Fatal(err)
			}
			s.serve(p)
			for _, to := range s.targets() {
				for range 2 { // the second one finds a flow
					if got, from := s.ask(to, "are you there"); got != c.want || from != to {
						t.Errorf("got %q from %s; want %q from %s", got, from, c.want, to)
					}
				}
			}
		})
	}
}

func TestBoxLeavesTheWayWhenItEnds(t *testing.T) {
	s := newScene(t)
	p, err := UDP{Ports: "7", Answer: FixedDatagram([]byte("impostor"))}.Open(s.world.Host("firewall"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Serve(ctx) }()
	to := s.targets()[0]
	if got, _ := s.ask(to, "hello"); got != "impostor" {
		t.Fatalf("got %q from the impostor", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got, _ := s.ask(to, "hello"); got != "hello" {
		t.Fatalf("got %q after the box had ended", got)
	}
}

func TestEditorFindsWhatIsSplitBetweenPieces(t *testing.T) {
	rules := []Rewrite{{From: Server, Old: "STARTTLS", New: "-"}, {From: Server, At: 3}}
	stream := "250 STARTTLS and STARTS"
	want := "250\xdf- and STARTS"
	for cut := range len(stream) {
		e := newEditor(rules, Server)
		got := string(e.edit([]byte(stream[:cut]), false)) + string(e.edit([]byte(stream[cut:]), true))
		if got != want {
			t.Errorf("cut at %d: %q, want %q", cut, got, want)
		}
	}
}

func FuzzParseSegment(f *testing.F) {
	for _, a := range []string{"10.0.0.1", "fd77::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(a), 7)
		s := segment{srcMAC: make(net.HardwareAddr, 6), dstMAC: make(net.HardwareAddr, 6), src: at, dst: at, seq: 1, ack: 2, flags: flagRST}
		f.Add(s.frame())
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		s, ok := parseSegment(frame)
		if !ok {
			return
		}
		s.payload = 0
		again, ok := parseSegment(s.frame())
		if !ok || fmt.Sprint(again) != fmt.Sprint(s) {
			t.Errorf("%v became %v", s, again)
		}
	})
}
