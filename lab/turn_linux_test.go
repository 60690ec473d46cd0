package lab_test

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
)

// turnPaths are those of testdata/truth/turn.yaml but ICE's.
var turnPaths = map[string]flow{
	"STUN-UDP": {"udp", "3478", ""},
	"STUN-TCP": {"tcp", "3479", ""},
	"TURN-UDP": {"udp", "3480", ""},
	"TURN-TCP": {"tcp", "3480", ""},
	"TURN-TLS": {"tcp", "5349", ""},
}

var (
	turnDatagrams = []string{"STUN-UDP", "TURN-UDP"}
	turnStreams   = []string{"STUN-TCP", "TURN-TCP", "TURN-TLS"}
	relayed       = []string{"TURN-UDP", "TURN-TCP", "TURN-TLS"}
)

// turnOut is a rule for what goes out on each path, with a further match;
// turnBack one for what comes back.
func turnOut(match, action string, paths ...string) string {
	var b strings.Builder
	for _, id := range paths {
		f := turnPaths[id]
		fmt.Fprintf(&b, "\t\tiifname \"lan0\" %s dport %s %s counter %s comment \"%s\"\n", f.transport, f.remote, match, action, id)
	}
	return b.String()
}

func turnBack(match, action string, paths ...string) string {
	var b strings.Builder
	for _, id := range paths {
		f := turnPaths[id]
		fmt.Fprintf(&b, "\t\tiifname \"wan0\" %s sport %s %s counter %s comment \"%s\"\n", f.transport, f.remote, match, action, id)
	}
	return b.String()
}

// stunType matches STUN messages by type: over UDP they follow a header of 8 bytes.
func stunType(hex string) string { return "@th,64,16 0x" + hex }

// channelData matches data in channels 0x4000 to 0x4FFF.
const channelData = "@th,64,4 0x4"

// sessionPorts drops what goes to the far agent's ports, answers what comes from them.
const (
	sessionPorts   = "\t\tiifname \"lan0\" udp dport 32768-65535 counter drop comment \"ICE\"\n"
	sessionAnswers = "\t\tiifname \"wan0\" udp sport 32768-65535 counter drop comment \"ICE\"\n"
)

// Counters are compared with "some" alone: the ICE session uses the same servers.
func turnRows() []row {
	open := join(
		all(fact{Verdict: client.Open, Near: "done", Why: "mapped to ", Attempts: "3/3/3"}, "STUN-UDP"),
		all(fact{Verdict: client.Open, Near: "done", Why: "mapped to ", Attempts: "1/1/1"}, "STUN-TCP"),
		all(fact{Verdict: client.Open, Near: "done", Why: "relayed by "}, "TURN-UDP", "TURN-TCP"),
		all(fact{Verdict: client.Open, Near: "done", Why: "TLS 1.3, certificate as sent"}, "TURN-TLS"),
		all(fact{Verdict: client.Open, Near: "done", Why: "host "}, "ICE"))
	rejected := fact{Verdict: client.Rejected, Why: "tcp reset that the reflector never sent", Near: "connect refused"}
	return []row{
		{name: "nothing wrong", rules: firewall(""), want: open},
		{name: "nothing wrong behind a translator", rules: firewall("") + translator, want: open},
		{name: "dropped on the way out", rules: firewall(turnOut("", "drop", append(turnDatagrams, turnStreams...)...)), want: join(
			all(requestLost.and("some"), turnDatagrams...), all(synLost.and("some"), turnStreams...))},
		{name: "dropped on the way back", rules: firewall(turnBack("", "drop", append(turnDatagrams, turnStreams...)...)), want: join(
			all(replyLost.and("some"), turnDatagrams...), all(synAckLost.and("some"), turnStreams...))},
		{name: "rejected with a reset", rules: firewall(turnOut("", "reject with tcp reset", turnStreams...)), want: all(rejected, turnStreams...)},
		{name: "reset after the first bytes", rules: firewall(turnBack("meta length > 90", "drop", turnStreams...)), boxes: resets(middlebox.Client, 20, 3479, 3480, 5349), want: join(
			all(fact{Verdict: client.Cut, Why: "a reset came", Near: "token reset"}, "STUN-TCP", "TURN-TCP"),
			all(fact{Verdict: client.Cut, Why: "stage tls: a reset came", Near: "tls reset"}, "TURN-TLS"))},
		turnStage("the allocation", "0003", "turn allocate", "STUN is answered, but the allocation is not; the reflector saw nothing of it"),
		turnStage("the permission", "0008", "turn permission", "stage turn permission: nothing more came; the reflector saw nothing of it"),
		turnStage("the channel", "0009", "turn channel", "stage turn channel: nothing more came; the reflector saw nothing of it"),
		turnStage("the refresh", "0004", "turn refresh", "stage turn refresh: nothing more came; the reflector saw nothing of it"),
		turnStage("the indications", "0016", "turn data", "stage turn data: nothing more came in indications"),
		{name: "the allocation's answer dropped", rules: firewall(turnBack(stunType("0103"), "drop", "TURN-UDP")), want: all(fact{
			Verdict: client.Cut, Near: "turn allocate timeout", Why: "STUN is answered, but the allocation is not; the reflector answered it", Counted: "some"}, "TURN-UDP")},
		{name: "ChannelData dropped on the way out", rules: firewall(turnOut(channelData, "drop", "TURN-UDP")), want: all(fact{
			Verdict: client.Cut, Near: "turn data timeout", Why: "stage turn data: nothing more came in ChannelData, while indications pass", Counted: "some"}, "TURN-UDP")},
		{name: "ChannelData dropped on the way back", rules: firewall(turnBack(channelData, "drop", "TURN-UDP")), want: all(fact{
			Verdict: client.Cut, Near: "turn data timeout", Why: "stage turn data: nothing more came in ChannelData, while indications pass", Counted: "some"}, "TURN-UDP")},
		{name: "TURN over TLS intercepted", rules: firewall(""), boxes: intercepted("5349"), want: all(fact{
			Verdict: client.Altered, Why: "TLS intercepted", Near: "done"}, "TURN-TLS")},
	}
}

// turnAttribute changes an attribute of the messages of one type on paths TURN-UDP
// and TURN-TCP, or adds it, and makes their fingerprint good again.
func turnAttribute(from middlebox.Side, typ stun.MessageType, attr stun.AttrType) func(*scene) {
	edit := func(side middlebox.Side, b []byte) []byte {
		m := stun.New()
		if side != from || stun.Decode(b, m) != nil || m.Type != typ {
			return b
		}
		if v, err := m.Get(attr); err == nil {
			v[len(v)-1] ^= 1 // the value is a part of Raw
		} else {
			m.Add(attr, []byte("box"))
		}
		if print, err := m.Get(stun.AttrFingerprint); err == nil {
			const size = 8 // the CRC is of what comes before it
			binary.BigEndian.PutUint32(print, stun.FingerprintValue(m.Raw[:len(m.Raw)-size]))
		}
		return m.Raw
	}
	return func(s *scene) {
		s.serve(middlebox.UDP{Ports: "3480", Edit: edit}.Open(s.firewall()))
		s.serve(middlebox.TCP{Ports: "3480", Between: stunFrames(edit)}.Open(s.firewall()))
	}
}

// stunFrames passes on a stream message by message.
func stunFrames(edit func(middlebox.Side, []byte) []byte) func(client, server net.Conn) {
	return func(client, server net.Conn) {
		var both sync.WaitGroup
		pass := func(side middlebox.Side, from, to net.Conn) {
			defer to.Close()
			for {
				head := make([]byte, 4)
				if _, err := io.ReadFull(from, head); err != nil {
					return
				}
				size := int(binary.BigEndian.Uint16(head[2:]))
				if head[0] < 4 {
					size += 16 // the rest of the header
				}
				rest := make([]byte, (size+3)&^3)
				if _, err := io.ReadFull(from, rest); err != nil {
					return
				}
				if _, err := to.Write(edit(side, append(head, rest...))); err != nil {
					return
				}
			}
		}
		both.Go(func() { pass(middlebox.Client, client, server) })
		both.Go(func() { pass(middlebox.Server, server, client) })
		both.Wait()
	}
}

// turnAttributes are rows in which one attribute does not arrive as it was sent.
func turnAttributes() []row {
	allocate := func(c stun.MessageClass) stun.MessageType { return stun.NewType(stun.MethodAllocate, c) }
	permission := func(c stun.MessageClass) stun.MessageType { return stun.NewType(stun.MethodCreatePermission, c) }
	changed := func(name string, from middlebox.Side, typ stun.MessageType, attr stun.AttrType, stage, why string) row {
		return row{name: name + " changed", family: "ipv4", rules: firewall(""), boxes: turnAttribute(from, typ, attr),
			want: all(fact{Verdict: client.Altered, Why: "stage turn " + stage + ": " + why}, "TURN-UDP", "TURN-TCP")}
	}
	return []row{
		changed("the realm of a challenge", middlebox.Server, allocate(stun.ClassErrorResponse), stun.AttrRealm,
			"allocate", `"REALM wallprobe" was sent, "REALM wallprobd" arrived here`),
		changed("the nonce of a challenge", middlebox.Server, allocate(stun.ClassErrorResponse), stun.AttrNonce,
			"allocate", `"NONCE …" was sent, "NONCE …" arrived here`),
		changed("the code of a challenge", middlebox.Server, allocate(stun.ClassErrorResponse), stun.AttrErrorCode,
			"allocate", `"ERROR-CODE 401…" was sent, "ERROR-CODE 400…" arrived here`),
		changed("the realm of a request", middlebox.Client, permission(stun.ClassRequest), stun.AttrRealm,
			"permission", `"REALM wallprobe" was sent, "REALM wallprobd" arrived at the reflector`),
		changed("the nonce of a request", middlebox.Client, permission(stun.ClassRequest), stun.AttrNonce,
			"permission", `"NONCE …" was sent, "NONCE …" arrived at the reflector`),
		changed("the user of a request", middlebox.Client, permission(stun.ClassRequest), stun.AttrUsername,
			"permission", `"USERNAME wp-…" was sent, …"USERNAME wp-…" arrived at the reflector`),
		changed("the peer of a request", middlebox.Client, permission(stun.ClassRequest), stun.AttrXORPeerAddress,
			"permission", `"XOR-PEER-ADDRESS 198.51.100.10:7" was sent, "XOR-PEER-ADDRESS 198.51.100.11:7" arrived at the reflector`),
		changed("the address of an answer", middlebox.Server, allocate(stun.ClassSuccessResponse), stun.AttrXORRelayedAddress,
			"allocate", `"XOR-RELAYED-ADDRESS 198.51.100.10:…" was sent, "XOR-RELAYED-ADDRESS 198.51.100.11:…" arrived here`),
		changed("the signature of an answer", middlebox.Server, permission(stun.ClassSuccessResponse), stun.AttrMessageIntegrity,
			"permission", `"MESSAGE-INTEGRITY 0x…" was sent, "MESSAGE-INTEGRITY 0x…" arrived here`),
		// What stops nothing has not arrived as it was sent all the same.
		{name: "software put into a challenge", family: "ipv4", rules: firewall(""), boxes: turnAttribute(middlebox.Server, allocate(stun.ClassErrorResponse), stun.AttrSoftware),
			want: all(fact{Verdict: client.Altered, Near: "done", Why: `"SOFTWARE box" was put in before it arrived here`}, "TURN-UDP", "TURN-TCP")},
	}
}

// turnStage drops the requests of one type over UDP.
func turnStage(what, typ, stage, why string) row {
	return row{name: what + " dropped", rules: firewall(turnOut(stunType(typ), "drop", "TURN-UDP")), want: all(fact{
		Verdict: client.Cut, Near: stage + " timeout", Why: why, Counted: "some"}, "TURN-UDP")}
}

// iceRows name the pair that wins, or what was tried in vain. Each leaves one
// relay at the most: which of several is first hangs on how busy the machine is.
func iceRows() []row {
	noRelay := turnOut("", "drop", relayed...)
	won := func(why string) map[string]fact {
		return all(fact{Verdict: client.Open, Near: "done", Why: why}, "ICE")
	}
	return []row{
		// Relays and agents stand on ports of the range: the sweep finds each open.
		{name: "ICE and TURN in a range that is swept", scenario: "turn-range", rules: firewall(""), want: join(
			all(fact{Verdict: client.Open, Near: "done", Why: "relayed by "}, "TURN-UDP"), won("host "),
			all(fact{Verdict: client.Open, Ports: "open"}, "RANGE"))},
		{name: "ICE, direct alone", rules: firewall(noRelay), want: won("host ")},
		{name: "ICE, relayed over UDP", rules: firewall(sessionPorts + turnOut("", "drop", "TURN-TCP", "TURN-TLS")), want: won("relay over UDP 3480 ↔ ")},
		{name: "ICE, relayed over TCP", rules: firewall(sessionPorts + turnOut("", "drop", "TURN-UDP", "TURN-TLS")), want: won("relay over TCP 3480 ↔ ")},
		{name: "ICE, relayed over TLS", rules: firewall(sessionPorts + turnOut("", "drop", "TURN-UDP", "TURN-TCP")), want: won("relay over TLS 5349 ↔ ")},
		{name: "ICE, behind a translator", rules: firewall("") + translator, want: won("host ")},
		{name: "ICE, answers alone dropped", rules: firewall(sessionAnswers + noRelay), want: all(fact{
			Verdict: client.ReplyLost, Near: "ice checks timeout", Why: "checks reached the reflector's agent, its answers did not arrive: host in-progress"}, "ICE")},
		{name: "ICE, no way", rules: firewall(sessionPorts + noRelay), want: all(fact{
			Verdict: client.RequestLost, Near: "ice checks timeout", Far: "nothing",
			Why: "no check reached the reflector's agent: host in-progress, srflx in-progress, no relay over UDP 3480, no relay over TCP 3480, no relay over TLS 5349"}, "ICE")},
	}
}

func TestTURNAndICEVerdictsNameTheInjectedFault(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range slices.Concat(turnRows(), turnAttributes(), iceRows()) {
		r.scenario = cmp.Or(r.scenario, "turn")
		r.holds(t, program)
	}
}
