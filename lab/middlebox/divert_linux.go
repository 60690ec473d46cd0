package middlebox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/wallprobe/wallprobe/lab"
	"golang.org/x/sys/unix"
)

// diverted marks packets that are for a box and not to be routed on; the
// routing table for them has the same number.
const diverted = 0x6d62

// A diversion sends flows to a local port by TPROXY, which leaves their
// addresses as they are.
type diversion struct {
	host  *lab.Host
	table string
}

// divert sends what comes in by an interface and is for the given ports, in
// nft's notation, to a socket on the local port.
func divert(h *lab.Host, transport, from, ports string, local int) (*diversion, error) {
	if err := h.Do(routeDiverted); err != nil {
		return nil, fmt.Errorf("divert %s: %w", ports, err)
	}
	d := &diversion{host: h, table: fmt.Sprintf("middlebox_%s_%d", transport, local)}
	if from == "" {
		from = "lan0"
	}
	rules := fmt.Sprintf(`table inet %s {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname "%s" meta l4proto %s th dport %s counter meta mark set %d tproxy to :%d accept
	}
}
`, d.table, from, transport, ports, diverted, local)
	if _, err := h.NFT(context.Background(), []byte(rules), "-f", "-"); err != nil {
		return nil, fmt.Errorf("divert %s: %w", ports, err)
	}
	return d, nil
}

// divertReturns sends packets that belong to connections which a box made from
// other hosts' addresses to the box. number tells several boxes apart.
func divertReturns(h *lab.Host, number int) (*diversion, error) {
	d := &diversion{host: h, table: fmt.Sprintf("middlebox_returns_%d", number)}
	rules := fmt.Sprintf(`table inet %s {
	chain prerouting {
		type filter hook prerouting priority mangle - 1; policy accept;
		meta l4proto tcp socket transparent 1 socket wildcard 0 counter meta mark set %d accept
	}
}
`, d.table, diverted)
	if _, err := h.NFT(context.Background(), []byte(rules), "-f", "-"); err != nil {
		return nil, fmt.Errorf("divert returning packets: %w", err)
	}
	return d, nil
}

// end lets the flows pass by again. The table is gone already if other rules
// were loaded meanwhile.
func (d *diversion) end() error {
	script := fmt.Sprintf("add table inet %s\ndelete table inet %[1]s\n", d.table)
	_, err := d.host.NFT(context.Background(), []byte(script), "-f", "-")
	return err
}

// routeDiverted makes every address local for diverted packets. The routes
// stay: without a diversion nothing follows them.
func routeDiverted() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	for family, bits := range map[int]int{netlink.FAMILY_V4: 32, netlink.FAMILY_V6: 128} {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table = family, diverted, diverted
		if err := nl.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("routing rule: %w", err)
		}
		everything := &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
		route := &netlink.Route{
			Dst: everything, LinkIndex: lo.Attrs().Index, Table: diverted,
			Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Family: family,
		}
		if err := nl.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}

// transparent lets a socket take and use addresses that are not the host's,
// and tell the address that a datagram was aimed at.
func transparent(network, _ string, c syscall.RawConn) error {
	var err error
	ctl := c.Control(func(fd uintptr) {
		level, options := unix.SOL_IP, []int{unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR}
		if network == "udp6" || network == "tcp6" {
			level, options = unix.SOL_IPV6, []int{unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR}
		}
		for _, o := range options {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), level, o, 1))
		}
		err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	})
	return errors.Join(ctl, err)
}
