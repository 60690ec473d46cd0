package scenarios

import (
	"slices"
	"strings"
)

// SplitRef splits an entry of Way.Paths: "CRD-B4/udp" is path CRD-B4 over UDP
// only; without a transport, as in "CRD-B4", all transports of the path are meant.
func SplitRef(ref string) (id string, t Transport) {
	id, transport, _ := strings.Cut(ref, "/")
	return id, Transport(transport)
}

// Owned tells whether the path is probed where role stands, the near end:
// a path of direction in at the role it goes to, any other where it begins.
func (p Path) Owned(role string) bool {
	if p.Direction == In {
		return slices.Contains(p.To, role)
	}
	return slices.Contains(p.From, role)
}

// PathsFor returns the paths that are probed where role stands, in the order
// of the file, with those that are unmeasured.
func (s *Scenario) PathsFor(role string) []Path {
	var out []Path
	for _, p := range s.Paths {
		if p.Owned(role) {
			out = append(out, p)
		}
	}
	return out
}

// Only is the scenario with those of its paths alone that are named; without
// names it is the scenario itself. Outcomes that need others cannot be told then.
func (s *Scenario) Only(paths []string) *Scenario {
	if len(paths) == 0 {
		return s
	}
	only := *s
	only.Paths = nil
	for _, p := range s.Paths {
		if slices.Contains(paths, p.ID) {
			only.Paths = append(only.Paths, p)
		}
	}
	return &only
}

// NearRoles returns the roles for which an outcome is asked and which have
// paths, in the order of their first appearance.
func (s *Scenario) NearRoles() []string {
	var out []string
	for _, o := range s.Outcomes {
		for _, role := range o.Roles {
			if !slices.Contains(out, role) && len(s.PathsFor(role)) > 0 {
				out = append(out, role)
			}
		}
	}
	return out
}

// Ports returns the destination ports of all paths that can be probed, by
// transport: what a reflector must serve.
func Ports(list ...*Scenario) (tcp, udp PortSet) {
	return ports(func(PortSet) bool { return true }, list)
}

// narrow is the number of ports below which a path does not count as a range.
const narrow = 64

// NarrowPorts is like Ports, without those of ranges: where a reflector cannot
// serve all, these matter more.
func NarrowPorts(list ...*Scenario) (tcp, udp PortSet) {
	return ports(func(s PortSet) bool { return s.Len() < narrow }, list)
}

func ports(want func(PortSet) bool, list []*Scenario) (tcp, udp PortSet) {
	sets := map[Transport][]PortSet{}
	for _, s := range list {
		for _, p := range s.Paths {
			if p.Unmeasured != "" || !want(p.Ports) {
				continue
			}
			for _, t := range p.Transport {
				sets[t] = append(sets[t], p.Ports)
			}
		}
	}
	return Union(sets[TCP]...), Union(sets[UDP]...)
}
