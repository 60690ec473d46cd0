package client

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A Plan is what to send, made from a scenario alone: no network is touched.
type Plan struct {
	Probes []Probe
	Items  []Item // one for each finding, in the order of the scenario
}

// An Item is one finding to be.
type Item struct {
	Path      scenarios.Path
	Transport scenarios.Transport
	Parts     []ItemPart // the probes that answer it; none when Reason is set
	Spoken    string     // stand-in for the path's protocol, empty when it is the protocol itself
	Imitation string     // what of the protocol is not the real thing
	Reason    string     // why it cannot be measured here
	Note      string
}

// An ItemPart says which part of a probe an item looks at.
type ItemPart struct {
	Probe  uint32
	Ports  scenarios.PortSet
	Target string
}

// A Probe is one exchange with one or many ports of one address.
type Probe struct {
	ID         uint32
	Where      Where
	Transport  scenarios.Transport
	Speak      string // protocol.Datagram, protocol.STUN, …, or a protocol's name
	Variant    string // one of the protocol's, where it has some
	Addr       netip.Addr
	ServerName string
	Ports      scenarios.PortSet
	LocalPorts scenarios.PortSet     // when set, Ports is one port and these are varied
	Edges      []scenarios.PortRange // the ranges of the paths that share a sweep: their edges are tried whatever the sample
	Bytes      int64
	Datagram   int
	Idle       time.Duration
	MaxLoss    float64
}

// Where tells which far end answers a probe.
type Where string

// The far ends.
const (
	WhereFar    Where = "reflector" // beyond the firewall
	WhereLAN    Where = "lan"       // a second machine of the near site
	WhereLoop   Where = "loop"      // this machine
	WhereInward Where = "inward"    // the reflector calls, this end answers
)

// A Setting is what the planner must know besides the scenario.
type Setting struct {
	Role      string
	Reflector netip.Addr
	Name      string                               // of the reflector's host, where it was named; see planner.name
	LAN       netip.Addr                           // second machine of the site that runs a reflector; zero when there is none
	Loop      netip.Addr                           // own loopback address with a reflector; zero when there is none
	Inward    bool                                 // the reflector may call back
	Owned     []netip.Prefix                       // documented ranges that lead to the reflector
	Resolve   func(name string) (netip.Addr, bool) // nil resolves nothing
	Bytes     int64                                // of paths that carry files; 0 is what the scenario says
	Datagram  int
}

// DefaultBytes and DefaultDatagram are what a path carries unless its scenario
// says otherwise: enough to fill several segments, and the largest datagram
// that RFC 9000 section 14 lets QUIC begin with, which WebRTC keeps to as well.
const (
	DefaultBytes    = 16 << 10
	DefaultDatagram = 1200
)

// wide is the number of ports from which a path counts as a range: its ports
// are surveyed with bare messages and shared with other ranges.
const wide = 64

// MakePlan lays out the probes for all paths that belong to the near role.
func MakePlan(s *scenarios.Scenario, set Setting) Plan {
	b := planner{set: set}
	for _, p := range s.PathsFor(set.Role) {
		transports := p.Transport
		if len(transports) == 0 {
			transports = []scenarios.Transport{""}
		}
		for _, t := range transports {
			b.add(p, t)
		}
	}
	return Plan{Probes: b.probes, Items: b.items}
}

type planner struct {
	set    Setting
	probes []Probe
	items  []Item
	bulk   []string // protocols and ports that carry what the person asked for
}

func (b *planner) add(p scenarios.Path, t scenarios.Transport) {
	it := Item{Path: p, Transport: t}
	speak, own := protocol.For(p.Protocol, t)
	if surveyed := (Probe{Speak: speak, Ports: p.Ports, LocalPorts: p.LocalPorts}); surveyed.Sweeps() {
		speak, _ = protocol.For("", t)
		own = p.Protocol == "" // a range gets bare messages, whatever is spoken there
	}
	known := protocol.Named(speak)
	switch {
	case !own:
		it.Spoken = speak
	case known != nil:
		it.Imitation = known.Imitation
	}
	if known != nil && len(known.Variants) > 0 && it.Path.Pick == "" {
		it.Path.Pick = scenarios.PickAny // an application that has several ways takes one that works
	}
	where, addr, reason := b.far(p)
	switch {
	case p.Unmeasured != "":
		it.Reason = p.Unmeasured
	case reason != "":
		it.Reason = reason
	default:
		b.targets(&it, p, Probe{
			Where: where, Transport: t, Speak: speak, Addr: addr, Ports: p.Ports, LocalPorts: p.LocalPorts,
			Bytes: b.bytes(p, own && known != nil && known.Bulk), Datagram: cmp.Or(p.Datagram, b.set.Datagram, DefaultDatagram),
			Idle: p.Idle, MaxLoss: p.MaxLoss,
		})
	}
	b.items = append(b.items, it)
}

// bytes is what a path's exchange carries each way. What the person asks for is
// meant for paths that move files, and is carried once for each protocol and port.
func (b *planner) bytes(p scenarios.Path, bulk bool) int64 {
	once := fmt.Sprint(p.Protocol, p.Ports)
	if b.set.Bytes > 0 && bulk && !slices.Contains(b.bulk, once) {
		b.bulk = append(b.bulk, once)
		return b.set.Bytes
	}
	return cmp.Or(p.Bytes, DefaultBytes)
}

// far finds the far end of a path.
func (b *planner) far(p scenarios.Path) (Where, netip.Addr, string) {
	switch p.Direction {
	case scenarios.Loop:
		if !b.set.Loop.IsValid() {
			return "", netip.Addr{}, "nothing answers on this machine's loopback address"
		}
		return WhereLoop, b.set.Loop, ""
	case scenarios.LAN:
		if !b.set.LAN.IsValid() {
			return "", netip.Addr{}, "needs a reflector on a second machine of this network: start one there and name it with --lan HOST"
		}
		return WhereLAN, b.set.LAN, ""
	case scenarios.In:
		if !b.set.Inward {
			return "", netip.Addr{}, "the reflector does not call back: start it with --inward, and reach it over a path that carries control"
		}
		return WhereInward, b.set.Reflector, ""
	}
	return WhereFar, b.set.Reflector, ""
}

// targets gives an item its probes: one for each name or address of its path.
func (b *planner) targets(it *Item, p scenarios.Path, base Probe) {
	if base.Where != WhereFar {
		b.use(it, base, "")
		return
	}
	for _, prefix := range p.Addresses {
		for _, a := range edges(prefix) {
			if !b.owned(a) {
				it.Reason = "the documented addresses do not lead to the reflector, so a rule for them cannot be exercised here; a lab can"
				return
			}
			if a.Is4() != b.set.Reflector.Is4() {
				it.Reason = "the documented addresses are of the other address family"
				return
			}
			pr := base
			pr.Addr = a
			b.use(it, pr, a.String())
		}
	}
	for _, name := range p.Names {
		pr := base
		pr.ServerName = strings.Replace(name, "*", "any", 1)
		if a, ok := b.resolve(pr.ServerName); ok && b.owned(a) {
			pr.Addr = a
		} else if it.Note == "" {
			it.Note = "aimed at the reflector's own address under the documented name: rules that go by address are not exercised"
		}
		target := ""
		if len(p.Names) > 1 {
			target = pr.ServerName
		}
		b.use(it, pr, target)
	}
	if len(p.Names) == 0 && len(p.Addresses) == 0 {
		base.ServerName = b.name(base.Speak)
		b.use(it, base, "")
	}
}

// name is what a path says of whom it means, in TLS and in HTTP, where its
// document has no name: that of the reflector's host, as the real client would
// say that of the host it was told. A ClientHello without a server name is so
// rare that filters drop it for that alone, which would say nothing of the path.
// What filters think of the name itself, as of a host that they do not know yet,
// holds for the application's server no less; comparisons tell it.
func (b *planner) name(speak string) string {
	if known := protocol.Named(speak); known != nil && known.Nameless {
		return ""
	}
	return b.set.Name
}

// edges are the first and last address of a prefix that a host may have.
func edges(p netip.Prefix) []netip.Addr {
	first, last := p.Masked().Addr(), lastAddr(p)
	if p.IsSingleIP() {
		return []netip.Addr{first}
	}
	return []netip.Addr{first.Next(), last.Prev()}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (b *planner) owned(a netip.Addr) bool {
	return a == b.set.Reflector || slices.ContainsFunc(b.set.Owned, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (b *planner) resolve(name string) (netip.Addr, bool) {
	if b.set.Resolve == nil {
		return netip.Addr{}, false
	}
	return b.set.Resolve(name)
}

// use gives the item a probe that answers it, an existing one where that does.
func (b *planner) use(it *Item, p Probe, target string) {
	if known := protocol.Named(p.Speak); known != nil && len(known.Variants) > 0 && p.Variant == "" {
		for _, v := range known.Variants {
			if lack := b.lacks(known, v, p.Addr); lack != "" {
				it.Note = strings.TrimPrefix(it.Note+"; "+v+": not tried, "+lack, "; ")
				continue
			}
			p.Variant = v
			b.use(it, p, strings.TrimSpace(target+" "+v))
		}
		return
	}
	ports := p.Ports
	if len(p.LocalPorts) > 0 {
		ports = p.LocalPorts
	}
	p.shape()
	if p.Sweeps() {
		p.Edges = ports
	}
	for i := range b.probes {
		q := &b.probes[i]
		if !q.like(p) {
			continue
		}
		q.Edges = append(q.Edges, p.Edges...)
		q.Ports = scenarios.Union(q.Ports, p.Ports)
		q.LocalPorts = scenarios.Union(q.LocalPorts, p.LocalPorts)
		it.Parts = append(it.Parts, ItemPart{Probe: q.ID, Ports: ports, Target: target})
		return
	}
	p.ID = uint32(len(b.probes) + 1)
	b.probes = append(b.probes, p)
	it.Parts = append(it.Parts, ItemPart{Probe: p.ID, Ports: ports, Target: target})
}

// Hauls tells whether the probe carries so much that it runs alone: beside
// others it would slow them down and they it.
func (p Probe) Hauls() bool { return p.Bytes > 1<<20 }

// lacks tells why a variant cannot be tried, "" when it can.
func (b *planner) lacks(p *protocol.Protocol, variant string, to netip.Addr) string {
	var need protocol.Need
	if p.Needs != nil {
		need = p.Needs(variant)
	}
	switch {
	case need.IPv4 && !to.Unmap().Is4():
		return "it has words for addresses of IPv4 alone"
	case need.Inward && !b.set.Inward:
		return "the reflector does not call back: start it with --inward, and reach it over a path that carries control"
	}
	return ""
}

// Sweeps tells whether the probe surveys a range.
func (p Probe) Sweeps() bool {
	return (p.Ports.Len() >= wide || len(p.LocalPorts) > 0) && p.Speak != protocol.ICE // which draws one of the ports
}

// shape takes from a sweep what it does not do: it asks each port once it
// answers, with bare messages.
func (p *Probe) shape() {
	switch {
	case p.Sweeps():
		p.Bytes, p.Datagram, p.Idle, p.MaxLoss, p.ServerName, p.Variant = 0, 0, 0, 0, "", ""
		p.Speak, _ = protocol.For("", p.Transport)
	case p.Transport == scenarios.TCP || p.streams():
		p.Datagram, p.MaxLoss = 0, 0
	case p.Speak == protocol.TURN:
		p.ServerName = "" // what it relays are datagrams of its own size
	default:
		p.Bytes, p.ServerName = 0, ""
	}
}

// streams tells whether the probe's protocol carries a stream over UDP.
func (p Probe) streams() bool {
	ends := protocol.On(p.Speak, p.Transport)
	return ends != nil && ends.Stream
}

// like tells whether one probe can serve both: the same exchange, or two
// sweeps of one address, which become one over the union of their ports.
func (p Probe) like(o Probe) bool {
	a, b := p, o
	a.Edges, b.Edges = nil, nil
	if a.Sweeps() && b.Sweeps() && (len(a.LocalPorts) > 0) == (len(b.LocalPorts) > 0) {
		if len(a.LocalPorts) == 0 {
			a.Ports, b.Ports = nil, nil
		}
		a.LocalPorts, b.LocalPorts = nil, nil
	}
	if a.Where != b.Where || a.Addr != b.Addr || a.Transport != b.Transport || a.Speak != b.Speak || a.Variant != b.Variant || !slices.Equal(a.Ports, b.Ports) {
		return false // most differ here, and every pair is compared
	}
	return fmt.Sprint(a.withoutID()) == fmt.Sprint(b.withoutID())
}

func (p Probe) withoutID() Probe { p.ID = 0; return p }
