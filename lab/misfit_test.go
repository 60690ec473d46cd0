package lab

import "testing"

func TestRulesThatCannotBeMeantForTheLabAreMisfits(t *testing.T) {
	const lan = `iifname "lan0" accept`
	const eth = `1: there is no interface eth1 here; in the lab lan0 is inside and wan0 outside`
	for rule, want := range map[string]string{
		lan:                              "",
		`counter drop`:                   "",
		`iifname "lo" accept`:            "",
		`iifname "lan*" accept`:          "",
		`iifname != "lan0" drop`:         "",
		`oifname "wan0" accept`:          "",
		`iifname "eth1" accept`:          eth,
		`iifname "eth*" accept`:          `1: there is no interface eth* here; in the lab lan0 is inside and wan0 outside`,
		`iifname "eth1" comment "lan0"`:  eth,
		`iifname { "eth1", "wg0" } drop`: `1: there is no interface eth1 or wg0 here; in the lab lan0 is inside and wan0 outside`,
		`iifname { "wg0", "lan0" } drop`: "",
		`iifname vmap { "lan0" : jump in, "eth1" : drop }`:   "",
		"elements = { \"lan0\" }\n\t\tiifname @inner accept": "",
		"elements = { \"eth1\" }\n\t\tiifname @inner accept": eth,
	} {
		listing := []byte("table inet t {\n\tchain c {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\t" + rule + "\n\t}\n}\n")
		if got := misfit(listing, []byte(rule), "lan0", "wan0"); got != want {
			t.Errorf("%s: got %q, want %q", rule, got, want)
		}
	}
	for _, listing := range []string{"", "table inet t {\n\tchain c {\n\t\t" + lan + "\n\t}\n}\n"} {
		if misfit([]byte(listing), nil, "lan0", "wan0") == "" {
			t.Errorf("rules without a hook fit: %q", listing)
		}
	}
}
