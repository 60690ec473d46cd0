package lab_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/wire"
)

var (
	vendorStreams   = []string{"MYSQL", "MCS", "SSLTCP", "4D", "4D-TLS", "SC", "RELAY", "REDIRECTOR"}
	vendorDatagrams = []string{"MEDIATOR", "TUNNEL", "HEARTBEAT", "TRAY", "WAKEUP"}
)

// Of 600 ms half is media: 15 datagrams of audio and 9 of video.
func vendorRows(t *testing.T) []row {
	media := func(rule string) string { return firewall("\t\t" + rule + " comment \"MEDIA\"\n") }
	sound := join(all(fact{Verdict: client.Open, Near: "done", Far: "done"}, vendorStreams...),
		all(fact{Verdict: client.Open, Near: "done", Attempts: "3/3/3"}, vendorDatagrams...))
	const shut = "\t\tiifname \"lan0\" udp dport { 75, 1853, 8002, 40000, 42000, 42001 } counter "
	everyDatagram := append([]string{"MEDIA"}, vendorDatagrams...)
	return []row{
		{name: "nothing wrong", rules: builtinFirewall(t, "stateful"),
			want: join(sound, all(fact{Verdict: client.Open, Near: "done", Why: "audio 15 of 15, video 9 of 9 datagrams answered", Attempts: "24/24/24"}, "MEDIA"))},
		{name: "media lost on the way there", rules: media(`iifname "lan0" udp dport 1853 numgen inc mod 3 < 1 counter drop`),
			want: join(sound, all(fact{Verdict: client.Degraded, Near: "done", Attempts: "24/16/16", Counted: "as lost",
				Why: "33 % of 24 datagrams lost on the way there and 0 % of 16 on the way back; at most 20 % are allowed"}, "MEDIA"))},
		{name: "media lost on the way back", rules: media(`iifname "wan0" udp sport 1853 numgen inc mod 3 < 1 counter drop`),
			want: join(sound, all(fact{Verdict: client.Degraded, Near: "done", Attempts: "24/24/16", Counted: "as unanswered",
				Why: "0 % of 24 datagrams lost on the way there and 33 % of 24 on the way back; at most 20 % are allowed"}, "MEDIA"))},
		{name: "a little media lost", rules: media(`iifname "lan0" udp dport 1853 numgen inc mod 8 < 1 counter drop`),
			want: all(fact{Verdict: client.Open, Near: "done", Attempts: "24/21/21", Counted: "as lost"}, "MEDIA")},
		{name: "large media lost", rules: media(`iifname "lan0" udp dport 1853 meta length > 1000 counter drop`),
			want: all(fact{Verdict: client.Cut, Near: "data timeout", Attempts: "24/15/15", Why: "datagrams of 1100 bytes vanish, of 160 bytes they pass"}, "MEDIA")},
		{name: "datagrams dropped", rules: firewall(shut + "drop\n"),
			want: join(all(requestLost, vendorDatagrams...), all(fact{Verdict: client.RequestLost, Attempts: "24/0/0", Near: "token timeout"}, "MEDIA"))},
		{name: "answers dropped", rules: firewall("\t\tiifname \"wan0\" udp sport { 75, 1853, 8002, 40000, 42000, 42001 } drop\n"),
			want: join(all(replyLost, vendorDatagrams...), all(fact{Verdict: client.ReplyLost, Attempts: "24/24/0", Far: "data"}, "MEDIA"))},
		{name: "datagrams rejected", family: "ipv4", rules: firewall(shut + "reject with icmp admin-prohibited\n"),
			want: all(fact{Verdict: client.Rejected, ICMP: "3/13 icmp admin-prohibited from the firewall", Near: "token icmp"}, everyDatagram...)},
		{name: "datagrams rejected", family: "ipv6", rules: firewall(shut + "reject with icmpv6 no-route\n"),
			want: all(fact{Verdict: client.Rejected, ICMP: "1/0 icmpv6 no-route from the firewall", Near: "token icmp"}, everyDatagram...)},
		// Audio 4, 9 and 14 arrive 100 ms late, and nothing follows the last.
		{name: "media out of order, there", rules: firewall(""), boxes: holdingBack(middlebox.Client),
			want: all(fact{Verdict: client.Open, Near: "done", Attempts: "24/24/24", Why: ", 2 out of order there and 0 back"}, "MEDIA")},
		{name: "media out of order, back", rules: firewall(""), boxes: holdingBack(middlebox.Server),
			want: all(fact{Verdict: client.Open, Near: "done", Attempts: "24/24/24", Why: ", 0 out of order there and 2 back"}, "MEDIA")},
		{name: "media rewritten", rules: firewall(""), boxes: func(s *scene) {
			s.serve(middlebox.UDP{Ports: "1853", Rewrites: []middlebox.Rewrite{{From: middlebox.Server, At: 90}}}.Open(s.firewall()))
		}, want: all(fact{Verdict: client.Altered, Why: "what came is another answer", Near: "token foreign"}, "MEDIA")},
		{name: "TLS of the database taken away", rules: firewall(""), boxes: between("3306", nil, withoutTLS),
			want: join(all(fact{Verdict: client.Altered, Why: `was sent, "greeting 8.0.36-wallprobe tls false`, Near: "starttls altered", Far: "token eof"}, "MYSQL"),
				all(fact{Verdict: client.Open}, "MCS", "SC"))},
		{name: "a host name rewritten", rules: firewall(""), boxes: func(s *scene) {
			s.serve(middlebox.TCP{Ports: "8041", Rewrites: []middlebox.Rewrite{{From: middlebox.Client, Old: "relay.example", New: "relax.example"}}}.Open(s.firewall()))
		}, want: all(fact{Verdict: client.Altered, Why: `"relay 4 relay.example 1" was sent, "relay 4 relax.example 1" arrived at the reflector`}, "SC")},
		{name: "a login rewritten", rules: firewall(""), boxes: func(s *scene) {
			s.serve(middlebox.TCP{Ports: "19812", Rewrites: []middlebox.Rewrite{{From: middlebox.Client, Old: "PROTOCOL-VERSION:0.1a", New: "PROTOCOL-VERSION:0.0a"}}}.Open(s.firewall()))
		}, want: map[string]fact{
			"4D": {Verdict: client.Partial, Ports: "altered 19812, open 19813-19814"}, "4D-TLS": {Verdict: client.Open}}},
		{name: "somebody who follows TLS", rules: firewall(""), boxes: between("443", isHello, nil),
			want: map[string]fact{
				"SSLTCP": {Verdict: client.Cut, Why: "stage tls: the connection was closed", Near: "tls eof"}, "CONTROL": {Verdict: client.Open}}},
	}
}

func TestVendorsProtocolsAreJudgedLikeTheFaultThatIsInjected(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range vendorRows(t) {
		r.scenario = "vendor"
		r.holds(t, program)
	}
}

// Every second datagram of audio takes 150 ms longer, in one direction.
func TestDelayVariationOfMediaIsToldOfItsDirection(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, side := range []middlebox.Side{middlebox.Client, middlebox.Server} {
		t.Run(side.String(), func(t *testing.T) {
			t.Parallel()
			r := row{name: "media delayed unevenly", scenario: "vendor", rules: firewall(""), boxes: func(s *scene) {
				var n atomic.Int64
				s.serve(middlebox.UDP{Ports: "1853", Delay: func(from middlebox.Side, b []byte) time.Duration {
					if from == side && len(b) == 160 && n.Add(1)%2 == 0 {
						return 150 * time.Millisecond
					}
					return 0
				}}.Open(s.firewall()))
			}}
			res := r.play(t, program, "ipv4")
			for _, f := range res.Findings {
				if f.Path != "MEDIA" {
					continue
				}
				audio := f.Evidence.Near[0].Media[0]
				late, other := audio.JitterUp, audio.JitterDown
				if side == middlebox.Server {
					late, other = other, late
				}
				if f.Verdict != client.Open || late < 20 || late <= other {
					t.Errorf("%s, delay varies by %.1f ms in the direction that is uneven, by %.1f ms in the other: %s", f.Verdict, late, other, f.Why)
				}
				return
			}
			t.Error("not measured")
		})
	}
}

// holdingBack is a box that holds every fifth datagram of one side's audio back.
func holdingBack(side middlebox.Side) func(*scene) {
	return func(s *scene) {
		var n atomic.Int64
		s.serve(middlebox.UDP{Ports: "1853", Delay: func(from middlebox.Side, b []byte) time.Duration {
			if from == side && len(b) == 160 && n.Add(1)%5 == 0 {
				return 100 * time.Millisecond
			}
			return 0
		}}.Open(s.firewall()))
	}
}

// isHello tells a ClientHello in earnest.
func isHello(b []byte) bool { return len(b) > 5 && b[0] == 0x16 && b[1] == 3 && b[5] == 1 }

// withoutTLS clears CLIENT_SSL in MySQL's greeting, as a proxy does that wants
// to read what follows.
func withoutTLS(b []byte) []byte {
	name := bytes.IndexByte(b[5:], 0) + 5
	b[name+1+4+8+1+1] &^= 0x08
	return b
}

// between puts a proxy into the way of a port that closes whatever does not
// begin as it likes, and edits what the server says first.
func between(port string, likes func([]byte) bool, edit func([]byte) []byte) func(*scene) {
	return func(s *scene) {
		s.serve(middlebox.TCP{Ports: port, Between: func(c, server net.Conn) {
			if likes != nil && !pipe(server, c, func(b []byte) []byte {
				if likes(b) {
					return b
				}
				return nil
			}) {
				return
			}
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = io.Copy(server, c); _ = server.(*net.TCPConn).CloseWrite() })
			if edit == nil || pipe(c, server, edit) {
				_, _ = io.Copy(c, server)
			}
			c.Close()
			server.Close()
			wg.Wait()
		}}.Open(s.firewall()))
	}
}

// pipe forwards the first piece that comes, edited; nil ends it.
func pipe(to, from net.Conn, edit func([]byte) []byte) bool {
	buf := make([]byte, 32<<10)
	n, err := from.Read(buf)
	if err != nil {
		return false
	}
	b := edit(buf[:n])
	if b == nil {
		return false
	}
	_, err = to.Write(b)
	return err == nil
}

// offlineToken is a token of a session that needs no control.
func offlineToken(key wire.Key, probe uint32) string {
	id := wire.NewSessionID()
	keys := wire.Derive(key, id, wire.Nonce{})
	m := wire.Message{Kind: wire.Request, Offline: true, Port: 3306, Session: id, Probe: probe, Time: time.Now()}
	m.Size = wire.MessageSize
	return base64.RawURLEncoding.EncodeToString(m.Append(nil, &keys))
}

func TestMariaDBsOwnClientLogsIn(t *testing.T) {
	lab.NeedLab(t)
	mariadb := need.Program(t, "mariadb", "mysql")
	w, key := standWith(t, "vendor")
	server, _ := w.Host("server").Addrs()
	for _, c := range []struct {
		name string
		args []string
		out  string
		fine bool
	}{
		{"token as user name", []string{"--ssl", "-u", offlineToken(key, 1)}, "1\n1\n", true},
		{"token as user name, in clear", []string{"--skip-ssl", "-u", offlineToken(key, 2)}, "1\n1\n", true},
		{"token as database", []string{"--ssl", "-u", "automate", "-D", offlineToken(key, 3)}, "1\n1\n", true},
		{"token as password", []string{"--ssl", "-u", "automate", "--password=" + offlineToken(key, 4)}, "1\n1\n", true},
		{"no token", []string{"--ssl", "-u", "automate", "--password=guessed"}, "ERROR 1045 (28000): Access denied", false},
		{"no token, in clear", []string{"--skip-ssl", "-u", "automate", "--password=guessed"}, "ERROR 1045 (28000): Access denied", false},
		{"another key's token", []string{"--ssl", "-u", offlineToken(wire.NewKey(), 5)}, "ERROR 1045 (28000): Access denied", false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		args := append([]string{"--no-defaults", "-h", server.String(), "-P", "3306", "--protocol=tcp", "--batch", "-e", "SELECT 1"}, c.args...)
		cmd := w.Host("host").Command(ctx, mariadb, args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := w.Host("host").Run(cmd)
		cancel()
		if (err == nil) != c.fine || !strings.HasPrefix(out.String(), c.out) {
			t.Errorf("%s: %v\n%s", c.name, err, out.String())
		}
	}
}
