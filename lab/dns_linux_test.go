package lab_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// dnsRows are what is done to DNS on the way.
func dnsRows() []row {
	const (
		toDNS   = `		iifname "lan0" meta l4proto { tcp, udp } th dport 53 `
		fromDNS = `		iifname "wan0" meta l4proto { tcp, udp } th sport 53 `
		fake    = "\x00\x04\x0a\x00\x00"
		real    = "\x00\x04\xc0\x00\x02"
	)
	rewrite := []middlebox.Rewrite{{From: middlebox.Server, Old: real, New: fake}}
	both := func(f fact) map[string]fact { return map[string]fact{"DNS-UDP": f, "DNS-TCP": f} }
	rewritten := fact{Verdict: client.Altered, Why: `was sent, "answer A: A 10.0.0.`}
	return []row{
		{name: "open", rules: firewall(""), want: map[string]fact{
			"DNS-UDP": {Verdict: client.Open, Near: "done", Attempts: "1/1/1", Far: "token"},
			"DNS-TCP": {Verdict: client.Open, Near: "done", Received: "131072", Far: "done"}}},
		{name: "dropped", rules: firewall(toDNS + "counter drop\n"), want: both(fact{Verdict: client.RequestLost, Why: "the reflector saw nothing"})},
		{name: "answers dropped", rules: firewall(fromDNS + "counter drop\n"), want: both(fact{Verdict: client.ReplyLost})},
		{name: "rejected by ICMP", family: "ipv4", rules: firewall(toDNS + "counter reject with icmp admin-prohibited\n"), want: both(fact{Verdict: client.Rejected, ICMP: "3/13 icmp admin-prohibited from the firewall"})},
		{name: "addresses rewritten", family: "ipv4", rules: firewall(""), want: both(rewritten), boxes: func(s *scene) {
			s.serve(middlebox.UDP{Ports: "53", Rewrites: rewrite}.Open(s.firewall()))
			s.serve(middlebox.TCP{Ports: "53", Rewrites: rewrite}.Open(s.firewall()))
		}},
		{name: "answered by a name server on the way", rules: firewall(""), boxes: func(s *scene) {
			s.serve(middlebox.UDP{Ports: "53", Answer: noSuchName}.Open(s.firewall()))
		}, want: map[string]fact{"DNS-TCP": {Verdict: client.Open},
			"DNS-UDP": {Verdict: client.Impostor, Why: `NXDOMAIN (qr rd ra)" where `, Near: "token foreign", Far: "nothing"}}},
	}
}

// noSuchName answers like a resolver that looked in vain.
func noSuchName(p []byte) []byte {
	var q dns.Msg
	if q.Unpack(p) != nil {
		return nil
	}
	a := new(dns.Msg).SetRcode(&q, dns.RcodeNameError)
	a.RecursionAvailable = true
	b, _ := a.Pack() // nil is no answer
	return b
}

func TestVerdictsOnDNSNameTheInjectedFault(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range dnsRows() {
		r.scenario = "dns"
		for _, family := range r.families() {
			t.Run(r.name+"/"+family, func(t *testing.T) {
				res := r.play(t, program, family)
				if diff := r.mismatch(res); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
					r.explain(t, res)
				}
			})
		}
	}
}

// A dug name is a question by dig and what must come of it. With +notcp, what is
// cut short over UDP is asked for again over TCP all the same, without +ignore.
type dug struct {
	options string
	token   bool // in the name
	says    []string
}

// digs are the questions for an address. Over UDP no answer is longer than its
// question, so the whole answer comes to a padded one alone.
func digs() []dug {
	return []dug{
		{"+notcp", false, []string{"status: REFUSED", "ANSWER: 0", "(UDP)"}},
		{"+tcp", false, []string{"status: NOERROR", "192.0.2.53", "(TCP)"}},
		{"+notcp +ignore +padding=384", true, []string{"status: NOERROR", "ANSWER: 1", "(UDP)"}},
		{"+notcp +ignore", true, []string{"status: NOERROR", "flags: qr tc", "ANSWER: 0", "(UDP)"}},
		{"+notcp", true, []string{"Truncated, retrying in TCP mode", "status: NOERROR", "ANSWER: 1", "(TCP)"}},
		{"+tcp", true, []string{"status: NOERROR", "ANSWER: 1", "(TCP)"}},
	}
}

func TestDigIsAnsweredThroughTheFirewall(t *testing.T) {
	lab.NeedLab(t)
	need.Program(t, "dig")
	w, key := standWith(t, "dns")
	keys := wire.Derive(key, wire.SessionID{1}, wire.Nonce{})
	v4, v6 := w.Host("server").Addrs()
	probe := uint32(0)
	for _, server := range []netip.Addr{v4, v6} {
		for _, d := range digs() {
			probe++
			x := protocol.Exchange{Keys: &keys, Offline: true, Probe: probe, Port: 53, Now: time.Now}
			d.ask(t, w, server, x)
		}
	}
}

// ask runs dig on the host behind the firewall.
func (d dug) ask(t *testing.T, w *lab.World, server netip.Addr, x protocol.Exchange) {
	t.Helper()
	name := "www.example."
	if d.token {
		name = x.TokenName()
	}
	argv := slices.Concat([]string{"@" + server.String(), "+tries=1", "+time=5"}, strings.Fields(d.options), []string{name, "A"})
	var out strings.Builder
	cmd := w.Host("host").Command(t.Context(), "dig", argv...)
	cmd.Stdout = &out
	err := w.Host("host").Run(cmd)
	for _, part := range d.says {
		if err != nil || !strings.Contains(out.String(), part) {
			t.Errorf("dig %s @%s: no %q: %v\n%s", d.options, server, part, err, &out)
		}
	}
	if !d.token || !slices.Contains(d.says, "ANSWER: 1") {
		return
	}
	var r protocol.Result
	if err := x.CheckToken(out.String(), &r); err != nil || r.Seen.Probe != x.Probe || r.Seen.Seen.Addr() != peerOf(w, server) {
		t.Errorf("dig %s @%s: %v, %+v\n%s", d.options, server, err, r.Seen, &out)
	}
}

// peerOf is where the host's packets come from at a server.
func peerOf(w *lab.World, server netip.Addr) netip.Addr {
	v4, v6 := w.Host("host").Addrs()
	if server.Is4() {
		return v4
	}
	return v6
}
