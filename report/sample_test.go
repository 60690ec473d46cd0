package report

import (
	"net/netip"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func set(s string) scenarios.PortSet {
	p, err := scenarios.ParsePortSet(s)
	if err != nil {
		panic(err)
	}
	return p
}

func tries(sent, seen, answered int) *client.Attempts {
	return &client.Attempts{Sent: sent, Seen: seen, Answered: answered}
}

func fraction(f float64) *float64 { return &f }

// everyVerdict has a finding for each verdict, made by hand.
func everyVerdict() []client.Finding {
	tcp := func(id, title, ports, protocol string, v client.Verdict, why string) client.Finding {
		return client.Finding{Path: id, Title: title, Need: scenarios.Required, Direction: scenarios.Out, Transport: scenarios.TCP,
			Ports: set(ports), Protocol: protocol, Verdict: v, Why: why, Attempts: tries(1, 1, 1)}
	}
	udp := func(id, title, ports string, v client.Verdict, a *client.Attempts, why string) client.Finding {
		return client.Finding{Path: id, Title: title, Need: scenarios.Required, Direction: scenarios.Out, Transport: scenarios.UDP,
			Ports: set(ports), Verdict: v, Why: why, Attempts: a}
	}
	open := tcp("CRD-A1", "sign-in and session, HTTPS", "443", "https", client.Open, "TLS 1.3, certificate as sent")
	open.RTT, open.Spoken = 1.23, "tls"
	xmpp := tcp("CRD-B5", "host signalling, XMPP", "5222", "xmpp", client.Open, "")
	xmpp.RTT, xmpp.Spoken, xmpp.Note = 12.34, "plain", "aimed at the reflector's own address under the documented name: rules that go by address are not exercised"
	partial := udp("CRD-B11", "session data, 32768 and up", "32768-65535", client.Partial, tries(43001, 7233, 7233), "")
	partial.Pick, partial.Share, partial.Protocol, partial.Spoken = scenarios.PickOne, fraction(0.220734), "ice", "datagram"
	partial.Parts = []client.Part{
		{Ports: set("32768-40000"), Verdict: client.Open, Attempts: tries(7233, 7233, 7233)},
		{Ports: set("40001-65535"), Verdict: client.RequestLost, Why: "the reflector saw nothing", Attempts: tries(76605, 0, 0)},
	}
	own := udp("CRD-B11c", "session data, own port 40000 up", "40000", client.RequestLost, tries(76605, 0, 0), "the reflector saw nothing")
	own.LocalPorts = set("40000-65535")
	stun := udp("CRD-A3", "STUN", "3478", client.Open, tries(3, 3, 3), "")
	stun.RTT = 1834
	stun.Passage = []client.Passage{{Field: "TTL", Sent: "64", Arrived: "55", Note: "9 hops"}, {Field: "DSCP", Sent: "46", Arrived: "0", Changed: true}}
	open.Passage = []client.Passage{{Field: "source", Sent: "10.77.1.2", Arrived: "198.51.100.1", Note: "translated; the SYN itself arrived"},
		{Field: "MSS", Sent: "1460", Arrived: "1360", Changed: true}, {Field: "MSS", Back: true, Sent: "1460", Arrived: "1460"}}
	xmpp.Passage = open.Passage[1:]
	cut := tcp("CWA-3", "file transfer", "70", "http", client.Cut, "after 16384 bytes received and 0 sent: a reset came; the reflector never sent a reset")
	altered := tcp("GT-D6", "sign-in", "443", "https", client.Altered, `TLS intercepted: certificate 0123456789ab was sent, cdef01234567 issued by "CN=Büro-Proxy 株式会社" was seen`)
	altered.Evidence = client.Evidence{Near: []client.Observation{{TLS: &wire.TLSSeen{ServerName: "api.example", Version: "TLS 1.3", ALPN: "h2",
		Offered: []string{"h2", "http/1.1"}, HelloDigest: "00112233445566778899", Chain: []wire.Certificate{
			{Digest: "cdef0123456789", Subject: "CN=api.example"}, {Digest: "aabbccddeeff00", Subject: "CN=Büro-Proxy 株式会社"}}}}}}
	filtered := tcp("GT-D7", "session", "443", "https", client.Cut,
		`stage tls: a reset came; by name: with another server name in place of "api.example" the same hello passes on this port`)
	filtered.Evidence = client.Evidence{Near: []client.Observation{{TLS: &wire.TLSSeen{ServerName: "api.example", HelloDigest: "99887766554433221100"},
		Controls: []client.Comparison{
			{What: client.OtherName, Port: 443, ServerName: "xyz.invalid", Stage: "done"},
			{What: client.NoALPN, Port: 443, ServerName: "api.example", Stage: "tls", Fault: "reset"},
			{What: client.OtherPort, Port: 8443, ServerName: "api.example", Stage: "done"},
			{What: client.NoTLS, Port: 443, Stage: "token", Fault: "timeout"}}}}}
	impostor := tcp("TS-9", "licence", "80", "http", client.Impostor, `the connection was accepted, but not by the reflector: its ledger is empty: it begins "HTTP/1.1 302 Found\r\nLoca"`)
	inward := tcp("SC-1", "web, at the server", "8040", "http", client.ReplyLost, "the reflector's call arrived here; the answer did not get back")
	inward.Direction = scenarios.In
	inward.Imitation = "the relay's protocol is not documented: its first bytes are those that a traffic study saw, the rest is wallprobe's own"
	targets := tcp("GT-T1", "video, first range", "443", "https", client.Partial, "")
	targets.Parts = []client.Part{
		{Ports: set("443"), Target: "173.199.0.1", Verdict: client.Open, Why: "TLS 1.3", Attempts: tries(1, 1, 1)},
		{Ports: set("443"), Target: "173.199.63.254", Verdict: client.Rejected, Why: "icmp admin-prohibited from 10.77.1.1", Attempts: tries(1, 0, 0)},
	}
	unmeasured := client.Finding{Path: "CRD-B15", Title: "through a VPN", Direction: scenarios.In, Verdict: client.Unmeasured,
		Why: "The document names neither the VPN's protocol nor its port; inside it the session is that of CRD-B14."}
	half := tcp("CRD-B4", "STUN, TCP and UDP", "3478", "stun", client.Unmeasured, "not tried: the run ended before")
	return []client.Finding{
		open, xmpp, stun, partial, own, udp("CRD-B4", "STUN, TCP and UDP", "3478", client.ReplyLost, tries(3, 3, 0), "the reflector saw it and answered; the answer did not arrive"), half,
		tcp("CRD-A2", "first contact, HTTP", "80", "http", client.Refused, "the reflector's host reset the connection: nothing listens there, address already in use"),
		tcp("CRD-B8", "client push", "5228", "mcs", client.Rejected, "tcp reset that the reflector never sent"),
		cut, altered, filtered, impostor, inward, targets,
		udp("CWA-16", "tunnel, ten thousands", "40000-41000", client.Degraded, tries(30, 18, 18), "40 % of 30 datagrams lost; at most 20 % are allowed"),
		tcp("CWA-9", "mediator", "8002", "", client.Silent, "no connection came up, and the reflector cannot see SYNs on its system"),
		unmeasured,
	}
}

// sample is a result with everything in it.
func sample() *client.Result {
	return &client.Result{
		Schema: client.ResultSchema, Program: "v0.1.0", Scenario: "chrome-remote-desktop", Version: 1, Role: "host", Family: "ipv4",
		Reflector: netip.MustParseAddr("198.51.100.10"), Started: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), Seconds: 0.812,
		Complete: true, Control: client.Control{Via: "443/tcp"},
		Firewall: &client.Firewall{Name: "drop-udp-remote-40001", Rules: []client.Rule{
			{Chain: "forward", Index: 1, Text: `ct state established,related accept`, Verdict: "accept", Packets: 4000},
			{Chain: "forward", Index: 3, Text: `iifname "lan0" oifname "wan0" udp dport 40001-65535 counter drop comment "remote port 40001-65535/udp out"`, Verdict: "drop", Packets: 25535, Bytes: 1 << 20},
			{Chain: "forward", Index: 4, Text: `tcp dport 5228 reject with tcp reset`, Verdict: "reject", Packets: 1},
			{Chain: "forward", Index: 5, Text: `iifname "wan0" drop`, Verdict: "drop"},
		}},
		Findings: everyVerdict(),
		Outcomes: sampleOutcomes(),
		Ledgers:  map[client.Where]*wire.Ledger{client.WhereFar: {Witness: "packet"}},
	}
}

func sampleOutcomes() []client.Outcome {
	return []client.Outcome{
		{ID: "sign-in", Title: "sign-in", Works: true, Via: "HTTPS", Ways: []client.Way{{Title: "HTTPS", Works: true}}},
		{ID: "session-outside", Title: "session from outside", Works: true, Via: "relayed over UDP 3478", Why: "direct: CRD-B11b partial, CRD-B11c request-lost",
			Ways: []client.Way{
				{Title: "direct", Stopped: []string{"CRD-B11b partial", "CRD-B11c request-lost"}},
				{Title: "relayed over UDP 3478", Works: true},
				{Title: "over TCP 443 alone", Works: true},
			}},
		{ID: "session-outside-direct", Title: "session from outside, direct", Optional: true, Ways: []client.Way{
			{Title: "STUN on 3478", Stopped: []string{"CRD-B11b partial", "CRD-B11c request-lost"}},
			{Title: "no STUN, public peer", Stopped: []string{"CRD-B11b partial", "CRD-B11c request-lost"}},
		}},
		{ID: "video", Title: "video", Ways: []client.Way{
			{Title: "UDP", Stopped: []string{"GT-U1 request-lost", "GT-U2 request-lost", "GT-U3 request-lost", "GT-U4 request-lost", "GT-U5 request-lost"}},
			{Title: "TCP 443", Stopped: []string{"GT-T1 partial"}},
		}},
		{ID: "session-lan", Title: "session inside the LAN", Unknown: true, Ways: []client.Way{
			{Title: "direct", Unknown: true, Stopped: []string{"CRD-B14 unmeasured"}}}},
	}
}

// offline is a result without the reflector's ledger that ended early.
func offline() *client.Result {
	r := sample()
	r.Offline, r.Complete, r.Why, r.Ledgers, r.Firewall = true, false, "stopped: interrupt", nil, nil
	r.Control = client.Control{Tried: []client.Tried{{Port: 443, Error: "no answer"}, {Port: 80, Error: "connection refused"}}}
	r.Reflector = netip.MustParseAddr("2001:db8::10")
	r.Findings = []client.Finding{
		{Path: "CRD-A1", Title: "sign-in and session, HTTPS", Transport: scenarios.TCP, Ports: set("443"), Verdict: client.Silent,
			Attempts: tries(1, 0, 0), Why: "nothing came back, and the reflector's ledger could not be had"},
		{Path: "CRD-A3", Title: "STUN", Transport: scenarios.UDP, Ports: set("3478"), Verdict: client.Open, Attempts: tries(3, 0, 3), RTT: 0.3},
		{Path: "CRD-B4", Title: "STUN, TCP and UDP", Transport: scenarios.UDP, Ports: set("3478"), Verdict: client.Silent,
			Attempts: tries(3, 0, 0), Why: "nothing came back, and the reflector's ledger could not be had"},
		{Path: "CRD-B2", Title: "replies to UDP out", Verdict: client.Unmeasured, Why: "It is measured by the replies of CRD-B1."},
	}
	r.Outcomes = sampleOutcomes()[4:]
	return r
}

// manyParts is a range that fares differently at every hundredth port.
func manyParts() *client.Result {
	r := sample()
	f := client.Finding{Path: "X-1", Title: "sieve", Transport: scenarios.UDP, Ports: set("1000-5999"), Verdict: client.Partial, Attempts: tries(5000, 2500, 2500)}
	for i := range 20 {
		first := uint16(1000 + 250*i)
		p := client.Part{Ports: scenarios.PortSet{{First: first, Last: first + 249}}, Verdict: client.Open, Attempts: tries(100, 100, 100)}
		if i%2 == 1 {
			p.Verdict, p.Attempts = client.RequestLost, tries(100, 0, 0)
		}
		f.Parts = append(f.Parts, p)
	}
	var comb scenarios.PortSet
	for i := range 40 {
		comb = append(comb, scenarios.PortRange{First: uint16(7000 + 2*i), Last: uint16(7000 + 2*i)})
	}
	teeth := client.Finding{Path: "X-2", Title: "comb", Transport: scenarios.TCP, Ports: comb, Verdict: client.Rejected, Why: "tcp reset that the reflector never sent", Attempts: tries(40, 0, 0)}
	r.Findings, r.Outcomes, r.Firewall = []client.Finding{f, teeth}, nil, nil
	return r
}

// matrixResults are three outcomes behind seven firewalls.
func matrixResults() []*client.Result {
	var out []*client.Result
	firewalls := []string{"open", "stateful", "https-only", "web-and-stun", "no-3478", "drop-udp-remote-40001", "drop-udp-all"}
	for i, fw := range firewalls {
		r := sample()
		r.Firewall.Name = fw
		for j := range r.Outcomes[1].Ways {
			r.Outcomes[1].Ways[j].Works = j >= i%4
		}
		r.Outcomes[1].Works = i%4 < 3
		if r.Outcomes[1].Works {
			r.Outcomes[1].Via = r.Outcomes[1].Ways[i%4].Title
		}
		out = append(out, r)
		if i > 1 {
			out = append(out, &client.Result{Scenario: "screenconnect", Role: "machine", Family: "ipv4", Firewall: &client.Firewall{Name: fw},
				Outcomes: []client.Outcome{{ID: "remote-control", Title: "machine can be controlled", Works: i%2 == 0, Ways: []client.Way{{Title: "web and relay", Works: i%2 == 0}}}}})
		}
	}
	return out
}

func sampleRows() []ExperimentRow {
	return []ExperimentRow{
		{ID: "CRD-E1", Firewall: "no-3478", Document: "other ports are used, the session still connects", Quote: "ポート 3478 をルーターで塞ぐと代替ポートに移ってしまうようで",
			Source: "001_6fe2ee6f97eb560e.txt", Measured: "a direct session comes up by STUN on another port", Status: Confirmed, Seconds: 0.71,
			Findings: []string{"CRD-A3 3478/udp request-lost: 3 sent, 0 seen", "CRD-X1 19302-19309/udp open"}},
		{ID: "CRD-E6", Variant: "remote", Firewall: "drop-udp-remote-40001", Document: "no connection from outside", Quote: "改めて 40001〜65535/udp のドロップに設定し直しました",
			Source: "001_6fe2ee6f97eb560e.txt", Measured: "no direct session", Status: Confirmed, Reason: "a session by a relay is told beside it", Seconds: 1.24},
		{ID: "CRD-E6", Variant: "own", Firewall: "drop-udp-local-40001", Document: "no connection from outside", Quote: "改めて 40001〜65535/udp のドロップに設定し直しました",
			Source: "001_6fe2ee6f97eb560e.txt", Measured: "no direct session", Status: Confirmed, Reason: "a session by a relay is told beside it", Seconds: 1.2},
		{ID: "CRD-E20", Firewall: "https-only", Document: "TCP 443 alone suffices for sign-in and session data", Measured: "sign-in works; no session",
			Status: Contradicted, Reason: "CRD-B11b request-lost on 40000-65535/udp: 25,536 sent, 0 seen; the measurement supports D1", Seconds: 0.9},
		{ID: "CRD-E23", Firewall: "no-443", Document: "port 80 is a fallback", Measured: "", Status: NotMeasured, Reason: "the document states no outcome", Seconds: 0},
	}
}
