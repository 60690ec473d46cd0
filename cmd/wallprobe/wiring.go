package main

import (
	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/lab"
)

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
