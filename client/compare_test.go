package client

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// comparing is a runner with a plan of several protocols, and control over 443.
func comparing(t *testing.T) *runner {
	t.Helper()
	probe := func(id uint32, tr scenarios.Transport, speak, port string) Probe {
		return Probe{ID: id, Where: WhereFar, Transport: tr, Speak: speak, Addr: farAddr, Ports: ports(t, port)}
	}
	r := &runner{ends: map[Where]*farEnd{WhereFar: {contact: contact{via: "443/tcp"}}}}
	r.plan.Probes = []Probe{
		probe(1, scenarios.TCP, "submission", "587"), probe(2, scenarios.TCP, "submission", "2587"), probe(3, scenarios.TCP, "http", "8080"),
		probe(4, scenarios.UDP, "dns", "53"), probe(5, scenarios.UDP, "goto-media", "1853"), probe(6, scenarios.UDP, protocol.Datagram, "8200"),
		probe(7, scenarios.UDP, protocol.Datagram, "1-65535"), probe(8, scenarios.TCP, "tls", "8443"),
	}
	return r
}

// Each comparison changes one thing, and is made only where the far end knows
// what is spoken.
func TestComparisonsChangeOneThing(t *testing.T) {
	for _, c := range []struct {
		speak     string
		transport scenarios.Transport
		name      string
		near      Observation
		want      []string
	}{
		{"tls", scenarios.TCP, "a.example", Observation{TLS: &wire.TLSSeen{}}, []string{"other-name tls :9", "no-tls plain :9", "other-port tls :443", "other-port tls :587"}},
		{"imaps", scenarios.TCP, "", Observation{TLS: &wire.TLSSeen{Offered: []string{"imap"}}}, []string{"no-alpn tls :9", "no-tls plain :9", "other-port tls :443", "other-port tls :587"}},
		{"submission", scenarios.TCP, "a.example", Observation{TLS: &wire.TLSSeen{}, Said: &wire.Said{}}, []string{"other-name submission :9"}},
		{"submission", scenarios.TCP, "a.example", Observation{Said: &wire.Said{}}, []string{"other-protocol plain :9", "other-port submission :587", "other-port submission :2587"}},
		{"http", scenarios.TCP, "a.example", Observation{Said: &wire.Said{}}, []string{"other-name http :9", "other-protocol plain :9", "other-port http :443", "other-port http :587"}},
		{"sftp", scenarios.TCP, "a.example", Observation{Said: &wire.Said{}}, []string{"other-protocol plain :9", "other-port sftp :443", "other-port sftp :587"}},
		{"mysql", scenarios.TCP, "", Observation{}, []string{"other-protocol plain :9"}},
		{protocol.Plain, scenarios.TCP, "", Observation{}, []string{"other-port plain :443", "other-port plain :587"}},
		{"dns", scenarios.UDP, "", Observation{}, []string{"other-name dns :9", "other-protocol plain :9", "other-port dns :53"}},
		{protocol.QUIC, scenarios.UDP, "a.example", Observation{TLS: &wire.TLSSeen{Offered: []string{"h3"}}}, []string{"other-name quic :9", "other-protocol plain :9", "other-port quic :8200"}},
	} {
		p := Probe{ID: 1, Where: WhereFar, Transport: c.transport, Speak: c.speak, ServerName: c.name}
		var got []string
		var ids []uint32
		for _, m := range comparing(t).comparisons(p, 9, &c.near) {
			got = append(got, fmt.Sprintf("%s %s :%d", m.What, m.Speak, m.Port))
			if m.What == OtherName && (m.ServerName == m.Instead || m.Instead == "" || len(m.ServerName) != max(len(m.Instead), 9)) {
				t.Errorf("%s: %q in place of %q", c.speak, m.ServerName, m.Instead)
			}
			if slices.Contains(ids, m.Probe) || m.Stage != protocol.StageConnect {
				t.Errorf("%s: %+v", c.speak, m)
			}
			ids = append(ids, m.Probe)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.speak, c.transport, diff)
		}
	}
}

// Only what failed before its data is compared, and over UDP only while the far
// end is known to be there.
func TestOnlyWhatFailedEarlyIsCompared(t *testing.T) {
	none := &wire.TLSSeen{}
	for _, c := range []struct {
		transport scenarios.Transport
		via       string
		near      Observation
		want      bool
	}{
		{scenarios.TCP, "", Observation{Stage: "done"}, false},
		{scenarios.TCP, "", Observation{Stage: "connect", Fault: "timeout"}, false},
		{scenarios.TCP, "", Observation{Stage: "token", Fault: "reset"}, true},
		{scenarios.TCP, "", Observation{Stage: "banner", Fault: "timeout"}, true},
		{scenarios.TCP, "", Observation{Stage: "token", Fault: "altered"}, false},
		{scenarios.TCP, "", Observation{Stage: "data", Fault: "timeout"}, false},
		{scenarios.TCP, "", Observation{Stage: "tls", Fault: "eof", TLS: none}, true},
		{scenarios.TCP, "", Observation{Stage: "token", Fault: "eof", TLS: none}, false},
		{scenarios.UDP, "", Observation{Stage: "token", Fault: "timeout"}, false},
		{scenarios.UDP, "443/tcp", Observation{Stage: "token", Fault: "timeout"}, true},
		{scenarios.UDP, "443/tcp", Observation{Stage: "token", Fault: "icmp"}, false},
		{scenarios.UDP, "443/tcp", Observation{Stage: "tls", Fault: "timeout", TLS: none}, true},
	} {
		r := &runner{ends: map[Where]*farEnd{WhereFar: {contact: contact{via: c.via}}}}
		if got := r.suspicious(Probe{Where: WhereFar, Transport: c.transport}, &c.near); got != c.want {
			t.Errorf("%s %s %s, control via %q: %t", c.transport, c.near.Stage, c.near.Fault, c.via, got)
		}
	}
}

// What is said of a comparison is said in the words of what was spoken.
func TestComparisonsOutsideOfTLSAreToldInTheirWords(t *testing.T) {
	passed := func(what string, port uint16, instead string) Comparison {
		return Comparison{What: what, Port: port, Instead: instead, Stage: "done"}
	}
	for _, c := range []struct {
		speak string
		list  []Comparison
		want  string
	}{
		{"http", []Comparison{passed(OtherName, 80, "a.example"), passed(OtherPort, 443, "")}, `; by name: with another name in place of "a.example" the same request passes on this port`},
		{"http", []Comparison{{What: OtherName, Instead: "a.example"}, passed(OtherPort, 443, "")}, "; by port: another name fares the same here, while the name passes on port 443"},
		{"sftp", []Comparison{passed(OtherProtocol, 22, ""), passed(OtherPort, 443, "")}, "; by protocol: what is not sftp passes on this port, and the same request passes on port 443"},
		{"sftp", []Comparison{{What: OtherProtocol}, passed(OtherPort, 443, "")}, "; by port: the same request passes on port 443"},
		{"mysql", []Comparison{passed(OtherProtocol, 3306, "")}, "; by protocol: what is not mysql passes on this port"},
		{"mysql", []Comparison{{What: OtherProtocol}}, ""},
	} {
		e := portEvidence{near: &Observation{Controls: c.list}, speak: c.speak}
		if got := e.compared(); got != c.want {
			t.Errorf("%s: %q, want %q", c.speak, got, c.want)
		}
	}
}

// A dialogue of a comparison that broke off is no evidence of the probe on whose
// port it was held, be it cut within its first line; the probe's own stays.
func TestDialoguesOfComparisonsAreNotTheProbes(t *testing.T) {
	elsewhere := Finding{Evidence: Evidence{Near: []Observation{{Controls: []Comparison{{What: OtherPort, Said: "GET / HTTP/1.1"}}}}}}
	v := &farView{said: saidOf([]Finding{elsewhere})}
	mail := &Observation{Said: &wire.Said{Sent: []string{"EHLO near"}}}
	web := &Observation{Said: &wire.Said{Sent: []string{"GET / HTTP/1.1"}}, Controls: []Comparison{{What: OtherName, ServerName: "xyz.invalid"}}}
	for _, c := range []struct {
		near  *Observation
		heard []string
		want  bool
	}{
		{mail, []string{"GET / HTTP/1.1", "Host: x"}, true},
		{mail, []string{"GET /"}, true},
		{new(Observation), []string{"GET / HTTP/1.1"}, true},
		{mail, []string{"EHLO near"}, false},
		{mail, []string{"EHLO"}, false},
		{mail, []string{"XXXX near"}, false},
		{mail, []string{""}, false},
		{mail, nil, false},
		{web, []string{"GET / HTTP/1.1", "Host: a.example"}, false},
		{web, []string{"GET / HTTP/1.1", "Host: xyz.invalid"}, true},
	} {
		if got := v.comparedSaid(c.near, &wire.Said{Heard: c.heard}); got != c.want {
			t.Errorf("%q of %q: %t", c.heard, c.near.Said, got)
		}
	}
	if v.comparedSaid(mail, nil) {
		t.Error("what said nothing is a dialogue")
	}
}

// A far end that speaks first may take a comparison for its own protocol, changed;
// the probe's own connection came before that.
func TestWhatCameAfterTheProbeIsNotItsRequest(t *testing.T) {
	at := func(seconds int, fault string) wire.Event {
		return wire.Event{Transport: scenarios.TCP, Local: netip.AddrPortFrom(farAddr, 22), Time: time.Unix(int64(seconds), 0), Fault: fault}
	}
	failed := []Comparison{{What: OtherProtocol, Port: 22}}
	for _, c := range []struct {
		name     string
		controls []Comparison
		strays   []wire.Event
		want     bool
	}{
		{"its own, under way, then another", failed, []wire.Event{at(10, ""), at(12, protocol.FaultForeign)}, false},
		{"its own changed, then others", failed, []wire.Event{at(10, protocol.FaultForeign), at(12, protocol.FaultForeign)}, true},
		{"beside it", failed, []wire.Event{at(10, ""), at(10, protocol.FaultForeign)}, true},
		{"nothing was compared", nil, []wire.Event{at(10, ""), at(12, protocol.FaultForeign)}, true},
	} {
		e := portEvidence{transport: scenarios.TCP, strays: c.strays, near: &Observation{Probe: 1, Seconds: 2, Controls: c.controls}}
		if got := e.alteredThere(1) != nil; got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}
