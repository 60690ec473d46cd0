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

// at443 is an event at the port over UDP.
func at443(probe uint32, stage, fault string) wire.Event {
	return wire.Event{Transport: scenarios.UDP, Local: netip.AddrPortFrom(farAddr, 443), Probe: probe, Stage: stage, Fault: fault, Answered: probe != 0}
}

func strayed(events ...wire.Event) func(*wire.Ledger) {
	return func(l *wire.Ledger) { l.Strays = events }
}

func ended443(e wire.Event) func(*wire.Ledger) {
	return func(l *wire.Ledger) { l.Probes = []wire.ProbeRecord{{Probe: 1, Events: []wire.Event{e}}} }
}

// flowed is a ledger's flow at the port, and near one of the near end; both are
// made of the texts of their datagrams.
func flowed(sent, heard []string) func(*wire.Ledger) {
	f := *prints(sent, heard)
	f.Remote, f.Local = netip.MustParseAddrPort("192.0.2.1:50000"), netip.AddrPortFrom(farAddr, 443)
	return func(l *wire.Ledger) { l.Flows = append(l.Flows, f) }
}

func prints(sent, heard []string) *wire.Flow {
	f := new(wire.Flow)
	for _, d := range sent {
		f.Sent.Add([]byte(d))
	}
	for _, d := range heard {
		f.Heard.Add([]byte(d))
	}
	return f
}

// Whatever becomes of a protocol of its own over UDP, the verdict and the words
// for it are these.
func TestProtocolsOverUDPAreJudgedByBothEnds(t *testing.T) {
	hello := at443(0, "tls", "")
	unknown := at443(0, "tls", protocol.FaultVersion)
	whole := at443(1, "done", "")
	whole.TLS = &wire.TLSSeen{ServerName: "a.example", Certificate: "aa"}
	query := at443(1, "token", "")
	query.Said = &wire.Said{Heard: []string{"query A"}, Sent: []string{"answer A: A 192.0.2.7"}}
	said := func(heard string) *wire.Said { return &wire.Said{Sent: []string{"query A"}, Heard: []string{heard}} }
	seen := func(cert string) *wire.TLSSeen {
		return &wire.TLSSeen{ServerName: "a.example", Version: "TLS 1.3", Certificate: cert, Issuer: "CN=box"}
	}
	type verdict struct {
		Verdict Verdict
		Why     string
	}
	for name, c := range map[string]struct {
		protocol string
		near     Observation
		far      *wire.Ledger
		want     verdict
	}{
		"QUIC, whole":                       {"quic", Observation{Sent: 1, Answered: 1, Stage: "done", TLS: seen("aa")}, of(t, ended443(whole)), verdict{Open, "TLS 1.3, certificate as sent"}},
		"QUIC, intercepted":                 {"quic", Observation{Sent: 1, Answered: 1, Stage: "done", TLS: seen("bb")}, of(t, ended443(whole)), verdict{Altered, `TLS intercepted: certificate aa was sent, bb issued by "CN=box" was seen`}},
		"QUIC, nothing seen":                {"quic", Observation{Sent: 3, Stage: "tls", Fault: "timeout", Detail: "beside"}, of(t), verdict{RequestLost, "the reflector saw no QUIC; beside"}},
		"QUIC, only what is asked beside":   {"quic", Observation{Sent: 3, Stage: "tls", Fault: "timeout"}, of(t, strayed(unknown, at443(0, "token", "foreign"))), verdict{RequestLost, "the reflector saw no QUIC"}},
		"QUIC, answers lost":                {"quic", Observation{Sent: 3, Stage: "tls", Fault: "timeout"}, of(t, strayed(hello, hello, unknown)), verdict{ReplyLost, "the reflector saw 2 first packets and answered; no answer arrived"}},
		"QUIC, silence without a ledger":    {"quic", Observation{Sent: 3, Stage: "tls", Fault: "timeout"}, nil, verdict{Silent, "nothing came back, and the reflector's ledger could not be had"}},
		"QUIC, handshake begun":             {"quic", Observation{Sent: 3, Answered: 1, Stage: "tls", Fault: "timeout"}, of(t, strayed(hello)), verdict{Cut, "stage tls: the handshake began and nothing more came"}},
		"QUIC, somebody else":               {"quic", Observation{Sent: 1, Answered: 1, Stage: "tls", Fault: "foreign", Detail: "no version"}, of(t), verdict{Impostor, "the answer is not the reflector's, which saw nothing: no version"}},
		"QUIC, somebody beside":             {"quic", Observation{Sent: 1, Answered: 1, Stage: "tls", Fault: "foreign", Detail: "no version"}, of(t, strayed(hello)), verdict{Altered, "the reflector saw it and answered; what came is another answer: no version"}},
		"QUIC, an error of TLS":             {"quic", Observation{Sent: 1, Answered: 1, Stage: "tls", Fault: "CRYPTO_ERROR 0x128"}, of(t, strayed(hello)), verdict{Cut, "stage tls: CRYPTO_ERROR 0x128"}},
		"QUIC, cut in the data":             {"quic", Observation{Sent: 1, Answered: 1, Stage: "data", Fault: "timeout", Up: 10, Down: 20}, of(t, ended443(whole)), verdict{Cut, "after 20 bytes received and 10 sent: nothing more came"}},
		"QUIC, changed on the way":          {"quic", Observation{Sent: 1, Stage: "tls", Fault: "timeout", Flow: prints([]string{"one", "three"}, nil)}, of(t, flowed(nil, []string{"one", "threE"})), verdict{Altered, "a datagram of 5 bytes arrived changed at byte 4"}},
		"QUIC, changed on the way back":     {"quic", Observation{Sent: 1, Answered: 1, Stage: "tls", Fault: "timeout", Flow: prints([]string{"one"}, []string{"1_answer"})}, of(t, strayed(hello), flowed([]string{"an answer"[:8], "1 answer"}, []string{"one"})), verdict{Altered, "the reflector's datagram of 8 bytes arrived changed at byte 1"}},
		"QUIC, somebody else's changed":     {"quic", Observation{Sent: 1, Stage: "tls", Fault: "timeout", Flow: prints([]string{"four"}, nil)}, of(t, strayed(hello), flowed(nil, []string{"fouR"}), flowed([]string{"answer"}, []string{"four"})), verdict{ReplyLost, "the reflector saw 1 first packets and answered; no answer arrived"}},
		"QUIC, as it was sent":              {"quic", Observation{Sent: 1, Answered: 1, Stage: "tls", Fault: "timeout", Flow: prints([]string{"one", "two"}, []string{"answer"})}, of(t, strayed(hello), flowed([]string{"answer", "lost"}, []string{"one"})), verdict{Cut, "stage tls: the handshake began and nothing more came"}},
		"datagrams beside QUIC that passes": {"", Observation{Sent: 3, Stage: "token", Fault: "timeout"}, of(t, strayed(hello, unknown)), verdict{RequestLost, "the reflector saw nothing"}},
		"DNS, rewritten":                    {"dns", Observation{Sent: 1, Stage: "token", Fault: "altered", Said: said("answer A: A 10.0.0.1"), Detail: "x"}, of(t, ended443(query)), verdict{Altered, `"answer A: A 192.0.2.7" was sent, "answer A: A 10.0.0.1" arrived here`}},
		"DNS, another's answer first":       {"dns", Observation{Sent: 1, Stage: "token", Fault: "foreign", Detail: "x"}, of(t, ended443(query)), verdict{Altered, "the reflector saw it and answered; what came is another answer: x"}},
		"DNS, answered on the way":          {"dns", Observation{Sent: 1, Stage: "token", Fault: "foreign", Detail: "x"}, of(t), verdict{Impostor, "the answer is not the reflector's, which saw nothing: x"}},
		"DNS, no ledger":                    {"dns", Observation{Sent: 1, Stage: "token", Fault: "foreign", Detail: "x"}, nil, verdict{Impostor, "the answer is not the reflector's: x"}},
		"DNS, changed, no ledger":           {"dns", Observation{Sent: 1, Stage: "token", Fault: "altered", Detail: "x"}, nil, verdict{Altered, "x"}},
	} {
		c.near.Probe, c.near.Addr, c.near.Target, c.near.Ports = 1, farAddr, farAddr.String(), ports(t, "443")
		f := Finding{Transport: scenarios.UDP, Protocol: c.protocol, Direction: scenarios.Out, Evidence: Evidence{Near: []Observation{c.near}}}
		list := []Finding{f}
		Judge(list, map[Where]*wire.Ledger{WhereFar: c.far}, Control{})
		if diff := cmp.Diff(c.want, verdict{list[0].Verdict, list[0].Why}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// QUIC is the one protocol over UDP that has a server name and a data phase.
func TestPlanOfQUICKeepsNameAndBytes(t *testing.T) {
	p := path(t, "X-1", scenarios.UDP, "443")
	p.Protocol, p.Names = "quic", []string{"a.example"}
	want := []Probe{{ID: 1, Where: WhereFar, Transport: scenarios.UDP, Speak: "quic", Addr: farAddr, ServerName: "a.example", Ports: ports(t, "443"), Bytes: DefaultBytes}}
	if diff := cmp.Diff(want, planOf(Setting{}, p).Probes, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	p.Protocol = "dns"
	if got := planOf(Setting{}, p).Probes[0]; got.ServerName != "" || got.Bytes != 0 || !strings.Contains(got.Speak, "dns") {
		t.Errorf("%+v", got)
	}
}
