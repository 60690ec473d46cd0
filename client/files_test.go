package client

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func TestPlanLeavesOutModesThatCannotBe(t *testing.T) {
	const noWords, noCalls = ": not tried, it has words for addresses of IPv4 alone", ": not tried, the reflector does not call back"
	v6 := netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		set   Setting
		want  []string
		notes []string
	}{
		{Setting{Inward: true}, []string{"passive", "extended passive", "active", "extended active"}, nil},
		{Setting{}, []string{"passive", "extended passive"}, []string{"active" + noCalls, "extended active" + noCalls}},
		{Setting{Reflector: v6, Inward: true}, []string{"extended passive", "extended active"}, []string{"passive" + noWords, "active" + noWords}},
		{Setting{Reflector: v6}, []string{"extended passive"}, []string{"passive" + noWords, "active" + noWords, "extended active" + noCalls}},
	} {
		p := path(t, "X-1", scenarios.TCP, "21")
		p.Protocol = "ftp"
		plan := planOf(c.set, p)
		var got []string
		for _, pr := range plan.Probes {
			got = append(got, pr.Variant)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.set, diff)
		}
		it := plan.Items[0]
		if len(it.Parts) != len(c.want) || (it.Note == "") != (c.notes == nil) || it.Path.Pick != scenarios.PickAny {
			t.Errorf("%+v", it)
		}
		for _, n := range c.notes {
			if !strings.Contains(it.Note, n) {
				t.Errorf("%+v: note %q lacks %q", c.set, it.Note, n)
			}
		}
	}
}

// ftpFinding has one near end for each mode that is given.
func ftpFinding(near ...Observation) Finding {
	f := Finding{Path: "X-1", Transport: scenarios.TCP, Protocol: "ftp"}
	for i := range near {
		near[i].Probe, near[i].Addr, near[i].Sent, near[i].Ports = uint32(i+1), farAddr, 1, scenarios.PortSet{{First: 443, Last: 443}}
	}
	f.Evidence.Near = near
	return f
}

func heardBy(probe uint32, stage, fault string, said *wire.Said) func(*wire.Ledger) {
	e := wire.Event{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 443), Probe: probe, Stage: stage, Fault: fault, Said: said, Answered: true}
	return func(l *wire.Ledger) {
		l.Probes = append(l.Probes, wire.ProbeRecord{Probe: probe, Events: []wire.Event{e}})
	}
}

func TestFindingTellsWhatAHelperRewroteAndWhichStepFailed(t *testing.T) {
	said := func(lines ...string) *wire.Said { return &wire.Said{Sent: lines} }
	heard := func(lines ...string) *wire.Said { return &wire.Said{Heard: lines} }
	const sent, arrived = "PORT 10,77,1,2,160,1", "PORT 198,51,100,1,4,1"
	f := ftpFinding(
		Observation{Target: "active", Stage: "done", Answered: 1, Said: said(sent)},
		Observation{Target: "passive", Stage: "done", Answered: 1, Said: said("PASV")},
		Observation{Target: "extended active", Stage: "done", Answered: 1, Said: said("STOR 5.bin")},
		Observation{Target: "extended passive", Stage: protocol.StageData, Fault: protocol.FaultTimeout, Said: said("EPSV"), Step: "EPSV, connecting to 198.51.100.10:4000"},
	)
	far := of(t, heardBy(1, "done", "", heard(arrived)), heardBy(2, "done", "", heard("PASV")),
		heardBy(3, "done", "", heard("STOR 6.bin")), heardBy(4, "data", protocol.FaultEOF, heard("EPSV")))
	list := []Finding{f}
	Judge(list, map[Where]*wire.Ledger{WhereFar: far}, Control{})
	got := make(map[string]conclusion)
	for _, p := range list[0].Parts {
		got[p.Target] = conclusion{p.Verdict, p.Why}
	}
	want := map[string]conclusion{
		"active":           {Open, `rewritten by a helper on the way: "PORT 10,77,1,2,160,1" was sent, "PORT 198,51,100,1,4,1" arrived at the reflector`},
		"passive":          {Open, ""},
		"extended active":  {Altered, `"STOR 5.bin" was sent, "STOR 6.bin" arrived at the reflector`},
		"extended passive": {Cut, "before the first byte of data: nothing more came (EPSV, connecting to 198.51.100.10:4000); at the reflector, stage data: the connection was closed"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(conclusion{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What a helper rewrote is shown even where every mode passes.
func TestHelpIsShownWhereAllIsOpen(t *testing.T) {
	f := ftpFinding(
		Observation{Target: "active", Stage: "done", Answered: 1, Said: &wire.Said{Sent: []string{"PORT 10,77,1,2,160,1"}}},
		Observation{Target: "passive", Stage: "done", Answered: 1, Said: &wire.Said{Sent: []string{"PASV"}}},
	)
	list := []Finding{f}
	Judge(list, map[Where]*wire.Ledger{WhereFar: of(t,
		heardBy(1, "done", "", &wire.Said{Heard: []string{"PORT 198,51,100,1,4,1"}}), heardBy(2, "done", "", &wire.Said{Heard: []string{"PASV"}}))}, Control{})
	if got := list[0]; got.Verdict != Open || len(got.Parts) != 2 || !strings.HasPrefix(got.Why, rewrittenWhy) {
		t.Errorf("%s, %q, %+v", got.Verdict, got.Why, got.Parts)
	}
}
