package steer

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Variables that tell the second run of a test that it is one, and whose.
const (
	insideVar = "WALLPROBE_STEER_INSIDE"
	rootVar   = "WALLPROBE_STEER_ROOT"
)

const userAndNet = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET

// skip skips a test for lack of privilege, unless the lab is forced.
func skip(t testing.TB, format string, args ...any) {
	t.Helper()
	need.Missing(t, fmt.Sprintf(format, args...))
}

// isolated runs the calling test once more in new namespaces and reports
// whether this already is that run. The user inside has the given number, so
// only 0 has capabilities; without CLONE_NEWUSER the namespace is root's own.
func isolated(t *testing.T, flags uintptr, user int) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		return true
	}
	parts := strings.Split(t.Name(), "/")
	what := "-test.run=^" + strings.Join(parts, "$/^") + "$"
	args := []string{what, "-test.v", "-test.count=1", "-test.timeout=120s"}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), insideVar+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if flags&syscall.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // the thread's end would end the child
	defer runtime.UnlockOSThread()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		skip(t, "new namespaces: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("inside: %v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Fatalf("inside: the test did not run\n%s", &out)
	}
	t.Log("\n" + out.String())
	return false
}

var (
	steered = []Mode{BPF, TPROXY}
	all     = []Mode{BPF, TPROXY, Sockets}
)

// eachMode runs a test once for every mechanism, each in namespaces of its
// own. Without root, where BPF is impossible, it must say so.
func eachMode(t *testing.T, modes []Mode, test func(*testing.T, Mode)) {
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			root := os.Getenv(rootVar) != "" || os.Getenv(insideVar) == "" && os.Geteuid() == 0
			switch {
			case m != BPF:
				if isolated(t, userAndNet, 0) {
					test(t, m)
				}
			case root:
				t.Setenv(rootVar, "1")
				if isolated(t, syscall.CLONE_NEWNET, 0) {
					test(t, m)
				}
			case isolated(t, userAndNet, 0):
				_, err := Listen(Config{TCP: ports("1-100"), Mode: BPF})
				if want := "needs CAP_BPF and CAP_NET_ADMIN, outside user namespaces: operation not permitted"; err == nil || err.Error() != want {
					t.Errorf("got %v, want %s", err, want)
				}
			}
		})
	}
}

// Addresses of the server: an interface has the first, a local route the
// second.
var (
	near4, any4 = netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("198.51.100.77")
	near6, any6 = netip.MustParseAddr("fd09::1"), netip.MustParseAddr("2001:db8:1::77")
	far4, far6  = netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")
	targets     = []netip.Addr{near4, any4, near6, any6}
)

// A world is this namespace, the server's, joined to a client's namespace.
type world struct {
	t      testing.TB
	server netns.NsHandle
	client netns.NsHandle
}

func newWorld(t testing.TB) *world {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &world{t: t}
	var err error
	w.server, err = netns.Get()
	w.must(err)
	w.client, err = netns.New()
	w.must(err)
	w.must(netns.Set(w.server))
	t.Cleanup(func() { w.server.Close(); w.client.Close() })

	attrs := netlink.NewLinkAttrs()
	attrs.Name = "s0"
	w.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "c0", PeerNamespace: netlink.NsFd(w.client)}))
	w.up("lo")
	w.up("s0", "10.9.0.1/24", "fd09::1/64")
	w.route("lo", "198.51.100.0/24", "", unix.RTN_LOCAL)
	w.route("lo", "2001:db8:1::/64", "", unix.RTN_LOCAL)
	w.away(func() {
		w.up("lo")
		w.up("c0", "10.9.0.2/24", "fd09::2/64")
		w.route("c0", "198.51.100.0/24", "10.9.0.1", unix.RTN_UNICAST)
		w.route("c0", "2001:db8:1::/64", "fd09::1", unix.RTN_UNICAST)
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// up sets a link of this thread's namespace up, with addresses.
func (w *world) up(name string, addrs ...string) {
	w.t.Helper()
	l, err := netlink.LinkByName(name)
	w.must(err)
	w.must(netlink.LinkSetUp(l))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		w.must(err)
		addr.Flags = unix.IFA_F_NODAD
		w.must(netlink.AddrAdd(l, addr))
	}
}

// route adds a route to this thread's namespace.
func (w *world) route(dev, dst, via string, typ int) {
	w.t.Helper()
	l, err := netlink.LinkByName(dev)
	w.must(err)
	_, n, err := net.ParseCIDR(dst)
	w.must(err)
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: n, Gw: net.ParseIP(via), Type: typ}
	if typ == unix.RTN_LOCAL {
		r.Table, r.Scope = unix.RT_TABLE_LOCAL, netlink.SCOPE_HOST
	}
	w.must(netlink.RouteAdd(r))
}

// away runs f in the client's namespace. Sockets made there stay there.
func (w *world) away(f func()) {
	w.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := netns.Set(w.client); err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(w.server); err != nil {
			panic(err)
		}
	}()
	f()
}

// dial connects from the client.
func (w *world) dial(to netip.AddrPort) (c net.Conn, err error) {
	w.away(func() { c, err = net.DialTimeout("tcp", to.String(), 3*time.Second) })
	return c, err
}

// packetConn is a UDP socket of the client.
func (w *world) packetConn(v4 bool) (c *net.UDPConn) {
	w.t.Helper()
	var err error
	network, at := "udp6", netip.AddrPortFrom(far6, 0)
	if v4 {
		network, at = "udp4", netip.AddrPortFrom(far4, 0)
	}
	w.away(func() { c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// echo answers with the address and port that was aimed at.
type echo struct{}

func (echo) Conn(c net.Conn) { fmt.Fprint(c, c.LocalAddr()) }

func (echo) Datagrams(batch []Datagram, reply func([]Datagram)) {
	out := make([]Datagram, len(batch))
	for i, d := range batch {
		out[i] = Datagram{Local: d.Local, Remote: d.Remote, Payload: []byte(d.Local.String())}
	}
	reply(out)
}

// serve listens and serves until the test ends.
func serve(t testing.TB, cfg Config, h Handler) *Set {
	t.Helper()
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(s.Mechanism())
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.Serve(ctx, h); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		served.Wait()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func ports(s string) scenarios.PortSet {
	set, err := scenarios.ParsePortSet(s)
	if err != nil {
		panic(err)
	}
	return set
}

// openDescriptors counts the descriptors of this process.
func openDescriptors(t testing.TB) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

// tables lists the nftables tables of this namespace.
func tables(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list tables: %v: %s", err, out)
	}
	return string(out)
}
