package protocol

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/wire"
)

var dnsFrom = netip.MustParseAddrPort("192.0.2.7:40000")

// query is a padded query of the test's exchange.
func (f *testFar) query(t testing.TB, change func(*dns.Msg)) []byte {
	t.Helper()
	q, b, err := f.exchange().dnsRequest(dns.TypeA)
	if err == nil && change != nil {
		change(q)
		b, err = q.Pack()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDNSAnswerIsPaidForByTheQuery(t *testing.T) {
	f := newFar()
	stranger := func(edns bool) []byte {
		q := new(dns.Msg).SetQuestion("www.example.", dns.TypeANY)
		if edns {
			q.SetEdns0(4096, true)
		}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		query []byte
		line  string // of the answer; empty is none
		good  bool
	}{
		"ours":                    {f.query(t, nil), "answer A: A 192.0.2.99, TXT with the token, EDNS 1232 bytes (qr aa rd)", true},
		"ours, unpadded":          {f.query(t, func(q *dns.Msg) { q.Extra = nil }), "answer A (qr tc rd)", true},
		"for AAAA":                {f.query(t, func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAAAA }), "answer AAAA: AAAA 2001:db8::62cf:1824:af10:7c97, TXT with the token, EDNS 1232 bytes (qr aa rd)", true},
		"case changed on the way": {f.query(t, func(q *dns.Msg) { q.Question[0].Name = strings.ToUpper(q.Question[0].Name) }), "answer A: A 192.0.2.99, TXT with the token, EDNS 1232 bytes (qr aa rd)", true},
		"a stranger's":            {stranger(false), "answer ANY REFUSED (qr rd)", false},
		"a stranger's with EDNS":  {stranger(true), "answer ANY REFUSED (qr rd)", false},
		"an answer":               {f.query(t, func(q *dns.Msg) { q.Response = true }), "", false},
		"two questions":           {f.query(t, func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), "", false},
		"an update":               {f.query(t, func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), "", false},
		"a byte behind it":        {append(f.query(t, nil), 0), "", false},
		"rubbish":                 {[]byte(strings.Repeat("A", 200)), "", false},
		"nothing":                 {nil, "", false},
	} {
		reply, e := answerDNS(c.query, dnsFrom, dnsFrom, f)
		line := ""
		if reply != nil {
			var a dns.Msg
			if err := a.Unpack(reply); err != nil {
				t.Fatal(err)
			}
			line = dnsLine("answer", &a, dnsToken(&a))
		}
		if line != c.line || e.Answered != c.good || len(reply) > len(c.query) || e.Stage != StageToken {
			t.Errorf("%s: %q, %d bytes for %d, %+v", name, line, len(reply), len(c.query), e)
		}
	}
}

// answered is how the near end judges what a box made of the far end's answer.
func answered(t *testing.T, change func(*dns.Msg)) (Result, string) {
	t.Helper()
	f := newFar()
	x := f.exchange()
	q, b, err := x.dnsRequest(dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	reply, _ := answerDNS(b, dnsFrom, dnsFrom, f)
	var a dns.Msg
	if err := a.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	change(&a)
	if reply, err = a.Pack(); err != nil {
		t.Fatal(err)
	}
	var r Result
	_, err = x.checkDNS(q, reply, &r)
	if err == nil {
		return r, ""
	}
	return r, err.Error()
}

func TestRewrittenDNSAnswerIsNamedExactly(t *testing.T) {
	const sent = `"answer A: A 192.0.2.99, TXT with the token, EDNS 1232 bytes (qr aa rd)"`
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		want   string
	}{
		"as sent":         {func(*dns.Msg) {}, ""},
		"another address": {func(a *dns.Msg) { a.Answer[0].(*dns.A).A = net.IPv4(10, 0, 0, 1) }, sent + ` was sent, "answer A: A 10.0.0.1, TXT with the token, EDNS 1232 bytes (qr aa rd)" was seen: bytes altered on the way`},
		"a lifetime":      {func(a *dns.Msg) { a.Answer[0].Header().Ttl = 60 }, sent + ` was sent, "answer A: A 192.0.2.99 for 60 s, TXT with the token, EDNS 1232 bytes (qr aa rd)" was seen: bytes altered on the way`},
		"an alias put in": {func(a *dns.Msg) {
			a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: "ads.example.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(10, 0, 0, 2)})
		}, sent + ` was sent, "answer A: A 192.0.2.99, A 10.0.0.2 of ads.example., TXT with the token, EDNS 1232 bytes (qr aa rd)" was seen: bytes altered on the way`},
		"a flag":       {func(a *dns.Msg) { a.RecursionAvailable = true }, sent + ` was sent, "answer A: A 192.0.2.99, TXT with the token, EDNS 1232 bytes (qr aa rd ra)" was seen: bytes altered on the way`},
		"no such name": {func(a *dns.Msg) { a.Answer, a.Extra, a.Rcode = nil, nil, dns.RcodeNameError }, `"answer A NXDOMAIN (qr aa rd)" where A 192.0.2.99 with the token belongs: the answer is not the reflector's`},
		"text removed": {func(a *dns.Msg) { a.Extra = nil }, `"answer A: A 192.0.2.99 (qr aa rd)" where A 192.0.2.99 with the token belongs: the answer is not the reflector's`},
	} {
		if _, got := answered(t, c.change); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// udpPair is a connected socket and the other end of it.
func udpPair(t *testing.T) (near, far *net.UDPConn) {
	t.Helper()
	far, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	near, err = net.DialUDP("udp4", nil, far.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// serveUDP lets a function answer each datagram, which it counts from 0.
func serveUDP(t *testing.T, far *net.UDPConn, answer func(i int, p []byte) [][]byte) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for i := 0; ; i++ {
			n, from, err := far.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range answer(i, buf[:n]) {
				far.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	t.Cleanup(func() { far.Close(); <-done })
}

func TestNearEndOfDNSTellsWhatComesBack(t *testing.T) {
	forged := func(p []byte) []byte {
		var q dns.Msg
		if q.Unpack(p) != nil {
			return nil
		}
		b, _ := new(dns.Msg).SetRcode(&q, dns.RcodeNameError).Pack()
		return b
	}
	guessed := func(answer []byte) []byte { answer[0] ^= 0x55; return answer }
	toAnother := func(p []byte) []byte {
		q := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
		q.Id = binary.BigEndian.Uint16(p)
		b, _ := new(dns.Msg).SetRcode(q, dns.RcodeNameError).Pack()
		return b
	}
	type outcome struct {
		Stage, Fault string
		Sent, Heard  int
		Heard1st     string
		Strays       int
	}
	const whole = "answer A: A 192.0.2.99, TXT with the token, EDNS 1232 bytes (qr aa rd)"
	for name, c := range map[string]struct {
		answer func(f *testFar, i int, p []byte) [][]byte
		want   outcome
	}{
		"the reflector": {func(f *testFar, _ int, p []byte) [][]byte {
			b, _ := answerDNS(p, dnsFrom, dnsFrom, f)
			return [][]byte{b}
		}, outcome{StageDone, "", 1, 1, whole, 0}},
		"the reflector, the second time": {func(f *testFar, i int, p []byte) [][]byte {
			b, _ := answerDNS(p, dnsFrom, dnsFrom, f)
			return [][]byte{b}[:min(i, 1)]
		}, outcome{StageDone, "", 2, 1, whole, 0}},
		"nobody":                      {func(*testFar, int, []byte) [][]byte { return nil }, outcome{StageToken, FaultTimeout, 3, 0, "", 0}},
		"answers to nobody":           {func(*testFar, int, []byte) [][]byte { return [][]byte{{1}, []byte("hello there")} }, outcome{StageToken, FaultTimeout, 3, 0, "", 6}},
		"answers to another question": {func(_ *testFar, _ int, p []byte) [][]byte { return [][]byte{toAnother(p)} }, outcome{StageToken, FaultTimeout, 3, 0, "", 3}},
		"an answer with another id":   {func(_ *testFar, _ int, p []byte) [][]byte { return [][]byte{guessed(forged(p))} }, outcome{StageToken, FaultTimeout, 3, 0, "", 3}},
		"the reflector, with another id": {func(f *testFar, _ int, p []byte) [][]byte {
			b, _ := answerDNS(p, dnsFrom, dnsFrom, f)
			return [][]byte{guessed(b)}
		}, outcome{StageToken, FaultAltered, 1, 0, "answer with another id", 0}},
		"strays before the reflector": {func(f *testFar, _ int, p []byte) [][]byte {
			b, _ := answerDNS(p, dnsFrom, dnsFrom, f)
			return [][]byte{{}, guessed(forged(p)), toAnother(p), p, b}
		}, outcome{StageDone, "", 1, 1, whole, 4}},
		"somebody else": {func(_ *testFar, _ int, p []byte) [][]byte { return [][]byte{forged(p)} }, outcome{StageToken, FaultForeign, 1, 0, "answer A NXDOMAIN (qr rd)", 0}},
		"somebody else was first": {func(f *testFar, _ int, p []byte) [][]byte {
			b, _ := answerDNS(p, dnsFrom, dnsFrom, f)
			return [][]byte{forged(p), b}
		}, outcome{StageToken, FaultForeign, 1, 0, "answer A NXDOMAIN (qr rd)", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFar()
			near, far := udpPair(t)
			serveUDP(t, far, func(i int, p []byte) [][]byte { return c.answer(f, i, p) })
			x := f.exchange()
			x.Stall = 800 * time.Millisecond
			r := probeDNS(t.Context(), near, x)
			got := outcome{r.Stage, r.Fault, r.Sent, r.Heard, strings.Join(r.Said.Heard, ";"), r.Strays}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s%v", diff, r.Err)
			}
			if first := strings.Contains(name, "first"); first != (r.Err != nil && strings.Contains(r.Err.Error(), "came another")) {
				t.Errorf("%v", r.Err)
			}
		})
	}
}

// An answer from elsewhere does not count even if it has the id and the question.
func TestDNSAnswersFromElsewhereAreNotHeard(t *testing.T) {
	f := newFar()
	near, far := udpPair(t)
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	serveUDP(t, far, func(_ int, p []byte) [][]byte {
		var q dns.Msg
		if err := q.Unpack(p); err != nil {
			t.Error(err)
		}
		b, _ := new(dns.Msg).SetRcode(&q, dns.RcodeNameError).Pack()
		other.WriteToUDPAddrPort(b, near.LocalAddr().(*net.UDPAddr).AddrPort())
		b, _ = answerDNS(p, dnsFrom, dnsFrom, f)
		return [][]byte{b}
	})
	if r := probeDNS(t.Context(), near, f.exchange()); r.Stage != StageDone || len(r.Said.Heard) != 1 {
		t.Errorf("%+v", r)
	}
}

func TestCancelledDNSProbeStopsAtOnce(t *testing.T) {
	near, _ := udpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	x := newFar().exchange()
	began := time.Now()
	if r := probeDNS(ctx, near, x); !errors.Is(r.Err, context.Canceled) || time.Since(began) > x.Stall/2 {
		t.Errorf("%+v after %v", r, time.Since(began))
	}
}

// What DNS over TCP is taken for must be nobody else's.
func TestClaimOfDNSIsNobodyElses(t *testing.T) {
	f := newFar()
	q := f.query(t, nil)
	m := f.exchange().message(wire.Request)
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"query":   {append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...), "dns"},
		"plain":   {m.Append(nil, &f.keys), "plain"},
		"TLS":     {[]byte{22, 3, 1, 0, 1, 1, 0, 1}, "tls"},
		"too big": {[]byte{0x40, 0, 1, 2, 1, 0, 0, 1}, ""},
		"answer":  {[]byte{0, 40, 1, 2, 0x81, 0, 0, 1}, ""},
		"STUN":    {[]byte{0, 0x16, 0, 40, 0x21, 0x12, 0xa4, 0x42}, ""},
	} {
		got := ""
		p := Claim(func(n int) []byte { return c.b[:min(n, len(c.b))] }, false)
		for name, q := range protocols {
			if q == p && p != nil {
				got = name
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzDNSFarEnd(f *testing.F) {
	far := newFar()
	far.cert = nil
	f.Add(far.query(f, nil))
	f.Add(far.query(f, func(q *dns.Msg) { q.Extra = nil }))
	f.Add(append(far.query(f, nil), 0))
	b, _ := new(dns.Msg).SetQuestion("www.example.", dns.TypeANY).Pack()
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		reply, e := answerDNS(p, dnsFrom, dnsFrom, far)
		if len(reply) > len(p) {
			t.Errorf("%d bytes for %d", len(reply), len(p))
		}
		if e.Answered && reply == nil {
			t.Error("answered with nothing")
		}
		if again, _ := answerDNS(reply, dnsFrom, dnsFrom, far); again != nil {
			t.Error("an answer is answered")
		}
	})
}

func FuzzDNSNearEnd(f *testing.F) {
	far := newFar()
	x := far.exchange()
	q, b, err := x.dnsRequest(dns.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	good, _ := answerDNS(b, dnsFrom, dnsFrom, far)
	f.Add(good)
	refused, _ := strangerReply(q, false).Pack()
	f.Add(refused)
	f.Add([]byte("HTTP/1.1 302 Found"))
	f.Fuzz(func(t *testing.T, p []byte) {
		var r Result
		if _, err := x.checkDNS(q, p, &r); err == nil && r.Seen.Probe != x.Probe {
			t.Error("believed without a token")
		}
	})
}

// A bufferConn is a connection to a buffer.
type bufferConn struct {
	net.Conn
	bytes.Buffer
}

func (c *bufferConn) Read(b []byte) (int, error)  { return c.Buffer.Read(b) }
func (c *bufferConn) Write(b []byte) (int, error) { return c.Buffer.Write(b) }

func FuzzDNSFrames(f *testing.F) {
	var seed bufferConn
	newDNSFrames(&seed, false).Write([]byte("some bytes of the stream"))
	f.Add(seed.Bytes())
	f.Add(bytes.Repeat([]byte{7}, 2*dnsFrame+1))
	f.Fuzz(func(t *testing.T, p []byte) {
		var rubbish, line bufferConn
		rubbish.Write(p)
		if got, _ := io.ReadAll(newDNSFrames(&rubbish, true)); len(got) > len(p) {
			t.Errorf("%d bytes of %d", len(got), len(p))
		}
		newDNSFrames(&line, false).Write(p)
		if got, err := io.ReadAll(newDNSFrames(&line, true)); err != nil || !bytes.Equal(got, p) {
			t.Errorf("%x was read as %x, %v", p, got, err)
		}
	})
}

// The far end is no resolver and no amplifier: it answers the names of tokens
// and, over TCP, every A with the same address; it never asks anybody.
func TestDNSResolvesNothingForStrangers(t *testing.T) {
	f := newFar()
	for _, class := range []uint16{dns.ClassINET, dns.ClassCHAOS, dns.ClassANY} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeTXT, dns.TypeMX, dns.TypeNS, dns.TypeDNSKEY, dns.TypeAXFR, dns.TypeIXFR} {
			for _, name := range []string{".", "www.example.", "version.bind.", dnsZone} {
				q := new(dns.Msg).SetQuestion(name, qtype)
				q.Question[0].Qclass = class
				q.SetEdns0(65535, true)
				p, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				over := map[string][]byte{}
				over["udp"], _ = answerDNS(p, dnsFrom, dnsFrom, f)
				c := &bufferConn{}
				var e wire.Event
				if _, _, err := serveQuery(addressed{c}, p, f, new(wire.Transcript), &e); err == nil {
					over["tcp"] = c.Next(1 << 16)[2:]
				}
				for transport, b := range over {
					var a dns.Msg
					if err := a.Unpack(b); err != nil {
						t.Fatal(err)
					}
					fixed := transport == "tcp" && qtype == dns.TypeA && len(a.Answer) == 1 && a.Answer[0].(*dns.A).A.Equal(net.IPv4(192, 0, 2, 53))
					if a.RecursionAvailable || a.Authoritative || len(a.Ns) > 0 || len(a.Extra) > 0 || !fixed && (a.Rcode != dns.RcodeRefused || len(a.Answer) > 0) || transport == "udp" && len(b) > len(p) {
						t.Errorf("%s: %s is answered by %v", transport, q.Question[0].String(), &a)
					}
				}
				if len(over) != 2 {
					t.Errorf("%s: answered over %d transports", q.Question[0].String(), len(over))
				}
			}
		}
	}
	if n := f.further.Load(); n > 0 {
		t.Errorf("%d further connections were made", n)
	}
}

// An addressed connection has the addresses of loopback.
type addressed struct{ net.Conn }

func (addressed) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000} }
