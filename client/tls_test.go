package client

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// handshakeOf is one end's view of a handshake in which all is well.
func handshakeOf(change func(*wire.TLSSeen)) *wire.TLSSeen {
	s := &wire.TLSSeen{ServerName: "a.example", HelloName: "a.example", Version: "TLS 1.3", ALPN: "h2", Offered: []string{"h2", "http/1.1"},
		Versions: []string{"TLS 1.3", "TLS 1.2"}, HelloDigest: "01", Certificate: "aa", Issuer: "CN=ours",
		Chain: []wire.Certificate{{Digest: "aa", Subject: "CN=a.example", Issuer: "CN=ours"}, {Digest: "bb", Subject: "CN=ours", Issuer: "CN=ours"}}}
	if change != nil {
		change(s)
	}
	return s
}

func withTLS(stage, fault string, s *wire.TLSSeen) func(*wire.Ledger) {
	return arrival(stage, fault, func(e *wire.Event) { e.TLS = s })
}

// strayTLS is a handshake that nothing proved to be the probe's.
func strayTLS(fault string, s *wire.TLSSeen) func(*wire.Ledger) {
	return func(l *wire.Ledger) {
		var one wire.Ledger
		arrival("tls", fault, func(e *wire.Event) { e.TLS, e.Probe, e.Answered = s, 0, false })(&one)
		l.Strays = append(l.Strays, one.Probes[0].Events...)
	}
}

func TestHandshakesOfBothEndsAreCompared(t *testing.T) {
	proxied := handshakeOf(func(s *wire.TLSSeen) {
		s.Certificate, s.Issuer = "cc", "CN=proxy"
		s.Chain = []wire.Certificate{{Digest: "cc", Subject: "CN=a.example", Issuer: "CN=proxy"}}
	})
	hello := func(change func(*wire.TLSSeen)) *wire.TLSSeen {
		return handshakeOf(func(s *wire.TLSSeen) { s.HelloDigest = "02"; change(s) })
	}
	done := Observation{Sent: 1, Answered: 1, Stage: "done", TLS: handshakeOf(nil)}
	with := func(o Observation, s *wire.TLSSeen) Observation { o.TLS = s; return o }
	broken := func(fault string) Observation {
		return Observation{Sent: 1, Stage: "tls", Fault: fault, TLS: handshakeOf(nil)}
	}
	const chains = `TLS intercepted: certificate aa was sent, cc issued by "CN=proxy" was seen; the chain sent was "CN=a.example", "CN=ours", the chain seen was "CN=a.example"`
	const another = "the ClientHello arrived as another"
	for _, c := range []struct {
		name string
		near Observation
		far  *wire.Ledger
		want conclusion
	}{
		{"as sent", done, of(t, withTLS("done", "", handshakeOf(nil))), conclusion{Open, "TLS 1.3, certificate as sent"}},
		{"intercepted", with(done, proxied), of(t, withTLS("done", "", handshakeOf(nil))), conclusion{Altered, chains}},
		{"intercepted with another hello", with(done, proxied), of(t, withTLS("done", "", hello(func(s *wire.TLSSeen) { s.Offered, s.ALPN = nil, "" }))),
			conclusion{Altered, chains + "; " + another + ": ALPN h2, http/1.1 arrived as none"}},
		{"intercepted and downgraded", with(done, proxied), of(t, withTLS("done", "", hello(func(s *wire.TLSSeen) { s.Version, s.Versions = "TLS 1.2", []string{"TLS 1.2"} }))),
			conclusion{Altered, chains + "; " + another + ": versions TLS 1.3, TLS 1.2 arrived as TLS 1.2; TLS 1.3 here, TLS 1.2 at the reflector"}},
		{"intercepted under no name", with(done, proxied), of(t, withTLS("done", "", hello(func(s *wire.TLSSeen) { s.ServerName, s.HelloName = "", "" }))),
			conclusion{Altered, chains + "; " + another + ": server name a.example arrived as none"}},
		{"intercepted, then broken off", with(broken("eof"), proxied), of(t, strayTLS("eof", handshakeOf(nil))), conclusion{Altered, chains}},
		{"hello rewritten", broken("local error: tls: bad record MAC"), of(t, strayTLS("eof", hello(func(s *wire.TLSSeen) { s.Offered = nil }))),
			conclusion{Altered, another + ": ALPN h2, http/1.1 arrived as none"}},
		{"hello rewritten in what is not read", done, of(t, withTLS("done", "", hello(func(*wire.TLSSeen) {}))), conclusion{Altered, another}},
		{"another name's hello beside it", broken("eof"), of(t, strayTLS("eof", hello(func(s *wire.TLSSeen) { s.ServerName, s.HelloName = "b.example", "b.example" }))),
			conclusion{Cut, "stage tls: the connection was closed; at the reflector, stage tls: the connection was closed"}},
		{"hello as sent beside a changed one", broken("eof"), of(t, strayTLS("", hello(func(s *wire.TLSSeen) { s.Offered = nil })), strayTLS("eof", handshakeOf(nil))),
			conclusion{Cut, "stage tls: the connection was closed; at the reflector, stage tls: the connection was closed"}},
		{"ALPN not agreed on", with(done, handshakeOf(func(s *wire.TLSSeen) { s.ALPN = "" })), of(t, withTLS("done", "", handshakeOf(nil))),
			conclusion{Altered, "ALPN was agreed on as h2 at the reflector, as none here"}},
		{"two versions", done, of(t, withTLS("done", "", handshakeOf(func(s *wire.TLSSeen) { s.Version = "TLS 1.2" }))),
			conclusion{Altered, "TLS was agreed on twice: TLS 1.3 here, TLS 1.2 at the reflector"}},
		{"alert of somebody else", broken("remote error: tls: access denied"), of(t, strayTLS("eof", handshakeOf(nil))),
			conclusion{Cut, `stage tls: the TLS alert "access denied" came, which the reflector never sent; at the reflector, stage tls: the connection was closed`}},
		{"alert of the reflector", broken("remote error: tls: bad record MAC"), of(t, strayTLS("local error: tls: bad record MAC", handshakeOf(nil))),
			conclusion{Altered, "bytes of the TLS stream changed on the way (at the reflector, stage tls): local error: tls: bad record MAC"}},
		{"no ledger", with(done, proxied), nil, conclusion{Open, "TLS 1.3"}},
	} {
		c.near.Probe, c.near.Addr, c.near.Target, c.near.Ports = 1, farAddr, farAddr.String(), ports(t, "443")
		f := judged(t, scenarios.TCP, []Observation{c.near}, c.far)
		if diff := cmp.Diff(c.want, conclusion{f.Verdict, f.Why}, cmp.AllowUnexported(conclusion{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestTLSThatArrivesWithoutTLSWasEndedOnTheWay(t *testing.T) {
	o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 1, Answered: 1, Stage: "done", TLS: handshakeOf(nil)}
	f := []Finding{{Path: "A", Direction: scenarios.Out, Transport: scenarios.TCP, Protocol: "tls", Ports: o.Ports, Evidence: Evidence{Near: []Observation{o}}}}
	Judge(f, map[Where]*wire.Ledger{WhereFar: of(t, arrival("done", "", nil))}, Control{})
	want := conclusion{Altered, `TLS ended on the way: the reflector was spoken to without it; certificate aa issued by "CN=ours" was seen`}
	if diff := cmp.Diff(want, conclusion{f[0].Verdict, f[0].Why}, cmp.AllowUnexported(conclusion{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestComparisonsTellANameRuleFromAPortRule(t *testing.T) {
	passed := func(what string, port uint16) Comparison { return Comparison{What: what, Port: port, Stage: "done"} }
	failed := func(what string) Comparison { return Comparison{What: what, Port: 443, Stage: "tls", Fault: "reset"} }
	const closed = "stage tls: the connection was closed"
	for _, c := range []struct {
		name string
		list []Comparison
		want string
	}{
		{"none", nil, ""},
		{"another name passes", []Comparison{passed(OtherName, 443), failed(NoALPN), passed(OtherPort, 8443)},
			`; by name: with another server name in place of "a.example" the same hello passes on this port`},
		{"without ALPN it passes", []Comparison{failed(OtherName), passed(NoALPN, 443), passed(OtherPort, 8443)},
			"; by ALPN: without h2, http/1.1 the same hello passes on this port"},
		{"another port passes", []Comparison{failed(OtherName), failed(NoALPN), failed(NoTLS), passed(OtherPort, 8443)},
			"; by port: another name fares the same here, while the name passes on port 8443"},
		{"only what is not TLS passes", []Comparison{failed(OtherName), failed(OtherPort), passed(NoTLS, 443)},
			"; by protocol: another name fares the same here, while what is not TLS passes on this port"},
		{"TLS passes elsewhere, something else here", []Comparison{failed(OtherName), passed(OtherPort, 8443), passed(NoTLS, 443)},
			"; by protocol: another name fares the same here, while what is not TLS passes on this port, and the name passes on port 8443"},
		{"nothing passes", []Comparison{failed(OtherName), failed(NoALPN), failed(NoTLS), failed(OtherPort)}, ""},
	} {
		o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 1, Stage: "tls", Fault: "eof", TLS: handshakeOf(nil), Controls: c.list}
		f := judged(t, scenarios.TCP, []Observation{o}, of(t, func(l *wire.Ledger) { l.SYNs = []wire.Caught{{Ports: ports(t, "443"), N: 9}} }))
		want := conclusion{Cut, closed + "; the reflector saw the SYN and had no connection" + c.want}
		if diff := cmp.Diff(want, conclusion{f.Verdict, f.Why}, cmp.AllowUnexported(conclusion{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// What the comparisons left at the reflector is no sign of the probe's own
// connection, which somebody else may have accepted.
func TestComparisonsAreNoEvidenceOfTheProbe(t *testing.T) {
	o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 1, Stage: "tls", Fault: "eof", TLS: handshakeOf(nil), Controls: []Comparison{
		{What: OtherName, Probe: 1 + nameStage, Port: 443, Stage: "done", HelloDigest: "03"},
		{What: NoALPN, Probe: 1 + alpnStage, Port: 443, Stage: "tls", Fault: "eof", HelloDigest: "04"},
		{What: OtherPort, Probe: 1 + portStages[0], Port: 8443, Stage: "done", HelloDigest: "05"},
	}}
	far := of(t, func(l *wire.Ledger) { l.SYNs = []wire.Caught{{Ports: ports(t, "443"), N: 2}} },
		strayTLS("eof", handshakeOf(func(s *wire.TLSSeen) { s.HelloDigest = "04" })))
	f := judged(t, scenarios.TCP, []Observation{o}, far)
	want := conclusion{Impostor, "the connection was accepted, but not by the reflector: its ledger is empty" +
		`; by name: with another server name in place of "a.example" the same hello passes on this port`}
	if diff := cmp.Diff(want, conclusion{f.Verdict, f.Why}, cmp.AllowUnexported(conclusion{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What was begun beside a probe, by control or for a comparison, and was not needed
// any more, may have come before the probe's own connection and stand there still.
func TestSparesAreNoProbes(t *testing.T) {
	at := netip.AddrPortFrom(farAddr, 8002)
	begun := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	strays := []wire.Event{
		{Time: begun, Transport: scenarios.TCP, Local: at, Stage: "connect", Unfinished: true},
		{Time: begun.Add(50 * time.Millisecond), Transport: scenarios.TCP, Local: at, Stage: "token", Fault: "altered"},
	}
	far := map[Where]*wire.Ledger{WhereFar: of(t, func(l *wire.Ledger) { l.Strays = strays }, sawSYN(t))}
	for name, c := range map[string]struct {
		control Control
		begun   int
		want    Verdict
	}{
		"none known": {want: Cut}, // the probe's own may be the first
		"elsewhere":  {control: Control{Spares: []uint16{443}}, want: Cut},
		"control":    {control: Control{Spares: []uint16{443, 8002}}, want: Altered},
		"comparison": {begun: 2, want: Altered},
	} {
		o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "8002"), Sent: 1, Stage: "token", Fault: "eof", Seconds: 0.06,
			Controls: []Comparison{{What: OtherPort, Port: 8002, Begun: c.begun, Stage: "token"}}}
		f := []Finding{{Path: "A", Direction: scenarios.Out, Transport: scenarios.TCP, Protocol: "plain", Ports: o.Ports, Evidence: Evidence{Near: []Observation{o}}}}
		if Judge(f, far, c.control); f[0].Verdict != c.want {
			t.Errorf("%s: %s (%s), want %s", name, f[0].Verdict, f[0].Why, c.want)
		}
	}
}

func TestNeutralNameIsAsLongAndNobodys(t *testing.T) {
	for name, want := range map[string]int{"remotedesktop-pa.googleapis.com": 31, "a.io": 9} {
		if got := neutral(name); len(got) != want || got[len(got)-8:] != ".invalid" {
			t.Errorf("%s becomes %s", name, got)
		}
	}
}

// Control may have tried the port beside the probe, and left it when another port
// carried it.
func TestHelloOfControlIsNoProbes(t *testing.T) {
	o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 1, Stage: "tls", Fault: "reset", TLS: handshakeOf(nil)}
	stray := wire.Event{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 443), Stage: "tls", Fault: "eof",
		TLS: handshakeOf(func(s *wire.TLSSeen) { s.HelloDigest = "02" })}
	far := map[Where]*wire.Ledger{WhereFar: of(t, func(l *wire.Ledger) { l.Strays = []wire.Event{stray} }, sawSYN(t))}
	for _, c := range []struct {
		control []string
		want    Verdict
	}{{nil, Altered}, {[]string{"03"}, Altered}, {[]string{"03", "02"}, Cut}} {
		f := []Finding{{Path: "A", Direction: scenarios.Out, Transport: scenarios.TCP, Protocol: "tls", Ports: o.Ports, Evidence: Evidence{Near: []Observation{o}}}}
		if Judge(f, far, Control{Hellos: c.control}); f[0].Verdict != c.want {
			t.Errorf("control %q: %s (%s), want %s", c.control, f[0].Verdict, f[0].Why, c.want)
		}
	}
}
