package survey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/scenarios"
)

// request makes a datagram that names its port and attempt; check verifies it.
func request(dst []byte, port uint16, attempt int) []byte {
	dst = binary.BigEndian.AppendUint16(append(dst, "wp"...), port)
	return append(dst, byte(attempt))
}

func check(port uint16, b []byte) (int, bool) {
	if len(b) != 5 || binary.BigEndian.Uint16(b[2:]) != port {
		return -1, false
	}
	return int(b[4]), true
}

// unstable is what differs from run to run.
var unstable = cmp.Options{
	cmpopts.IgnoreFields(Answer{}, "RTT", "Local", "Err", "Exchanged"),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmpopts.EquateErrors(),
}

// Whether the number of datagrams that were sent is compared.
const (
	sameSent = true
	anySent  = false
)

// differences is cmp.Diff of long lists, of which it looks at those pairs alone
// that are not plainly the same: with tens of thousands that takes half a minute.
func differences(want, got []Answer, sent bool) string {
	if len(want) != len(got) {
		return cmp.Diff(len(want), len(got))
	}
	var w, g []Answer
	for i, a := range want {
		if !sent {
			a.Sent = got[i].Sent
		}
		if !plainlySame(a, got[i]) && !cmp.Equal(a, got[i], unstable) {
			w, g = append(w, a), append(g, got[i])
		}
	}
	return cmp.Diff(w[:min(len(w), 50)], g[:min(len(g), 50)], unstable)
}

func plainlySame(a, b Answer) bool {
	return a.Port == b.Port && a.Sent == b.Sent && a.Answered == b.Answered && a.Duplicate == b.Duplicate && a.Invalid == b.Invalid &&
		a.Fault == b.Fault && a.ICMP == b.ICMP && a.MTU == b.MTU && len(a.Sample)+len(b.Sample) == 0 && a.ExchangeErr == nil && b.ExchangeErr == nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func portsOf(answers []Answer) scenarios.PortSet {
	var s scenarios.PortSet
	for _, a := range answers {
		s = append(s, scenarios.PortRange{First: a.Port, Last: a.Port})
	}
	return scenarios.Union(s)
}

func sorted(a []Answer) []Answer {
	return slices.SortedFunc(slices.Values(a), func(x, y Answer) int { return int(x.Port) - int(y.Port) })
}

func TestICMPIsNamedInTheWordsOfNft(t *testing.T) {
	want := map[string]ICMP{
		"":                         {},
		"icmp admin-prohibited":    {Type: 3, Code: 13},
		"icmp net-unreachable":     {Type: 3, From: netip.MustParseAddr("192.0.2.1")},
		"icmp time-exceeded":       {Type: 11},
		"icmp type 3 code 99":      {Type: 3, Code: 99},
		"icmpv6 port-unreachable":  {Type: 1, Code: 4, V6: true},
		"icmpv6 no-route":          {Type: 1, V6: true},
		"icmpv6 packet-too-big":    {Type: 2, V6: true},
		"icmpv6 type 100 code 1":   {Type: 100, Code: 1, V6: true},
		"icmpv6 parameter-problem": {Type: 4, Code: 1, V6: true},
		"icmp frag-needed":         {Type: 3, Code: 4},
		"icmpv6 addr-unreachable":  {Type: 1, Code: 3, V6: true},
		"icmp parameter-problem":   {Type: 12},
		"icmpv6 reject-route":      {Type: 1, Code: 6, V6: true},
		"icmp host-prohibited":     {Type: 3, Code: 10},
		"icmpv6 admin-prohibited":  {Type: 1, Code: 1, V6: true},
		"icmp prot-unreachable":    {Type: 3, Code: 2},
		"icmpv6 policy-fail":       {Type: 1, Code: 5, V6: true},
		"icmpv6 time-exceeded":     {Type: 3, V6: true},
		"icmp host-unreachable":    {Type: 3, Code: 1},
		"icmp net-prohibited":      {Type: 3, Code: 9},
		"icmp port-unreachable":    {Type: 3, Code: 3},
		"icmp source-quench":       {Type: 4},
		"icmp redirect":            {Type: 5},
	}
	for text, m := range want {
		if got := m.String(); got != text {
			t.Errorf("%+v is %q, want %q", m, got, text)
		}
	}
}

func TestStrideVisitsEveryPortOnce(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 1000, 64512, 65535} {
		s, seen := newStride(n), make([]bool, n)
		for k := range n {
			if seen[s.at(k)] {
				t.Fatalf("of %d: %d twice", n, s.at(k))
			}
			seen[s.at(k)] = true
		}
	}
}

// pace sends for a second of pretended time through a path that answers the
// packets it is told to, after a round trip. It returns how many were sent and
// the most that waited for an answer at once.
func pace(p *pacer, keys int, rtt time.Duration, answers func(key int) bool) (sent, most int) {
	type reply struct {
		key int
		at  time.Duration
	}
	var coming []reply
	waiting := 0
	for now := time.Duration(0); now < time.Second && sent < keys; now += 50 * time.Microsecond {
		for len(coming) > 0 && coming[0].at <= now {
			p.answered(coming[0].key, now, rtt)
			coming = coming[1:]
			waiting--
		}
		n, _ := p.allow(now, min(batchLimit, keys-sent))
		for range n {
			p.sent(sent, now)
			if answers(sent) {
				coming = append(coming, reply{sent, now + rtt})
				waiting++
			}
			sent++
		}
		most = max(most, waiting)
	}
	return sent, most
}

const batchLimit = 64

func TestPaceFitsThePath(t *testing.T) {
	const ms = time.Millisecond
	yes, no := func(int) bool { return true }, func(int) bool { return false }
	for _, test := range []struct {
		name         string
		rate         int
		known, rtt   time.Duration
		answers      func(int) bool
		least, limit int // packets in a second
		waiting      int // at most
	}{
		{"unknown and silent is polite", 0, 0, ms, no, 9_900, 10_100, 0},
		{"far is polite", 0, 20 * ms, 20 * ms, yes, 9_900, 10_100, 1000},
		{"near and silent goes by rate", 0, ms, ms, no, 185_000, localRate, 0},
		{"near and answering follows the reader", 0, ms, ms, yes, 150_000, localRate, window},
		{"near and a slow reader is never overrun", 0, ms, 8 * ms, yes, 20_000, 40_000, window},
		{"near is found out", 0, 0, ms, yes, 150_000, localRate, window},
		{"half of it answering is both", 0, ms, ms, func(k int) bool { return k%2 == 0 }, 150_000, localRate, window + window/4},
		{"a given rate is kept", 3000, ms, ms, yes, 2_900, 3_100, window},
	} {
		sent, most := pace(newPacer(test.rate, test.known, 1<<20), 1<<20, test.rtt, test.answers)
		if sent < test.least || sent > test.limit || most > test.waiting {
			t.Errorf("%s: %d sent, want %d to %d; %d waiting, want %d at most", test.name, sent, test.least, test.limit, most, test.waiting)
		}
	}
}

func TestAStalledReaderStopsTheSender(t *testing.T) {
	p := newPacer(0, time.Millisecond, 1<<20)
	n, stalled := 0, 0
	for now := time.Duration(0); now < 99*time.Millisecond+stall; now += 50 * time.Microsecond {
		k, _ := p.allow(now, batchLimit)
		for range k {
			p.sent(n, now)
			if now < 100*time.Millisecond {
				p.answered(n, now, time.Millisecond)
			} else {
				stalled++
			}
			n++
		}
	}
	if n < 10_000 || stalled != window {
		t.Errorf("%d of %d packets went to a stalled reader, want %d", stalled, n, window)
	}
}

// A host is a test's UDP server with one port for each way to behave.
type host struct{ echo, twice, garbage, closed, silent uint16 }

func newHost(t *testing.T, network, address string) host {
	t.Helper()
	listen := func(answer func(c net.PacketConn, b []byte, to net.Addr)) uint16 {
		c, err := net.ListenPacket(network, net.JoinHostPort(address, "0"))
		if err != nil {
			lacks(t, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			b := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					answer(c, b[:n], from)
				}
			}
		})
		t.Cleanup(func() { c.Close(); wg.Wait() })
		return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	h := host{
		echo:    listen(func(c net.PacketConn, b []byte, to net.Addr) { c.WriteTo(b, to) }),
		twice:   listen(func(c net.PacketConn, b []byte, to net.Addr) { c.WriteTo(b, to); c.WriteTo(b, to) }),
		garbage: listen(func(c net.PacketConn, b []byte, to net.Addr) { c.WriteTo([]byte(strings.Repeat("x", 300)), to) }),
		silent:  listen(func(net.PacketConn, []byte, net.Addr) {}),
	}
	c, err := net.ListenPacket(network, net.JoinHostPort(address, "0"))
	must(t, err)
	h.closed = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	c.Close()
	return h
}

// engines are the ways to run a survey on this system.
var udpEngines = map[string]func(UDP, context.Context) ([]Answer, error){"native": UDP.run, "portable": UDP.portable}
var tcpEngines = map[string]func(TCP, context.Context) ([]Answer, error){"native": TCP.run, "portable": TCP.portable}

func TestUDPTellsWhatEachPortDid(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		for name, run := range udpEngines {
			t.Run(address+" "+name, func(t *testing.T) {
				h := newHost(t, "udp", address)
				want := sorted([]Answer{
					{Port: h.echo, Sent: 1, Answered: 1},
					{Port: h.twice, Sent: 1, Answered: 1},
					{Port: h.garbage, Sent: 2, Invalid: 2, Fault: Timeout, Sample: []byte(strings.Repeat("x", 256))},
					{Port: h.closed, Sent: 1, Fault: Unreachable},
					{Port: h.silent, Sent: 2, Fault: Timeout},
				})
				u, err := UDP{Target: netip.MustParseAddr(address), Ports: portsOf(want), Attempts: 2,
					Spacing: 30 * time.Millisecond, Wait: 30 * time.Millisecond, Request: request, Check: check}.complete()
				must(t, err)
				got, err := run(u, t.Context())
				must(t, err)
				if diff := cmp.Diff(want, got, unstable, cmpopts.IgnoreFields(Answer{}, "Duplicate", "ICMP")); diff != "" {
					t.Error(diff)
				}
				for _, a := range got {
					if a.Port == h.echo && (a.RTT <= 0 || a.RTT > time.Second || a.Local.Addr().String() != address || a.Local.Port() == 0) {
						t.Errorf("round trip %v from %v", a.RTT, a.Local)
					}
				}
			})
		}
	}
}

func TestUDPCountsEveryAttemptWithAll(t *testing.T) {
	for name, run := range udpEngines {
		h := newHost(t, "udp", "127.0.0.1")
		want := sorted([]Answer{{Port: h.echo, Sent: 20, Answered: 20}, {Port: h.twice, Sent: 20, Answered: 20, Duplicate: 20}})
		u, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), Ports: portsOf(want), Attempts: 20, All: true,
			Spacing: time.Millisecond, Wait: 50 * time.Millisecond, Request: request, Check: check}.complete()
		must(t, err)
		got, err := run(u, t.Context())
		must(t, err)
		// The duplicate of the very last answer may come after the survey's end.
		for i := range got {
			if got[i].Duplicate == 19 {
				got[i].Duplicate = 20
			}
		}
		if diff := cmp.Diff(want, got, unstable); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestUDPFromManyLocalPorts(t *testing.T) {
	for name, run := range udpEngines {
		h := newHost(t, "udp", "127.0.0.1")
		ports := scenarios.PortSet{{First: 31200, Last: 31699}}
		u, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), LocalPorts: ports, RemotePort: h.echo, InFlight: 100, Request: request, Check: check}.complete()
		must(t, err)
		var last [2]int
		u.Progress = func(done, total int) { last = [2]int{done, total} }
		got, err := run(u, t.Context())
		must(t, err)
		var want []Answer
		for p := range ports.All {
			want = append(want, Answer{Port: p, Sent: 1, Answered: 1, Local: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p)})
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Answer{}, "RTT", "Sent"), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.IgnoreFields(ICMP{}, "From")); diff != "" {
			t.Errorf("%s:\n%.1500s", name, diff)
		}
		if last != [2]int{500, 500} {
			t.Errorf("%s: progress ended at %v", name, last)
		}
	}
}

// What comes to an own port from elsewhere is nobody's answer, whatever it says.
func TestOwnPortsHearTheRemotePortAlone(t *testing.T) {
	for name, run := range udpEngines {
		asked, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		must(t, err)
		other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		must(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := make([]byte, 64)
			for {
				n, from, err := asked.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				other.WriteToUDPAddrPort(b[:n], from) // its only answer comes from another port
			}
		}()
		ports := scenarios.PortSet{{First: 30600, Last: 30609}}
		u, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), LocalPorts: ports, RemotePort: asked.LocalAddr().(*net.UDPAddr).AddrPort().Port(),
			Attempts: 2, Spacing: 10 * time.Millisecond, Wait: 50 * time.Millisecond, Request: request, Check: check}.complete()
		must(t, err)
		got, err := run(u, t.Context())
		must(t, err)
		var want []Answer
		for p := range ports.All {
			want = append(want, Answer{Port: p, Sent: 2, Fault: Timeout})
		}
		if diff := cmp.Diff(want, got, unstable); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		asked.Close()
		<-done
		other.Close()
	}
}

func TestTCPTellsWhatEachPortDid(t *testing.T) {
	errRefused := errors.New("wrong answer")
	for _, address := range []string{"127.0.0.1", "::1"} {
		for name, run := range tcpEngines {
			t.Run(address+" "+name, func(t *testing.T) {
				good, bad, slow, closed := listenTCP(t, address), listenTCP(t, address), listenTCP(t, address), listenTCP(t, address)
				closed.Close()
				want := sorted([]Answer{
					{Port: portOf(good), Sent: 1, Answered: 1},
					{Port: portOf(bad), Sent: 1, Answered: 1, ExchangeErr: errRefused},
					{Port: portOf(slow), Sent: 1, Answered: 1, ExchangeErr: os.ErrDeadlineExceeded},
					{Port: portOf(closed), Sent: 1, Fault: Reset},
				})
				tcp, err := TCP{Target: netip.MustParseAddr(address), Ports: portsOf(want), Limit: 50 * time.Millisecond,
					Exchange: func(_ context.Context, c net.Conn, port uint16) error {
						switch port {
						case portOf(bad):
							return errRefused
						case portOf(slow):
							_, err := c.Read(make([]byte, 1))
							return err
						}
						return nil
					}}.complete()
				must(t, err)
				got, err := run(tcp, t.Context())
				must(t, err)
				if diff := cmp.Diff(want, got, unstable); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func listenTCP(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		lacks(t, err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func portOf(ln net.Listener) uint16 { return ln.Addr().(*net.TCPAddr).AddrPort().Port() }

func TestTCPFromManyLocalPorts(t *testing.T) {
	for name, run := range tcpEngines {
		ln := listenTCP(t, "127.0.0.1")
		ports := scenarios.PortSet{{First: 31000, Last: 31049}}
		tcp, err := TCP{Target: netip.MustParseAddr("127.0.0.1"), LocalPorts: ports, RemotePort: portOf(ln),
			Exchange: func(_ context.Context, c net.Conn, port uint16) error {
				if p := c.LocalAddr().(*net.TCPAddr).Port; p != int(port) {
					return fmt.Errorf("port %d came from %d", port, p)
				}
				return nil
			}}.complete()
		must(t, err)
		if name == "portable" {
			tcp.LocalPorts = scenarios.PortSet{{First: 31100, Last: 31149}} // the others are in TIME-WAIT
		}
		got, err := run(tcp, t.Context())
		must(t, err)
		var want []Answer
		for p := range tcp.LocalPorts.All {
			want = append(want, Answer{Port: p, Sent: 1, Answered: 1})
		}
		if diff := cmp.Diff(want, got, unstable); diff != "" {
			t.Errorf("%s:\n%.1500s", name, diff)
		}
	}
}

func TestCancellingKeepsWhatIsKnown(t *testing.T) {
	stop := errors.New("enough")
	h := newHost(t, "udp", "127.0.0.1")
	for name, run := range udpEngines {
		ctx, cancel := context.WithCancelCause(t.Context())
		want := sorted([]Answer{{Port: h.echo, Sent: 1, Answered: 1}, {Port: h.silent, Sent: 1, Fault: Unfinished}})
		u, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), Ports: portsOf(want), Spacing: time.Hour, Request: request,
			Check: func(port uint16, b []byte) (int, bool) {
				time.AfterFunc(50*time.Millisecond, func() { cancel(stop) })
				return check(port, b)
			}}.complete()
		must(t, err)
		got, err := run(u, ctx)
		if diff := cmp.Diff(want, got, unstable); diff != "" || !errors.Is(err, stop) {
			t.Errorf("udp %s: %v\n%s", name, err, diff)
		}
	}
	ln := listenTCP(t, "127.0.0.1")
	for name, run := range tcpEngines {
		ctx, cancel := context.WithCancelCause(t.Context())
		returned := false
		tcp, err := TCP{Target: netip.MustParseAddr("127.0.0.1"), Ports: scenarios.PortSet{{First: portOf(ln), Last: portOf(ln)}}, Limit: time.Hour,
			Exchange: func(_ context.Context, c net.Conn, _ uint16) error {
				cancel(stop)
				_, err := io.ReadAll(c)
				returned = true
				return err
			}}.complete()
		must(t, err)
		got, err := run(tcp, ctx)
		want := []Answer{{Port: portOf(ln), Sent: 1, Answered: 1, Fault: Unfinished, ExchangeErr: net.ErrClosed}}
		if diff := cmp.Diff(want, got, unstable); diff != "" || !errors.Is(err, stop) || !returned {
			t.Errorf("tcp %s: %v, exchange returned: %v\n%s", name, err, returned, diff)
		}
	}
}

// Of what is silent when a survey is cancelled, only that is silence which was
// waited for: after the last attempt that a port is due.
func TestCancelledSurveyCallsNothingSilentThatItDidNotWaitFor(t *testing.T) {
	const amid, long, now = 2, time.Second, time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		attempts []int // of each port
		last     time.Duration
		want     Fault // of the port in the middle
	}{
		"waited for":                           {[]int{3, 3, 3, 3, 3}, now - long, Timeout},
		"not long enough":                      {[]int{3, 3, 3, 3, 3}, now - long + 1, Unfinished},
		"with an attempt to come":              {[]int{3, 3, 2, 3, 3}, now - long, Timeout}, // amid silent ones it is due no more
		"amid what has had fewer":              {[]int{3, 3, 2, 3, 1}, now - long, Unfinished},
		"with two to come":                     {[]int{3, 3, 1, 3, 3}, now - long, Unfinished},
		"not tried":                            {[]int{0, 0, 0, 0, 0}, 0, Unfinished},
		"with an attempt to come, at the edge": {[]int{2, 2, 2}, now - long, Unfinished},
	} {
		u, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), Ports: scenarios.PortSet{{First: 1000, Last: 999 + uint16(len(c.attempts))}}, Attempts: 3, Amid: amid, Wait: long}.complete()
		must(t, err)
		tl := u.tally()
		for i, n := range c.attempts {
			for attempt := range n {
				tl.sent(i, attempt, c.last)
			}
		}
		got, err := tl.finish(ctx, now, 0)
		if middle := len(c.attempts) / 2; got[middle].Fault != c.want || err == nil {
			t.Errorf("%s: %v, want %v; %v", name, got[middle].Fault, c.want, err)
		}
	}
}

func TestDialExplains(t *testing.T) {
	open, closed := listenTCP(t, "127.0.0.1"), listenTCP(t, "127.0.0.1")
	closed.Close()
	local := netip.MustParseAddrPort("127.0.0.1:0")
	c, got := Dial(t.Context(), local, netip.AddrPortFrom(local.Addr(), portOf(open)))
	if diff := cmp.Diff(Answer{Port: portOf(open), Sent: 1, Answered: 1}, got, unstable); diff != "" {
		t.Fatal(diff)
	}
	if _, ok := c.(*net.TCPConn); !ok || c.LocalAddr().String() != got.Local.String() {
		t.Errorf("%T from %s, answer says %s", c, c.LocalAddr(), got.Local)
	}
	c.Close()
	c, got = Dial(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(local.Addr(), portOf(closed)))
	if diff := cmp.Diff(Answer{Port: portOf(closed), Sent: 1, Fault: Reset}, got, unstable); diff != "" || c != nil {
		t.Error(diff)
	}
}

func TestSurveysThatCannotBeTried(t *testing.T) {
	target := netip.MustParseAddr("192.0.2.1")
	ports := scenarios.PortSet{{First: 1, Last: 65535}}
	for _, test := range []struct {
		survey interface {
			Run(context.Context) ([]Answer, error)
		}
		want string
	}{
		{UDP{Ports: ports}, "udp survey of invalid IP: no target"},
		{UDP{Target: target}, "udp survey of 192.0.2.1: no ports"},
		{UDP{Target: target, Ports: ports, LocalPorts: ports}, "udp survey of 192.0.2.1: both remote and local ports given"},
		{UDP{Target: target, LocalPorts: ports}, "udp survey of 192.0.2.1: local ports given without a remote port"},
		{UDP{Target: target, Ports: ports, Attempts: 1000}, "udp survey of 192.0.2.1: 1000 attempts at 65535 ports: at most 16777216 datagrams"},
		{TCP{Ports: ports}, "tcp survey of invalid IP: no target"},
		{TCP{Target: target}, "tcp survey of 192.0.2.1: no ports"},
		{TCP{Target: target, Ports: ports, LocalPorts: ports}, "tcp survey of 192.0.2.1: both remote and local ports given"},
		{TCP{Target: target, LocalPorts: ports}, "tcp survey of 192.0.2.1: local ports given without a remote port"},
		{TCP{Target: target, Ports: ports, Attempts: 256}, "tcp survey of 192.0.2.1: 256 attempts: at most 255"},
	} {
		got, err := test.survey.Run(t.Context())
		if err == nil || err.Error() != test.want || got != nil {
			t.Errorf("got %d answers and %q, want %q", len(got), err, test.want)
		}
	}
}

// lacks skips a test for want of an address of this machine, on a laptop only.
func lacks(t *testing.T, err error) {
	t.Helper()
	need.Missing(t, err)
}

// Answers that come after the next attempt are slow, not lost: the survey waits
// for those to later attempts before it says how many came.
func TestSlowAnswersAreNoLoss(t *testing.T) {
	const first, last = 30710, 30729
	var servers sync.WaitGroup
	t.Cleanup(servers.Wait)
	for port := first; port <= last; port++ {
		server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		must(t, err)
		t.Cleanup(func() { server.Close() })
		servers.Go(func() {
			for {
				b := make([]byte, 64)
				n, from, err := server.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				time.AfterFunc(50*time.Millisecond, func() { server.WriteToUDPAddrPort(b[:n], from) })
			}
		})
	}
	u, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), Ports: scenarios.PortSet{{First: first, Last: last}}, Spacing: 20 * time.Millisecond,
		Wait: 20 * time.Second, Request: request, Check: check}.complete()
	must(t, err)
	for name, run := range map[string]func(UDP, context.Context) ([]Answer, error){"run": UDP.run, "portable": UDP.portable} {
		answers, err := run(u, t.Context())
		must(t, err)
		sent, answered := 0, 0
		for _, a := range answers {
			sent, answered = sent+int(a.Sent), answered+int(a.Answered)
		}
		if sent < 2*len(answers) || 20*answered < 19*sent {
			t.Errorf("%s: %d sent, %d answered", name, sent, answered)
		}
	}
}
