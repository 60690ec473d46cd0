package lab_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/protocol"
)

// A tampering is a row of which clean is the firewall's file without the fault.
// Without it and without the boxes the row is wrong about the paths in red, by
// default all of those that it is about.
type tampering struct {
	row
	clean string
	red   []string
}

// mangle makes a file of rules for what leaves and what comes in from outside.
func mangle(rules string) string {
	return "table inet mangler {\n\tchain forward {\n\t\ttype filter hook forward priority mangle; policy accept;\n" + rules + "\t}\n}\n"
}

const (
	outgoing = "\t\toifname \"wan0\" "
	incoming = "\t\tiifname \"wan0\" "
)

func tamperings() []tampering {
	list := slices.Concat(alpnFilters(), interceptions(), helloFilters(), headers(), proxies(), tlsImpostors(), changedElsewhere())
	for i := range list {
		t := &list[i]
		t.scenario = "tamper"
		if t.red == nil {
			for id := range t.want {
				t.red = append(t.red, id)
			}
		}
		slices.Sort(t.red)
	}
	return list
}

// onTLS puts a box into the way of path TLS.
func onTLS(box middlebox.TCP) func(*scene) {
	box.Ports = "8003"
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

// boxed is a row with a box on path TLS, on a firewall that translates.
func boxed(name string, box middlebox.TCP, want fact) tampering {
	rules := firewall("") + translator
	return tampering{row: row{name: name, rules: rules, boxes: onTLS(box), want: all(want, "TLS")}, clean: rules}
}

// interceptions: somebody speaks TLS to both ends.
func interceptions() []tampering {
	const chains = `TLS intercepted: certificate … was sent, … issued by "CN=wallprobe lab inspection" was seen; the chain sent was "CN=truth.example", "CN=wallprobe reflector CA", the chain seen was "CN=truth.example", "CN=wallprobe lab inspection"; the ClientHello arrived as another`
	return []tampering{
		boxed("TLS intercepted", middlebox.TCP{Between: new(middlebox.Interceptor).Between},
			fact{Verdict: client.Altered, Why: chains, Near: "done", Far: "done"}),
		boxed("TLS intercepted by another authority", middlebox.TCP{Between: (&middlebox.Interceptor{Authority: "Inspection CA"}).Between},
			fact{Verdict: client.Altered, Why: `issued by "CN=Inspection CA" was seen; …the chain seen was "CN=truth.example", "CN=Inspection CA"`, Near: "done", Far: "done"}),
		boxed("TLS intercepted and downgraded", middlebox.TCP{Between: (&middlebox.Interceptor{MaxVersion: 0x0303}).Between},
			fact{Verdict: client.Altered, Why: chains + `: …versions TLS 1.3, TLS 1.2 arrived as TLS 1.2; TLS 1.3 here, TLS 1.2 at the reflector`, Near: "done", Far: "done"}),
		boxed("TLS ended on the way", middlebox.TCP{Between: (&middlebox.Interceptor{Plain: true}).Between},
			fact{Verdict: client.Altered, Why: `TLS ended on the way: the reflector was spoken to without it; certificate …issued by "CN=wallprobe lab inspection" was seen`, Near: "done", Far: "done"}),
		boxed("versions taken out of the hello", middlebox.TCP{Filter: middlebox.StripVersions},
			fact{Verdict: client.Altered, Why: "the ClientHello arrived as another: versions TLS 1.3, TLS 1.2 arrived as TLS 1.2"}),
	}
}

// helloFilters: a firewall goes by what the hello says, or by the port alone.
func helloFilters() []tampering {
	const byName = `; by name: with another server name in place of "truth.example" the same hello passes on this port`
	const byTLS = "; by protocol: another name fares the same here, while what is not TLS passes on this port, and the name passes on port "
	cut := func(why, near string) fact { return fact{Verdict: client.Cut, Why: why, Near: near} }
	long := "meta length > 300 counter drop"
	return []tampering{
		boxed("reset by server name", middlebox.TCP{Filter: middlebox.ByName(middlebox.ResetBoth, "truth.example")},
			cut("stage tls: a reset came…"+byName, "tls reset")),
		boxed("dropped by server name", middlebox.TCP{Filter: middlebox.ByName(middlebox.DropSilent, "truth.example")},
			cut("stage tls: nothing more came…"+byName, "tls timeout")),
		boxed("alert by server name", middlebox.TCP{Filter: middlebox.ByName(middlebox.Alert, "truth.example")},
			cut("stage tls: the TLS alert \"access denied\" came, which the reflector never sent…"+byName, "")),
		boxed("TLS reset whatever the name", middlebox.TCP{Filter: middlebox.AnyHello(middlebox.ResetBoth)},
			cut("stage tls: a reset came…"+byTLS, "tls reset")),
		{clean: firewall(""), row: row{name: "large packets dropped by port", rules: firewall(out(long, "TLS")), want: all(
			cut("stage tls: nothing more came…; by port: another name fares the same here, while the name passes on port ", "tls timeout").and("some"), "TLS")}},
		{clean: firewall(""), row: row{name: "data dropped by port", rules: firewall(out("meta length > 120 counter drop", "TLS")), want: all(
			cut("stage tls: nothing more came…; by port: another name fares the same here, while the name passes on port ", "tls timeout").and("some"), "TLS")}},
	}
}

// alpnFilters: a firewall goes by the ALPN names, or takes them away. They need
// a protocol that offers some.
func alpnFilters() []tampering {
	if protocol.Named("https") == nil {
		return nil
	}
	rules := firewall("") + translator
	on := func(name string, f middlebox.Filter, want fact) tampering {
		return tampering{clean: rules, row: row{name: name, rules: rules, want: all(want, "HTTPS"),
			boxes: func(s *scene) { s.serve(middlebox.TCP{Ports: "8443", Filter: f}.Open(s.firewall())) }}}
	}
	return []tampering{
		on("reset by ALPN", middlebox.ByALPN(middlebox.ResetBoth), fact{Verdict: client.Cut, Near: "tls reset", Parts: "; by ALPN: without …the same hello passes on this port"}),
		on("ALPN taken away", middlebox.StripALPN, fact{Verdict: client.Altered, Parts: "the ClientHello arrived as another: ALPN …arrived as none"}),
	}
}

// headers: header fields are rewritten, which stops nothing.
func headers() []tampering {
	clean := firewall("")
	marked := []string{"UDP", "STUN", "QUIC"} // QUIC is plain datagrams there
	open := func(passage string) fact { return fact{Verdict: client.Open, Near: "done", Passage: passage} }
	rows := []tampering{
		{row: row{name: "DSCP cleared, ipv4", family: "ipv4", rules: mangle(outgoing + "ip dscp set 0\n"), want: all(open("DSCP 46 arrived as 0"), "UDP", "TCP", "TLS", "STUN")}},
		{row: row{name: "DSCP cleared, ipv6", family: "ipv6", rules: mangle(outgoing + "ip6 dscp set 0\n"), want: all(open("DSCP 46 arrived as 0"), "UDP", "TCP", "TLS", "STUN")}},
		{row: row{name: "DSCP set, ipv4", family: "ipv4", rules: mangle(outgoing + "ip dscp set 10\n"),
			want: join(all(open("DSCP 46 arrived as 10"), "UDP"), all(open("DSCP 0 arrived as 10; DSCP 46 arrived as 10"), streams...))}},
		{row: row{name: "ECN bleached, ipv4", family: "ipv4", rules: mangle(outgoing + "ip ecn set not-ect\n"), want: all(open("ECN ECT(0) arrived as Not-ECT: bleached"), "UDP")}},
		{row: row{name: "ECN bleached, ipv6", family: "ipv6", rules: mangle(outgoing + "ip6 ecn set not-ect\n"), want: all(open("ECN ECT(0) arrived as Not-ECT: bleached"), "UDP")}},
		{row: row{name: "congestion marked, ipv4", family: "ipv4", rules: mangle(outgoing + "ip ecn != not-ect ip ecn set ce\n"), want: all(open("ECN ECT(0) arrived as CE: marked as congested"), "UDP")}},
		{row: row{name: "TTL set higher, ipv4", family: "ipv4", rules: mangle(outgoing + "ip ttl set 128\n"), want: all(open("TTL 64 arrived as 128: rewritten"), "UDP", "TCP", "TLS")}},
		{row: row{name: "TTL set higher, ipv6", family: "ipv6", rules: mangle(outgoing + "ip6 hoplimit set 128\n"), want: all(open("TTL 64 arrived as 128: rewritten"), "UDP", "TCP", "TLS")}},
		{row: row{name: "TTL set as it was, ipv4", family: "ipv4", rules: mangle(outgoing + "ip ttl set 64\n"), want: all(open("TTL 64 arrived as 64: rewritten, for a router lies between"), "UDP", "TCP", "TLS")}},
		{row: row{name: "marked datagrams dropped, ipv4", family: "ipv4", rules: mangle(outgoing + "ip dscp ef drop\n"),
			want: join(all(open("DSCP 46 arrived as nothing: marked datagrams are lost, others are not"), "UDP"),
				all(open("DSCP 46 arrived as nothing: marked connections are lost, others are not"), streams...))}},
		{row: row{name: "DSCP cleared on the way back, ipv4", family: "ipv4", rules: mangle(incoming + "ip dscp set 0\n"), want: all(open("DSCP 46 of the reflector arrived as 0"), marked...)}},
		{row: row{name: "DSCP cleared on the way back, ipv6", family: "ipv6", rules: mangle(incoming + "ip6 dscp set 0\n"), want: all(open("DSCP 46 of the reflector arrived as 0"), marked...)}},
		{row: row{name: "TTL set higher on the way back, ipv4", family: "ipv4", rules: mangle(incoming + "ip ttl set 128\n"), want: all(open("TTL 64 of the reflector arrived as 128: rewritten"), marked...)}},
		{row: row{name: "TTL set higher on the way back, ipv6", family: "ipv6", rules: mangle(incoming + "ip6 hoplimit set 128\n"), want: all(open("TTL 64 of the reflector arrived as 128: rewritten"), marked...)}},
		{row: row{name: "congestion marked on the way back, ipv4", family: "ipv4", rules: mangle(incoming + "ip ecn != not-ect ip ecn set ce\n"), want: all(open("ECN ECT(0) of the reflector arrived as CE: marked as congested"), marked...)}},
		{row: row{name: "congestion marked on the way back, ipv6", family: "ipv6", rules: mangle(incoming + "ip6 ecn != not-ect ip6 ecn set ce\n"), want: all(open("ECN ECT(0) of the reflector arrived as CE: marked as congested"), marked...)}},
		{row: row{name: "DSCP cleared both ways, ipv4", family: "ipv4", rules: mangle("\t\tip dscp set 0\n"), want: all(open("DSCP 46 arrived as 0; DSCP 46 of the reflector arrived as 0"), marked...)}},
		{row: row{name: "segment size clamped on the way out, ipv4", family: "ipv4", rules: mangle(outgoing + "tcp flags syn tcp option maxseg size set 1360\n"), want: all(open("MSS 1460 arrived as 1360"), streams...)}},
		{row: row{name: "segment size clamped on the way out, ipv6", family: "ipv6", rules: mangle(outgoing + "tcp flags syn tcp option maxseg size set 1360\n"), want: all(open("MSS 1440 arrived as 1360"), streams...)}},
		{row: row{name: "segment size clamped on the way back, ipv4", family: "ipv4", rules: mangle(incoming + "tcp flags & syn == syn tcp option maxseg size set 1300\n"), want: all(open("MSS 1460 of the reflector arrived as 1300"), streams...)}},
		{row: row{name: "segment size clamped on the way back, ipv6", family: "ipv6", rules: mangle(incoming + "tcp flags & syn == syn tcp option maxseg size set 1300\n"), want: all(open("MSS 1440 of the reflector arrived as 1300"), streams...)}},
		{row: row{name: "segment size clamped both ways, ipv4", family: "ipv4", rules: mangle("\t\ttcp flags & syn == syn tcp option maxseg size set 1200\n"),
			want: all(open("MSS 1460 arrived as 1200; MSS 1460 of the reflector arrived as 1200"), streams...)}},
		{row: row{name: "QUIC blocked while TLS passes", rules: firewall(out("counter drop", "QUIC")),
			want: join(all(fact{Verdict: client.RequestLost, Attempts: "3/0/0", Counted: "as lost"}, "QUIC"), all(openStream, "TLS"))}, red: []string{"QUIC"}},
	}
	for i := range rows {
		rows[i].clean = clean
	}
	return rows
}

// tlsImpostors: who answers in TLS has a certificate, and not the reflector's.
func tlsImpostors() []tampering {
	return []tampering{{clean: firewall(""), row: row{name: "TLS answered by somebody else", config: lab.Config{Hosts: []string{"other"}}, rules: firewall("") + redirected("TLS"),
		boxes: func(s *scene) {
			cert, err := selfSigned("block page")
			if err != nil {
				s.Fatal(err)
			}
			s.answerTCP(8003, func(c net.Conn) {
				far := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
				_ = far.Handshake()
				_ = far.Close()
			})
		},
		want: all(fact{Verdict: client.Impostor, Near: "token eof", Far: "nothing",
			Why: "the connection was accepted, but not by the reflector: its ledger is empty; by port: another name fares the same here, while the name passes on port "}, "TLS")}}}
}

// changedElsewhere: requests are changed by a proxy that has an address of its own, from
// which nothing that verifies ever comes.
func changedElsewhere() []tampering {
	plain := firewall("")
	var rows []tampering
	for _, at := range []int64{26, 70} {
		flip := []middlebox.Rewrite{{From: middlebox.Client, At: at}}
		rows = append(rows, tampering{clean: plain, row: row{name: fmt.Sprintf("byte %d changed by a proxy of its own address", at), rules: plain,
			boxes: func(s *scene) {
				udpBox(middlebox.UDP{Rewrites: flip})(s)
				tcpBox(middlebox.TCP{Rewrites: flip})(s)
			},
			want: all(fact{Verdict: client.Altered}, "UDP", "STUN", "TCP", "TLS")}})
	}
	// Of what no longer names the session, the address tells whose it is, once
	// something else has proved it to be the session's.
	for _, at := range []int64{1, 10} {
		flip := []middlebox.Rewrite{{From: middlebox.Client, At: at}}
		rows = append(rows, tampering{clean: plain, row: row{name: fmt.Sprintf("byte %d changed by a proxy that passes other ports", at), rules: plain,
			boxes: func(s *scene) {
				s.serve(middlebox.TCP{Ports: "{ 443, 8003 }"}.Open(s.firewall()))
				s.serve(middlebox.TCP{Ports: "8002", Rewrites: flip}.Open(s.firewall()))
			},
			want: all(fact{Verdict: client.Altered, Why: "the request arrived changed"}, "TCP")}})
	}
	return rows
}

// proxies: the connection that arrives is not the one that was made.
func proxies() []tampering {
	const anew = "connection 10.77.1.2 arrived as 198.51.100.1: a proxy in between made it anew: neither its timestamp nor its TTL are those that were sent"
	plain, translated := firewall(""), firewall("")+translator
	open := func(passage string) map[string]fact {
		return all(fact{Verdict: client.Open, Near: "done", Passage: passage}, streams...)
	}
	return []tampering{
		{clean: plain, row: row{name: "transparent proxy, ipv4", family: "ipv4", rules: plain, boxes: tcpBox(middlebox.TCP{}), want: open(anew)}},
		{clean: plain, row: row{name: "transparent proxy, ipv6", family: "ipv6", rules: plain, boxes: tcpBox(middlebox.TCP{}),
			want: open("connection fd77:0:0:1::2 arrived as 2001:db8:64::1: a proxy in between made it anew: neither its timestamp nor its TTL are those that were sent")}},
		{clean: plain, row: row{name: "translator, ipv4", family: "ipv4", rules: translated,
			want: open("source 10.77.1.2 arrived as 198.51.100.1: translated; the SYN itself arrived")}},
	}
}

func TestTamperingIsNamedByBothEnds(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range tamperings() {
		r.holds(t, program)
	}
}

// With the fault taken away, each row is wrong about exactly what it says of it.
func TestTamperingRowsGoRed(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for i, r := range tamperings() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			changed := r.row
			changed.rules, changed.boxes = r.clean, nil
			res := changed.play(t, program, r.families()[i%len(r.families())])
			if diff := gocmp.Diff(r.red, r.wrong(res)); diff != "" {
				t.Errorf("paths that the row is wrong about (-want +got):\n%s", diff)
				r.explain(t, res)
			}
		})
	}
}

func TestEveryTamperingIsNamedOnce(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range tamperings() {
		if seen[r.name] {
			t.Errorf("two rows are called %q", r.name)
		}
		seen[r.name] = true
		for id := range r.want {
			if _, ok := flows[id]; !ok {
				t.Errorf("%s: there is no path %q", r.name, id)
			}
		}
	}
}
