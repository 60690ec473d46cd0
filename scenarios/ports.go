package scenarios

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A PortRange is a closed range of ports, 1 to 65535.
type PortRange struct{ First, Last uint16 }

// A PortSet is a sorted list of ranges that neither overlap nor touch.
// Its text form is "443", "40000-41000" or "20-22,80".
type PortSet []PortRange

// ParsePortSet reads a port set. Ranges may touch but not overlap.
func ParsePortSet(s string) (PortSet, error) {
	var set PortSet
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		r := PortRange{}
		var err error
		if r.First, err = parsePort(first); err != nil {
			return nil, err
		}
		r.Last = r.First
		if isRange {
			if r.Last, err = parsePort(last); err != nil {
				return nil, err
			}
		}
		if r.Last < r.First {
			return nil, fmt.Errorf("range %s is backwards; write %d-%d", part, r.Last, r.First)
		}
		set = append(set, r)
	}
	slices.SortFunc(set, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	for i := 1; i < len(set); i++ {
		if set[i].First <= set[i-1].Last {
			return nil, fmt.Errorf("ranges %s and %s overlap", set[i-1], set[i])
		}
	}
	return Union(set), nil
}

func parsePort(s string) (uint16, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	if err != nil || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a port number", s)
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %d does not exist: ports are 1 to 65535", n)
	}
	return uint16(n), nil
}

// Union joins port sets, merging ranges that overlap or touch.
func Union(sets ...PortSet) PortSet {
	all := slices.Concat(sets...)
	slices.SortFunc(all, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var out PortSet
	for _, r := range all {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Without gives the ports of s that are not in o.
func (s PortSet) Without(o PortSet) PortSet {
	var out PortSet
	for _, r := range s {
		for len(o) > 0 && o[0].Last < r.First {
			o = o[1:]
		}
		next := int(r.First)
		for _, x := range o {
			if x.First > r.Last {
				break
			}
			if int(x.First) > next {
				out = append(out, PortRange{uint16(next), x.First - 1})
			}
			next = max(next, int(x.Last)+1)
		}
		if next <= int(r.Last) {
			out = append(out, PortRange{uint16(next), r.Last})
		}
	}
	return out
}

// Intersect gives the ports of s that are also in o.
func (s PortSet) Intersect(o PortSet) PortSet {
	var out PortSet
	for len(s) > 0 && len(o) > 0 {
		if first, last := max(s[0].First, o[0].First), min(s[0].Last, o[0].Last); first <= last {
			out = append(out, PortRange{first, last})
		}
		if s[0].Last < o[0].Last {
			s = s[1:]
		} else {
			o = o[1:]
		}
	}
	return out
}

// Len is the number of ports.
func (s PortSet) Len() int {
	n := 0
	for _, r := range s {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}

// Contains tells whether port is in the set.
func (s PortSet) Contains(port uint16) bool {
	for _, r := range s {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// All yields every port, ascending.
func (s PortSet) All(yield func(uint16) bool) {
	for _, r := range s {
		for p := int(r.First); p <= int(r.Last); p++ {
			if !yield(uint16(p)) {
				return
			}
		}
	}
}

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func (s PortSet) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// MarshalText is the text form.
func (s PortSet) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the text form; the empty text is the empty set.
func (s *PortSet) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*s = nil
		return nil
	}
	p, err := ParsePortSet(string(b))
	*s = p
	return err
}
