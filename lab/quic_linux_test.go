package lab_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
)

// quicRows are what firewalls do to QUIC while TLS on the same port passes.
func quicRows() []row {
	const (
		toQUIC   = `		iifname "lan0" udp dport 443 `
		fromQUIC = `		iifname "wan0" udp sport 443 `
		version1 = "@th,64,1 1 @th,72,32 1 "
		all      = "datagrams of 84 bytes, datagrams of 1200 bytes, QUIC of an unknown version pass on the same port"
		small    = "datagrams of 84 bytes pass on the same port, datagrams of 1200 bytes, QUIC of an unknown version do not"
		nothing  = "nothing else passes on the port either"
	)
	tlsOpen := fact{Verdict: client.Open, Why: "TLS 1.3, certificate as sent", Near: "done"}
	plainOpen := fact{Verdict: client.Open, Near: "done"}
	with := func(quic, plain fact) map[string]fact {
		return map[string]fact{"QUIC": quic, "PLAIN": plain, "TLS": tlsOpen}
	}
	lost := func(beside string) fact {
		far := "nothing"
		if beside == all { // what was asked beside is told apart from QUIC that somebody would speak
			far = "tls unknown QUIC version"
		}
		return fact{Verdict: client.RequestLost, Why: "the reflector saw no QUIC; " + beside, Near: "tls timeout", Far: far}
	}
	plainLost := fact{Verdict: client.RequestLost, Near: "token timeout", Attempts: "3/0/0"}
	rejected := fact{Verdict: client.Rejected, Near: "tls icmp", ICMP: "3/13 icmp admin-prohibited from the firewall", Far: "nothing"}
	return []row{
		{name: "open", rules: firewall(""), want: with(fact{Verdict: client.Open, Why: "TLS 1.3, certificate as sent", Near: "done", Attempts: "1/1/1", Received: "16384", Far: "done"}, plainOpen)},
		{name: "UDP 443 dropped", rules: firewall(toQUIC + "counter drop\n"), want: with(lost(nothing), plainLost)},
		{name: "QUIC version 1 dropped", rules: firewall(toQUIC + version1 + "counter drop\n"), want: with(lost(all), plainOpen)},
		{name: "large packets out dropped", rules: firewall(toQUIC + "udp length > 1000 counter drop\n"), want: with(lost(small),
			fact{Verdict: client.Cut, Why: "datagrams of 1200 bytes vanish", Near: "data timeout"})},
		{name: "answers dropped", rules: firewall(fromQUIC + "counter drop\n"), want: with(
			fact{Verdict: client.ReplyLost, Why: "first packets and answered; no answer arrived; " + nothing, Near: "tls timeout"},
			fact{Verdict: client.ReplyLost, Near: "token timeout"})},
		{name: "large packets back dropped", rules: firewall(fromQUIC + "udp length > 1000 counter drop\n"), want: with(
			fact{Verdict: client.Cut, Why: "stage tls: the handshake began and nothing more came", Near: "tls timeout"},
			fact{Verdict: client.Cut, Why: "datagrams of 1200 bytes vanish"})},
		{name: "cut off after 9000 bytes", rules: firewall(fromQUIC + "quota over 9000 bytes counter drop\n"), want: map[string]fact{
			"QUIC": {Verdict: client.Cut, Why: "bytes received and 16384 sent: nothing more came", Near: "data timeout", Far: "data eof"}, "TLS": tlsOpen}},
		{name: "rejected by ICMP", family: "ipv4", rules: firewall(toQUIC + "counter reject with icmp admin-prohibited\n"), want: with(rejected,
			fact{Verdict: client.Rejected, Near: "token icmp"})},
		{name: "answered by somebody else", rules: firewall(""), want: map[string]fact{
			"QUIC": {Verdict: client.Impostor, Why: "the answer is not the reflector's, which saw nothing: somebody says that the far end does not speak QUIC version 1", Near: "tls foreign"}, "TLS": tlsOpen},
			boxes: func(s *scene) {
				s.serve(middlebox.UDP{Ports: "443", Answer: noSuchVersion}.Open(s.firewall()))
			}},
	}
}

// noSuchVersion claims of every QUIC packet that its version is not known.
func noSuchVersion(p []byte) []byte {
	if len(p) < 1200 || p[0] < 0xc0 {
		return nil
	}
	b := []byte{0x80, 0, 0, 0, 0}
	to := p[5 : 6+int(p[5])]
	from := p[5+len(to):]
	b = append(append(b, from[:1+int(from[0])]...), to...)
	return binary.BigEndian.AppendUint32(b, 0xff00001d)
}

func TestVerdictsOnQUICNameTheInjectedFault(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range quicRows() {
		r.scenario = "quic"
		for _, family := range r.families() {
			t.Run(r.name+"/"+family, func(t *testing.T) {
				t.Parallel()
				res := r.play(t, program, family)
				if diff := r.mismatch(res); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
					r.explain(t, res)
				}
			})
		}
	}
}

// A client of HTTP/3 that knows nothing of wallprobe gets its page where our own
// client has its exchange.
func TestPlainHTTP3ClientIsServedThroughTheFirewall(t *testing.T) {
	lab.NeedLab(t)
	w, _ := standWith(t, "quic")
	v4, _ := w.Host("server").Addrs()
	var u *net.UDPConn
	if err := w.Host("host").Do(func() (err error) { u, err = net.ListenUDP("udp4", nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	tr := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "truth.example"},
		Dial: func(ctx context.Context, _ string, conf *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialEarly(ctx, u, net.UDPAddrFromAddrPort(netip.AddrPortFrom(v4, 443)), conf, q)
		},
	}
	defer tr.Close()
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://truth.example/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if resp.StatusCode != http.StatusOK || resp.Proto != "HTTP/3.0" || !bytes.Equal(body, []byte("wallprobe\n")) || err != nil {
		t.Errorf("%s %s, %q, %v", resp.Proto, resp.Status, body, err)
	}
}
