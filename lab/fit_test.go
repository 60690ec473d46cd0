package lab

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// listed is nft's JSON for one chain that forwards and one that translates.
func listed(rules ...string) []byte {
	objects := []string{
		`{"chain":{"family":"inet","table":"t","name":"c","type":"filter","hook":"forward"}}`,
		`{"chain":{"family":"inet","table":"t","name":"masq"}}`,
		`{"rule":{"family":"inet","table":"t","chain":"masq","expr":[{"masquerade":null}]}}`,
		`{"chain":{"family":"inet","table":"t","name":"loop"}}`,
		`{"rule":{"family":"inet","table":"t","chain":"loop","expr":[{"jump":{"target":"loop"}}]}}`,
		`{"set":{"family":"inet","table":"t","name":"inner","type":"ifname","elem":["eth1",{"elem":{"val":"eth2","comment":"x"}}]}}`,
		`{"map":{"family":"inet","table":"t","name":"ways","type":"ifname","map":"verdict","elem":[["eth1",{"drop":null}],["eth0",{"jump":{"target":"masq"}}]]}}`,
		`{"set":{"family":"inet","table":"t","name":"pairs","type":["ifname","inet_service"],"elem":[{"concat":["eth1",80]}]}}`,
	}
	for _, r := range rules {
		family := "inet"
		if strings.HasPrefix(r, "netdev ") {
			family, r = "netdev", r[7:]
		}
		objects = append(objects, fmt.Sprintf(`{"rule":{"family":%q,"table":"t","chain":"c","expr":[%s]}}`, family, r))
	}
	return []byte(`{"nftables":[` + strings.Join(objects, ",") + `]}`)
}

func is(key, right string) string {
	return fmt.Sprintf(`{"match":{"op":"==","left":{"meta":{"key":%q}},"right":%s}}`, key, right)
}

func TestInterfacesAreFoundWhereverRulesSpeakOfThem(t *testing.T) {
	for rule, want := range map[string]string{
		is("iifname", `"eth1"`):                 "eth1",
		is("iif", `"eth1"`):                     "eth1",
		is("oifname", `"eth0"`):                 "eth0 out",
		is("iifname", `"lo"`):                   "",
		is("mark", `"eth1"`):                    "",
		is("iifname", `"@inner"`):               "eth1, eth2",
		is("iifname", `{"set":["eth1","wg*"]}`): "eth1, wg*",
		is("iifname", `{"set":"eth1"}`):         "eth1",
		is("oifname", `"eth0"`) + `,{"counter":null},{"masquerade":null}`:                                                                      "eth0 out masked",
		is("oifname", `"eth0"`) + `,{"xt":{"type":"target","name":"MASQUERADE"}}`:                                                              "eth0 out masked",
		is("oifname", `"eth0"`) + `,{"jump":{"target":"masq"}}`:                                                                                "eth0 out masked",
		is("oifname", `"eth0"`) + `,{"jump":{"target":"loop"}}`:                                                                                "eth0 out",
		is("iifname", `"eth1"`) + `,{"masquerade":null}`:                                                                                       "eth1",
		strings.Replace(is("oifname", `"docker0"`), "==", "!=", 1) + `,{"masquerade":null}`:                                                    "docker0 behind",
		`{"vmap":{"key":{"meta":{"key":"iifname"}},"data":{"set":[["eth1",{"drop":null}]]}}}`:                                                  "eth1",
		`{"vmap":{"key":{"meta":{"key":"oifname"}},"data":"@ways"}}`:                                                                           "eth1, eth0 masked",
		`{"match":{"op":"==","left":{"concat":[{"meta":{"key":"iifname"}},{"payload":{"protocol":"tcp","field":"dport"}}]},"right":"@pairs"}}`: "eth1",
		"netdev " + is("iifname", `"eth1"`):                                                                                                    "eth1 unrouted",
	} {
		read, err := readMentions(listed(rule), nil)
		var got []string
		for _, m := range read.interfaces {
			text := m.name
			for word, is := range map[string]bool{" out": m.out && !m.masked, " out masked": m.out && m.masked, " masked": !m.out && m.masked, " behind": m.behind, " unrouted": !m.routed} {
				if is {
					text += word
				}
			}
			got = append(got, text)
		}
		if s := strings.Join(got, ", "); s != want || err != nil || len(read.hooks) != 1 {
			t.Errorf("%s: %q, %v, hooks %v; want %q", rule, s, err, read.hooks, want)
		}
	}
}

// said are mentions: "eth0" is spoken of, "eth0<" translated to, "eth0>" leads out.
func said(names string) []mention {
	var out []mention
	for n := range strings.FieldsSeq(names) {
		name := strings.Trim(n, "<>!")
		out = append(out, mention{name: name, masked: strings.Contains(n, "<"), out: strings.ContainsAny(n, "<>"), behind: strings.Contains(n, "!"), routed: true})
	}
	return out
}

func TestTheRulesInterfacesAreTakenWhereTheyLeaveNoDoubt(t *testing.T) {
	cases := []struct{ found, inside, outside, want string }{
		{"", "", "", "fits"},
		{"lan0", "", "", "fits"},
		{"lan* wan0", "", "", "fits"},
		{"lan0 eth5", "", "", "fits, but eth5"},
		{"lan0 wan0 eth5 eth6", "", "", "fits, but eth5 and eth6"},
		{"lan0 eth0< eth1", "", "", "lan0 eth0"},
		{"eth1 eth0<", "", "", "eth1 eth0"},
		{"eth0<", "", "", "lan0 eth0"},
		{"br-lan wan", "", "", "br-lan wan"},
		{"br-lan br-guest wan<", "", "", "br-lan wan"},
		{"eth0 docker0!", "", "", "docker0 eth0"},
		{"eth1 ppp0", "", "", "eth1 ppp0"},
		{"eth1 pppoe-*", "", "", "eth1 pppoe-0"},
		{"eth1", "", "", "no: --inside eth1 or --outside eth1"},
		{"eth*", "", "", "no: --inside eth0 or --outside eth0"},
		{"eth1 eth0", "", "", "no: --inside eth0 --outside eth1"},
		{"eth1 eth0>", "", "", "no: --inside eth1 --outside eth0"},
		{"eth1 eth2 eth0<", "", "", "no: --inside eth1 --outside eth0"},
		{"eth1 eth0", "eth1", "", "eth1 eth0"},
		{"eth1 eth0", "", "eth0", "eth1 eth0"},
		{"eth1 eth0 tun0", "eth1", "", "no: --outside eth0"},
		{"eth1 eth0<", "eth1", "wlan0", "fits, but eth0"},
		{"eth1 eth0<", "eth7", "eth8", "no: of which the rules do not speak"},
		{"br-lan wan", "br-lan", "wan", "fits"},
	}
	for _, c := range cases {
		w := Wiring{Inside: Interface{Name: c.inside}, Outside: Interface{Name: c.outside}}
		f := fit(said(c.found), w)
		var got string
		switch {
		case f.instead != nil:
			full := f.instead.withDefaults()
			got = full.Inside.Name + " " + full.Outside.Name
		case f.why != "":
			got = "no: " + f.why[max(strings.LastIndex(f.why, " with ")+6, strings.LastIndex(f.why, ", ")+2):]
		case len(f.notes) > 0:
			got = "fits, but " + strings.TrimSuffix(strings.TrimPrefix(f.notes[0], "the rules speak of "), " too, which lead nowhere here")
		default:
			got = "fits"
		}
		if got != c.want {
			t.Errorf("%q with --inside %q --outside %q: %s, want %s", c.found, c.inside, c.outside, got, c.want)
		}
	}
}

func TestManyRulesAreReadInLittleTime(t *testing.T) {
	// Chains that jump to two others each have more ways through than can be
	// walked, and a set that every rule looks at has many elements.
	var objects []string
	for i := range 200 {
		objects = append(objects, fmt.Sprintf(`{"rule":{"family":"ip","table":"t","chain":"c%d","expr":[%s,{"jump":{"target":"c%d"}},{"jump":{"target":"c%d"}}]}}`, i, is("oifname", `"@s"`), i+1, i+2))
	}
	objects = append(objects, `{"set":{"family":"ip","table":"t","name":"s","elem":["eth0","eth1"]}}`)
	read, err := readMentions([]byte(`{"nftables":[`+strings.Join(objects, ",")+`]}`), nil)
	if err != nil || len(read.interfaces) != 2 {
		t.Errorf("%v, %v", read.interfaces, err)
	}
}

func TestComplaintsOfNFTAreOfTheUsersFile(t *testing.T) {
	said := "/dev/stdin:1:16-21: Error: syntax error, unexpected string\nflush ruleset; tabel inet own {\n               ^^^^^^\n" +
		"/dev/stdin:4:7-12: Error: Interface does not exist\n\t\tiif \"eth1\" accept\n\t\t    ^^^^^^\n"
	want := "my.nft:1:1-6: Error: syntax error, unexpected string\ntabel inet own {\n^^^^^^\n" +
		"my.nft:4:7-12: Error: Interface does not exist\n\t\tiif \"eth1\" accept\n\t\t    ^^^^^^"
	if diff := cmp.Diff(want, asInFile(said, "my.nft")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := lackingLinks(said, nil); len(got) != 1 || got[0] != "eth1" {
		t.Errorf("lacking are %v", got)
	}
}

func TestDevicesOfAFileAreFound(t *testing.T) {
	text := "# device eth9\ndefine wan = eth0\ndefine all = { $wan, \"eth1\" }\ntable netdev t {\n chain c { type filter hook ingress device $wan priority 0; }\n" +
		" chain d { type filter hook ingress devices = { lan1, \"lan2\" } priority 0; }\n flowtable f { devices = $all; }\n}\n"
	said := "t.nft:7:2-3: Error: Could not process rule: No such file or directory\n"
	want := []string{"eth0", "eth1", "lan1", "lan2"}
	if diff := cmp.Diff(want, lackingLinks(said, []byte(text))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWhatRemovesTablesThatAreNotThereIsLeftOut(t *testing.T) {
	text := "#!/usr/sbin/nft -f\ndestroy table inet a; # old\ndelete table b\nflush table ip6 c\ntable inet a {\n}\ntable d\ndelete table ip d\nadd table ip6 c;\nflush table ip6 c\n"
	want := "#!/usr/sbin/nft -f\n                           \n              \n                 \ntable inet a {\n}\ntable d\ndelete table ip d\nadd table ip6 c;\nflush table ip6 c\n"
	if diff := cmp.Diff(want, string(withoutRemovals([]byte(text)))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestNetworksOfTheRulesThatTheInsideHasNotAreTold(t *testing.T) {
	from := func(op, addr string, bits int) string {
		return fmt.Sprintf(`{"match":{"op":%q,"left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"prefix":{"addr":%q,"len":%d}}}}`, op, addr, bits)
	}
	const note = "the rules speak of the network 192.168.0.0/24, and the inside is 10.77.1.0/24; to give it that one: --inside lan0=192.168.0.1/24"
	cases := []struct {
		rules []string
		asked string
		want  string
	}{
		{[]string{from("==", "192.168.0.0", 24)}, "lan0", note},
		{[]string{from("==", "192.168.0.0", 24)}, "lan0=10.9.9.1/24", ""},
		{[]string{from("!=", "192.168.0.0", 24)}, "lan0", ""},
		{[]string{from("==", "192.168.0.0", 16)}, "lan0", ""},
		{[]string{from("==", "203.0.113.0", 24)}, "lan0", ""},
		{[]string{from("==", "192.168.0.0", 24), from("==", "10.77.0.0", 16)}, "lan0", ""},
		{[]string{from("==", "fd12::", 64)}, "br0=10.9.9.1/24", "the rules speak of the network fd12::/64, and the inside is fd77:0:0:1::/64; to give it that one: --inside br0=fd12::1/64"},
	}
	for _, c := range cases {
		read, err := readMentions(listed(c.rules...), nil)
		if err != nil {
			t.Fatal(err)
		}
		inside, err := ParseInterface(c.asked)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(foreign(read.networks, Wiring{Inside: inside}), "; "); got != c.want {
			t.Errorf("%s with --inside %s: %q, want %q", c.rules, c.asked, got, c.want)
		}
	}
}
