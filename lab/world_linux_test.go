package lab

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestHostsReachEachOtherAtOnceOverBothFamilies(t *testing.T) {
	names := []string{"host", "lan2", "server", "other"}
	// Repeated, for what is not ready at once fails only now and then.
	for range 10 {
		w := build(t, Config{Firewall: builtin(t, "open"), Hosts: []string{"lan2", "other"}})
		for _, name := range names {
			echoUDP(t, w.Host(name), 7)
		}
		for _, from := range names {
			for i, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
				c := listenUDP(t, w.Host(from), netip.AddrPortFrom(any, 0))
				for _, to := range names {
					// The first datagram is answered: there is no second try.
					target := netip.AddrPortFrom(addrs(w.Host(to))[i], 7)
					if err := exchange(c, target, 2*time.Second); err != nil {
						t.Errorf("%s to %s at %s: %v", from, to, target, err)
					}
				}
			}
		}
	}
}

func TestLANTrafficDoesNotCrossTheFirewall(t *testing.T) {
	w := build(t, Config{Firewall: builtin(t, "open"), Hosts: []string{"lan2"}})
	echoUDP(t, w.Host("lan2"), 7)
	v4, _ := w.Host("host").Addrs()
	to, _ := w.Host("lan2").Addrs()
	if err := exchange(listenUDP(t, w.Host("host"), netip.AddrPortFrom(v4, 0)), netip.AddrPortFrom(to, 7), time.Second); err != nil {
		t.Fatal(err)
	}
	rules, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{{
		Family: "inet", Table: "firewall", Chain: "forward", Handle: rules[0].Handle, Index: 1,
		Text: `counter comment "all that passes"`, Comment: "all that passes", Counted: true,
		File: "open.nft", Line: 10,
	}}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestServerOwnsEveryAddressOfItsRanges(t *testing.T) {
	w := build(t, Config{
		Firewall: builtin(t, "stateful"), Hosts: []string{"other"},
		Own: []netip.Prefix{prefix("23.239.228.0/22"), prefix("2001:4860::/32")},
	})
	for _, a := range []string{"23.239.228.0", "23.239.231.255", "2001:4860::1", "2001:4860:ffff::ffff"} {
		at := netip.AddrPortFrom(ip(a), 7)
		c := listenUDP(t, w.Host("server"), at)
		for _, from := range []string{"host", "other"} {
			near := listenUDP(t, w.Host(from), netip.AddrPortFrom(addrs(w.Host(from))[0], 0))
			if at.Addr().Is6() {
				near = listenUDP(t, w.Host(from), netip.AddrPortFrom(addrs(w.Host(from))[1], 0))
			}
			if _, err := near.WriteToUDPAddrPort([]byte("x"), at); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.ReadFromUDPAddrPort(make([]byte, 8)); err != nil {
				t.Errorf("%s from %s: %v", a, from, err)
			}
		}
	}
}

func TestProgramsFindNames(t *testing.T) {
	w := build(t, Config{Names: map[string][]netip.Addr{
		"*.goto.com": {ip("192.0.2.7")}, "Mediator.example.com": {ip("192.0.2.8"), ip("2001:db8::8")},
	}})
	cases := map[string]string{"a.b.goto.com": "192.0.2.7", "mediator.example.com": "2001:db8::8", "server": "2001:db8:64::a", "localhost": "::1", "example.org": ""}
	for name, want := range cases {
		for _, host := range []string{"host", "firewall"} {
			var out bytes.Buffer
			cmd := w.Host(host).Command(t.Context(), "getent", "hosts", name)
			cmd.Stdout = &out
			err := w.Host(host).Run(cmd)
			got, _, _ := strings.Cut(out.String(), " ")
			if got != want || (err == nil) != (want != "") {
				t.Errorf("%s on %s: %q, %v; want %q", name, host, got, err, want)
			}
		}
	}
	// Over TCP, and with Go's own resolver.
	var found []string
	err := w.Host("host").Do(func() error {
		c, err := net.Dial("tcp", resolverAddr)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("\x00\x1c\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04goto\x03com\x00\x00\x01\x00\x01"))
		if err != nil {
			return err
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		found = append(found, netip.AddrFrom4([4]byte(buf[n-4:n])).String())
		return err
	})
	if err != nil || !slices.Equal(found, []string{"192.0.2.7"}) {
		t.Errorf("over TCP: %v, %v", found, err)
	}
}

func TestBrokenRulesGiveNftsMessageAndChangeNothing(t *testing.T) {
	w := build(t, Config{Firewall: builtin(t, "stateful")})
	before, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "broken.nft")
	if err := os.WriteFile(path, []byte("#!/usr/sbin/nft -f\ntable inet t {\n\tchain c { contuer }\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFirewall(path)
	if err != nil {
		t.Fatal(err)
	}
	err = w.Load(f)
	refused, ok := errors.AsType[*RulesError](err)
	if !ok || refused.Firewall != path || !strings.Contains(refused.Message, path+":3:") || strings.Contains(refused.Message, "flush ruleset") {
		t.Errorf("got %v, want nft's message about line 3 of %s", err, path)
	}
	after, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the rules changed:\n%s", diff)
	}
}

func TestRulesFileIncludesItsNeighboursAndUsesItsOwnInterfaces(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"main.nft":  "include \"./dotted.nft\"\ninclude \"plain.nft\"\n",
		"plain.nft": "table inet t {\n chain c {\n type filter hook forward priority 0\n iifname \"br-lan\" udp dport 9 counter drop\n }\n}\n",
	}
	files["dotted.nft"] = "define unused = 1\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := OpenFirewall(filepath.Join(dir, "main.nft"))
	if err != nil {
		t.Fatal(err)
	}
	w := build(t, Config{Firewall: f, Wiring: Wiring{Inside: Interface{Name: "br-lan", V4: prefix("192.168.178.1/24")}}})
	v4, _ := w.Host("host").Addrs()
	to, _ := w.Host("server").Addrs()
	c := listenUDP(t, w.Host("host"), netip.AddrPortFrom(v4, 0))
	if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, 9)); err != nil {
		t.Fatal(err)
	}
	rules, err := w.Counters()
	if err != nil || len(rules) != 1 || rules[0].Packets != 1 || rules[0].Verdict != "drop" {
		t.Errorf("%+v, %v; want one rule with one packet dropped", rules, err)
	}
	// A built-in firewall follows the names of the interfaces.
	if err := w.Load(builtin(t, "drop-udp-all")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, 9)); err != nil {
		t.Fatal(err)
	}
	if got := dropped(t, w); got != 1 {
		t.Errorf("%d packets dropped, want 1", got)
	}
}

func TestNoWayOut(t *testing.T) {
	w := build(t, Config{Hosts: []string{"lan2", "other"}})
	kinds := map[string]string{"device": "device", "veth": "wire", "macvlan": "wire", "bridge": "switch"}
	got := map[string][]string{}
	for _, h := range append(slices.Clone(w.hosts), &Host{site: site{Name: "wires"}, ns: w.wires}) {
		err := h.Do(func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, l := range links {
				got[h.Name()] = append(got[h.Name()], kinds[l.Type()]+" "+l.Attrs().Name)
			}
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			for _, r := range routes {
				if ones, _ := r.Dst.Mask.Size(); ones == 0 {
					got[h.Name()] = append(got[h.Name()], "default by "+r.Gw.String())
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	inner := []string{"device lo", "wire eth0", "default by 10.77.1.1", "default by fd77:0:0:1::1"}
	outer := []string{"device lo", "wire eth0"}
	want := map[string][]string{
		"host": inner, "lan2": inner, "server": outer, "other": outer,
		"firewall": {"device lo", "wire lan0", "wire wan0"},
	}
	// Nor does what the hosts' wires lead to; without macvlan these are switches.
	wires := got["wires"]
	delete(got, "wires")
	if bad := slices.DeleteFunc(wires, func(l string) bool {
		return l == "device lo" || strings.HasPrefix(l, "wire ") || strings.HasPrefix(l, "switch ")
	}); len(wires) == 0 || len(bad) > 0 {
		t.Errorf("between the hosts: %q", bad)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestNarrowOutsideLinkIsReportedToTheSender(t *testing.T) {
	w := build(t, Config{MTU: 1300})
	to, _ := w.Host("server").Addrs()
	var c net.Conn
	err := w.Host("host").Do(func() (err error) {
		c, err = net.Dial("udp4", netip.AddrPortFrom(to, 9).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The first is too long on the way; the kernel then knows the path's MTU.
	if _, err := c.Write(make([]byte, 1400)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 1400)); !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v, want message too long", err)
	}
}

func TestBuildNeedsTheLabsNamespaces(t *testing.T) {
	needLab(t)
	entered.Store(false)
	defer entered.Store(true)
	if w, err := Build(t.Context(), Config{}); err == nil {
		w.Close()
		t.Error("a world was built outside")
	}
}

func BenchmarkBuild(b *testing.B) {
	needLab(b)
	config := Config{Firewall: builtin(b, "stateful")}
	for b.Loop() {
		w, err := Build(b.Context(), config)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
