package lab_test

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/protocol"
)

// resetBy resets connections whose first bytes have one of the texts in them.
func resetBy(texts ...string) middlebox.TCP {
	return middlebox.TCP{Between: func(near, far net.Conn) {
		buf := make([]byte, 4096)
		n, err := near.Read(buf)
		for _, text := range texts {
			if err == nil && bytes.Contains(buf[:n], []byte(text)) {
				_ = near.(*net.TCPConn).SetLinger(0)
				_ = far.(*net.TCPConn).SetLinger(0)
				return
			}
		}
		if _, err := far.Write(buf[:n]); err == nil {
			splice(near, far)
		}
	}}
}

// splice forwards both ways until both have ended.
func splice(near, far net.Conn) {
	var wg sync.WaitGroup
	half := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_ = to.(*net.TCPConn).CloseWrite()
	}
	wg.Go(func() { half(near, far) })
	half(far, near)
	wg.Wait()
}

// dropBy loses datagrams of clients that have a text in them.
func dropBy(ports, text string) func(*scene) {
	return func(s *scene) {
		s.serve(middlebox.UDP{Ports: ports, Edit: func(from middlebox.Side, b []byte) []byte {
			if from == middlebox.Client && bytes.Contains(b, []byte(text)) {
				return nil
			}
			return b
		}}.Open(s.firewall()))
	}
}

// dropHello loses what clients of QUIC send on the way to a name, from the
// datagram on with which their hello is whole.
func dropHello(name string) func(*scene) {
	return func(s *scene) {
		var mu sync.Mutex
		clients := make(map[netip.AddrPort]*protocol.InitialReader)
		s.serve(middlebox.UDP{Ports: "443", Lets: func(client netip.AddrPort, b []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			r := clients[client]
			if r == nil {
				r = new(protocol.InitialReader)
				clients[client] = r
			}
			r.Read(b)
			h, err := protocol.ParseHello(r.Record())
			return err != nil || h.ServerName != name
		}}.Open(s.firewall()))
	}
}

// filters go by a name, by a protocol or by a port, and it is told by which.
func filters() []tampering {
	const plain, translated = 0, 1
	rules := []string{firewall(""), firewall("") + translator}
	add := func(name, scenario string, boxes func(*scene), want map[string]fact) tampering {
		return tampering{row: row{name: name, scenario: scenario, rules: rules[translated], boxes: boxes, want: want}, clean: rules[translated]}
	}
	ruled := func(name, scenario, forward string, want map[string]fact) tampering {
		return tampering{row: row{name: name, scenario: scenario, rules: firewall(forward), want: want}, clean: rules[plain]}
	}
	cut := func(why string) fact { return fact{Verdict: client.Cut, Parts: why} }
	lost := func(why string) fact { return fact{Verdict: client.RequestLost, Why: why} }
	const (
		byName  = `; by name: with another name in place of "web.example" the same request passes on this port`
		byPort  = "; by port: another name fares the same here, while the name passes on port "
		byHTTP  = "; by protocol: another name fares the same here, while what is not http passes on this port, and the name passes on port "
		bySSH   = "; by protocol: what is not sftp passes on this port, and the same request passes on port "
		byXMPP  = `; by name: with another name in place of "mail.example" the same request passes on this port`
		byDNS   = `; by name: with another name in place of "t.wallprobe.invalid." the same request passes on this port`
		dnsOnly = "; by protocol: another name fares the same here, while what is not dns passes on this port"
		byQUIC  = `; by name: with another server name in place of "truth.example" the same hello passes on this port`
		noQUIC  = "; by protocol: another name fares the same here, while what is not QUIC passes on this port, and the name passes on port 8443"
		port443 = "; by port: another name fares the same here, while the name passes on port 8443"
		webs    = "{ 80, 3128, 8484 }"
		toQUIC  = `		iifname "lan0" udp dport 443 `
	)
	return []tampering{
		add("HTTP reset by the host asked for", "http", onPorts(webs, resetBy("web.example")), all(cut(byName), "HTTP", "PROXY", "CENTER")),
		add("HTTP reset whatever the host", "http", onPorts("80", resetBy("HTTP/1.1")), all(cut(byHTTP), "HTTP")),
		ruled("HTTP lost by port", "http", `		iifname "lan0" tcp dport 80 meta length > 120 counter drop`+"\n", all(cut(byPort), "HTTP")),
		add("SSH reset by its version line", "files", onPorts("22", resetBy("SSH-2.0-")), all(cut(bySSH), "SFTP")),
		add("XMPP reset by the server asked for", "mail", onPorts("5222", resetBy("mail.example")), all(cut(byXMPP), "XMPP")),
		add("DNS lost by the name asked for", "dns", dropBy("53", "wallprobe"), all(lost(byDNS), "DNS-UDP")),
		add("DNS lost whatever the name", "dns", dropBy("53", "invalid"), all(lost(dnsOnly), "DNS-UDP")),
		add("DNS over TCP reset by the name asked for", "dns", onPorts("53", resetBy("wallprobe")), all(cut(byDNS), "DNS-TCP")),
		add("QUIC lost by server name", "quic", dropHello("truth.example"), all(cut(byQUIC), "QUIC")),
		add("QUIC intercepted", "quic", func(s *scene) {
			s.serve(middlebox.UDP{Ports: "443", Between: new(middlebox.Interceptor).QUIC}.Open(s.firewall()))
		}, all(fact{Verdict: client.Altered, Near: "done", Far: "done", Why: `TLS intercepted: certificate …was sent, … issued by "CN=wallprobe lab inspection" was seen; the chain sent was "CN=truth.example", "CN=wallprobe reflector CA", the chain seen was "CN=truth.example"…; the ClientHello arrived as another`}, "QUIC")),
		ruled("QUIC lost by its version", "quic", toQUIC+"@th,64,1 1 @th,72,32 1 counter drop\n", all(lost(noQUIC), "QUIC")),
		ruled("QUIC lost by port", "quic", toQUIC+"counter drop\n", all(lost(port443), "QUIC")),
	}
}
