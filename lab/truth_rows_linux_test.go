package lab_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
)

// table is the truth table.
func table(t testing.TB) []row {
	return slices.Concat(fine(t), losses(t), refusals(), resetRows(), rejects(), impostors(), alterations(), cuts(), idles(t), lossy(), inwards(), noRaws())
}

func builtinFirewall(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("firewalls/" + name + ".nft")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// both demands one fact of datagrams and another of streams.
func both(datagram, stream fact) map[string]fact {
	return join(all(datagram, datagrams...), all(stream, streams...))
}

var (
	isOpen       = fact{Verdict: client.Open, Near: "done"}
	openDatagram = fact{Verdict: client.Open, Near: "done", Attempts: "3/3/3"}
	openStream   = fact{Verdict: client.Open, Near: "done", Received: "131072", Far: "done"}

	requestLost = fact{Verdict: client.RequestLost, Why: "the reflector saw nothing", Near: "token timeout", Attempts: "3/0/0", Far: "nothing"}
	synLost     = fact{Verdict: client.RequestLost, Why: "the reflector saw nothing", Near: "connect timeout", Attempts: "3/0/0", Far: "nothing"}
	replyLost   = fact{Verdict: client.ReplyLost, Why: "saw it and answered", Near: "token timeout", Attempts: "3/3/0", Far: "token"}
	synAckLost  = fact{Verdict: client.ReplyLost, Why: "saw the SYN and answered", Near: "connect timeout", Attempts: "3/3/0", Far: "nothing"}
)

// and gives a fact what the firewall's rule must have counted.
func (f fact) and(counted string) fact { f.Counted = counted; return f }

// fine: no fault.
func fine(t testing.TB) []row {
	return []row{
		{name: "nothing wrong", rules: firewall(""), want: both(openDatagram, openStream)},
		{name: "nothing wrong behind a stateful firewall", rules: builtinFirewall(t, "stateful"), want: both(openDatagram, openStream)},
		{name: "nothing wrong with ranges", scenario: "ranges", rules: firewall(""),
			want: all(fact{Verdict: client.Open, Ports: "open", Attempts: "128/128/128"}, ranges...)},
		{name: "a narrow link that says so", rules: firewall(""), config: lab.Config{MTU: 1300},
			want: join(both(openDatagram, openStream), all(fact{Verdict: client.Open, Why: "path MTU is told"}, "UDP"))},
		{name: "a translator in between", rules: firewall("") + translator, want: both(openDatagram, openStream)},
	}
}

// losses: what goes out or what comes back is dropped.
func losses(t testing.TB) []row {
	lostRange := fact{Verdict: client.RequestLost, Ports: "request-lost", Attempts: "384/0/0", Counted: "as lost"}
	unheardRange := fact{Verdict: client.ReplyLost, Ports: "reply-lost", Attempts: "384/384/0", Counted: "as unanswered"}
	return []row{
		{name: "dropped on the way out", rules: firewall(out("counter drop", singles...)), want: both(requestLost.and("as lost"), synLost.and("as lost"))},
		{name: "dropped on the way back", rules: firewall(back("counter drop", singles...)), want: both(replyLost.and("as unanswered"), synAckLost.and("as unanswered"))},
		{name: "data dropped on the way back", rules: firewall(back("meta length > 100 counter drop", streams...)), want: map[string]fact{
			"TCP": {Verdict: client.Cut, Why: "stage token: nothing more came", Near: "token timeout", Counted: "some"},
			"TLS": {Verdict: client.Cut, Why: "stage tls: nothing more came", Near: "tls timeout", Counted: "some"},
		}},
		{name: "ranges dropped on the way out", scenario: "ranges", rules: firewall(out("counter drop", ranges...)), want: all(lostRange, ranges...)},
		{name: "ranges dropped on the way back", scenario: "ranges", rules: firewall(back("counter drop", ranges...)), want: all(unheardRange, ranges...)},
		{name: "the upper half of ranges dropped", scenario: "ranges", rules: firewall(upperHalves), want: map[string]fact{
			"UDP-RANGE": {Verdict: client.Partial, Ports: "open 31000-31063, request-lost 31064-31127", Attempts: "256/64/64", Counted: "as lost"},
			"TCP-RANGE": {Verdict: client.Partial, Ports: "open 31200-31263, request-lost 31264-31327", Attempts: "256/64/64", Counted: "as lost"},
			"OWN-RANGE": {Verdict: client.Partial, Ports: "open 32000-32063, request-lost 32064-32127", Attempts: "256/64/64", Counted: "as lost"},
		}},
		{name: "built-in firewall no-udp-replies", rules: builtinFirewall(t, "no-udp-replies"), want: both(replyLost, openStream)},
		{name: "built-in firewall drop-udp-remote-1024", rules: builtinFirewall(t, "drop-udp-remote-1024"), want: both(requestLost, openStream)},
	}
}

// upperHalves drops from the middle of each range.
const upperHalves = `		iifname "lan0" udp dport 31064-31127 counter drop comment "UDP-RANGE"
		iifname "lan0" tcp dport 31264-31327 counter drop comment "TCP-RANGE"
		iifname "lan0" udp dport 8005 udp sport 32064-32127 counter drop comment "OWN-RANGE"
`

// refusals: the reflector's host says that nothing listens.
func refusals() []row {
	var rows []row
	for family, icmp := range map[string]string{"ipv4": "3/3 icmp port-unreachable", "ipv6": "1/4 icmpv6 port-unreachable"} {
		datagram := fact{Verdict: client.Refused, Near: "token icmp", ICMP: icmp + " from the reflector"}
		stream := fact{Verdict: client.Refused, Why: "nothing listens there", Near: "connect refused"}
		rows = append(rows,
			row{name: "nothing listens, " + family, family: family, rules: firewall(""),
				reflector: []string{"--except", "udp/8001", "--except", "udp/3478", "--except", "tcp/8002-8003"}, want: both(datagram, stream)},
			row{name: "nothing listens on ranges, " + family, family: family, scenario: "ranges", rules: firewall(""),
				reflector: []string{"--except", "udp/31000-31127", "--except", "udp/8005", "--except", "tcp/31200-31327"},
				want:      join(all(datagram, "UDP-RANGE", "OWN-RANGE"), all(stream, "TCP-RANGE"))})
	}
	slices.SortFunc(rows, func(a, b row) int { return len(a.name) - len(b.name) })
	return rows
}

// resetRows: a reset answers the SYN.
func resetRows() []row {
	rejected := fact{Verdict: client.Rejected, Why: "tcp reset that the reflector never sent", Near: "connect refused", Far: "nothing"}
	known := rejected
	known.Why = "it saw the SYN and accepted it"
	return []row{
		{name: "rejected with a reset", rules: firewall(out("counter reject with tcp reset", streams...)), want: all(rejected.and("as lost"), streams...)},
		{name: "range rejected with a reset", scenario: "ranges", rules: firewall(out("counter reject with tcp reset", "TCP-RANGE")), want: all(rejected.and("as lost"), "TCP-RANGE")},
		{name: "reset forged for the client at the SYN", rules: firewall(back("tcp flags & (syn|ack) == syn|ack drop", streams...)),
			boxes: resets(middlebox.Client, 0, 8002, 8003), want: all(known, streams...)},
	}
}

// A code is an unreachable code as nft names it and as it is on the wire.
type code struct{ family, with, wire string }

// codes are all that nft offers for reject (nft(8), REJECT STATEMENT).
var codes = []code{
	{"ipv4", "icmp net-unreachable", "3/0 icmp net-unreachable"},
	{"ipv4", "icmp host-unreachable", "3/1 icmp host-unreachable"},
	{"ipv4", "icmp prot-unreachable", "3/2 icmp prot-unreachable"},
	{"ipv4", "icmp port-unreachable", "3/3 icmp port-unreachable"},
	{"ipv4", "icmp net-prohibited", "3/9 icmp net-prohibited"},
	{"ipv4", "icmp host-prohibited", "3/10 icmp host-prohibited"},
	{"ipv4", "icmp admin-prohibited", "3/13 icmp admin-prohibited"},
	{"ipv6", "icmpv6 no-route", "1/0 icmpv6 no-route"},
	{"ipv6", "icmpv6 admin-prohibited", "1/1 icmpv6 admin-prohibited"},
	{"ipv6", "icmpv6 addr-unreachable", "1/3 icmpv6 addr-unreachable"},
	{"ipv6", "icmpv6 port-unreachable", "1/4 icmpv6 port-unreachable"},
	{"ipv6", "icmpv6 policy-fail", "1/5 icmpv6 policy-fail"},
	{"ipv6", "icmpv6 reject-route", "1/6 icmpv6 reject-route"},
	{"ipv4", "icmpx no-route", "3/0 icmp net-unreachable"},
	{"ipv4", "icmpx host-unreachable", "3/1 icmp host-unreachable"},
	{"ipv4", "icmpx port-unreachable", "3/3 icmp port-unreachable"},
	{"ipv4", "icmpx admin-prohibited", "3/13 icmp admin-prohibited"},
	{"ipv6", "icmpx no-route", "1/0 icmpv6 no-route"},
	{"ipv6", "icmpx host-unreachable", "1/3 icmpv6 addr-unreachable"},
	{"ipv6", "icmpx port-unreachable", "1/4 icmpv6 port-unreachable"},
	{"ipv6", "icmpx admin-prohibited", "1/1 icmpv6 admin-prohibited"},
}

// rejects: the firewall says no by ICMP. For ranges one code of each family
// stands for all: what differs is only how they are counted.
func rejects() []row {
	var rows []row
	for _, c := range codes {
		datagram := fact{Verdict: client.Rejected, Near: "token icmp", ICMP: c.wire + " from the firewall", Attempts: "3/0/0", Far: "nothing", Counted: "as lost"}
		stream := datagram
		stream.Near, stream.Attempts = "connect icmp", "" // a slow machine begins a second connection
		rows = append(rows, row{name: "rejected with " + c.with + ", " + c.family, family: c.family,
			rules: firewall(out("counter reject with "+c.with, singles...)), want: both(datagram, stream)})
		if c.with == "icmpx admin-prohibited" {
			datagram.Ports, datagram.Attempts = "rejected", ""
			rows = append(rows, row{name: "ranges rejected with " + c.with + ", " + c.family, family: c.family, scenario: "ranges",
				rules: firewall(out("counter reject with "+c.with, ranges...)), want: rangesRejected(datagram)})
		}
	}
	return rows
}

func rangesRejected(f fact) map[string]fact {
	want := all(f, ranges...)
	f.Near = "connect icmp"
	want["TCP-RANGE"] = f
	return want
}

// impostors: somebody else answers.
func impostors() []row {
	withOther := lab.Config{Hosts: []string{"other"}}
	there := firewall("") + redirected(singles...)
	junk := middlebox.FixedDatagram([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	impostor := func(udp, stun, tcp, tls, why string) map[string]fact {
		f := fact{Verdict: client.Impostor, Far: "nothing", Counted: "some"}
		want := all(f, singles...)
		for id, text := range map[string]string{"UDP": udp, "STUN": stun, "TCP": why + tcp, "TLS": why + tls} {
			f.Why = text
			want[id] = f
		}
		return want
	}
	const accepted = "the connection was accepted, but not by the reflector: its ledger is empty"
	const webUDP, webTCP = `which saw nothing: it begins "HTTP/1.1 400 Bad Request"`, `: it begins "HTTP/1.1 302 Found`
	portal := fact{Verdict: client.Impostor, Far: "nothing"}
	portalTCP := portal
	portalTCP.Why = accepted + webTCP
	return []row{
		{name: "redirected to an echo", config: withOther, rules: there, boxes: elsewhere(middlebox.Echo, middlebox.EchoDatagram),
			want: impostor("somebody throws back what is sent", "which saw nothing", ": it begins", "", accepted)},
		{name: "redirected to a banner", config: withOther, rules: there, boxes: elsewhere(banner, junk),
			want: impostor(webUDP, webUDP, `: it begins "SSH-2.0-OpenSSH`, `: it begins "SSH-2"`, accepted)},
		{name: "redirected to one who hangs up", config: withOther, rules: there, boxes: elsewhere(middlebox.Hangup, junk),
			want: impostor(webUDP, webUDP, "", "", accepted)},
		{name: "captive portal", rules: firewall(""), boxes: tcpBox(middlebox.TCP{Answer: middlebox.Portal("http://portal.example/")}),
			want: map[string]fact{"TCP": portalTCP, "TLS": portal}},
	}
}

// alterations: bytes are changed on the way. Those of a message are its magic
// from 0, its session from 8, its probe from 24 and its MAC from 68; bulk data
// follow. The proxies that change them stand on a firewall that translates
// addresses, so that whatever arrives comes from the one address.
func alterations() []row {
	rules := firewall("") + translator
	flip := func(from middlebox.Side, at int64) []middlebox.Rewrite {
		return []middlebox.Rewrite{{From: from, At: at}}
	}
	udp := func(from middlebox.Side, at int64) func(*scene) {
		return udpBox(middlebox.UDP{Rewrites: flip(from, at)})
	}
	tcp := func(from middlebox.Side, at int64) func(*scene) {
		return tcpBox(middlebox.TCP{Rewrites: flip(from, at)})
	}
	altered := fact{Verdict: client.Altered}
	wayOut := fact{Verdict: client.Altered, Why: "the request arrived changed", Near: "token timeout", Attempts: "3/0/0"}
	wayBack := fact{Verdict: client.Altered, Why: "the reflector's answer arrived changed", Near: "token timeout", Attempts: "3/3/0", Far: "token"}
	var rows []row
	for _, at := range []int64{1, 10, 26, 70} {
		back := all(wayBack, datagrams...)
		if at > 60 {
			delete(back, "STUN") // the answer is shorter
		}
		rows = append(rows,
			row{name: fmt.Sprintf("datagram's byte %d changed on the way out", at), rules: rules, boxes: udp(middlebox.Client, at), want: all(wayOut, datagrams...)},
			row{name: fmt.Sprintf("datagram's byte %d changed on the way back", at), rules: rules, boxes: udp(middlebox.Server, at), want: back},
			row{name: fmt.Sprintf("stream's byte %d changed on the way out", at), rules: rules, boxes: tcp(middlebox.Client, at), want: all(altered, streams...)},
			row{name: fmt.Sprintf("stream's byte %d changed on the way back", at), rules: rules, boxes: tcp(middlebox.Server, at), want: all(altered, streams...)})
	}
	large := fact{Verdict: client.Altered, Why: "datagrams of 1400 bytes arrive changed, of 84 bytes they do not", Near: "data timeout", Attempts: "3/3/3"}
	bulk := func(why, far string) map[string]fact {
		return map[string]fact{"TCP": {Verdict: client.Altered, Why: why, Far: far}, "TLS": {Verdict: client.Altered, Why: "bad record MAC"}}
	}
	return append(rows,
		row{name: "large datagrams changed on the way out", rules: rules, boxes: udp(middlebox.Client, 1000), want: all(large, "UDP")},
		row{name: "large datagrams changed on the way back", rules: rules, boxes: udp(middlebox.Server, 1000), want: all(large, "UDP")},
		row{name: "bulk data changed on the way out", rules: rules, boxes: tcp(middlebox.Client, 84+5000), want: bulk("the request arrived changed (byte 5000)", "data altered")},
		row{name: "bulk data changed on the way back", rules: rules, boxes: tcp(middlebox.Server, 84+5000), want: bulk("byte 5000 on the way back arrived changed", "")},
		row{name: "TLS intercepted", rules: rules, boxes: interceptor,
			want: all(fact{Verdict: client.Altered, Why: `issued by "CN=wallprobe lab inspection" was seen`, Near: "done", Far: "done"}, "TLS")})
}

// cuts: it begins well.
func cuts() []row {
	const open, stop = "the reflector knows the connection as open", "ct bytes > 8000 counter drop"
	rules := firewall("") + translator
	long := "meta length > 1300 counter drop"
	return []row{
		{name: "cut after 5000 bytes of the server", rules: rules, boxes: tcpBox(middlebox.TCP{Cut: &middlebox.Cut{From: middlebox.Server, After: 84 + 5000}}), want: map[string]fact{
			"TCP": {Verdict: client.Cut, Why: open, Near: "data timeout", Received: "5000"},
			"TLS": {Verdict: client.Cut, Why: "nothing more came; " + open, Near: "data timeout"},
		}},
		{name: "cut after 5000 bytes of the client", rules: rules, boxes: tcpBox(middlebox.TCP{Cut: &middlebox.Cut{From: middlebox.Client, After: 84 + 5000}}),
			want: all(fact{Verdict: client.Cut, Why: "nothing more came; " + open, Near: "data timeout"}, streams...)},
		{name: "flow dropped after 8000 bytes", rules: firewall(out(stop, streams...) + back(stop, streams...)),
			want: all(fact{Verdict: client.Cut, Why: open, Near: "data timeout", Counted: "some"}, streams...)},
		// The flow stands still when it is reset: a forged reset must hit the next
		// byte exactly, which it may miss in a fast flow.
		{name: "reset for the client after 8000 bytes", rules: firewall(out(stop, streams...) + back(stop, streams...)), boxes: resets(middlebox.Client, 8000, 8002, 8003),
			want: all(fact{Verdict: client.Cut, Why: "a reset came; the reflector never sent a reset", Near: "data reset"}, streams...)},
		// nft takes the number of a reset from the packet that it rejects.
		{name: "reset for the server after 8000 bytes", rules: firewall(out("tcp flags & (fin|rst) != 0 drop", streams...) + back("ct bytes > 8000 counter reject with tcp reset", streams...)),
			want: all(fact{Verdict: client.Cut, Why: "at the reflector, stage data: a reset came", Near: "data timeout", Far: "data reset", Counted: "some"}, streams...)},
		// The flow stands still after the SYN, for the time of a retransmission: a
		// forged reset that came later than the client's first bytes would miss.
		{name: "reset forged for the server at the SYN", boxes: resets(middlebox.Server, 0, 8002, 8003),
			rules: firewall(out("tcp flags & (syn | rst) == 0 ct original packets < 4 drop", streams...) + back("tcp flags rst drop", streams...)),
			want:  all(fact{Verdict: client.Cut}, streams...)},
		{name: "mtu black hole", rules: firewall(out(long, singles...) + back(long, singles...)), want: map[string]fact{
			"UDP":  {Verdict: client.Cut, Why: "datagrams of 1400 bytes vanish, of 84 bytes they pass", Near: "data timeout", Attempts: "3/3/3", Counted: "some"},
			"TCP":  {Verdict: client.Cut, Why: open, Near: "data timeout", Received: "0", Counted: "some"},
			"TLS":  {Verdict: client.Cut, Why: "stage tls: nothing more came; " + open, Near: "tls timeout", Counted: "some"},
			"STUN": openDatagram,
		}},
		// The reflector hears neither that its answers are lost nor that the client left.
		{name: "the handshake's answer and every end dropped", rules: firewall(back("meta length > 200 counter drop", "TLS") + out("tcp flags & (fin|rst) != 0 drop", "TLS")),
			want: all(fact{Verdict: client.Cut, Why: "stage tls: nothing more came; " + open, Near: "tls timeout", Counted: "some"}, "TLS")},
	}
}

// idles: the firewall forgets, or does not.
func idles(t testing.TB) []row {
	stateful := builtinFirewall(t, "stateful")
	forget := map[string]string{
		"net.netfilter.nf_conntrack_udp_timeout": "1", "net.netfilter.nf_conntrack_udp_timeout_stream": "1",
		"net.netfilter.nf_conntrack_tcp_timeout_established": "1", "net.netfilter.nf_conntrack_tcp_loose": "0",
	}
	stream := fact{Verdict: client.Cut, Why: "s of silence: nothing more came", Near: "idle timeout", Received: "16384"}
	return []row{
		{name: "flow forgotten while idle", scenario: "idle", rules: stateful, sysctl: forget, want: join(all(stream, streams...), map[string]fact{
			"UDP": {Verdict: client.Cut, Why: "after 1.8 s of silence the reflector's packet no longer came through", Near: "idle timeout", Attempts: "3/3/3"},
		})},
		{name: "flow kept while idle", scenario: "idle", rules: stateful, want: all(isOpen, "UDP", "TCP", "TLS")},
	}
}

// lossy: some of the datagrams are lost. nft counts packets from 0.
func lossy() []row {
	half := "meta length < 600 numgen inc mod 2 == 0 counter drop"
	degraded := fact{Verdict: client.Degraded, Why: "datagrams lost; at most 20 % are allowed"}
	single := fact{Verdict: client.Degraded, Why: "50 % of 20 datagrams lost; at most 20 % are allowed", Near: "done"}
	sent, heard := single.and("as lost"), single.and("as unanswered")
	sent.Attempts, heard.Attempts = "20/10/10", "20/20/10"
	return []row{
		{name: "half of the datagrams lost on the way out", rules: firewall(out(half, datagrams...)), want: all(sent, datagrams...)},
		{name: "half of the answers lost", rules: firewall(back(half, datagrams...)), want: all(heard, datagrams...)},
		{name: "half of the datagrams of ranges lost", scenario: "ranges", rules: firewall(out(half, "UDP-RANGE", "OWN-RANGE")),
			want: all(degraded.and("as lost"), "UDP-RANGE", "OWN-RANGE")},
		{name: "first datagram lost", rules: firewall(out("numgen inc mod 1000000 == 0 counter drop", datagrams...)),
			want: all(fact{Verdict: client.Open, Near: "done", Attempts: "20/19/19", Counted: "as lost"}, datagrams...)},
		{name: "second answer lost", rules: firewall(back("numgen inc mod 1000000 == 1 counter drop", datagrams...)),
			want: all(fact{Verdict: client.Open, Near: "done", Attempts: "20/20/19", Counted: "as unanswered"}, datagrams...)},
		{name: "one datagram of ranges lost", scenario: "ranges", rules: firewall(out("numgen inc mod 1000000 == 5 counter drop", "UDP-RANGE", "OWN-RANGE")),
			want: all(fact{Verdict: client.Open, Ports: "open", Counted: "as lost"}, "UDP-RANGE", "OWN-RANGE")},
	}
}

func TestEveryRowOfTheTruthTableIsNamedOnceAndKnowsItsPaths(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range table(t) {
		if seen[r.name] {
			t.Errorf("two rows are called %q", r.name)
		}
		seen[r.name] = true
		for id := range maps.Keys(r.want) {
			if _, ok := flows[id]; !ok {
				t.Errorf("%s: there is no path %q", r.name, id)
			}
		}
	}
}
