package lab_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
)

// onPorts puts a box into the way of ports.
func onPorts(ports string, box middlebox.TCP) func(*scene) {
	box.Ports = ports
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

// furtherTamperings are those of protocols that have scenarios of their own. The
// firewall translates, so that what a box makes anew comes from the one address.
func furtherTamperings() []tampering {
	rules := firewall("") + translator
	altered := func(why string) fact { return fact{Verdict: client.Altered, Why: why} }
	sshIntercepted := func(name string, box *middlebox.SSHInterceptor) tampering {
		seen, err := box.Fingerprint()
		if err != nil {
			panic(err)
		}
		return tampering{clean: rules, row: row{name: name, scenario: "files", rules: rules, boxes: onPorts("22", middlebox.TCP{Between: box.Between}), want: map[string]fact{
			// All data passes whole, so nothing but the key tells.
			"SFTP": {Verdict: client.Altered, Near: "done", Far: "done", Received: "300000", Why: `"host key SHA256:…" was sent, "host key ` + seen +
				`" arrived here: somebody between ends the encryption, and reads and may change all that passes`}}}}
	}
	add := func(name, scenario string, boxes func(*scene), want map[string]fact) tampering {
		return tampering{row: row{name: name, scenario: scenario, rules: rules, boxes: boxes, want: want}, clean: rules}
	}
	rewritten := func(from middlebox.Side, old, new string) middlebox.TCP {
		return middlebox.TCP{Rewrites: []middlebox.Rewrite{{From: from, Old: old, New: new}}}
	}
	portal := middlebox.TCP{Answer: middlebox.Portal("http://portal.example/")}
	stranger := fact{Verdict: client.Impostor, Why: "the connection was accepted, but not by the reflector: its ledger is empty", Far: "nothing"}
	page := stranger
	page.Why += `: it begins "HTTP/1.1 302 Found`
	byName := func(near string) fact {
		return fact{Verdict: client.Cut, Near: near, Parts: `; by name: with another server name in place of "`}
	}
	// The dialogue in clear passes, and then the hello is looked at.
	behindSTARTTLS := func(name string, do middlebox.Action, want fact) tampering {
		want.Parts += `mail.example" the same hello passes on this port`
		box := middlebox.TCP{Filter: middlebox.ByName(do, "mail.example"), Later: true}
		t := add(name, "mail", onPorts(portsSTARTTLS, box), join(all(want, mailSTARTTLS...), all(fact{Verdict: client.Open}, mailInTLS...)))
		t.red = mailSTARTTLS
		return t
	}
	intercepted := altered(`TLS intercepted: …issued by "CN=wallprobe lab inspection" was seen`)
	list := []tampering{
		add("an FTP greeting rewritten", "files", onPorts("21", rewritten(middlebox.Server, "220 wallprobe FTP", "220 somebody's FTP")), map[string]fact{
			"FTP": {Verdict: client.Altered, Parts: `"220 wallprobe FTP, log in with a token as user name" was sent, "220 somebody's FTP, log in with a token as user name" arrived here`}}),
		add("an FTP command rewritten", "files", onPorts("21", rewritten(middlebox.Client, "TYPE I\r\n", "TYPE A\r\n")), map[string]fact{
			"FTP": {Verdict: client.Altered, Parts: `"TYPE I" was sent, "TYPE A" arrived at the reflector`}}),
		add("SSH's banner rewritten", "files", onPorts("22", rewritten(middlebox.Server, "SSH-2.0-wallprobe", "SSH-2.0-gateway00")), map[string]fact{
			"SFTP": {Verdict: client.Altered, Near: "kex altered"}}),
		sshIntercepted("SSH intercepted", new(middlebox.SSHInterceptor)),
		sshIntercepted("SSH intercepted by what says the same", &middlebox.SSHInterceptor{Version: "SSH-2.0-wallprobe_reflector"}),
		add("SSH's ciphers taken away", "files", onPorts("22", rewritten(middlebox.Server, "aes128-gcm@openssh.com", "aes128-xxx@openssh.com")), map[string]fact{
			"SFTP": {Verdict: client.Altered, Why: `aes128-gcm@openssh.com…was sent…aes128-xxx@openssh.com…arrived here`, Near: "kex altered"}}),
		add("a byte of SSH's offer changed, which no list shows", "files", onPorts("22", middlebox.TCP{Rewrites: []middlebox.Rewrite{{From: middlebox.Client, At: 40}}}), map[string]fact{
			"SFTP": {Verdict: client.Altered, Why: `"packet 20 SHA256:…" was sent, "packet 20 SHA256:…" arrived at the reflector`}}),
		add("SSH answered by another server", "files", onPorts("22", middlebox.TCP{Answer: sshServer}), all(stranger, "SFTP")),
		add("HTTP proxied, and saying so", "http", onPorts("{ 80, 8484 }", middlebox.TCP{Rewrites: middlebox.AddHeaders("Via: 1.1 proxy", "X-Forwarded-For: 10.77.1.2")}),
			all(altered(`"Via: 1.1 proxy" was put in before it arrived at the reflector`), "HTTP", "CENTER")),
		add("a captive portal on every port", "http", onPorts("{ 80, 3128, 8003, 8484 }", portal), join(all(page, "HTTP", "PROXY", "CENTER"), all(fact{Verdict: client.Impostor, Far: "nothing"}, "HTTPS"))),
		add("HTTPS reset by server name", "http", onPorts("8003", middlebox.TCP{Filter: middlebox.ByName(middlebox.ResetBoth, "web.example")}), all(byName("tls reset"), "HTTPS")),
		add("mail in TLS reset by server name", "mail", onPorts("{ 465, 993, 995, 5223 }", middlebox.TCP{Filter: middlebox.ByName(middlebox.ResetBoth, "mail.example")}), all(byName("tls reset"), mailInTLS...)),
		add("mail in TLS dropped by server name", "mail", onPorts("{ 465, 993, 995, 5223 }", middlebox.TCP{Filter: middlebox.ByName(middlebox.DropSilent, "mail.example")}), all(byName("tls timeout"), mailInTLS...)),
		behindSTARTTLS("reset by server name behind STARTTLS", middlebox.ResetBoth, byName("tls reset")),
		behindSTARTTLS("dropped by server name behind STARTTLS", middlebox.DropSilent, byName("tls timeout")),
		behindSTARTTLS("alert by server name behind STARTTLS", middlebox.Alert, byName("tls remote error: tls: access denied")),
		add("XMPP's agreement on TLS rewritten", "mail", onPorts("5222", rewritten(middlebox.Server, "<proceed xmlns", "<failure xmlns")), map[string]fact{
			"XMPP": {Verdict: client.Altered, Why: `"<proceed xmlns=…was sent, "<failure xmlns=`, Near: "starttls foreign"}}),
		add("the vendors' TLS intercepted", "vendor", onPorts("{ 5228, 19812-19814 }", middlebox.TCP{Between: new(middlebox.Interceptor).Between}), all(intercepted, "MCS")),
		add("DNS answers rewritten", "dns", func(s *scene) {
			v4, v6 := s.firewall().Addrs()
			s.serve(middlebox.UDP{Ports: "53", Edit: middlebox.DNSAnswers(v4, v6)}.Open(s.firewall()))
		}, map[string]fact{"DNS-UDP": altered(`was sent, "answer A`)}),
	}
	return slices.Concat(list, upgrades(), clamped(), filters())
}

// upgrades: WebSocket is taken out of HTTPS by somebody who reads along. Page
// and data pass inside the same interception.
func upgrades() []tampering {
	rules := firewall("") + translator
	const read = `altered: TLS intercepted: …; the ClientHello arrived as another`
	taken := func(name, gone string, rewrites ...middlebox.Rewrite) tampering {
		box := middlebox.TCP{Between: (&middlebox.Interceptor{Rewrites: rewrites}).Between}
		ways := "h2: " + read + "\nhttp/1.1: " + read + "\nwebsocket: " + read + "; " + gone + ": WebSocket does not come up, whatever requests do"
		return tampering{clean: rules, row: row{name: name, scenario: "http", rules: rules, boxes: onPorts("8003", box),
			want: all(fact{Verdict: client.Altered, Near: "done", Far: "done", Received: "100000", Ways: ways}, "HTTPS")}}
	}
	answer := func(status string) middlebox.Rewrite {
		return middlebox.Rewrite{From: middlebox.Server, Old: "HTTP/1.1 101 Switching Protocols", New: "HTTP/1.1 " + status}
	}
	return []tampering{
		taken("WebSocket's upgrade taken away", `"Upgrade: websocket" was sent and taken away`,
			middlebox.Rewrite{From: middlebox.Client, Old: "Upgrade: websocket\r\n"}, middlebox.Rewrite{From: middlebox.Client, Old: "Connection: Upgrade\r\n"}),
		taken("WebSocket's upgrade refused", `"HTTP/1.1 101 Switching Protocols" was sent, "HTTP/1.1 400 Bad Request" arrived here`, answer("400 Bad Request")),
		taken("WebSocket's upgrade answered with a page", `"HTTP/1.1 101 Switching Protocols" was sent, "HTTP/1.1 200 OK" arrived here`, answer("200 OK")),
	}
}

// clamped: segment sizes and times to live, whatever is spoken.
func clamped() []tampering {
	mail := slices.Concat(mailInTLS, mailSTARTTLS)
	open := func(passage string, ids ...string) map[string]fact {
		return all(fact{Verdict: client.Open, Passage: passage}, ids...)
	}
	clamp := mangle(outgoing + "tcp flags syn tcp option maxseg size set 1360\n")
	var list []tampering
	for family, sent := range map[string]int{"ipv4": 1460, "ipv6": 1440} {
		passage := fmt.Sprintf("MSS %d arrived as 1360", sent)
		list = append(list,
			tampering{clean: firewall(""), row: row{name: "mail's segments clamped, " + family, scenario: "mail", family: family, rules: clamp, want: open(passage, mail...)}},
			tampering{clean: firewall(""), row: row{name: "files' segments clamped, " + family, scenario: "files", family: family, rules: clamp, want: open(passage, "SFTP", "FTP-DATA")}},
			tampering{clean: firewall(""), row: row{name: "the web's segments clamped, " + family, scenario: "http", family: family, rules: clamp, want: open(passage, "HTTP", "HTTPS", "PROXY", "CENTER")}},
			tampering{clean: firewall(""), row: row{name: "the vendors' segments clamped, " + family, scenario: "vendor", family: family, rules: clamp, want: open(passage, "MYSQL", "MCS", "SC", "RELAY")}})
	}
	return list
}

// sshServer lets everybody in, with a key of its own.
func sshServer(c net.Conn) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return
	}
	config := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(key)
	server, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for channel := range channels {
		_ = channel.Reject(ssh.Prohibited, "nothing here")
	}
}

func TestTamperingWithEveryKindOfProtocolIsNamed(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range furtherTamperings() {
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
	// With the fault taken away, each row is wrong about all that it says of it.
	for i, r := range furtherTamperings() {
		t.Run("without "+r.name, func(t *testing.T) {
			t.Parallel()
			changed := r.row
			changed.rules, changed.boxes = r.clean, nil
			res := changed.play(t, program, r.families()[i%len(r.families())])
			red := r.red
			if red == nil {
				red = slices.Collect(maps.Keys(r.want))
			}
			if diff := gocmp.Diff(slices.Sorted(slices.Values(red)), r.wrong(res)); diff != "" {
				t.Errorf("paths that the row is wrong about (-want +got):\n%s", diff)
				r.explain(t, res)
			}
		})
	}
}
