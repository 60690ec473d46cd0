package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

var (
	ip     = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// The ways to the server's addresses and back lead through both firewalls.
func TestTheSecondFirewallStandsInEveryWay(t *testing.T) {
	got, err := plan(Config{Far: new(Firewall), Own: []netip.Prefix{prefix("23.239.228.0/22")}, Hosts: []string{"other"}})
	if err != nil {
		t.Fatal(err)
	}
	ways := make(map[string]string) // from a host to an address
	for _, s := range got {
		for _, to := range []string{"10.77.1.2", "23.239.228.1", "203.0.113.10"} {
			for _, r := range s.Routes {
				if r.To.Contains(ip(to)) && r.Via.IsValid() {
					ways[s.Name+" "+to] = r.Via.String()
				}
			}
		}
	}
	want := map[string]string{
		"host 10.77.1.2": "10.77.1.1", "host 23.239.228.1": "10.77.1.1", "host 203.0.113.10": "10.77.1.1",
		"firewall 23.239.228.1": "198.51.100.2", "firewall 203.0.113.10": "198.51.100.2",
		"other 10.77.1.2": "198.51.100.1", "other 23.239.228.1": "198.51.100.2", "other 203.0.113.10": "198.51.100.2",
		"firewall2 10.77.1.2": "198.51.100.1", "firewall2 23.239.228.1": "203.0.113.10",
		"server 10.77.1.2": "203.0.113.1", "server 203.0.113.10": "203.0.113.1", "server 23.239.228.1": "203.0.113.1",
	}
	if diff := cmp.Diff(want, ways); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPlanOfTheDefaultWorldWithOwnRange(t *testing.T) {
	got, err := plan(Config{Own: []netip.Prefix{prefix("23.239.228.0/22"), prefix("23.239.228.0/22")}, MTU: 1300})
	if err != nil {
		t.Fatal(err)
	}
	want := []site{
		{
			Name: "firewall", Forward: true, DNS: true,
			Links: []link{
				{Name: "lan0", Switch: "lan", V4: prefix("10.77.1.1/24"), V6: prefix("fd77:0:0:1::1/64"), MAC: net.HardwareAddr{2, 0x77, 0, 0, 0, 1}},
				{Name: "wan0", Switch: "wan", V4: prefix("198.51.100.1/24"), V6: prefix("2001:db8:64::1/64"), MTU: 1300, MAC: net.HardwareAddr{2, 0x77, 0, 0, 0, 2}},
			},
			Routes: []route{{To: prefix("23.239.228.0/22"), Via: ip("198.51.100.10")}},
			V4:     ip("10.77.1.1"), V6: ip("fd77:0:0:1::1"),
		},
		{
			Name: "host", DNS: true,
			Links:  []link{{Name: "eth0", Switch: "lan", V4: prefix("10.77.1.2/24"), V6: prefix("fd77:0:0:1::2/64"), MAC: net.HardwareAddr{2, 0x77, 0, 0, 1, 1}}},
			Routes: []route{{To: prefix("0.0.0.0/0"), Via: ip("10.77.1.1")}, {To: prefix("::/0"), Via: ip("fd77:0:0:1::1")}},
			V4:     ip("10.77.1.2"), V6: ip("fd77:0:0:1::2"),
		},
		{
			Name:  "server",
			Links: []link{{Name: "eth0", Switch: "wan", V4: prefix("198.51.100.10/24"), V6: prefix("2001:db8:64::a/64"), MAC: net.HardwareAddr{2, 0x77, 0, 0, 2, 1}}},
			Routes: []route{
				{To: prefix("10.77.1.0/24"), Via: ip("198.51.100.1")}, {To: prefix("fd77:0:0:1::/64"), Via: ip("2001:db8:64::1")},
				{To: prefix("23.239.228.0/22")},
			},
			V4: ip("198.51.100.10"), V6: ip("2001:db8:64::a"),
		},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestHostsAvoidTheFirewallsAddress(t *testing.T) {
	inside := Interface{Name: "br-lan", V4: prefix("192.168.1.2/29"), V6: prefix("fd00::2/64")}
	sites, err := plan(Config{Wiring: Wiring{Inside: inside}, Hosts: []string{"lan2"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sites {
		got = append(got, s.Name+" "+s.V4.String())
	}
	want := []string{"firewall 192.168.1.2", "host 192.168.1.1", "server 198.51.100.10", "lan2 192.168.1.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestImpossibleWorldsAreRefused(t *testing.T) {
	cases := map[string]Config{
		"both interfaces of the firewall are called wan0":                                                                                 {Wiring: Wiring{Inside: Interface{Name: "wan0"}}},
		`interface name "a-very-long-name" is longer than 15 bytes`:                                                                       {Wiring: Wiring{Inside: Interface{Name: "a-very-long-name"}}},
		"network 10.77.1.0/24, inside, overlaps 10.0.0.0/8, where the documents have servers; give another one with --inside lan0=PREFIX": {Own: []netip.Prefix{prefix("10.0.0.0/8")}},
		"network 10.77.1.0/24, inside, and network 10.77.0.0/16, outside, overlap":                                                        {Wiring: Wiring{Outside: Interface{V4: prefix("10.77.0.1/16")}}},
		"range 23.0.0.1/8 has bits set beyond its length":                                                                                 {Own: []netip.Prefix{prefix("23.0.0.1/8")}},
		`no host "lan3" to build: there are lan2 and other`:                                                                               {Hosts: []string{"lan3"}},
		"mtu 500 is not between 1280, the least for IPv6, and 65535":                                                                      {MTU: 500},
		"network 192.0.2.0/30 has too few addresses for the hosts of the lab":                                                             {Wiring: Wiring{Outside: Interface{V4: prefix("192.0.2.1/30")}}, Hosts: []string{"other"}},
		"interface lan0 needs an IPv4 and an IPv6 prefix, not ::/64 and ::1/128":                                                          {Wiring: Wiring{Inside: Interface{V4: prefix("::/64"), V6: prefix("::1/128")}}},
	}
	for want, c := range cases {
		_, err := plan(c)
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestNamesAreFoundByTheClosestWildcard(t *testing.T) {
	names := map[string][]netip.Addr{
		"*.goto.com": {ip("192.0.2.1")}, "*.eu.goto.com": {ip("192.0.2.2")}, "www.goto.com": {ip("192.0.2.3"), ip("2001:db8::3")},
	}
	cases := map[string]string{
		"a.goto.com.": "192.0.2.1", "a.b.goto.com.": "192.0.2.1", "x.eu.goto.com.": "192.0.2.2", "WWW.goto.com.": "192.0.2.3",
		"goto.com.": "RCodeNameError", "agoto.com.": "RCodeNameError",
	}
	for name, want := range cases {
		if got := ask(t, names, name, dnsmessage.TypeA); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	if got := ask(t, names, "www.goto.com.", dnsmessage.TypeAAAA); got != "2001:db8::3" {
		t.Errorf("AAAA: got %s", got)
	}
	if got := ask(t, names, "a.goto.com.", dnsmessage.TypeAAAA); got != "" {
		t.Errorf("AAAA of a name without one: got %s, want an empty answer", got)
	}
}

// ask returns the addresses that are answered, or the response code.
func ask(t *testing.T, names map[string][]netip.Addr, name string, kind dnsmessage.Type) string {
	t.Helper()
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	packed, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	packed, err = answer(names, packed, 512)
	if err != nil {
		t.Fatal(err)
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	if reply.ID != 7 || !reply.Response {
		t.Fatalf("not the reply: %+v", reply.Header)
	}
	if reply.RCode != dnsmessage.RCodeSuccess {
		return reply.RCode.String()
	}
	var all []string
	for _, a := range reply.Answers {
		switch b := a.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			all = append(all, netip.AddrFrom16(b.AAAA).String())
		}
	}
	return strings.Join(all, " ")
}

func FuzzAnswerNeverAnswersAReply(f *testing.F) {
	f.Add([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, query []byte) {
		reply, err := answer(map[string][]netip.Addr{"a": {ip("192.0.2.1")}}, query, 512)
		if err != nil {
			return
		}
		if _, err := answer(nil, reply, 512); err == nil {
			t.Errorf("the reply %x was answered", reply)
		}
	})
}

func TestForbiddenNamesWhatForbids(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	cases := map[string]fstest.MapFS{
		"user.max_user_namespaces is 0":                        {"sys/user/max_user_namespaces": file("0\n"), "sys/kernel/unprivileged_userns_clone": file("0\n")},
		"kernel.unprivileged_userns_clone is 0":                {"sys/user/max_user_namespaces": file("9\n"), "sys/kernel/unprivileged_userns_clone": file("0\n")},
		"kernel.apparmor_restrict_unprivileged_userns is 1":    {"sys/kernel/apparmor_restrict_unprivileged_userns": file("1\n")},
		"a seccomp profile forbids them":                       {"self/status": file("Name:\tx\nSeccomp:\t2\n")},
		"forbidden here: the kernel does not say why: refused": {"self/status": file("Name:\tx\nSeccomp:\t0\n")},
	}
	cause := errors.New("refused")
	for want, proc := range cases {
		err := forbidden(proc, cause)
		if !strings.Contains(err.Error(), want) || !errors.Is(err, cause) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
	}
}

func TestOpenFirewallRefusesWhatItCannotLoad(t *testing.T) {
	dump := filepath.Join(t.TempDir(), "dump.rules")
	if err := os.WriteFile(dump, []byte("# Generated by arptables-save\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{
		dump:            "dump.rules:1: a dump of arptables-save; ",
		"statefull":     `no firewall "statefull": neither a file nor one of drop-udp-all, `,
		"./missing.nft": "firewall: open ./missing.nft",
	}
	for name, want := range cases {
		if _, err := OpenFirewall(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestEveryBuiltInFirewallHasATitle(t *testing.T) {
	names := FirewallNames()
	if len(names) == 0 {
		t.Fatal("no firewalls")
	}
	for _, name := range append(names, Main()...) {
		f, err := OpenFirewall(name)
		if err != nil || f.Title() == name || f.Title() == "" {
			t.Errorf("%s: title %q, %v", name, f.Title(), err)
		}
	}
}

func TestRulesAreReadFromBothListings(t *testing.T) {
	list := `{"nftables":[{"metainfo":{"version":"1.0.6"}},
{"counter":{"family":"inet","name":"foo","table":"t","handle":4,"packets":3,"bytes":9}},
{"rule":{"family":"inet","table":"t","chain":"c","handle":5,"expr":[{"match":{}},{"counter":{"packets":1,"bytes":2}},{"accept":null}]}},
{"rule":{"family":"inet","table":"t","chain":"c","handle":7,"comment":"x","expr":[{"counter":{"packets":0,"bytes":0}},{"reject":{"type":"tcp reset"}}]}},
{"rule":{"family":"inet","table":"t","chain":"n","handle":8,"expr":[{"counter":"foo"},{"drop":null}]}}]}`
	text := `table inet t { # handle 1
	counter foo { # handle 4
		packets 3 bytes 9
	}

	set s { # handle 6
		type ipv4_addr
		elements = { 192.0.2.1,
			     192.0.2.2 }
	}

	chain c { # handle 1
		type filter hook forward priority filter; policy accept;
		ct state established,related counter packets 1 bytes 2 accept # handle 5
		tcp dport { 80,
			    443 } counter packets 0 bytes 0 reject with tcp reset comment "x" # handle 7
	}

	chain n { # handle 3
		udp dport 5 counter name "foo" drop # handle 8
	}
}
`
	set, err := parseRules([]byte(list), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got := set.rules
	want := []Rule{
		{Family: "inet", Table: "t", Chain: "c", Handle: 5, Index: 1, Text: "ct state established,related counter accept", Counted: true, Packets: 1, Bytes: 2, Verdict: "accept"},
		{Family: "inet", Table: "t", Chain: "c", Handle: 7, Index: 2, Text: `tcp dport { 80, 443 } counter reject with tcp reset comment "x"`, Comment: "x", Counted: true, Verdict: "reject"},
		{Family: "inet", Table: "t", Chain: "n", Handle: 8, Index: 1, Text: `udp dport 5 counter name "foo" drop`, Counted: true, Packets: 3, Bytes: 9, Verdict: "drop"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
