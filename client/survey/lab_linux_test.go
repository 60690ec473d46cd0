package survey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/need"
)

// The lab: client -- firewall -- server, three network namespaces. The test
// process itself is the client.
var (
	routerAddr = map[bool]netip.Addr{false: netip.MustParseAddr("10.9.1.1"), true: netip.MustParseAddr("fd09:1::1")}
	serverAddr = map[bool]netip.Addr{false: netip.MustParseAddr("10.9.2.2"), true: netip.MustParseAddr("fd09:2::2")}
)

type lab struct {
	t                testing.TB
	firewall, server netns.NsHandle
}

const inside = "WALLPROBE_SURVEY_INSIDE"

// newLab returns a lab if the test runs inside one; otherwise it runs the same
// test again in new namespaces, reports how that went, and returns nil.
func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Getenv(inside) == "" {
		rerun(t)
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	must(t, err)
	defer own.Close()
	l := &lab{t: t}
	for _, ns := range []*netns.NsHandle{&l.firewall, &l.server} {
		*ns, err = netns.New()
		must(t, err)
	}
	must(t, netns.Set(own))
	l.build(own)
	return l
}

func rerun(t testing.TB) {
	t.Helper()
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=100s"}
	if _, ok := t.(*testing.B); ok {
		args = []string{"-test.run=^$", "-test.bench=^" + t.Name() + "$", "-test.benchtime=3x", "-test.timeout=100s"}
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if _, ok := t.(*testing.B); ok {
		cmd.Stdout = os.Stdout // a benchmark's log is cut
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		unavailable(t, "new user and network namespaces: %v", err)
	}
	if err != nil {
		t.Fatalf("inside the lab: %v\n%s", err, out.String())
	}
	t.Log(out.String())
}

// unavailable skips on a laptop and fails where the lab is demanded.
func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	need.Missing(t, fmt.Sprintf(format, args...))
}

// in runs do in a namespace, on a thread that ends with it.
func (l *lab) in(ns netns.NsHandle, do func() error) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	must(l.t, <-done)
}

func (l *lab) build(client netns.NsHandle) {
	l.t.Helper()
	for _, ns := range []netns.NsHandle{client, l.firewall, l.server} {
		// Duplicate address detection would hold IPv6 up for two seconds.
		l.in(ns, func() error {
			return errors.Join(sysctl("net/ipv6/conf/default/accept_dad", "0"), sysctl("net/ipv6/conf/all/accept_dad", "0"))
		})
	}
	l.in(client, func() error { return l.join("c0", "f0", l.firewall) })
	l.in(l.firewall, func() error { return l.join("f1", "s0", l.server) })
	l.in(client, func() error {
		return errors.Join(up("lo"), up("c0", "10.9.1.2/24", "fd09:1::2/64"), route("c0", "10.9.1.1", "fd09:1::1"))
	})
	l.in(l.server, func() error {
		return errors.Join(up("lo"), up("s0", "10.9.2.2/24", "fd09:2::2/64"), route("s0", "10.9.2.1", "fd09:2::1"),
			sysctl("net/ipv4/ip_unprivileged_port_start", "0"))
	})
	l.in(l.firewall, func() error {
		return errors.Join(up("lo"), up("f0", "10.9.1.1/24", "fd09:1::1/64"), up("f1", "10.9.2.1/24", "fd09:2::1/64"),
			sysctl("net/ipv4/ip_forward", "1"), sysctl("net/ipv6/conf/all/forwarding", "1"),
			// No limit per destination, and, with no type in the mask, none overall.
			sysctl("net/ipv4/icmp_ratelimit", "0"), sysctl("net/ipv6/icmp/ratelimit", "0"),
			sysctl("net/ipv4/icmp_ratemask", "0"), sysctl("net/ipv6/icmp/ratemask", "\n"))
	})
}

func (l *lab) join(here, there string, other netns.NsHandle) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: here, TxQLen: 1000}, PeerName: there, PeerNamespace: netlink.NsFd(other)}
	return netlink.LinkAdd(link)
}

func up(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(link)}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		errs = append(errs, netlink.AddrAdd(link, addr))
	}
	return errors.Join(errs...)
}

func route(name string, gateways ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range gateways {
		errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(g)}))
	}
	return errors.Join(errs...)
}

func sysctl(name, value string) error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }

// rules loads the body of the firewall's forward chain, replacing what was there.
func (l *lab) rules(body string) {
	l.t.Helper()
	l.nft(l.firewall, "forward", body)
}

func (l *lab) nft(ns netns.NsHandle, hook, body string) {
	l.t.Helper()
	l.load(ns, fmt.Sprintf(`table inet t
delete table inet t
table inet t {
	set dropped { type inet_proto . inet_service; }
	chain c {
		type filter hook %s priority 0; policy accept;
		%s
	}
}
`, hook, body))
}

func (l *lab) load(ns netns.NsHandle, rules string) {
	l.t.Helper()
	l.in(ns, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}

// drop drops datagrams from the client by a field, in a set of ports. The set
// is filled in pieces, because an ordinary user's netlink messages are short.
// Its key is wider than a port, because nft keeps sets of bare ports in a list.
func (l *lab) drop(field string, dropped *[65536]bool) {
	l.t.Helper()
	l.rules(`iifname "f0" meta l4proto . ` + field + " @dropped drop")
	var list []string
	for p := range dropped {
		if dropped[p] {
			list = append(list, fmt.Sprint("udp . ", p))
		}
	}
	for part := range slices.Chunk(list, 5000) {
		l.load(l.firewall, "add element inet t dropped { "+strings.Join(part, ", ")+" }\n")
	}
}

// echoAll answers every UDP datagram to every port of the server with its own
// bytes, below the server's sockets: a packet with source and destination
// swapped keeps its checksum.
func (l *lab) echoAll() {
	l.nft(l.server, "input", "meta l4proto udp drop")
	var fd int
	l.in(l.server, func() error {
		link, err := netlink.LinkByName("s0")
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		tv := unix.NsecToTimeval(int64(50 * time.Millisecond))
		return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: link.Attrs().Index}))
	})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := unix.Read(fd, b)
			if err == nil && swap(b[:n]) {
				unix.Write(fd, b[:n])
			}
			select {
			case <-stop:
				unix.Close(fd)
				return
			default:
			}
		}
	})
	l.t.Cleanup(func() { close(stop); wg.Wait() })
}

// swap turns a UDP frame round. A checksum left to the network card is redone.
func swap(b []byte) bool {
	addr, size := 26, 4
	switch {
	case len(b) >= 42 && binary.BigEndian.Uint16(b[12:]) == 0x0800 && b[23] == 17:
	case len(b) >= 62 && binary.BigEndian.Uint16(b[12:]) == 0x86dd && b[20] == 17:
		addr, size = 22, 16
	default:
		return false
	}
	swapBytes(b[0:6], b[6:12])
	swapBytes(b[addr:addr+size], b[addr+size:addr+2*size])
	udp := b[addr+2*size:]
	swapBytes(udp[0:2], udp[2:4])
	length := int(binary.BigEndian.Uint16(udp[4:]))
	udp[6], udp[7] = 0, 0
	sum := uint32(17 + length)
	for i, c := range b[addr : addr+2*size+length] {
		sum += uint32(c) << (8 * (1 - i&1))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum == 0xffff {
		sum = 0 // a checksum of 0 would mean that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
	return true
}

func swapBytes(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// serve opens listening TCP sockets on the server, which echo what they are
// sent first.
func (l *lab) serve(ports ...uint16) {
	l.t.Helper()
	l.in(l.server, func() error {
		for _, p := range ports {
			ln, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", p))
			if err != nil {
				return err
			}
			echoTCP(l.t, ln)
		}
		return nil
	})
}

// echoTCP copies what connections bring until the test ends.
func echoTCP(t testing.TB, ln net.Listener) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				b := make([]byte, 64)
				n, _ := c.Read(b)
				c.Write(b[:n])
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
}

func setMTU(name string, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(link, mtu)
}

// unroute takes away the default routes through an interface.
func unroute(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	_, v4, _ := net.ParseCIDR("0.0.0.0/0")
	_, v6, _ := net.ParseCIDR("::/0")
	return errors.Join(netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: v4}),
		netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: v6}))
}

// flush forgets the firewall's connections, so that each run starts alike.
func (l *lab) flush() {
	l.in(l.firewall, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.ConntrackTableFlush(netlink.ConntrackTable)
	})
}
