package steer

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/wallprobe/wallprobe/scenarios"
)

// Reasons for a port to be unserved that are no error of the system.
var (
	ErrReserved    = errors.New("reserved for other uses of this program")
	ErrDescriptors = errors.New("more than the descriptor limit allows")
)

// Unbound are ports that cannot be served, for one reason.
type Unbound struct {
	Transport scenarios.Transport
	Ports     scenarios.PortSet
	Err       error  // wraps syscall.EADDRINUSE, EACCES and so on, or is ErrReserved or ErrDescriptors
	Remedy    string // what the operator can do
}

func (u Unbound) String() string {
	noun, verb, need := "port", "is", "needs"
	if u.Ports.Len() > 1 {
		noun, verb, need = "ports", "are", "need"
	}
	what := fmt.Sprintf("%s %s/%s", noun, u.Ports, u.Transport)
	switch {
	case errors.Is(u.Err, syscall.EADDRINUSE):
		what += fmt.Sprintf(" %s already in use", verb)
	case errors.Is(u.Err, syscall.EACCES):
		what += fmt.Sprintf(" %s a privilege", need)
	default:
		what += ": " + u.Err.Error()
	}
	if u.Remedy == "" {
		return what
	}
	return what + "; " + u.Remedy
}

// A BindError names every port that Listen could not bind.
type BindError struct{ Unbound []Unbound }

func (e *BindError) Error() string {
	lines := make([]string, len(e.Unbound))
	for i, u := range e.Unbound {
		lines[i] = u.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the reasons.
func (e *BindError) Unwrap() []error {
	errs := make([]error, len(e.Unbound))
	for i, u := range e.Unbound {
		errs[i] = u.Err
	}
	return errs
}

// unbound makes the report on ports of one transport that failed with err.
func unbound(t scenarios.Transport, ports scenarios.PortSet, err error) Unbound {
	u := Unbound{Transport: t, Ports: ports, Err: err}
	it, the := "it", "the port"
	if ports.Len() > 1 {
		it, the = "them", "the ports"
	}
	except := fmt.Sprintf("leave %s out with --except %s/%s, or go on without %s with --allow-unbound", the, t, ports, it)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		u.Remedy = "stop that program, or " + except
	case errors.Is(err, syscall.EACCES):
		u.Remedy = "sudo setcap cap_net_bind_service=+ep $(command -v wallprobe), or sudo sysctl net.ipv4.ip_unprivileged_port_start=0, or " + except
	case errors.Is(err, ErrDescriptors):
		u.Remedy = "raise the limit (ulimit -n), or run with CAP_BPF and CAP_NET_ADMIN, or with CAP_NET_ADMIN and nft installed"
	case errors.Is(err, ErrReserved):
	default:
		u.Remedy = except
	}
	return u
}

// failures collects ports that could not be bound, by transport and reason.
type failures struct {
	list []failure
}

type failure struct {
	transport scenarios.Transport
	ports     scenarios.PortSet
	err       error
}

func (f *failures) add(t scenarios.Transport, ports scenarios.PortSet, err error) {
	if len(ports) == 0 {
		return
	}
	for i := range f.list {
		// Reasons are alike if they read alike: a bind error names its address but no port.
		if e := &f.list[i]; e.transport == t && e.err.Error() == err.Error() {
			e.ports = append(e.ports, ports...)
			return
		}
	}
	f.list = append(f.list, failure{t, slices.Clone(ports), err})
}

func (f *failures) unbound() []Unbound {
	var out []Unbound
	for _, e := range f.list {
		out = append(out, unbound(e.transport, scenarios.Union(e.ports), e.err))
	}
	return out
}

// fatal returns the failures that Config.AllowUnbound is needed for.
func (f *failures) fatal() []Unbound {
	return slices.DeleteFunc(f.unbound(), func(u Unbound) bool {
		return errors.Is(u.Err, ErrReserved) || errors.Is(u.Err, ErrDescriptors)
	})
}

// A portKey is one port to bind.
type portKey struct {
	transport scenarios.Transport
	port      uint16
}

// fit lists the ports for which budget suffices at cost descriptors each, and
// records the others as failures. The ports of first come first; then short
// ranges, so that as many ranges as possible are whole.
func fit(want, first Ports, cost, budget int, failed *failures) []portKey {
	type part struct {
		transport scenarios.Transport
		scenarios.PortRange
		later int
	}
	var parts []part
	add := func(t scenarios.Transport, want, first scenarios.PortSet) {
		rest := want.Without(first)
		for _, r := range want.Without(rest) {
			parts = append(parts, part{t, r, 0})
		}
		for _, r := range rest {
			parts = append(parts, part{t, r, 1})
		}
	}
	add(scenarios.TCP, want.TCP, first.TCP)
	add(scenarios.UDP, want.UDP, first.UDP)
	slices.SortStableFunc(parts, func(a, b part) int {
		return cmp.Or(a.later-b.later, cmp.Compare(a.Last-a.First, b.Last-b.First))
	})
	var keys []portKey
	for _, p := range parts {
		for port := int(p.First); port <= int(p.Last); port++ {
			if budget < cost {
				failed.add(p.transport, scenarios.PortSet{{First: uint16(port), Last: p.Last}}, ErrDescriptors)
				break
			}
			budget -= cost
			keys = append(keys, portKey{p.transport, uint16(port)})
		}
	}
	return keys
}

// A portMap is one bit for every port, least significant bit first.
type portMap [8192]byte

func newPortMap(set scenarios.PortSet) *portMap {
	m := new(portMap)
	for p := range set.All {
		m.set(p)
	}
	return m
}

func (m *portMap) set(p uint16)      { m[p>>3] |= 1 << (p & 7) }
func (m *portMap) clear(p uint16)    { m[p>>3] &^= 1 << (p & 7) }
func (m *portMap) has(p uint16) bool { return m[p>>3]&(1<<(p&7)) != 0 }

func (m *portMap) ports() scenarios.PortSet {
	var out scenarios.PortSet
	for p := 1; p < 1<<16; p++ {
		if !m.has(uint16(p)) {
			continue
		}
		if n := len(out); n > 0 && int(out[n-1].Last) == p-1 {
			out[n-1].Last = uint16(p)
			continue
		}
		out = append(out, scenarios.PortRange{First: uint16(p), Last: uint16(p)})
	}
	return out
}

// both returns what a and b share.
func both(a, b scenarios.PortSet) scenarios.PortSet { return a.Without(a.Without(b)) }

// listenAddrs completes and checks the addresses of a Config: an unspecified
// address takes the place of all others of its family.
func listenAddrs(given []netip.Addr) ([]netip.Addr, error) {
	if len(given) == 0 {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, nil
	}
	var out []netip.Addr
	for _, a := range given {
		a = a.Unmap()
		if !a.IsValid() || a.IsMulticast() {
			return nil, fmt.Errorf("listen address %s: not an address to listen on", a)
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	all := func(v4 bool) bool {
		return slices.ContainsFunc(out, func(a netip.Addr) bool { return a.IsUnspecified() && a.Is4() == v4 })
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return !a.IsUnspecified() && all(a.Is4()) }), nil
}
