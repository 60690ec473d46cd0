package lab_test

import (
	"strings"

	"github.com/wallprobe/wallprobe/client"
)

// inwards: the reflector calls, and this end answers.
func inwards() []row {
	const in, back = `iifname "wan0" tcp dport 12000 `, `iifname "lan0" tcp sport 12000 `
	const inUDP, backUDP = `iifname "wan0" udp dport 12001 `, `iifname "lan0" udp sport 12001 `
	rules := func(lines ...string) string { return firewall("\t\t" + strings.Join(lines, "\n\t\t") + "\n") }
	calls := func(call, datagram fact) map[string]fact {
		return map[string]fact{"CALL": call, "CALL-UDP": datagram}
	}
	answered := fact{Verdict: client.Open, Near: "done", Attempts: "1/1/1"}
	lost := fact{Verdict: client.RequestLost, Why: "the reflector called; nothing arrived here", Near: "connect timeout", Attempts: "3/0/0"}
	unheard := fact{Verdict: client.ReplyLost, Why: "the reflector's SYN arrived here; the answer did not get back", Near: "connect timeout", Attempts: "3/3/0"}
	unheardUDP := fact{Verdict: client.ReplyLost, Why: "the reflector's call arrived here; the answer did not get back", Near: "token timeout", Attempts: "3/3/0"}
	lostUDP := lost
	lostUDP.Near = "token timeout"
	return []row{
		{name: "calls", scenario: "inward", rules: firewall(""), want: calls(answered, answered)},
		{name: "calls dropped", scenario: "inward", rules: rules(in+"counter drop", inUDP+"counter drop"), want: calls(lost, lostUDP)},
		{name: "answers to calls dropped", scenario: "inward", rules: rules(back+"counter drop", backUDP+"counter drop"), want: calls(unheard, unheardUDP)},
		{name: "answers to calls rejected", scenario: "inward", rules: rules(back+"counter reject with tcp reset", backUDP+"counter reject"), want: calls(unheard, unheardUDP)},
		{name: "calls cut after the first packet", scenario: "inward", rules: rules("ct state established " + in + "counter drop"),
			want: calls(fact{Verdict: client.Cut, Why: "the reflector's connection came up; nothing that was said in it arrived here", Near: "token timeout"}, answered)},
		{name: "what calls say is dropped", scenario: "inward", rules: rules(in + "meta length > 80 counter drop"),
			want: calls(fact{Verdict: client.Cut, Why: "the reflector's connection came up; nothing that was said in it arrived here", Near: "token timeout"}, answered)},
		{name: "calls refused by a reset", scenario: "inward", rules: rules(in + "counter reject with tcp reset"),
			want: calls(fact{Verdict: client.Rejected, Why: "it never arrived here", Near: "connect refused", Attempts: "3/0/0"}, answered)},
		{name: "calls rejected", scenario: "inward", rules: rules(in+"counter reject with icmpx admin-prohibited", inUDP+"counter reject with icmpx port-unreachable"),
			want: calls(fact{Verdict: client.Rejected, Attempts: "3/0/0"}, fact{Verdict: client.Rejected, Attempts: "3/0/0"})},
	}
}

// noRaws: what is half open is all that an end without CAP_NET_RAW sees of SYNs.
// A reset leaves nothing of it, and then nobody may say that it did not arrive.
func noRaws() []row {
	const synAck = "tcp flags & (syn|ack) == syn|ack "
	silent := fact{Verdict: client.Silent, Why: "the reflector lost sight of", Near: "connect timeout"}
	unsure := fact{Verdict: client.Silent, Why: "meanwhile this machine lost sight of SYNs", Near: "connect timeout"}
	synAckLost := fact{Verdict: client.ReplyLost, Why: "saw the SYN and answered", Near: "connect timeout"}
	synLost := fact{Verdict: client.RequestLost, Why: "the reflector saw nothing", Near: "connect timeout"}
	callLost := fact{Verdict: client.RequestLost, Why: "the reflector called; nothing arrived here"}
	unheard := fact{Verdict: client.ReplyLost, Why: "the reflector's SYN arrived here; the answer did not get back"}
	inward := func(line string) string { return firewall("\t\tiifname " + line + "\n") }
	return []row{
		{name: "requests dropped, without CAP_NET_RAW", noRaw: true, rules: firewall(out("counter drop", streams...)), want: all(synLost, streams...)},
		{name: "answers dropped, without CAP_NET_RAW", noRaw: true, rules: firewall(back(synAck+"counter drop", streams...)), want: all(synAckLost, streams...)},
		{name: "answers rejected, without CAP_NET_RAW", noRaw: true, rules: firewall(back(synAck+"counter reject with tcp reset", streams...)), want: all(silent, streams...)},
		{name: "calls dropped, without CAP_NET_RAW", scenario: "inward", noRaw: true, rules: inward(`"wan0" tcp dport 12000 counter drop`), want: all(callLost, "CALL")},
		{name: "answers to calls dropped, without CAP_NET_RAW", scenario: "inward", noRaw: true, rules: inward(`"lan0" tcp sport 12000 counter drop`), want: all(unheard, "CALL")},
		{name: "answers to calls rejected, without CAP_NET_RAW", scenario: "inward", noRaw: true, rules: inward(`"lan0" tcp sport 12000 counter reject with tcp reset`), want: all(unsure, "CALL")},
	}
}
