package lab_test

import (
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
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

// dig gets an answer where our own client does: no records over UDP, where it
// could be anybody, and an address over TCP.
func TestDigIsAnsweredThroughTheFirewall(t *testing.T) {
	lab.NeedLab(t)
	needProgram(t, "dig")
	w, _ := standWith(t, "dns")
	v4, v6 := w.Host("server").Addrs()
	for _, server := range []string{v4.String(), v6.String()} {
		for over, want := range map[string][]string{"+notcp": {"status: REFUSED", "ANSWER: 0"}, "+tcp": {"status: NOERROR", "192.0.2.53"}} {
			var text strings.Builder
			cmd := w.Host("host").Command(t.Context(), "dig", "@"+server, "+tries=1", "+time=5", over, "www.example.", "A")
			cmd.Stdout = &text
			err := w.Host("host").Run(cmd)
			for _, part := range want {
				if err != nil || !strings.Contains(text.String(), part) {
					t.Errorf("dig %s @%s: no %q: %v\n%s", over, server, part, err, &text)
				}
			}
		}
	}
}
