package steer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// full is what each mechanism is asked to serve: one socket for every port
// cannot reach all of them.
func full(m Mode) scenarios.PortSet {
	if m == Sockets {
		return ports("20-30,443,3478,40000-41000,65535")
	}
	return ports("1-65535")
}

// hear connects to a port and returns the address and port that it says.
func (w *world) hear(to netip.AddrPort) string {
	c, err := w.dial(to)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestTCPPortIsTheOneAimedAt(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		set := full(m)
		serve(t, Config{TCP: set, Mode: m}, echo{})
		n := 0
		for i, p := range slices.Collect(set.All) {
			if i%701 != 0 && p > 23 && p < 65534 {
				continue
			}
			for _, a := range targets {
				to := netip.AddrPortFrom(a, p)
				if got := w.hear(to); got != to.String() {
					t.Fatalf("%s says %q", to, got)
				}
				n++
			}
		}
		if n < 20 {
			t.Fatalf("%d ports tried", n)
		}
	})
}

func TestEveryUDPPortAnswersFromItself(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s := serve(t, Config{UDP: full(m), Mode: m}, echo{})
		for _, a := range targets {
			start := time.Now()
			if missing := w.ask(a, full(m), 5); len(missing) > 0 {
				t.Errorf("%s: no answer from %s", a, missing)
			}
			t.Logf("%s: %d ports in %v", a, full(m).Len(), time.Since(start).Round(time.Millisecond))
		}
		if st := s.Stats(); st.Unsent > 0 {
			t.Errorf("%d answers not sent", st.Unsent)
		}
	})
}

// ask sends a datagram to every port and returns those from which no right
// answer came. It repeats what is missing, so many rounds in all, and fails on a wrong answer.
func (w *world) ask(a netip.Addr, set scenarios.PortSet, rounds int) scenarios.PortSet {
	w.t.Helper()
	c := w.packetConn(a.Is4())
	_ = c.SetReadBuffer(4 << 20)
	buf := make([]byte, 2048)
	for range rounds {
		var heard portMap
		waiting := 0
		for p := range set.All {
			if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(a, p)); err != nil {
				w.t.Fatal(err)
			}
			if waiting++; waiting == 256 {
				waiting -= w.answers(c, a, buf, &heard, waiting)
			}
		}
		w.answers(c, a, buf, &heard, waiting)
		if set = set.Without(heard.ports()); len(set) == 0 {
			return nil
		}
	}
	return set
}

// answers reads up to n answers.
func (w *world) answers(c *net.UDPConn, a netip.Addr, buf []byte, heard *portMap, n int) int {
	w.t.Helper()
	for i := range n {
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		k, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return max(i, n/2)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if got := string(buf[:k]); from.Addr() != a || got != from.String() {
			w.t.Fatalf("answer %q from %s", got, from)
		}
		heard.set(from.Port())
	}
	return n
}

func TestAnswerWithoutRawSocketLeavesFromTheAimedAtPort(t *testing.T) {
	eachMode(t, steered, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s, err := Listen(Config{UDP: full(m), Mode: m})
		if err != nil {
			t.Fatal(err)
		}
		for i, fd := range s.raw {
			if fd < 0 {
				t.Fatalf("no raw socket %d to do without", i)
			}
			unix.Close(fd)
			s.raw[i] = -1
		}
		run(t, s)
		for _, a := range targets {
			if missing := w.ask(a, ports("1-200,40000-40200"), 5); len(missing) > 0 {
				t.Errorf("%s: no answer from %s", a, missing)
			}
		}
	})
}

func run(t *testing.T, s *Set) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), echo{}) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
}

func TestOtherProgramsKeepTheirPorts(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		l, err := net.Listen("tcp4", "0.0.0.0:22")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, "other")
				c.Close()
			}
		}()
		p, err := net.ListenUDP("udp6", &net.UDPAddr{IP: near6.AsSlice(), Port: 40050})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()

		before, list := openDescriptors(t), tables(t)
		cfg := Config{TCP: ports("20-30"), UDP: ports("40000-40100"), Mode: m}
		_, err = Listen(cfg)
		want := "port 22/tcp is already in use; stop that program, or leave the port out with --except tcp/22, or go on without it with --allow-unbound\n" +
			"port 40050/udp is already in use; stop that program, or leave the port out with --except udp/40050, or go on without it with --allow-unbound"
		if err == nil || cmp.Diff(want, err.Error()) != "" || !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("error %v\nwant %s", err, want)
		}
		if after := openDescriptors(t); after != before || tables(t) != list {
			t.Errorf("after a failure: %d descriptors, were %d; tables %q, were %q", after, before, tables(t), list)
		}

		cfg.AllowUnbound = true
		s := serve(t, cfg, echo{})
		tcp, udp := s.Served()
		if diff := cmp.Diff([]string{"20-21,23-30", "40000-40049,40051-40100"}, []string{tcp.String(), udp.String()}); diff != "" {
			t.Errorf("served (-want +got):\n%s", diff)
		}
		if got := w.hear(netip.AddrPortFrom(near4, 22)); got != "other" {
			t.Errorf("port 22 says %q", got)
		}
		if got, to := w.hear(netip.AddrPortFrom(near4, 23)), "10.9.0.1:23"; got != to {
			t.Errorf("port 23 says %q", got)
		}
		w.wantDatagram(p, netip.AddrPortFrom(near6, 40050))
	})
}

func TestPortsThatAnotherReflectorSteersAreTaken(t *testing.T) {
	eachMode(t, []Mode{BPF, TPROXY}, func(t *testing.T, m Mode) {
		w := newWorld(t)
		serve(t, Config{Addrs: []netip.Addr{near4}, TCP: ports("443,40000-40100"), UDP: ports("40000-40100"), Mode: m}, echo{})
		w.hear(netip.AddrPortFrom(near4, 443)) // opens what the runtime keeps open
		before := openDescriptors(t)
		for second, addrs := range map[Mode][]netip.Addr{m: nil, Sockets: {near4}} {
			_, err := Listen(Config{Addrs: addrs, TCP: ports("22,443,40000-40100"), UDP: ports("50000-50100"), Mode: second})
			want := "ports 443,40000-40100/tcp are already in use; stop that program, or leave the ports out with --except tcp/443,40000-40100, or go on without them with --allow-unbound"
			if err == nil || cmp.Diff(want, err.Error()) != "" || !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("%s: error %v\nwant %s", second, err, want)
			}
		}
		until(t, "nothing is left after a failure", func() bool { return openDescriptors(t) <= before })
		// Beside each other, both serve their own.
		serve(t, Config{TCP: ports("22,443"), Mode: Sockets, AllowUnbound: true}, echo{})
		for _, port := range []uint16{22, 443, 40001} {
			if got, to := w.hear(netip.AddrPortFrom(near4, port)), netip.AddrPortFrom(near4, port).String(); got != to {
				t.Errorf("port %d says %q", port, got)
			}
		}
	})
}

// wantDatagram sends a datagram to where p must get it.
func (w *world) wantDatagram(p *net.UDPConn, to netip.AddrPort) {
	w.t.Helper()
	c := w.packetConn(to.Addr().Is4())
	if _, err := c.WriteToUDPAddrPort([]byte("hello"), to); err != nil {
		w.t.Fatal(err)
	}
	_ = p.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 16)
	n, from, err := p.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "hello" || from.Port() != uint16(c.LocalAddr().(*net.UDPAddr).Port) {
		w.t.Errorf("socket on %s got %q from %s, %v", to, b[:n], from, err)
	}
}

func TestRelayAndOutgoingConnectionsAreNotSteered(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		cfg := Config{TCP: ports("32768-65535"), UDP: ports("32768-65535"), Reserved: ports("50000-50010"), Mode: m}
		if m == Sockets {
			cfg.TCP, cfg.UDP = ports("40000-40100"), ports("50000-50100")
		}
		s := serve(t, cfg, echo{})
		if _, udp := s.Served(); udp.Contains(50005) || !udp.Contains(50011) {
			t.Errorf("served %s", udp)
		}
		relay := []int{50005}
		if m == TPROXY {
			relay = append(relay, 0) // any port, bound at any time
		}
		for _, port := range relay {
			p, err := net.ListenUDP("udp4", &net.UDPAddr{IP: near4.AsSlice(), Port: port})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			w.wantDatagram(p, netip.AddrPortFrom(near4, uint16(p.LocalAddr().(*net.UDPAddr).Port)))
		}
		var l net.Listener
		var err error
		w.away(func() { l, err = net.Listen("tcp4", "10.9.0.2:9") })
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, "called")
				c.Close()
			}
		}()
		for range 50 {
			c, err := net.DialTimeout("tcp4", "10.9.0.2:9", 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			if string(b) != "called" || err != nil {
				t.Fatalf("call from %s: %q, %v", c.LocalAddr(), b, err)
			}
			c.Close()
		}
	})
}

func TestOnlyTheGivenAddressesAreServed(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		serve(t, Config{Addrs: []netip.Addr{near4, near6}, TCP: ports("440-450"), UDP: ports("440-450"), Mode: m}, echo{})
		for _, a := range targets {
			to := netip.AddrPortFrom(a, 443)
			want, missing := to.String(), ""
			if a == any4 || a == any6 {
				want, missing = fmt.Sprintf("dial tcp %s: connect: connection refused", to), "443"
			}
			if got := w.hear(to); got != want {
				t.Errorf("%s says %q, want %q", to, got, want)
			}
			if got := w.ask(a, ports("443"), 1).String(); got != missing {
				t.Errorf("%s: no answer from %q, want %q", a, got, missing)
			}
		}
	})
}

// keep keeps what it gets.
type keep struct {
	echo
	got chan Datagram
}

func (k keep) Datagrams(batch []Datagram, _ func([]Datagram)) {
	for _, d := range batch {
		d.Payload = bytes.Clone(d.Payload)
		k.got <- d
	}
}

func TestDatagramSaysAllAndLateAnswersOfAnySizeArrive(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		k := keep{got: make(chan Datagram, 8)}
		s := serve(t, Config{UDP: ports("40000-40100"), Mode: m}, k)
		for _, a := range targets {
			c, to := w.packetConn(a.Is4()), netip.AddrPortFrom(a, 40077)
			mark(t, c, a.Is4())
			if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
				t.Fatal(err)
			}
			got := <-k.got
			if age := time.Since(got.Time); age < 0 || age > time.Minute {
				t.Errorf("%s: arrived %v ago", a, age)
			}
			want := Datagram{Local: to, Remote: c.LocalAddr().(*net.UDPAddr).AddrPort(), TTL: 77, TOS: 0xb9, Payload: []byte("x"), Time: got.Time}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("%s (-want +got):\n%s", a, diff)
			}
			for _, size := range []int{0, 1, 1400, 4001, 60_000} {
				payload := bytes.Repeat([]byte{7}, size)
				if err := s.WriteTo(payload, to, want.Remote); err != nil {
					t.Errorf("%s: %d bytes: %v", a, size, err)
					continue
				}
				_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
				buf := make([]byte, 1<<16)
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil || from != to || !bytes.Equal(buf[:n], payload) {
					t.Errorf("%s: sent %d bytes, got %d from %s: %v", a, size, n, from, err)
				}
			}
		}
		err := s.WriteTo(nil, netip.AddrPortFrom(near4, 1), netip.AddrPortFrom(far4, 1))
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("from a port not served: %v", err)
		}
	})
}

// mark gives what c sends TTL 77 and TOS 0xb9.
func mark(t *testing.T, c *net.UDPConn, v4 bool) {
	t.Helper()
	opts := []sockOpt{{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 77}, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xb9}}
	if v4 {
		opts = []sockOpt{{unix.IPPROTO_IP, unix.IP_TTL, 77}, {unix.IPPROTO_IP, unix.IP_TOS, 0xb9}}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range opts {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		w.dial(netip.AddrPortFrom(near4, 1)) // opens what the runtime keeps open
		set, list := full(m), tables(t)
		goroutines, before := runtime.NumGoroutine(), openDescriptors(t)
		for range 3 {
			s, err := Listen(Config{TCP: set, UDP: set, Mode: m})
			if err != nil {
				t.Fatal(err)
			}
			if n := settled(goroutines); n > goroutines {
				t.Errorf("Listen started %d goroutines", n-goroutines)
			}
			if got, want := s.Descriptors(), openDescriptors(t)-before; got != want {
				t.Errorf("says %d descriptors, has %d", got, want)
			}
			for _, sock := range s.socks {
				if p, err := unix.GetsockoptInt(sock.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || p != unix.IPPROTO_TCP && p != unix.IPPROTO_UDP {
					t.Fatalf("%s: protocol %d, %v", sock.local, p, err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			stuck := stuckHandler{started: make(chan bool)}
			go func() { ended <- s.Serve(ctx, stuck) }()
			c, err := w.dial(netip.AddrPortFrom(near4, 443))
			if err != nil {
				t.Fatal(err)
			}
			<-stuck.started
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			c.Close()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Serve(t.Context(), echo{}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("serve after close: %v", err)
			}
		}
		if n := openDescriptors(t); n != before {
			t.Errorf("%d descriptors left", n-before)
		}
		if n := settled(goroutines); n > goroutines {
			t.Errorf("%d goroutines left", n-goroutines)
		}
		if got := tables(t); got != list {
			t.Errorf("tables left: %s", got)
		}
	})
}

// settled waits for goroutines that have done their work to be gone.
func settled(want int) int {
	for end := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > want && time.Now().Before(end); {
		runtime.Gosched()
	}
	return runtime.NumGoroutine()
}

// stuckHandler waits for a peer that says nothing.
type stuckHandler struct {
	echo
	started chan bool
}

func (h stuckHandler) Conn(c net.Conn) {
	h.started <- true
	_, _ = c.Read(make([]byte, 1))
}
