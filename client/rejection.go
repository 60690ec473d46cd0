package client

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/wallprobe/wallprobe/protocol"
)

// reset is what Rejection calls one.
const reset = "tcp reset"

// Rejection names what a rejected part of a finding met: "tcp reset", "icmp
// admin-prohibited", of a call from outside the error that the reflector met. It
// is "" where the evidence names none, or several. Who sent it does not count.
func (f *Finding) Rejection(p Part) string {
	var names []string
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		if p.Verdict != Rejected || p.Target != "" && p.Target != o.Target || len(o.Ports.Intersect(p.Ports)) == 0 {
			continue
		}
		names = append(names, o.rejection())
	}
	if names = slices.Compact(names); len(names) == 1 {
		return names[0]
	}
	return ""
}

func (o *Observation) rejection() string {
	switch {
	case o.ICMP != nil:
		return cmp.Or(o.ICMP.Name, fmt.Sprintf("icmp type %d code %d", o.ICMP.Type, o.ICMP.Code))
	case o.Inward: // the reflector's own error: a reset and some ICMP errors are the same to it
		return o.Fault
	case o.Fault == protocol.FaultRefused || o.Fault == protocol.FaultReset:
		return reset
	}
	return ""
}
