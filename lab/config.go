package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Config says which world to build. The zero Config is a world with the
// firewall wide open.
type Config struct {
	// Firewall is loaded on the firewall host; the zero Firewall has no rules.
	Firewall Firewall

	Wiring

	// Far is a second firewall, between the WAN and the site of the server, from
	// which its rules see lan0 inside and wan0 outside; nil where the server
	// stands on the WAN itself.
	Far *Firewall

	// Own are address ranges that belong to the server as well: every address
	// in them reaches it, and it may send from every one. They may overlap
	// each other but not the networks of the two interfaces.
	Own []netip.Prefix

	// Names are answered by DNS on every host but the server, whose port 53
	// belongs to the reflector. A name without addresses has those of the
	// server. "*.example.com" stands for every name below
	// example.com that is not listed itself, but not for example.com. The
	// hosts of the lab are known by their own names unless these say otherwise.
	Names map[string][]netip.Addr

	// Hosts are further hosts to build: "lan2" beside the host, and "other",
	// which stands outside and is not the server.
	Hosts []string

	// MTU, in bytes, is that of the firewall's outside link in both
	// directions; 0 means 1500, as everywhere else. When it is set, all hosts
	// send packets as they would be on a wire, without segmentation offload,
	// which would slip through the narrow link.
	MTU int
}

// The names of the hosts.
const (
	hostName     = "host"
	lan2Name     = "lan2"
	firewallName = "firewall"
	serverName   = "server"
	otherName    = "other"
	farName      = "firewall2"
)

// switches are the names of the networks.
var switches = []string{"lan", "wan", "site"}

// farSite is the inside of the second firewall; its outside is the second
// address of the WAN.
var farSite = Interface{Name: "lan0", V4: netip.MustParsePrefix("203.0.113.1/24"), V6: netip.MustParsePrefix("2001:db8:113::1/64")}

// A site is the plan of one host: a namespace and what it contains.
type site struct {
	Name    string
	Links   []link
	Routes  []route
	Forward bool // it routes between its links
	DNS     bool // it has a resolver on its loopback
	V4, V6  netip.Addr
}

// A link joins a host to one of the switches.
type link struct {
	Name   string
	Bridge string // the bridge that this is a port of, which has the addresses
	Switch string // one of switches
	V4, V6 netip.Prefix
	MTU    int // bytes; 0 is the kernel's default
	MAC    net.HardwareAddr
}

// A route leads to a prefix by way of a neighbour or, without one, makes its
// addresses the host's own.
type route struct {
	To  netip.Prefix
	Via netip.Addr
}

var (
	anyV4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	anyV6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// check says what is wrong with a Config whose defaults are filled in.
func (c Config) check() error {
	if err := c.Wiring.check(); err != nil {
		return err
	}
	for _, p := range c.Own {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("range %s has bits set beyond its length", p)
		}
	}
	if err := c.checkNetworks(); err != nil {
		return err
	}
	for _, h := range c.Hosts {
		if h != lan2Name && h != otherName {
			return fmt.Errorf("no host %q to build: there are %s and %s", h, lan2Name, otherName)
		}
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		return fmt.Errorf("mtu %d is not between 1280, the least for IPv6, and 65535", c.MTU)
	}
	return nil
}

// checkNetworks refuses networks that overlap: nobody would know the way.
func (c Config) checkNetworks() error {
	in, out := c.Inside, c.Outside
	if c.Far != nil {
		for _, p := range []netip.Prefix{in.V4, in.V6, out.V4, out.V6} {
			if p.Overlaps(farSite.V4) || p.Overlaps(farSite.V6) {
				return fmt.Errorf("network %s is in that of the second site, %s and %s; give another one", p.Masked(), farSite.V4.Masked(), farSite.V6.Masked())
			}
		}
	}
	for _, pair := range [][2]netip.Prefix{{in.V4, out.V4}, {in.V6, out.V6}} {
		if pair[0].Overlaps(pair[1]) {
			return fmt.Errorf("network %s, inside, and network %s, outside, overlap", pair[0].Masked(), pair[1].Masked())
		}
	}
	for side, i := range map[string]Interface{"inside": in, "outside": out} {
		for _, p := range []netip.Prefix{i.V4, i.V6} {
			for _, q := range c.Own {
				if p.Overlaps(q) {
					return fmt.Errorf("network %s, %s, overlaps %s, where the documents have servers; give another one with --%[2]s %[4]s=PREFIX", p.Masked(), side, q.Masked(), i.Name)
				}
			}
		}
	}
	return nil
}

// plan turns a Config into the hosts to build: pure, so that it can be
// compared whole.
func plan(c Config) ([]site, error) {
	c.Wiring = c.Wiring.withDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	p := planner{config: c}
	p.firewall()
	p.inner(hostName, 2)
	if c.Far == nil {
		p.outer(serverName, 10)
	} else {
		p.far()
	}
	if slices.Contains(c.Hosts, lan2Name) {
		p.inner(lan2Name, 3)
	}
	if slices.Contains(c.Hosts, otherName) {
		p.outer(otherName, 20)
	}
	if p.err != nil {
		return nil, p.err
	}
	p.own()
	return p.sites, nil
}

type planner struct {
	config Config
	sites  []site
	used   []netip.Addr
	err    error
}

func (p *planner) firewall() {
	in, out := p.config.Inside, p.config.Outside
	p.used = append(p.used, in.V4.Addr(), in.V6.Addr(), out.V4.Addr(), out.V6.Addr())
	p.add(site{
		Name: firewallName, Forward: true, DNS: true,
		Links: []link{in.link("lan", 0), out.link("wan", p.config.MTU)},
		V4:    in.V4.Addr(), V6: in.V6.Addr(),
	})
}

// link joins the firewall to a switch.
func (i Interface) link(to string, mtu int) link {
	l := link{Name: i.Name, Switch: to, V4: i.V4, V6: i.V6, MTU: mtu}
	if i.Port != "" {
		l.Name, l.Bridge = i.Port, i.Name
	}
	return l
}

// inner adds a host of the LAN, which knows the world through the firewall.
func (p *planner) inner(name string, number int) {
	in := p.config.Inside
	l := p.link("lan", in, number)
	p.add(site{
		Name: name, DNS: true, Links: []link{l}, V4: l.V4.Addr(), V6: l.V6.Addr(),
		Routes: []route{{To: anyV4, Via: in.V4.Addr()}, {To: anyV6, Via: in.V6.Addr()}},
	})
}

// outer adds a host of the WAN. It knows the way to the LAN, so that only the
// firewall's rules decide what gets in.
func (p *planner) outer(name string, number int) {
	in, out := p.config.Inside, p.config.Outside
	l := p.link("wan", out, number)
	p.add(site{
		Name: name, DNS: name != serverName, Links: []link{l}, V4: l.V4.Addr(), V6: l.V6.Addr(),
		Routes: []route{{To: in.V4.Masked(), Via: out.V4.Addr()}, {To: in.V6.Masked(), Via: out.V6.Addr()}},
	})
}

// far adds the second firewall and the server behind it, with the ways there and
// back.
func (p *planner) far() {
	in, out := p.config.Inside, p.config.Outside
	wan := p.link("wan", out, 2)
	wan.Name = defaultWiring.Outside.Name
	p.add(site{
		Name: farName, Forward: true, DNS: true,
		Links: []link{farSite.link("site", 0), wan},
		V4:    farSite.V4.Addr(), V6: farSite.V6.Addr(),
		Routes: []route{{To: in.V4.Masked(), Via: out.V4.Addr()}, {To: in.V6.Masked(), Via: out.V6.Addr()}},
	})
	l := p.link("site", farSite, 10)
	p.add(site{
		Name: serverName, Links: []link{l}, V4: l.V4.Addr(), V6: l.V6.Addr(),
		Routes: []route{{To: anyV4, Via: farSite.V4.Addr()}, {To: anyV6, Via: farSite.V6.Addr()}},
	})
}

// find is the index of a host, or -1.
func (p *planner) find(host string) int {
	return slices.IndexFunc(p.sites, func(s site) bool { return s.Name == host })
}

// way adds a route to a host, if there is such a host.
func (p *planner) way(host string, to netip.Prefix, via netip.Addr) {
	if i := p.find(host); i >= 0 {
		p.sites[i].Routes = append(p.sites[i].Routes, route{To: to, Via: via})
	}
}

// own gives the configured ranges to the server and the ways there to all
// others of the WAN; the hosts of the LAN have their default route.
func (p *planner) own() {
	server := p.sites[p.find(serverName)]
	v4, v6 := server.V4, server.V6 // the way there from the WAN
	far := p.find(farName)
	if far >= 0 {
		wan := p.sites[far].Links[1]
		v4, v6 = wan.V4.Addr(), wan.V6.Addr()
		for _, host := range []string{firewallName, otherName} {
			p.way(host, farSite.V4.Masked(), v4)
			p.way(host, farSite.V6.Masked(), v6)
		}
	}
	own := slices.Clone(p.config.Own)
	slices.SortFunc(own, netip.Prefix.Compare)
	for _, prefix := range slices.Compact(own) {
		via, last := v4, server.V4
		if prefix.Addr().Is6() {
			via, last = v6, server.V6
		}
		p.way(serverName, prefix, netip.Addr{})
		p.way(farName, prefix, last)
		p.way(firewallName, prefix, via)
		p.way(otherName, prefix, via)
	}
}

func (p *planner) add(s site) {
	for i := range s.Links {
		// Locally administered: bit 2 of the first byte (IEEE 802).
		s.Links[i].MAC = net.HardwareAddr{2, 0x77, 0, 0, byte(len(p.sites)), byte(i + 1)}
	}
	p.sites = append(p.sites, s)
}

func (p *planner) link(to string, i Interface, number int) link {
	return link{Name: "eth0", Switch: to, V4: p.pick(i.V4, number), V6: p.pick(i.V6, number)}
}

// pick takes the number-th address of a network or, if that is not to be had,
// the first free one.
func (p *planner) pick(network netip.Prefix, number int) netip.Prefix {
	base := network.Masked().Addr()
	if a := nth(base, number); p.free(network, a) {
		p.used = append(p.used, a)
		return netip.PrefixFrom(a, network.Bits())
	}
	for a := base.Next(); network.Contains(a); a = a.Next() {
		if p.free(network, a) {
			p.used = append(p.used, a)
			return netip.PrefixFrom(a, network.Bits())
		}
	}
	p.err = fmt.Errorf("network %s has too few addresses for the hosts of the lab", network.Masked())
	return netip.Prefix{}
}

// free tells whether a host may have the address: not taken, and not the
// broadcast address of its IPv4 network.
func (p *planner) free(network netip.Prefix, a netip.Addr) bool {
	broadcast := a.Is4() && !network.Contains(a.Next()) && network.Bits() < 31
	return network.Contains(a) && !broadcast && !slices.Contains(p.used, a)
}

func nth(a netip.Addr, n int) netip.Addr {
	for range n {
		a = a.Next()
	}
	return a
}
