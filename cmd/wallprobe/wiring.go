package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
)

// ownRulesHelp tells how to test the rules of a real machine.
const ownRulesHelp = `Rules of your own are taken as they are, from whichever machine has them:
  nft list ruleset >my.nft                      or /etc/nftables.conf itself
  iptables-save >rules.v4                       and ip6tables-save >rules.v6 beside it,
                                                which is then loaded too; or both in one file
  ipset save >ipsets                            beside rules.v4, or --firewall ipsets+other.rules
They speak of the machine's interfaces. Which of these is inside and which outside is
taken from the rules where they leave no doubt (one of them translates addresses, one
is left), and said; otherwise say it yourself. Give the networks too where the rules
speak of addresses:
  wallprobe lab screenconnect --firewall my.nft --inside br-lan=192.168.1.1/24 --outside ppp0
A bridge such as br-lan or br0 is made as one, with the port lan0; br0:eth1 names the
port. Other interfaces that the rules need to load are made, with nothing behind them.
A file includes others beside it. What the kernel here cannot load is said with nft's or
iptables-restore's own words, and nothing is measured.`

// firewallFlags are those that fit the lab to the rules under test.
func firewallFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "inside", Usage: "`IFACE[=PREFIX[,PREFIX6]]` by which the rules know the inside, such as eth1 or br-lan=192.168.1.1/24 (default: lan0=10.77.1.1/24)"},
		&cli.StringFlag{Name: "outside", Usage: "`IFACE[=PREFIX[,PREFIX6]]` by which the rules know the outside, such as eth0 or ppp0 (default: wan0=198.51.100.1/24)"},
	}
}

// firewallConfig reads the flags of firewallFlags.
func firewallConfig(c *cli.Context) (lab.Wiring, error) {
	var w lab.Wiring
	for name, to := range map[string]*lab.Interface{"inside": &w.Inside, "outside": &w.Outside} {
		text := c.String(name)
		if !c.IsSet(name) {
			continue
		}
		i, err := lab.ParseInterface(text)
		if err != nil {
			return w, usage("--%s %s: %v", name, text, err)
		}
		*to = i
	}
	if err := w.Check(); err != nil {
		return w, usage("%v", err)
	}
	return w, nil
}

// farFlag puts the reflector behind a firewall of its own site.
func farFlag() cli.Flag {
	return &cli.StringFlag{Name: "far-firewall", EnvVars: []string{"WALLPROBE_FAR_FIREWALL"},
		Usage: "`NAME|FILE` of the rules of a second firewall, in front of the reflector's site, which is its lan0"}
}

// farFirewall reads farFlag; nil is none.
func farFirewall(c *cli.Context) (*lab.Firewall, error) {
	name := c.String("far-firewall")
	if name == "" {
		return nil, nil
	}
	list, err := openFirewalls([]string{name})
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// notesApart tells what is to be known of one of two firewalls and not of the other:
// that the new one lets nobody in any more, say.
func notesApart(sides [2]side, results [][]*client.Result) (notes []string) {
	var of [2][]string
	for i := range sides {
		for _, r := range results[i] {
			if r.Firewall == nil {
				continue
			}
			for _, n := range r.Firewall.Notes {
				if !slices.Contains(of[i], n) {
					of[i] = append(of[i], n)
				}
			}
		}
	}
	for i, s := range sides {
		for _, n := range of[i] {
			if !slices.Contains(of[1-i], n) {
				notes = append(notes, fmt.Sprintf("%s firewall %s: %s", s.name, s.firewall.Name, n))
			}
		}
	}
	return notes
}
