package client

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wallprobe/wallprobe/scenarios"
)

var same = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}), cmpopts.EquateEmpty()}

var (
	farAddr  = netip.MustParseAddr("198.51.100.10")
	lanAddr  = netip.MustParseAddr("192.168.1.20")
	loopAddr = netip.MustParseAddr("127.0.0.9")
)

func ports(t testing.TB, s string) scenarios.PortSet {
	t.Helper()
	var set scenarios.PortSet
	if err := set.UnmarshalText([]byte(s)); err != nil {
		t.Fatal(err)
	}
	return set
}

// path is a path of the near role "a" to the far one.
func path(t testing.TB, id string, tr scenarios.Transport, set string) scenarios.Path {
	return scenarios.Path{ID: id, From: []string{"a"}, To: []string{"b"}, Direction: scenarios.Out, Transport: []scenarios.Transport{tr}, Ports: ports(t, set)}
}

func planOf(set Setting, paths ...scenarios.Path) Plan {
	set.Role = "a"
	if !set.Reflector.IsValid() {
		set.Reflector = farAddr
	}
	return MakePlan(&scenarios.Scenario{Paths: paths}, set)
}

func TestPlanOfOneTCPPath(t *testing.T) {
	p := path(t, "X-1", scenarios.TCP, "443")
	p.Protocol, p.Names, p.Idle = "tls", []string{"a.example"}, 50*time.Second
	want := Plan{
		Probes: []Probe{{ID: 1, Where: WhereFar, Transport: scenarios.TCP, Speak: "tls", Addr: farAddr, ServerName: "a.example", Ports: ports(t, "443"),
			Bytes: DefaultBytes, Idle: 50 * time.Second}},
		Items: []Item{{Path: p, Transport: scenarios.TCP, Parts: []ItemPart{{Probe: 1, Ports: ports(t, "443")}},
			Note: "aimed at the reflector's own address under the documented name: rules that go by address are not exercised"}},
	}
	if diff := cmp.Diff(want, planOf(Setting{}, p), same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWaysOfHTTPSAreProbedEachByItselfAndOneSuffices(t *testing.T) {
	p := path(t, "X-1", scenarios.TCP, "443")
	p.Protocol, p.Names = "https", []string{"a.example"}
	plan := planOf(Setting{}, p)
	var variants, targets []string
	for _, pr := range plan.Probes {
		if variants = append(variants, pr.Variant); pr.Speak != "https" || pr.ServerName != "a.example" {
			t.Errorf("%+v", pr)
		}
	}
	for _, part := range plan.Items[0].Parts {
		targets = append(targets, part.Target)
	}
	want := []string{"h2", "http/1.1", "websocket"}
	if cmp.Diff(want, variants) != "" || cmp.Diff(want, targets) != "" || plan.Items[0].Path.Pick != scenarios.PickAny || plan.Items[0].Spoken != "" {
		t.Errorf("%v, %v, %+v", variants, targets, plan.Items[0])
	}
}

func TestPlanTakesDefaultsFromPathThenSettingThenProgram(t *testing.T) {
	type carried struct {
		Bytes    int64
		Datagram int
	}
	for name, c := range map[string]struct {
		set  Setting
		tr   scenarios.Transport
		own  bool
		want carried
	}{
		"program, tcp": {Setting{}, scenarios.TCP, false, carried{DefaultBytes, 0}},
		"setting, tcp": {Setting{Bytes: 7, Datagram: 500}, scenarios.TCP, false, carried{7, 0}},
		"path, tcp":    {Setting{}, scenarios.TCP, true, carried{9, 0}},
		"asked, tcp":   {Setting{Bytes: 7}, scenarios.TCP, true, carried{7, 0}},
		"program, udp": {Setting{}, scenarios.UDP, false, carried{0, DefaultDatagram}},
		"setting, udp": {Setting{Bytes: 7, Datagram: 500}, scenarios.UDP, false, carried{0, 500}},
		"path, udp":    {Setting{Datagram: 500}, scenarios.UDP, true, carried{0, 900}},
	} {
		p := path(t, "X-1", c.tr, "443")
		if c.own {
			p.Bytes, p.Datagram = 9, 900
		}
		got := planOf(c.set, p).Probes[0]
		if diff := cmp.Diff(c.want, carried{got.Bytes, got.Datagram}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRangesOfOneAddressAreSweptTogether(t *testing.T) {
	local := path(t, "L-1", scenarios.UDP, "3478")
	local.LocalPorts = ports(t, "50000-50100")
	local2 := local
	local2.ID, local2.LocalPorts = "L-2", ports(t, "50050-50200")
	other := local
	other.ID, other.Ports = "L-3", ports(t, "3479")
	got := planOf(Setting{},
		path(t, "R-1", scenarios.UDP, "40000-41000"), path(t, "R-2", scenarios.UDP, "40500-42000"), path(t, "R-3", scenarios.UDP, "50000-50063"),
		path(t, "S-1", scenarios.UDP, "50000-50062"), path(t, "T-1", scenarios.TCP, "40000-41000"), local, local2, other)
	sweep := func(id uint32, tr scenarios.Transport, speak, set, own string, edges ...string) Probe {
		p := Probe{ID: id, Where: WhereFar, Transport: tr, Speak: speak, Addr: farAddr, Ports: ports(t, set), LocalPorts: ports(t, own)}
		for _, e := range edges {
			p.Edges = append(p.Edges, ports(t, e)...)
		}
		return p
	}
	single := sweep(2, scenarios.UDP, "datagram", "50000-50062", "")
	single.Datagram = DefaultDatagram
	want := []Probe{
		sweep(1, scenarios.UDP, "datagram", "40000-42000,50000-50063", "", "40000-41000", "40500-42000", "50000-50063"), single,
		sweep(3, scenarios.TCP, "plain", "40000-41000", "", "40000-41000"),
		sweep(4, scenarios.UDP, "datagram", "3478", "50000-50200", "50000-50100", "50050-50200"),
		sweep(5, scenarios.UDP, "datagram", "3479", "50000-50100", "50000-50100"),
	}
	if diff := cmp.Diff(want, got.Probes, same); diff != "" {
		t.Errorf("probes (-want +got):\n%s", diff)
	}
	parts := make(map[string][]ItemPart)
	for _, it := range got.Items {
		parts[it.Path.ID] = it.Parts
	}
	wantParts := map[string][]ItemPart{
		"R-1": {{1, ports(t, "40000-41000"), ""}}, "R-2": {{1, ports(t, "40500-42000"), ""}}, "R-3": {{1, ports(t, "50000-50063"), ""}},
		"S-1": {{2, ports(t, "50000-50062"), ""}}, "T-1": {{3, ports(t, "40000-41000"), ""}},
		"L-1": {{4, ports(t, "50000-50100"), ""}}, "L-2": {{4, ports(t, "50050-50200"), ""}}, "L-3": {{5, ports(t, "50000-50100"), ""}},
	}
	if diff := cmp.Diff(wantParts, parts, same); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}

func TestSameExchangeIsMadeOnce(t *testing.T) {
	a, b, c, d := path(t, "A", scenarios.TCP, "443"), path(t, "B", scenarios.TCP, "443"), path(t, "C", scenarios.TCP, "443"), path(t, "D", scenarios.TCP, "443")
	c.Names, d.Bytes = []string{"c.example"}, 1
	p := planOf(Setting{}, a, b, c, d)
	var got []uint32
	for _, it := range p.Items {
		got = append(got, it.Parts[0].Probe)
	}
	if diff := cmp.Diff([]uint32{1, 1, 2, 3}, got); diff != "" || len(p.Probes) != 3 {
		t.Errorf("%d probes (-want +got):\n%s", len(p.Probes), diff)
	}
}

func TestPathWithTwoTransportsHasTwoItems(t *testing.T) {
	p := path(t, "A", scenarios.TCP, "80")
	p.Transport = []scenarios.Transport{scenarios.TCP, scenarios.UDP}
	none := scenarios.Path{ID: "B", From: []string{"a"}, Unmeasured: "it has no port"}
	var got []string
	for _, it := range planOf(Setting{}, p, none).Items {
		got = append(got, it.Path.ID+"/"+string(it.Transport)+" "+it.Reason)
	}
	if diff := cmp.Diff([]string{"A/tcp ", "A/udp ", "B/ it has no port"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFarEndGoesByDirection(t *testing.T) {
	const (
		noLAN    = "needs a reflector on a second machine of this network: start one there and name it with --lan HOST"
		noLoop   = "nothing answers on this machine's loopback address"
		noInward = "the reflector does not call back: start it with --inward, and reach it over a path that carries control"
	)
	all := Setting{LAN: lanAddr, Loop: loopAddr, Inward: true}
	for name, c := range map[string]struct {
		set   Setting
		dir   scenarios.Direction
		where Where
		addr  netip.Addr
		why   string
	}{
		"out":           {Setting{}, scenarios.Out, WhereFar, farAddr, ""},
		"p2p":           {Setting{}, scenarios.P2P, WhereFar, farAddr, ""},
		"lan":           {all, scenarios.LAN, WhereLAN, lanAddr, ""},
		"no lan":        {Setting{}, scenarios.LAN, "", netip.Addr{}, noLAN},
		"loop":          {all, scenarios.Loop, WhereLoop, loopAddr, ""},
		"no loop":       {Setting{}, scenarios.Loop, "", netip.Addr{}, noLoop},
		"in":            {all, scenarios.In, WhereInward, farAddr, ""},
		"in, forbidden": {Setting{}, scenarios.In, "", netip.Addr{}, noInward},
	} {
		p := path(t, "A", scenarios.TCP, "80")
		if p.Direction = c.dir; c.dir == scenarios.In {
			p.From, p.To = p.To, p.From
		}
		plan := planOf(c.set, p)
		if diff := cmp.Diff(c.why, plan.Items[0].Reason); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if c.why != "" {
			if len(plan.Probes)+len(plan.Items[0].Parts) > 0 {
				t.Errorf("%s is probed all the same", name)
			}
			continue
		}
		if got := plan.Probes[0]; got.Where != c.where || got.Addr != c.addr {
			t.Errorf("%s: %s at %s", name, got.Addr, got.Where)
		}
	}
}

func TestDocumentedAddressesAreAimedAtByTheirEdges(t *testing.T) {
	for name, c := range map[string]struct {
		prefixes, owned, want string
		why                   string
	}{
		"one address":   {"203.0.113.7/32", "203.0.113.0/24", "203.0.113.7 ", ""},
		"a prefix":      {"203.0.113.0/24", "203.0.113.0/24", "203.0.113.1 203.0.113.254 ", ""},
		"a small one":   {"203.0.113.4/30", "203.0.113.0/24", "203.0.113.5 203.0.113.6 ", ""},
		"two":           {"203.0.113.7/32 203.0.113.9/32", "203.0.113.0/24", "203.0.113.7 203.0.113.9 ", ""},
		"the reflector": {"198.51.100.10/32", "", "198.51.100.10 ", ""},
		"not owned":     {"8.8.8.8/32", "203.0.113.0/24", "", "the documented addresses do not lead to the reflector, so a rule for them cannot be exercised here; a lab can"},
		"half owned":    {"203.0.112.0/23", "203.0.113.0/24", "", "the documented addresses do not lead to the reflector, so a rule for them cannot be exercised here; a lab can"},
		"other family":  {"2001:db8::/32", "2001:db8::/32", "", "the documented addresses are of the other address family"},
	} {
		p := path(t, "A", scenarios.TCP, "80")
		p.Addresses = prefixes(c.prefixes)
		plan := planOf(Setting{Owned: prefixes(c.owned)}, p)
		got := ""
		for _, pr := range plan.Probes {
			got += pr.Addr.String() + " "
		}
		if diff := cmp.Diff([]string{c.want, c.why}, []string{got, plan.Items[0].Reason}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func prefixes(s string) (out []netip.Prefix) {
	for _, f := range fields(s) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

func TestDocumentedNamesAreAimedAtWhereTheyLead(t *testing.T) {
	resolve := func(name string) (netip.Addr, bool) {
		a, ok := map[string]netip.Addr{"own.example": netip.MustParseAddr("203.0.113.7"), "any.wild.example": netip.MustParseAddr("203.0.113.8"),
			"else.example": netip.MustParseAddr("8.8.8.8")}[name]
		return a, ok
	}
	p := path(t, "A", scenarios.TCP, "443")
	p.Protocol, p.Names = "tls", []string{"own.example", "*.wild.example", "else.example", "unknown.example"}
	plan := planOf(Setting{Owned: prefixes("203.0.113.0/24"), Resolve: resolve}, p)
	var got []string
	for i, pr := range plan.Probes {
		got = append(got, pr.ServerName+" at "+pr.Addr.String()+" for "+plan.Items[0].Parts[i].Target)
	}
	want := []string{"own.example at 203.0.113.7 for own.example", "any.wild.example at 203.0.113.8 for any.wild.example",
		"else.example at 198.51.100.10 for else.example", "unknown.example at 198.51.100.10 for unknown.example"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if plan.Items[0].Note == "" {
		t.Error("the finding does not say that two names lead elsewhere")
	}
	p.Names = p.Names[:2]
	if note := planOf(Setting{Owned: prefixes("203.0.113.0/24"), Resolve: resolve}, p).Items[0].Note; note != "" {
		t.Errorf("names that lead to the reflector are noted: %s", note)
	}
}

func TestNamesAndAddressesOfNearPathsAreNotAimedAt(t *testing.T) {
	p := path(t, "A", scenarios.TCP, "443")
	p.Direction, p.Names, p.Addresses = scenarios.LAN, []string{"x.example"}, prefixes("8.8.8.8/32")
	plan := planOf(Setting{LAN: lanAddr}, p)
	if len(plan.Probes) != 1 || plan.Probes[0].Addr != lanAddr || plan.Items[0].Reason != "" {
		t.Errorf("%+v", plan)
	}
}

func TestControlIsTriedOn443ThenOnThePortsOfThePlan(t *testing.T) {
	tls := path(t, "A", scenarios.TCP, "443,8443")
	tls.Protocol = "tls"
	turns := path(t, "B", scenarios.TCP, "5349")
	turns.Protocol = "turns"
	plan := planOf(Setting{}, path(t, "C", scenarios.UDP, "3478"), tls, path(t, "D", scenarios.TCP, "80,8443"), turns, path(t, "E", scenarios.TCP, "50000-50099"))
	want := []controlPort{{port: 443, secure: true}, {port: 8443, secure: true}, {port: 80}, {port: 5349, secure: true}}
	if diff := cmp.Diff(want, controlPorts(plan), cmp.AllowUnexported(controlPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	many := controlPorts(planOf(Setting{}, path(t, "A", scenarios.TCP, "1000-1050")))
	if len(many) != maxControlPorts {
		t.Errorf("%d ports are tried", len(many))
	}
}
