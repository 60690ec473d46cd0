package client

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// A connection that was long in coming up is begun again; the one that lost says
// nothing of the path when it ends.
func TestConnectionsThatWereNotNeededAreNoEvidence(t *testing.T) {
	mute := wire.Event{Stage: protocol.StageBanner, Fault: protocol.FaultEOF, Said: &wire.Said{Sent: []string{"220 mail"}}}
	spoke := wire.Event{Stage: protocol.StageBanner, Fault: protocol.FaultEOF, Said: &wire.Said{Heard: []string{"EHLO me"}}}
	reset := wire.Event{Stage: protocol.StageBanner, Fault: protocol.FaultReset}
	open := wire.Event{Stage: protocol.StageBanner, Unfinished: true}
	idle := wire.Event{Stage: protocol.StageConnect, Unfinished: true}
	list := func(l ...wire.Event) []wire.Event { return l }
	for name, c := range map[string]struct {
		got  []wire.Event
		most int
		want []wire.Event
	}{
		"none was begun again":     {list(mute, open), 0, list(mute, open)},
		"one was, and closed":      {list(mute, open), 1, list(open)},
		"it came up later":         {list(open, mute), 1, list(open)},
		"its end is not told yet":  {list(open, idle), 1, list(open)},
		"one of two":               {list(mute, mute, reset), 1, list(mute, reset)},
		"the connection itself":    {list(mute), 2, list(mute)},
		"all alike":                {list(mute, mute, mute), 2, list(mute)},
		"what spoke was needed":    {list(spoke, open), 2, list(spoke, open)},
		"what was reset tells all": {list(reset, open), 2, list(reset, open)},
	} {
		if diff := cmp.Diff(c.want, withoutSpares(c.got, c.most), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
