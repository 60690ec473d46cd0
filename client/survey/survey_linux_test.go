package survey

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

var families = []struct {
	v6    bool
	codes map[string]uint8 // nft reject word: code of "unreachable"
}{
	{false, map[string]uint8{"net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3,
		"net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13}},
	{true, map[string]uint8{"no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4}},
}

// rejectRules gives every code its own port from 1001, with one rule each.
func rejectRules(proto string, v6 bool, codes map[string]uint8) (string, []Answer) {
	var rules strings.Builder
	var want []Answer
	family, icmpType := "icmp", uint8(3)
	if v6 {
		family, icmpType = "icmpv6", 1
	}
	for word, code := range codes {
		port := 1001 + uint16(code)
		fmt.Fprintf(&rules, "%s dport %d reject with %s type %s\n", proto, port, family, word)
		want = append(want, Answer{Port: port, Sent: 1, Fault: Unreachable,
			ICMP: ICMP{Type: icmpType, Code: code, From: routerAddr[v6], V6: v6}})
	}
	return rules.String(), want
}

func byPort(a []Answer) map[uint16]Answer {
	m := map[uint16]Answer{}
	for _, x := range a {
		m[x.Port] = x
	}
	return m
}

func TestEveryRejectIsReportedWithTypeCodeAndSender(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.serve(1100)
	for _, f := range families {
		udpRules, udpWant := rejectRules("udp", f.v6, f.codes)
		tcpRules, tcpWant := rejectRules("tcp", f.v6, f.codes)
		l.rules(udpRules + tcpRules + "tcp dport 1098 reject with tcp reset\ntcp dport 1099 drop\nudp dport 1099 drop\n")
		udpWant = append(udpWant, Answer{Port: 1099, Sent: 3, Fault: Timeout},
			Answer{Port: 1100, Sent: 1, Fault: Unreachable, ICMP: closedPort(f.v6)})
		tcpWant = append(tcpWant, Answer{Port: 1098, Sent: 1, Fault: Reset}, Answer{Port: 1099, Sent: 3, Fault: Timeout},
			Answer{Port: 1100, Sent: 1, Answered: 1}, Answer{Port: 1101, Sent: 1, Fault: Reset})
		t.Run(fmt.Sprintf("v6=%v", f.v6), func(t *testing.T) {
			got, err := UDP{Target: serverAddr[f.v6], Ports: portsOf(udpWant), Spacing: 50 * time.Millisecond, Wait: 100 * time.Millisecond}.Run(t.Context())
			must(t, err)
			if diff := cmp.Diff(byPort(udpWant), byPort(got), unstable); diff != "" {
				t.Errorf("UDP, remote ports:\n%s", diff)
			}
			tcp, err := TCP{Target: serverAddr[f.v6], Ports: portsOf(tcpWant), Timeout: 50 * time.Millisecond}.Run(t.Context())
			must(t, err)
			if diff := cmp.Diff(byPort(tcpWant), byPort(tcp), unstable); diff != "" {
				t.Errorf("TCP:\n%s", diff)
			}
			dialled := map[uint16]Answer{}
			for _, w := range tcpWant {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				c, a := Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(serverAddr[f.v6], w.Port))
				cancel()
				if c != nil {
					c.Close()
				}
				if a.Fault == Timeout {
					a.Sent = 3 // one is all that a dial does
				}
				dialled[w.Port] = a
			}
			if diff := cmp.Diff(byPort(tcpWant), dialled, unstable); diff != "" {
				t.Errorf("Dial:\n%s", diff)
			}
		})
		l.rules(strings.ReplaceAll(udpRules, "dport", "sport"))
		t.Run(fmt.Sprintf("local ports v6=%v", f.v6), func(t *testing.T) {
			want := udpWant[:len(udpWant)-2]
			got, err := UDP{Target: serverAddr[f.v6], LocalPorts: portsOf(want), RemotePort: 7}.Run(t.Context())
			must(t, err)
			if diff := cmp.Diff(byPort(want), byPort(got), unstable); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// closedPort is what the server's own kernel says of a port nobody listens on.
func closedPort(v6 bool) ICMP {
	if v6 {
		return ICMP{Type: 1, Code: 4, From: serverAddr[true], V6: true}
	}
	return ICMP{Type: 3, Code: 3, From: serverAddr[false]}
}

var everyPort = scenarios.PortSet{{First: 1, Last: 65535}}

// randomHalf picks about half of all ports.
func randomHalf() *[65536]bool {
	var dropped [65536]bool
	random := rand.New(rand.NewPCG(1, 2))
	for p := 1; p <= 65535; p++ {
		dropped[p] = random.IntN(2) == 0
	}
	return &dropped
}

func wantHalf(ports scenarios.PortSet, dropped *[65536]bool) []Answer {
	var want []Answer
	for p := range ports.All {
		a := Answer{Port: p}
		if dropped[p] {
			a.Fault = Timeout
		} else {
			a.Answered = 1
		}
		want = append(want, a)
	}
	return want
}

func TestHalfOfAllPortsDroppedIsReportedExactly(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.echoAll()
	dropped := randomHalf()
	l.drop("udp dport", dropped)
	for _, v6 := range []bool{false, true} {
		start := time.Now()
		got, err := UDP{Target: serverAddr[v6], Ports: everyPort, Spacing: 100 * time.Millisecond, Request: request, Check: check}.Run(t.Context())
		must(t, err)
		t.Logf("v6=%v: %v", v6, time.Since(start))
		if diff := differences(wantHalf(everyPort, dropped), got, anySent); diff != "" {
			t.Errorf("v6=%v:\n%.2000s", v6, diff)
		}
	}
}

func TestHalfOfTheLocalPortsDroppedIsReportedExactly(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.echoAll()
	dropped := randomHalf()
	l.drop("udp sport", dropped)
	taken, err := net.ListenUDP("udp", &net.UDPAddr{Port: 50000})
	must(t, err)
	defer taken.Close()
	ports := scenarios.PortSet{{First: 40001, Last: 65535}}
	want := wantHalf(ports, dropped)
	want[50000-40001] = Answer{Port: 50000, Fault: Other}
	start := time.Now()
	got, err := UDP{Target: serverAddr[false], LocalPorts: ports, RemotePort: 3478, Spacing: 50 * time.Millisecond, Request: request, Check: check}.Run(t.Context())
	must(t, err)
	t.Log(time.Since(start))
	if diff := differences(want, got, anySent); diff != "" {
		t.Errorf("%.2000s", diff)
	}
	if err := got[50000-40001].Err; err == nil || err.Error() != "address already in use" {
		t.Errorf("a port in use: %v", err)
	}
}

func TestTCPSweepOfDroppedPortsFindsTheFewOpenOnes(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.serve(2000, 9999, 16384)
	l.rules(`iifname "f0" tcp dport != { 2000, 9999, 16384 } drop`)
	ports := scenarios.PortSet{{First: 1025, Last: 17408}}
	var want []Answer
	for p := range ports.All {
		a := Answer{Port: p, Sent: 2, Fault: Timeout}
		if p == 2000 || p == 9999 || p == 16384 {
			a = Answer{Port: p, Sent: 1, Answered: 1}
		}
		want = append(want, a)
	}
	start := time.Now()
	got, err := TCP{Target: serverAddr[false], Ports: ports, Timeout: 250 * time.Millisecond, Attempts: 2, RTT: time.Millisecond, Exchange: greet}.Run(t.Context())
	must(t, err)
	t.Log(time.Since(start))
	if diff := differences(want, got, sameSent); diff != "" {
		t.Errorf("%.2000s", diff)
	}
}

// greet sends a line and wants it back.
func greet(_ context.Context, c net.Conn, port uint16) error {
	line := fmt.Sprintf("port %d\n", port)
	if _, err := c.Write([]byte(line)); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err == nil && string(b[:n]) != line {
		err = fmt.Errorf("got %q, want %q", b[:n], line)
	}
	return err
}

func TestTooBigDatagramNamesThePathMTU(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.echoAll()
	l.in(l.firewall, func() error { return setMTU("f1", 1300) })
	for _, v6 := range []bool{false, true} {
		icmp := ICMP{Type: 3, Code: 4, From: routerAddr[v6]}
		if v6 {
			icmp = ICMP{Type: 2, Code: 0, From: routerAddr[v6], V6: true}
		}
		u := UDP{Target: serverAddr[v6], Ports: scenarios.PortSet{{First: 7, Last: 7}}, DontFragment: true, Attempts: 1,
			Request: func(dst []byte, _ uint16, _ int) []byte { return append(dst, make([]byte, 1400)...) }}
		got, err := u.Run(t.Context())
		must(t, err)
		again, err := u.Run(t.Context())
		must(t, err)
		want := []Answer{{Port: 7, Sent: 1, Fault: TooBig, ICMP: icmp, MTU: 1300}, {Port: 7, Fault: TooBig, MTU: 1300}}
		if diff := cmp.Diff(want, append(got, again...), unstable); diff != "" {
			t.Errorf("v6=%v:\n%s", v6, diff)
		}
		if mtu, err := PathMTU(serverAddr[v6]); mtu != 1300 || err != nil {
			t.Errorf("v6=%v: path MTU %d, %v", v6, mtu, err)
		}
	}
}

func TestNoRouteIsThisHostsOwnFault(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	must(t, unroute("c0"))
	for _, target := range []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")} {
		ports := scenarios.PortSet{{First: 7, Last: 8}}
		want := []Answer{{Port: 7, Fault: Unroutable}, {Port: 8, Fault: Unroutable}}
		udp, err := UDP{Target: target, Ports: ports}.Run(t.Context())
		must(t, err)
		tcp, err := TCP{Target: target, Ports: ports}.Run(t.Context())
		must(t, err)
		if diff := cmp.Diff([][]Answer{want, want}, [][]Answer{udp, tcp}, unstable); diff != "" {
			t.Errorf("%s:\n%s", target, diff)
		}
	}
}

func TestLossIsCountedDatagramByDatagram(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.echoAll()
	l.rules("udp dport 2000 numgen inc mod 2 0 drop\nudp dport 2002 @th,96,8 1 drop\n") // 2002: the second attempt
	got, err := UDP{Target: serverAddr[false], Ports: scenarios.PortSet{{First: 2000, Last: 2002}},
		All: true, Attempts: 50, Spacing: time.Millisecond, Wait: 50 * time.Millisecond, Request: request, Check: check}.Run(t.Context())
	must(t, err)
	want := []Answer{{Port: 2000, Sent: 50, Answered: 25}, {Port: 2001, Sent: 50, Answered: 50}, {Port: 2002, Sent: 50, Answered: 49}}
	if diff := cmp.Diff(want, got, unstable); diff != "" {
		t.Error(diff)
	}
}

func TestEveryPortRejectedIsReportedExactly(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.rules("udp dport != 0 reject with icmpx type admin-prohibited\n")
	for _, v6 := range []bool{false, true} {
		icmp := ICMP{Type: 3, Code: 13, From: routerAddr[v6]}
		if v6 {
			icmp = ICMP{Type: 1, Code: 1, From: routerAddr[v6], V6: true}
		}
		var want []Answer
		for p := range everyPort.All {
			want = append(want, Answer{Port: p, Fault: Unreachable, ICMP: icmp})
		}
		start := time.Now()
		got, err := UDP{Target: serverAddr[v6], Ports: everyPort, RTT: time.Millisecond, Request: request, Check: check}.Run(t.Context())
		must(t, err)
		t.Logf("v6=%v: %v", v6, time.Since(start))
		if diff := differences(want, got, anySent); diff != "" {
			t.Errorf("v6=%v:\n%.2000s", v6, diff)
		}
	}
}

func TestScarceDescriptorsOnlySlowASurveyDown(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.rules("drop\n")
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: old.Max}))
	for range 120 { // with these, what the limit seems to leave is not there
		f, err := os.Open("/dev/null")
		must(t, err)
		defer f.Close()
	}
	ports := scenarios.PortSet{{First: 20001, Last: 20400}}
	udp, err := UDP{Target: serverAddr[false], LocalPorts: ports, RemotePort: 7, Attempts: 2,
		Spacing: 10 * time.Millisecond, Wait: 10 * time.Millisecond, RTT: time.Millisecond}.Run(t.Context())
	must(t, err)
	tcp, err := TCP{Target: serverAddr[false], Ports: ports, Attempts: 2, Timeout: 10 * time.Millisecond, RTT: time.Millisecond}.Run(t.Context())
	must(t, err)
	var want []Answer
	for p := range ports.All {
		want = append(want, Answer{Port: p, Sent: 2, Fault: Timeout})
	}
	if diff := cmp.Diff([][]Answer{want, want}, [][]Answer{udp, tcp}, unstable); diff != "" {
		t.Errorf("%.2000s", diff)
	}
}

// Deep in a blocked range the last attempt proves nothing; at its edges, and
// where a single port is silent, it does.
func TestLastAttemptIsSparedOnlyAmidSilence(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	l.echoAll()
	dropped := new([65536]bool)
	dropped[20000] = true
	for p := uint16(30000); p < 32000; p++ {
		dropped[p] = true
	}
	ports := scenarios.PortSet{{First: 19000, Last: 40000}}
	u := UDP{Target: serverAddr[false], Amid: 100, Spacing: 50 * time.Millisecond, Request: request, Check: check}
	for by, set := range map[string]func(u *UDP){
		"udp dport": func(u *UDP) { u.Ports = ports },
		"udp sport": func(u *UDP) { u.LocalPorts, u.RemotePort = ports, 7 },
	} {
		l.drop(by, dropped)
		u := u
		set(&u)
		got, err := u.Run(t.Context())
		must(t, err)
		want := wantHalf(ports, dropped)
		for i := range want {
			switch p := want[i].Port; {
			case p >= 30100 && p < 31900:
				want[i].Sent = 2
			case dropped[p] && len(u.Ports) > 0, p == 20000, p >= 30000 && p < 30050, p >= 31950 && p < 32000:
				want[i].Sent = 3
			default:
				// Until it answered; or, of own ports, as many neighbours as had
				// had a turn tell where the silence ends.
				want[i].Sent = got[i].Sent
			}
		}
		if diff := differences(want, got, sameSent); diff != "" {
			t.Errorf("%s: %.2000s", by, diff)
		}
	}
}

// Surveys side by side keep within what is theirs together, and each that finds
// no socket left waits for one.
func TestLeasesShareDescriptors(t *testing.T) {
	a, b := newLease(3), newLease(3)
	a.all, b.all = leased.Load()+4, leased.Load()+4
	took := func(l *lease) (n int) {
		for l.take() {
			n++
		}
		return n
	}
	if n := took(&a); n != 3 {
		t.Errorf("a lease of 3 gave %d", n)
	}
	if n := took(&b); n != 1 {
		t.Errorf("where 1 of 4 is left, a lease gave %d", n)
	}
	a.give()
	if n := took(&b); n != 1 {
		t.Errorf("after 1 was given back, a lease gave %d", n)
	}
	a.end()
	b.end()
	if n := took(&a); n != 3 {
		t.Errorf("after all was given back, a lease of 3 gave %d", n)
	}
	a.end()
}
