package lab

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Wiring names the two interfaces of the firewall host, as its rules do.
// Fields left empty are lan0, 10.77.1.1/24, fd77:0:0:1::1/64 inside and wan0,
// 198.51.100.1/24, 2001:db8:64::1/64 outside.
type Wiring struct{ Inside, Outside Interface }

// An Interface is one of the two interfaces of the firewall host. The prefixes
// hold the firewall's own address and the width of the network on that side;
// the hosts there get other addresses of the same networks.
type Interface struct {
	Name   string // at most 15 bytes
	Port   string // the interface is a bridge, and this its port; empty where it is none
	V4, V6 netip.Prefix
}

var defaultWiring = Wiring{
	Inside:  Interface{Name: "lan0", V4: netip.MustParsePrefix("10.77.1.1/24"), V6: netip.MustParsePrefix("fd77:0:0:1::1/64")},
	Outside: Interface{Name: "wan0", V4: netip.MustParsePrefix("198.51.100.1/24"), V6: netip.MustParsePrefix("2001:db8:64::1/64")},
}

// bridgeName tells by its name that an interface is a bridge, as OpenWrt,
// Debian, libvirt, Docker, LXC and Proxmox call theirs.
var bridgeName = regexp.MustCompile(`^(br[0-9]*$|br[-_0-9]|bridge|virbr|docker|lxcbr|lxdbr|vmbr|cni|podman)`)

// withDefaults fills in what is empty. A bridge's port is called as the
// interface would be in a lab of its own.
func (w Wiring) withDefaults() Wiring {
	fill := func(i, from Interface) Interface {
		if i.Name == "" {
			i.Name = from.Name
		}
		if i.Port == "" && bridgeName.MatchString(i.Name) {
			i.Port = from.Name
		}
		if !i.V4.IsValid() {
			i.V4 = from.V4
		}
		if !i.V6.IsValid() {
			i.V6 = from.V6
		}
		return i
	}
	return Wiring{fill(w.Inside, defaultWiring.Inside), fill(w.Outside, defaultWiring.Outside)}
}

// Check says why there can be no firewall between two such interfaces.
func (w Wiring) Check() error { return w.withDefaults().check() }

// check says what is wrong with a Wiring whose defaults are filled in.
func (w Wiring) check() error {
	for _, i := range []Interface{w.Inside, w.Outside} {
		if !i.V4.Addr().Is4() || !i.V6.Addr().Is6() {
			return fmt.Errorf("interface %s needs an IPv4 and an IPv6 prefix, not %s and %s", i.Name, i.V4, i.V6)
		}
		for _, name := range []string{i.Name, i.Port} {
			if err := checkName(name); name != "" && err != nil {
				return err
			}
		}
	}
	if w.Inside.Name == w.Outside.Name {
		return fmt.Errorf("both interfaces of the firewall are called %s", w.Inside.Name)
	}
	seen := make(map[string]bool)
	for _, name := range []string{w.Inside.Name, w.Outside.Name, w.Inside.Port, w.Outside.Port} {
		if name != "" && seen[name] {
			return fmt.Errorf("a bridge's port and another interface are both called %s", name)
		}
		seen[name] = true
	}
	return nil
}

// reserved are names that an interface cannot have, with the reason.
var reserved = map[string]string{
	"lo":      "lo is every machine's own loopback",
	"all":     "the kernel's settings call all interfaces all",
	"default": "the kernel's settings call interfaces to come default",
	".":       "no interface is called .",
	"..":      "no interface is called ..",
}

// checkName says why an interface cannot have a name (dev_valid_name of the
// kernel).
func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("an interface needs a name")
	case len(name) > 15:
		return fmt.Errorf("interface name %q is longer than 15 bytes", name)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/:"*`, r) }):
		return fmt.Errorf("interface name %q has a character that none may have", name)
	case reserved[name] != "":
		return fmt.Errorf("interface name %q is taken: %s", name, reserved[name])
	}
	return nil
}

// ParseInterface reads IFACE[=PREFIX[,PREFIX6]]: "eth1", "br-lan=192.168.1.1/24",
// "wg0=10.8.0.1/24,fd08::1/64". IFACE is a bridge with a port where it is written
// BRIDGE:PORT, and where its name is one that bridges have. A prefix holds the
// firewall's own address, or is that of the network, whose first address it then has.
func ParseInterface(text string) (Interface, error) {
	name, prefixes, given := strings.Cut(text, "=")
	var i Interface
	i.Name, i.Port, _ = strings.Cut(name, ":")
	if i.Port != "" && strings.Trim(i.Port, "0123456789") == "" {
		return i, fmt.Errorf("%s is a second address of %s and no interface; write %[2]s", name, i.Name)
	}
	if err := checkName(i.Name); err != nil {
		return i, err
	}
	if i.Port != "" || strings.HasSuffix(name, ":") {
		if err := checkName(i.Port); err != nil {
			return i, err
		}
	}
	if !given {
		return i, nil
	}
	for part := range strings.SplitSeq(prefixes, ",") {
		p, err := parseNetwork(part)
		if err != nil {
			return i, err
		}
		at, version := &i.V4, 4
		if p.Addr().Is6() {
			at, version = &i.V6, 6
		}
		if at.IsValid() {
			return i, fmt.Errorf("%s and %s are both IPv%d; the lab gives an interface one prefix of each", *at, p, version)
		}
		*at = p
	}
	return i, nil
}

// parseNetwork reads the prefix of an interface.
func parseNetwork(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, alone := netip.ParseAddr(text); alone == nil {
		return p, fmt.Errorf("%s has no length; write for example %s/%d", text, text, map[bool]int{true: 24, false: 64}[a.Is4()])
	}
	if err != nil {
		return p, fmt.Errorf("%q is no prefix such as 192.168.1.1/24 or fd00::1/64", text)
	}
	a := p.Addr()
	if a.Is4In6() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || p.Bits() == 0 || p.Masked().Contains(netip.IPv4Unspecified()) {
		return p, fmt.Errorf("%s cannot be the network of an interface with hosts", text)
	}
	if p == p.Masked() && !p.IsSingleIP() {
		p = netip.PrefixFrom(a.Next(), p.Bits())
	}
	return p, nil
}
