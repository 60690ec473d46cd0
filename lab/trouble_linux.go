package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownAnswer is how long the firewall itself may take to answer a neighbour. It
// is tried twice before it is said that it does not.
const ownAnswer = 300 * time.Millisecond

// trouble tells what a user's rules would do to the machine that they are for,
// which no path of a scenario shows. It is tried out, after all else: rules may
// remember who tried.
func (w *World) trouble(ipv6 bool) []string {
	w.mu.Lock()
	f := w.loaded
	w.mu.Unlock()
	if f.Path == "" || len(f.Boxes) > 0 {
		return nil
	}
	var notes [3]string
	var wg sync.WaitGroup
	wg.Go(func() {
		if w.lockedOut(ipv6) {
			notes[0] = "it lets nobody in to the firewall's own 22/tcp, from neither side: on a real machine you would lose SSH, unless it has another port"
		}
	})
	wg.Go(func() {
		if !w.findable(ipv6) {
			notes[1] = fmt.Sprintf("it stops %s: on a real network nobody would find the firewall over %s; the lab's hosts know each other for good",
				choose(ipv6, "neighbour discovery", "ARP"), choose(ipv6, "IPv6", "IPv4"))
		}
	})
	if form := choose(ipv6, "ip6tables", "iptables"); len(f.Dumps) > 0 && !slices.ContainsFunc(f.Dumps, func(d Dump) bool { return d.Form == form }) {
		notes[2] = fmt.Sprintf("it has no rules of %s, so all of %s passes", form, choose(ipv6, "IPv6", "IPv4"))
	}
	wg.Wait()
	return slices.DeleteFunc(notes[:], func(n string) bool { return n == "" })
}

func choose(ipv6 bool, six, four string) string {
	if ipv6 {
		return six
	}
	return four
}

// lockedOut tells whether the firewall takes no connection to a port of its own,
// neither from the host inside nor from the server outside. Where it cannot be
// tried, nothing is said.
func (w *World) lockedOut(ipv6 bool) bool {
	firewall := w.Host(firewallName)
	var l net.Listener
	err := firewall.Do(func() (err error) {
		l, err = net.Listen("tcp", ":22")
		return err
	})
	if err != nil {
		return false
	}
	defer l.Close()
	address := func(i Interface) string {
		a := i.V4.Addr()
		if ipv6 {
			a = i.V6.Addr()
		}
		return netip.AddrPortFrom(a, 22).String()
	}
	sides := map[*Host]string{w.Host(hostName): address(w.config.Inside), w.Host(serverName): address(w.config.Outside)}
	in := make(chan bool, len(sides))
	for h, to := range sides {
		go func() { in <- connects(h, to) }()
	}
	any := false
	for range sides {
		any = <-in || any
	}
	return !any
}

// connects tells whether a host gets a connection.
func connects(h *Host, to string) bool {
	for range 2 {
		err := h.Do(func() error {
			c, err := net.DialTimeout("tcp", to, ownAnswer)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			return true
		}
	}
	return false
}

// findable tells whether the firewall answers the host that asks for its
// hardware address. Where it cannot be tried, it is.
func (w *World) findable(ipv6 bool) bool {
	answers := true
	err := w.Host(hostName).Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		family, ip := unix.AF_INET, w.config.Inside.V4.Addr()
		if ipv6 {
			family, ip = unix.AF_INET6, w.config.Inside.V6.Addr()
		}
		known, err := neighbour(nl, family, ip)
		if err != nil || known == nil {
			return err
		}
		if err := nl.NeighDel(known); err != nil {
			return err
		}
		defer nl.NeighSet(known)
		answers, err = asks(nl, family, ip)
		return err
	})
	return err != nil || answers
}

// asks sends something to a neighbour that is not known, and tells whether it
// then becomes known.
func asks(nl *netlink.Handle, family int, ip netip.Addr) (bool, error) {
	c, err := net.Dial("udp", netip.AddrPortFrom(ip, 9).String())
	if err != nil {
		return false, err
	}
	defer c.Close()
	if _, err := c.Write([]byte("who has you")); err != nil {
		return false, err
	}
	for deadline := time.Now().Add(2 * ownAnswer); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		n, err := neighbour(nl, family, ip)
		if err != nil {
			return false, err
		}
		if n != nil && n.State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE) != 0 {
			return true, nil
		}
	}
	return false, nil
}

// neighbour is what the kernel knows of an address, nil for nothing.
func neighbour(nl *netlink.Handle, family int, ip netip.Addr) (*netlink.Neigh, error) {
	list, err := nl.NeighList(0, family)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == ip {
			return &n, nil
		}
	}
	return nil, nil
}
