package lab

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/internal/need"
)

// ownRules writes a user's rules and opens them.
func ownRules(t testing.TB, name, text string) Firewall {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFirewall(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// needPackage is for what a package of Debian brings.
func needPackage(t testing.TB, pkg, path string) {
	t.Helper()
	if _, err := os.Stat(path); err == nil {
		return
	}
	need.Missing(t, fmt.Sprintf("there is no %s: apt-get install %s", path, pkg))
}

const examples = "/usr/share/doc/nftables/examples"

// otherExamples are those of Debian's nftables that are no firewall here whatever
// the kernel, with what is said of them.
var otherExamples = map[string]string{
	"overview":      "no chain in it has a hook",
	"sets_and_maps": ":8: there is no interface eth0, eth1, eth2 or eth3 here; ",
}

func TestDebiansExamplesLoadOrAreRefusedInNFTsWords(t *testing.T) {
	needLab(t)
	needPackage(t, "nftables, with its documentation,", examples)
	files, err := filepath.Glob(filepath.Join(examples, "*.nft*"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	// They include each other, so all are put in one place, unpacked.
	dir, loaded := t.TempDir(), 0
	for _, f := range files {
		unpack(t, f, filepath.Join(dir, strings.TrimSuffix(filepath.Base(f), ".gz")))
	}
	saidByNFT := regexp.MustCompile(`(?m)^\S+\.nft:\d+:\d+-\d+: Error: .+\n`)
	unpacked, _ := filepath.Glob(filepath.Join(dir, "*.nft"))
	for _, path := range unpacked {
		name := strings.TrimSuffix(filepath.Base(path), ".nft")
		f, err := OpenFirewall(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := Build(t.Context(), Config{Firewall: f})
		if err == nil {
			loaded++
			if _, err := w.Counters(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
		refused, isRefused := errors.AsType[*RulesError](err)
		switch want := otherExamples[name]; {
		case want != "":
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		case isRefused && saidByNFT.MatchString(refused.Message):
			t.Logf("the kernel here lacks what %s needs: %s", name, refused.Message)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		}
	}
	if loaded < 10 {
		t.Errorf("only %d of %d examples load", loaded, len(unpacked))
	}
}

func unpack(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(from, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFlowTablesLoadOrAreRefusedWithTheWayOut(t *testing.T) {
	needLab(t)
	f, err := OpenFirewall("../testdata/firewalls/fw4-offload.nft")
	if err != nil {
		t.Fatal(err)
	}
	w, err := Build(t.Context(), Config{Firewall: f})
	if err == nil {
		t.Log("the kernel here has flow tables")
		if got := w.config.Inside.Name + " " + w.config.Outside.Name; got != "br-lan wan" {
			t.Errorf("inside and outside are %s", got)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	for _, want := range []string{"fw4-offload.nft:13:12-13: Error: Could not process rule: ", "\nThe kernel here has no flow tables "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

// reaches tells whether a datagram comes back from a port of the server.
func reaches(t *testing.T, w *World, port uint16) bool {
	t.Helper()
	echoUDP(t, w.Host(serverName), port)
	v4, _ := w.Host(hostName).Addrs()
	server, _ := w.Host(serverName).Addrs()
	return exchange(listenUDP(t, w.Host(hostName), netip.AddrPortFrom(v4, 0)), netip.AddrPortFrom(server, port), time.Second) == nil
}

// counts are what the rules with a text have counted, by their lines.
func counts(t *testing.T, w *World) map[int]uint64 {
	t.Helper()
	rules, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[int]uint64)
	for _, r := range rules {
		if r.Packets > 0 && r.Line > 0 {
			out[r.Line] += r.Packets
		}
	}
	return out
}

func TestPortsOfBridgesAreKnownToRules(t *testing.T) {
	needPackage(t, "iptables", "/usr/sbin/iptables-nft-restore")
	f := ownRules(t, "bridge.rules", `*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -i br0 -m physdev --physdev-in eth7 -p udp -m udp --dport 9 -j DROP
-A FORWARD -m physdev --physdev-in eth8 -j DROP
-A FORWARD -i eth7 -j DROP
COMMIT
`)
	w := build(t, Config{Firewall: f, Wiring: Wiring{Inside: Interface{Name: "br0", Port: "eth7"}}})
	if !reaches(t, w, 10) {
		t.Error("what no rule is for does not pass the bridge")
	}
	if reaches(t, w, 9) {
		t.Error("what comes in by the bridge's port passes a rule against it")
	}
	if got := counts(t, w); got[3] != 1 || len(got) != 1 {
		t.Errorf("counted by line: %v, want one packet in line 3", got)
	}
}

func TestARulesFileOf20000LinesLoadsAndCounts(t *testing.T) {
	needPackage(t, "iptables", "/usr/sbin/iptables-nft-restore")
	const many = 20_000
	var nft, dump strings.Builder
	nft.WriteString("table inet big {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n")
	dump.WriteString("# Generated by iptables-save v1.8.9\n*filter\n:FORWARD ACCEPT [0:0]\n")
	for i := range many {
		port := 9
		if i < many-1 {
			port = 10 + i
		}
		fmt.Fprintf(&nft, "\t\tiifname \"lan0\" udp dport %d counter drop\n", port)
		fmt.Fprintf(&dump, "-A FORWARD -i lan0 -p udp -m udp --dport %d -j DROP\n", port)
	}
	nft.WriteString("\t}\n}\n")
	dump.WriteString("COMMIT\n")
	for name, text := range map[string]string{"big.nft": nft.String(), "big.rules": dump.String()} {
		w := build(t, Config{Firewall: ownRules(t, name, text)})
		if reaches(t, w, 9) {
			t.Errorf("%s: the last rule of %d does not stop what it is for", name, many)
		}
		if got := counts(t, w); got[many+3] != 1 || len(got) != 1 {
			t.Errorf("%s: counted by line: %v, want one packet in line %d", name, got, many+3)
		}
	}
}

func TestInterfacesThatRulesKnowByNumberAreMade(t *testing.T) {
	f := ownRules(t, "index.nft", `define others = { eth3, eth4 }
table inet own {
	set s { type iface_index; elements = { eth5 }; }
	chain forward {
		type filter hook forward priority filter; policy drop;
		iif lan0 oif wan0 udp dport 9 accept
		iif wan0 accept
		iif $others accept
		iif @s accept
		iif vmap { eth6 : accept, eth7 : drop }
	}
}
`)
	w := build(t, Config{Firewall: f})
	if !reaches(t, w, 9) || reaches(t, w, 10) {
		t.Error("the rules do not decide as they say")
	}
	if notes := w.Notes(); len(notes) != 1 || !strings.HasPrefix(notes[0], "the rules speak of eth3, eth4, eth5, eth6 and eth7 too") {
		t.Errorf("notes %q", notes)
	}
}

func TestInterfacesAreTakenFromTheRules(t *testing.T) {
	f := ownRules(t, "own.nft", `table ip own {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established accept
		iifname vlan10 udp dport 9 accept
	}
	chain out {
		type nat hook postrouting priority srcnat;
		oifname { ppp0 } masquerade
	}
}
`)
	w := build(t, Config{Firewall: f})
	if !reaches(t, w, 9) || reaches(t, w, 10) {
		t.Error("the rules do not decide as they say")
	}
	if got := w.config.Inside.Name + " " + w.config.Outside.Name; got != "vlan10 ppp0" {
		t.Errorf("inside and outside are %s", got)
	}
	if err := w.Load(ownRules(t, "other.nft", strings.NewReplacer("vlan10", "vlan11", "ppp0", "ppp1").Replace(string(f.Text)))); err == nil || !strings.Contains(err.Error(), "there is no interface vlan11 or ppp1 here; you say") {
		t.Errorf("rules of other interfaces, loaded later: %v", err)
	}
}

func TestTroubleWithTheMachineItselfIsToldWhereItIs(t *testing.T) {
	chain := func(hook, rules string) string {
		return fmt.Sprintf("\tchain %s {\n\t\ttype filter hook %[1]s priority filter; policy drop;\n%s\t}\n", hook, rules)
	}
	ssh := "\t\tiifname \"wan0\" tcp dport 22 accept\n"
	neighbours := "\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n"
	cases := map[string]struct {
		rules     string
		four, six string // words of the notes
	}{
		"nothing forbidden":    {rules: "table inet t {\n" + chain("forward", "") + "}\n"},
		"nobody in":            {rules: "table inet t {\n" + chain("input", "") + "}\n", four: "SSH", six: "SSH discovery"},
		"neighbours in":        {rules: "table inet t {\n" + chain("input", neighbours) + "}\n", four: "SSH", six: "SSH"},
		"SSH from outside":     {rules: "table inet t {\n" + chain("input", ssh) + "}\n", six: "discovery"},
		"answers do not leave": {rules: "table inet t {\n" + chain("output", "") + "}\n", four: "SSH", six: "SSH discovery"},
		"no ARP":               {rules: "table inet t {\n" + chain("forward", "") + "}\ntable arp u {\n" + chain("input", "") + "}\n", four: "ARP"},
	}
	for name, c := range cases {
		w := build(t, Config{Firewall: ownRules(t, "own.nft", c.rules)})
		for _, six := range []bool{false, true} {
			var got []string
			for _, n := range w.trouble(six) {
				for _, word := range []string{"SSH", "ARP", "discovery"} {
					if strings.Contains(n, word) {
						got = append(got, word)
					}
				}
			}
			if s, want := strings.Join(got, " "), choose(six, c.six, c.four); s != want {
				t.Errorf("%s, IPv6 %v: %q, want %q", name, six, s, want)
			}
		}
		// The hosts know each other as before.
		if !knows(t, w) {
			t.Errorf("%s: the host does not know the firewall any more", name)
		}
	}
}

// knows tells whether the host knows the firewall for good.
func knows(t *testing.T, w *World) bool {
	t.Helper()
	var out bytes.Buffer
	cmd := w.Host(hostName).Command(t.Context(), "ip", "-6", "neigh", "show", w.config.Inside.V6.Addr().String())
	cmd.Stdout = &out
	if err := w.Host(hostName).Run(cmd); err != nil {
		t.Fatal(err)
	}
	return strings.Contains(out.String(), "PERMANENT")
}
