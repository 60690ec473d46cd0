package lab

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestInterfacesAreReadAsTheyAreWritten(t *testing.T) {
	cases := map[string]Interface{
		"eth1":                               {Name: "eth1"},
		"eth0.10":                            {Name: "eth0.10"},
		"br-lan=192.168.1.1/24":              {Name: "br-lan", V4: prefix("192.168.1.1/24")},
		"br0:eth1=192.168.1.0/24":            {Name: "br0", Port: "eth1", V4: prefix("192.168.1.1/24")},
		"wg0=fd08::/64":                      {Name: "wg0", V6: prefix("fd08::1/64")},
		"ppp0=fd08::9/64,203.0.113.9/28":     {Name: "ppp0", V4: prefix("203.0.113.9/28"), V6: prefix("fd08::9/64")},
		"vlan10=10.9.8.254/23,2001:db8::/48": {Name: "vlan10", V4: prefix("10.9.8.254/23"), V6: prefix("2001:db8::1/48")},
	}
	for text, want := range cases {
		got, err := ParseInterface(text)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", text, err, diff)
		}
	}
}

func TestWhatIsNoInterfaceIsRefusedWithTheReason(t *testing.T) {
	cases := map[string]string{
		"":                             "an interface needs a name",
		"=10.0.0.1/8":                  "an interface needs a name",
		"br0:":                         "an interface needs a name",
		"a-very-long-name":             `interface name "a-very-long-name" is longer than 15 bytes`,
		"eth 0":                        `interface name "eth 0" has a character that none may have`,
		"eth*":                         `interface name "eth*" has a character that none may have`,
		"lo":                           `interface name "lo" is taken: lo is every machine's own loopback`,
		"all":                          `interface name "all" is taken: the kernel's settings call all interfaces all`,
		"eth0:1":                       "eth0:1 is a second address of eth0 and no interface; write eth0",
		"eth0=192.168.1.1":             "192.168.1.1 has no length; write for example 192.168.1.1/24",
		"eth0=fd00::1":                 "fd00::1 has no length; write for example fd00::1/64",
		"eth0=":                        `"" is no prefix such as 192.168.1.1/24 or fd00::1/64`,
		"eth0=lan":                     `"lan" is no prefix such as 192.168.1.1/24 or fd00::1/64`,
		"eth0=10.0.0.1/33":             `"10.0.0.1/33" is no prefix such as 192.168.1.1/24 or fd00::1/64`,
		"eth0=10.0.0.1/24,10.0.1.1/24": "10.0.0.1/24 and 10.0.1.1/24 are both IPv4; the lab gives an interface one prefix of each",
		"eth0=127.0.0.1/8":             "127.0.0.1/8 cannot be the network of an interface with hosts",
		"eth0=224.0.0.1/4":             "224.0.0.1/4 cannot be the network of an interface with hosts",
		"eth0=0.0.0.0/0":               "0.0.0.0/0 cannot be the network of an interface with hosts",
		"eth0=fe80::1/64":              "fe80::1/64 cannot be the network of an interface with hosts",
	}
	for text, want := range cases {
		if _, err := ParseInterface(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestBridgesHaveAPort(t *testing.T) {
	cases := map[string]string{"br-lan": "lan0", "br0": "lan0", "br": "lan0", "vmbr1": "lan0", "docker0": "lan0", "brother": "", "eth0": "", "wlan0": ""}
	for name, want := range cases {
		if got := (Wiring{Inside: Interface{Name: name}}).withDefaults().Inside.Port; got != want {
			t.Errorf("%s: port %q, want %q", name, got, want)
		}
	}
}

func TestNamesOfInterfacesThatClashAreRefused(t *testing.T) {
	cases := map[string]Wiring{
		"both interfaces of the firewall are called eth0":            {Inside: Interface{Name: "eth0"}, Outside: Interface{Name: "eth0"}},
		"a bridge's port and another interface are both called eth0": {Inside: Interface{Name: "br0", Port: "eth0"}, Outside: Interface{Name: "eth0"}},
		"a bridge's port and another interface are both called lan0": {Inside: Interface{Name: "br0"}, Outside: Interface{Name: "lan0"}},
		"a bridge's port and another interface are both called br0":  {Inside: Interface{Name: "br0", Port: "br0"}},
	}
	for want, w := range cases {
		if err := w.Check(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
