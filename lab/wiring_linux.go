package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel settings of every host, made before its links.
var settings = [][2]string{
	// Everybody may listen on every port.
	{"net.ipv4.ip_unprivileged_port_start", "0"},
	// ICMP errors are never withheld: no limit, and no type under a limit.
	// 127 is a type that is never sent, for the list may not be empty.
	{"net.ipv4.icmp_ratelimit", "0"},
	{"net.ipv4.icmp_ratemask", "0"},
	{"net.ipv6.icmp.ratelimit", "0"},
	{"net.ipv6.icmp.ratemask", "127"},
	// Addresses may be used at once and nobody looks for routers.
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.dad_transmits", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
	// The firewall's rules alone decide; the host outside may have set these.
	{"net.ipv4.conf.all.rp_filter", "0"},
	{"net.ipv4.conf.default.rp_filter", "0"},
	{"net.ipv4.conf.all.send_redirects", "0"},
	{"net.ipv4.conf.default.send_redirects", "0"},
}

// forwarding are the settings of a host that routes.
func forwarding(on bool) [][2]string {
	value := "0"
	if on {
		value = "1"
	}
	return [][2]string{{"net.ipv4.ip_forward", value}, {"net.ipv6.conf.all.forwarding", value}}
}

// connect runs wires between the links of the hosts. It returns the names of the
// ports at their ends in the namespace of the switches.
func (w *World) connect() ([]string, error) {
	var ports []string
	for _, h := range w.hosts {
		if err := h.ns.do(h.prepare); err != nil {
			return nil, fmt.Errorf("host %s: %w", h.Name(), err)
		}
	}
	err := w.wires.do(func() (err error) {
		ports, err = w.wire()
		return err
	})
	return ports, err
}

// wire does so in the namespace of the switches, which is the present one.
func (w *World) wire() (ports []string, err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	if err := prepareSwitches(); err != nil {
		return nil, err
	}
	for _, network := range switches {
		ends := w.ends(network)
		switch {
		case len(ends) == 0:
			continue
		case len(ends) == 2 && alike(ends):
			if err := ends[0].joinTo(ends[1], nl); err != nil {
				return nil, fmt.Errorf("wire from %s to %s: %w", ends[0].host.Name(), ends[1].host.Name(), err)
			}
			continue
		case alike(ends):
			port, err := share(nl, network, ends)
			if err == nil {
				ports = append(ports, port)
				continue
			}
			if !errors.Is(err, unix.EOPNOTSUPP) { // this kernel has no macvlan
				return nil, err
			}
		}
		made, err := plugAll(nl, network, ends)
		if err != nil {
			return nil, err
		}
		ports = append(ports, made...)
	}
	return ports, nil
}

// share lets all ends but that of the firewall be stations on one wire to it: a
// packet is spared a passage on its way to it, and a switch. It returns the name of
// that wire's port.
func share(nl *netlink.Handle, network string, ends []end) (port string, err error) {
	hub := max(0, slices.IndexFunc(ends, func(e end) bool { return e.host.site.Forward }))
	port = network + "-hub"
	if err := ends[hub].plug(nl, port, 0); err != nil {
		return "", fmt.Errorf("wire %s of %s: %w", ends[hub].Name, ends[hub].host.Name(), err)
	}
	wire, err := nl.LinkByName(port)
	if err != nil {
		return "", err
	}
	for i, e := range ends {
		if i == hub {
			continue
		}
		if err := e.tap(nl, wire); err != nil {
			return "", errors.Join(fmt.Errorf("wire %s of %s: %w", e.Name, e.host.Name(), err), nl.LinkDel(wire))
		}
	}
	return port, nil
}

// plugAll plugs all ends into a switch, and returns the names of its ports.
func plugAll(nl *netlink.Handle, network string, ends []end) (ports []string, err error) {
	index, err := addSwitch(nl, network, nil)
	if err != nil {
		return nil, fmt.Errorf("switch %s: %w", network, err)
	}
	for i, e := range ends {
		port := fmt.Sprintf("%s-%d", network, i)
		if err := e.plug(nl, port, index); err != nil {
			return nil, fmt.Errorf("wire %s of %s: %w", e.Name, e.host.Name(), err)
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// prepareSwitches makes the settings that switches need.
func prepareSwitches() error {
	// The switches carry IPv6 but do not speak it.
	if err := setSysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return err
	}
	// Nor do they filter: it would cost time and find no rules. Only a kernel
	// that has the filter knows of these.
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		err := setSysctl("net.bridge.bridge-nf-call-"+name, "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return nil
}

// An end is a link and the host that has it.
type end struct {
	link
	host *Host
}

// ends are the links of one network.
func (w *World) ends(network string) []end {
	var out []end
	for _, h := range w.hosts {
		for _, l := range h.site.Links {
			if l.Switch == network {
				out = append(out, end{l, h})
			}
		}
	}
	return out
}

// ports are the host's links, with the bridges over them.
func (h *Host) ports() []string {
	var out []string
	for _, l := range h.site.Links {
		if out = append(out, l.Name); l.Bridge != "" {
			out = append(out, l.Bridge)
		}
	}
	return out
}

// alike tells whether all ends take packets of one size. One that is narrower than
// the others needs the switch, which drops what does not fit.
func alike(ends []end) bool {
	return !slices.ContainsFunc(ends, func(e end) bool { return e.MTU != ends[0].MTU })
}

// settings are those of the host, which later links inherit.
func (h *Host) settings() [][2]string {
	wanted := append(forwarding(h.site.Forward), settings...)
	if h.site.Name == serverName {
		// Unlike IPv4, IPv6 does not let sockets have an address that is only
		// within a range of the host's own.
		wanted = append(wanted, [2]string{"net.ipv6.ip_nonlocal_bind", "1"})
	}
	return wanted
}

// prepare makes the host's settings.
func (h *Host) prepare() error {
	for _, s := range h.settings() {
		// A setting that this kernel does not know is not needed either.
		if err := setSysctl(s[0], s[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func addSwitch(nl *netlink.Handle, name string, mac net.HardwareAddr) (index int, err error) {
	snooping := false // multicast goes everywhere, nothing is learnt first
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags, attrs.HardwareAddr = name, net.FlagUp, mac
	b := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := nl.LinkAdd(b); err != nil {
		return 0, err
	}
	return b.Index, nil
}

// plug adds a pair of virtual Ethernet ends: one at the switch that is its master,
// up, and one on the host, down.
func (e end) plug(nl *netlink.Handle, port string, master int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags, attrs.MTU = port, master, net.FlagUp, e.MTU
	return nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: e.Name, PeerHardwareAddr: e.MAC,
		PeerNamespace: netlink.NsFd(e.host.ns.file.Fd()), PeerTxQLen: -1,
	})
}

// tap adds a station on a wire, down.
func (e end) tap(nl *netlink.Handle, wire netlink.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr, attrs.MTU = e.Name, wire.Attrs().Index, e.MAC, e.MTU
	attrs.Namespace = netlink.NsFd(e.host.ns.file.Fd())
	return nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
}

// joinTo adds a pair of virtual Ethernet ends, one on each host, both down.
func (e end) joinTo(b end, nl *netlink.Handle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = e.Name, e.MAC, e.MTU
	attrs.Namespace = netlink.NsFd(e.host.ns.file.Fd())
	return nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: b.Name, PeerHardwareAddr: b.MAC,
		PeerNamespace: netlink.NsFd(b.host.ns.file.Fd()), PeerTxQLen: -1,
	})
}

// configure brings up a host: links, addresses, routes and neighbours.
func (h *Host) configure(all []*Host) error {
	return h.ns.do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
		for _, l := range h.site.Links {
			if err := h.bringUp(nl, l, all); err != nil {
				return fmt.Errorf("link %s: %w", l.Name, err)
			}
		}
		for _, r := range h.site.Routes {
			if err := addRoute(nl, r, lo.Attrs().Index); err != nil {
				return fmt.Errorf("route to %s: %w", r.To, err)
			}
		}
		return nil
	})
}

func (h *Host) bringUp(nl *netlink.Handle, l link, all []*Host) error {
	dev, err := nl.LinkByName(l.Name)
	if err != nil {
		return err
	}
	if l.Bridge != "" {
		if dev, err = addBridge(nl, l, dev); err != nil {
			return fmt.Errorf("bridge %s: %w", l.Bridge, err)
		}
	}
	if h.world.config.MTU != 0 {
		if err := nl.LinkSetGSOMaxSegs(dev, 1); err != nil {
			return fmt.Errorf("segmentation offload off: %w", err)
		}
	}
	if err := nl.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, p := range []netip.Prefix{l.V4, l.V6} {
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if err := nl.AddrAdd(dev, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	// The kernel makes a new IPv6 address local from a work queue, later, and
	// drops what comes for it until then. This does it now.
	own := route{To: netip.PrefixFrom(l.V6.Addr(), 128)}
	if err := addRoute(nl, own, dev.Attrs().Index); err != nil {
		return fmt.Errorf("address %s: %w", l.V6, err)
	}
	for _, other := range all {
		for _, o := range other.site.Links {
			if other == h || o.Switch != l.Switch {
				continue
			}
			if err := addNeighbours(nl, dev.Attrs().Index, o); err != nil {
				return fmt.Errorf("neighbour %s: %w", other.Name(), err)
			}
		}
	}
	return nil
}

// addBridge makes a bridge of which a link is the port; the link's MAC is both's.
func addBridge(nl *netlink.Handle, l link, port netlink.Link) (netlink.Link, error) {
	index, err := addSwitch(nl, l.Bridge, l.MAC)
	if err != nil {
		return nil, err
	}
	if err := nl.LinkSetMasterByIndex(port, index); err != nil {
		return nil, err
	}
	if err := nl.LinkSetUp(port); err != nil {
		return nil, err
	}
	return nl.LinkByIndex(index)
}

// addNeighbours makes known, for good, at which MAC a neighbour is found.
func addNeighbours(nl *netlink.Handle, index int, l link) error {
	for _, a := range []netip.Addr{l.V4.Addr(), l.V6.Addr()} {
		err := nl.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: l.MAC,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// addRoute adds a route; one without a neighbour makes addresses local to a device.
func addRoute(nl *netlink.Handle, r route, device int) error {
	if r.Via.IsValid() {
		return nl.RouteAdd(&netlink.Route{Dst: ipNet(r.To), Gw: r.Via.AsSlice()})
	}
	return nl.RouteAdd(&netlink.Route{
		Dst: ipNet(r.To), LinkIndex: device, Type: unix.RTN_LOCAL,
		Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// settle makes the switches take their ports into use, and the hosts theirs.
func (w *World) settle(ports []string) error {
	if err := w.wires.do(func() error { return settle(ports) }); err != nil {
		return err
	}
	for _, h := range w.hosts {
		if err := h.ns.do(func() error { return settle(h.ports()) }); err != nil {
			return fmt.Errorf("host %s: %w", h.Name(), err)
		}
	}
	return nil
}

// settle takes wires into use. An end learns from a work queue that the other
// one is up and drops everything until then; being asked for its link state it
// looks at once (ETHTOOL_GLINK, linux/ethtool.h).
func settle(ports []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	for _, port := range ports {
		value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GLINK}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], port)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		runtime.KeepAlive(&value)
		if errno != 0 {
			return fmt.Errorf("link state of %s: %w", port, errno)
		}
		if value.data == 0 {
			return fmt.Errorf("%s has no carrier", port)
		}
	}
	return nil
}
