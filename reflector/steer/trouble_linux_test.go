package steer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/witness"
)

// until waits for something that other threads or the kernel bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestUnprivilegedUserIsToldTheRemedy(t *testing.T) {
	if !isolated(t, userAndNet, 1000) {
		return
	}
	before := openDescriptors(t)
	cfg := Config{TCP: ports("22,80-81,8080"), UDP: ports("53,5353"), MaxConns: 100}
	_, err := Listen(cfg)
	remedy := "sudo setcap cap_net_bind_service=+ep $(command -v wallprobe), or sudo sysctl net.ipv4.ip_unprivileged_port_start=0"
	want := "ports 22,80-81/tcp need a privilege; " + remedy + ", or leave the ports out with --except tcp/22,80-81, or go on without them with --allow-unbound\n" +
		"port 53/udp needs a privilege; " + remedy + ", or leave the port out with --except udp/53, or go on without it with --allow-unbound"
	if err == nil || cmp.Diff(want, err.Error()) != "" || !errors.Is(err, syscall.EACCES) {
		t.Fatalf("error %v\nwant %s", err, want)
	}
	if n := openDescriptors(t) - before; n != 0 {
		t.Errorf("%d descriptors left", n)
	}

	cfg.AllowUnbound = true
	cfg.TCP = ports("22,80-81,8080,40000-40063")
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tcp, udp := s.Served()
	if diff := cmp.Diff([]string{"8080,40000-40063", "5353"}, []string{tcp.String(), udp.String()}); diff != "" {
		t.Errorf("served (-want +got):\n%s", diff)
	}
	for _, part := range []string{"one socket for every port: 66 ports", "no BPF sk_lookup: needs CAP_BPF and CAP_NET_ADMIN", "no TPROXY by nft: needs CAP_NET_ADMIN"} {
		if !strings.Contains(s.Mechanism(), part) {
			t.Errorf("mechanism %q lacks %q", s.Mechanism(), part)
		}
	}
	if _, err := witness.Open(); !errors.Is(err, syscall.EPERM) {
		t.Errorf("witness: %v", err)
	}
	if _, err := witness.HalfOpen(); err != nil {
		t.Errorf("half-open connections need no privilege: %v", err)
	}
}

func TestAutoTakesTheBestMechanismThereIs(t *testing.T) {
	for flags, want := range map[uintptr]string{syscall.CLONE_NEWNET: "BPF sk_lookup: ", userAndNet: "TPROXY by nft: "} {
		t.Run(want[:3], func(t *testing.T) {
			if flags == syscall.CLONE_NEWNET && os.Geteuid() != 0 {
				return // eachMode holds for BPF without root
			}
			if !isolated(t, flags, 0) {
				return
			}
			newWorld(t)
			if s := serve(t, Config{TCP: ports("100-65535"), UDP: ports("100-65535")}, echo{}); !strings.HasPrefix(s.Mechanism(), want) || !strings.Contains(s.Mechanism(), " 130,872 ports ") {
				t.Errorf("wide ranges: %s", s.Mechanism())
			}
			if s := serve(t, Config{Addrs: []netip.Addr{far4.Prev()}, TCP: ports("1-63")}, echo{}); !strings.HasPrefix(s.Mechanism(), "one socket for every port: 63 ports ") {
				t.Errorf("no wide range: %s", s.Mechanism())
			}
		})
	}
}

func TestConnectionsBySYNCookieAreSteeredToo(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
		serve(t, Config{TCP: ports("440-460,65000"), Mode: m}, echo{})
		for _, a := range targets {
			for _, p := range []uint16{440, 451, 65000} {
				to := netip.AddrPortFrom(a, p)
				if got := w.hear(to); got != to.String() {
					t.Errorf("%s says %q", to, got)
				}
			}
		}
	})
}

func TestOnlyDeadTablesAreRemoved(t *testing.T) {
	if !isolated(t, userAndNet, 0) {
		return
	}
	w := newWorld(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	alive := fmt.Sprintf("wallprobe_%d", l.Addr().(*net.TCPAddr).Port)
	for _, name := range []string{"wallprobe_9", alive, "wallprobe_mine", "other"} {
		if out, err := exec.Command("nft", "add", "table", "inet", name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	s, err := Listen(Config{TCP: ports("1-100"), Mode: TPROXY})
	if err != nil {
		t.Fatal(err)
	}
	crashed := s.steerer.(*tproxySteer)
	crashed.attached = false
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(tables(t), crashed.table) {
		t.Fatalf("no table %s left to go on with: %s", crashed.table, tables(t))
	}
	// Its table is harmless until the next start, which removes it.
	serve(t, Config{TCP: ports("50"), Mode: Sockets}, echo{})
	for port, want := range map[uint16]string{50: "10.9.0.1:50", 51: "dial tcp 10.9.0.1:51: connect: connection refused"} {
		if got := w.hear(netip.AddrPortFrom(near4, port)); got != want {
			t.Errorf("%d says %q, want %q", port, got, want)
		}
	}
	if s, err = Listen(Config{TCP: ports("100-200"), Mode: TPROXY}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := "table inet " + alive + "\ntable inet wallprobe_mine\ntable inet other\n"
	if diff := cmp.Diff(want, tables(t)); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
}

func TestTooManyConnectionsAreClosedAtOnce(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		stuck := stuckHandler{started: make(chan bool)}
		s := serve(t, Config{TCP: ports("440-450"), MaxConns: 2, Mode: m}, stuck)
		to := netip.AddrPortFrom(near4, 443)
		var open []net.Conn
		for range 2 {
			c, err := w.dial(to)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			<-stuck.started
			open = append(open, c)
		}
		if got := w.hear(to); got != "" {
			t.Errorf("the third hears %q", got)
		}
		if st := s.Stats(); st.Conns != 2 || st.Refused != 1 {
			t.Errorf("%+v", st)
		}
		open[0].Close()
		until(t, "a place is free again", func() bool { return !s.conns.full() })
		c, err := w.dial(to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		<-stuck.started
	})
}

func TestAcceptingGoesOnAfterDescriptorsRanOut(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s, err := Listen(Config{TCP: ports("440-450"), Mode: m})
		if err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(near4, 443)
		for range 10 {
			c, err := w.dial(to)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 5, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		run(t, s)
		until(t, "accepting fails", func() bool { return s.Stats().Accepts > 0 })
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		if got := w.hear(to); got != to.String() {
			t.Errorf("%s says %q", to, got)
		}
		if st := s.Stats(); st.Conns != 11 {
			t.Errorf("of 11 connections: %+v", st)
		}
	})
}

func TestForeignAddressIsRefused(t *testing.T) {
	foreign := netip.MustParseAddr("203.0.113.9")
	for _, m := range all {
		_, err := Listen(Config{Addrs: []netip.Addr{foreign}, TCP: ports("1-100"), Mode: m})
		if want := "listen address 203.0.113.9: not an address of this machine"; err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("%s: got %v, want %s", m, err, want)
		}
	}
}

func TestListenerOnBothFamiliesHoldsItsIPv4Port(t *testing.T) {
	if !isolated(t, userAndNet, 0) {
		return
	}
	newWorld(t)
	for network, want := range map[string]bool{"tcp": true, "tcp6": false} {
		l, err := net.Listen(network, "[::]:0")
		if err != nil {
			t.Fatal(err)
		}
		set, err := held("tcp", []netip.Addr{near4})
		if got := set.Contains(uint16(l.Addr().(*net.TCPAddr).Port)); got != want || err != nil {
			t.Errorf("%s on [::] holds its IPv4 port: %v, %v", network, got, err)
		}
		l.Close()
	}
}

func TestPortsBeyondTheDescriptorLimitAreReported(t *testing.T) {
	if !isolated(t, userAndNet, 0) {
		return
	}
	newWorld(t)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1256, Max: 1256}); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(Config{TCP: ports("49152-65535,443"), UDP: ports("3478,40000-40100"), Mode: Sockets})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tcp, udp := s.Served()
	got := fmt.Sprintf("tcp %s udp %s\n%v", tcp, udp, s.Unserved())
	want := "tcp 443,49152-49548 udp 3478,40000-40100\n" +
		"[ports 49549-65535/tcp: more than the descriptor limit allows; raise the limit (ulimit -n), or run with CAP_BPF and CAP_NET_ADMIN, or with CAP_NET_ADMIN and nft installed]"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.conns.max < 1 || s.conns.max+s.Descriptors() > 1256 {
		t.Errorf("%d connections beside %d descriptors", s.conns.max, s.Descriptors())
	}
}

func TestWitnessSeesSYNsThatNothingAnswers(t *testing.T) {
	if !isolated(t, userAndNet, 0) {
		return
	}
	w := newWorld(t)
	for _, only := range [][]netip.Addr{nil, {near4, any6}} {
		syns, err := witness.Open(only...)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		seen := make(chan witness.SYN, 16)
		var ran sync.WaitGroup
		ran.Go(func() {
			if err := syns.Run(ctx, func(b []witness.SYN) {
				for _, s := range b {
					seen <- s
				}
			}); err != nil {
				t.Error(err)
			}
		})
		for i, a := range targets {
			if only != nil && a != near4 && a != any6 {
				continue
			}
			to := netip.AddrPortFrom(a, uint16(4000+i))
			if got := w.hear(to); !strings.Contains(got, "refused") {
				t.Errorf("%s: %s", to, got)
			}
			got := <-seen
			want := witness.SYN{Time: got.Time, Source: netip.AddrPortFrom(far4, got.Source.Port()), Dest: to, TTL: 64}
			if a.Is6() {
				want.Source = netip.AddrPortFrom(far6, got.Source.Port())
			}
			if want != got || time.Since(got.Time).Abs() > time.Minute || got.Source.Port() == 0 {
				t.Errorf("want %v, got %v", want, got)
			}
		}
		if n := syns.Lost(); n != 0 {
			t.Errorf("%d lost", n)
		}
		cancel()
		ran.Wait()
		if err := syns.Close(); err != nil {
			t.Error(err)
		}
		if len(seen) > 0 {
			t.Errorf("and also saw %v", <-seen)
		}
	}
}

// What came before the end is told, however late the witness gets to it.
func TestWitnessTellsWhatCameBeforeTheEnd(t *testing.T) {
	if !isolated(t, userAndNet, 0) {
		return
	}
	w := newWorld(t)
	syns, err := witness.Open(near4)
	if err != nil {
		t.Fatal(err)
	}
	defer syns.Close()
	const n = 100 // more than one batch
	for i := range n {
		w.hear(netip.AddrPortFrom(near4, uint16(4000+i)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := 0
	if err := syns.Run(ctx, func(b []witness.SYN) { got += len(b) }); err != nil || got != n {
		t.Errorf("%d of %d SYNs, %v", got, n, err)
	}
}

func TestHalfOpenConnectionsAreListed(t *testing.T) {
	if !isolated(t, userAndNet, 0) {
		return
	}
	w := newWorld(t)
	serve(t, Config{TCP: ports("400-500"), Mode: TPROXY}, echo{})
	var fd int
	var err error
	w.away(func() { fd, err = rawSocket(true) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	source := netip.MustParseAddrPort("10.9.0.99:1234") // nobody: no handshake ends
	if err := unix.Sendto(fd, synPacket(source, netip.AddrPortFrom(near4, 443)), 0, &unix.SockaddrInet4{Addr: near4.As4()}); err != nil {
		t.Fatal(err)
	}
	var got []witness.SYN
	until(t, "a half-open connection", func() bool {
		if got, err = witness.HalfOpen(); err != nil {
			t.Fatal(err)
		}
		return len(got) > 0
	})
	if want := []witness.SYN{{Time: got[0].Time, Source: source, Dest: netip.AddrPortFrom(near4, 443)}}; len(got) != 1 || got[0] != want[0] {
		t.Errorf("want %v, got %v", want, got)
	}
}

// synPacket is an IPv4 TCP SYN (RFC 9293 section 3.1).
func synPacket(from, to netip.AddrPort) []byte {
	b := appendHeader(nil, Datagram{Local: from, Remote: to, Payload: make([]byte, 12)})[:20]
	b[9] = unix.IPPROTO_TCP
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2, 4, 0, 0, 0, 0, 0)
	sum := onesSum(unix.IPPROTO_TCP+20, b[12:])
	binary.BigEndian.PutUint16(b[36:], ^fold(sum))
	return b
}
