package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// everyProtocol is a scenario with a path for each protocol and transport, on a
// port of its own, by name; more is what else paths over TCP have. HTTPS has
// further ports, too.
func everyProtocol(t testing.TB, more string, further ...int) *scenarios.Scenario {
	t.Helper()
	var b strings.Builder
	b.WriteString(`schema: wallprobe/scenario/1
name: every-protocol
title: every protocol
version: 1
sources:
  - {id: T, file: none.txt, title: made by a test, language: en}
roles:
  - {name: host, title: inside, site: inside}
  - {name: server, title: outside, site: outside}
outcomes:
  - {id: first, title: the first path, roles: [host], ways: [{title: one, paths: [P-9001]}]}
paths:
`)
	port := 9000
	path := func(name string, transport scenarios.Transport, more string) {
		port++
		fmt.Fprintf(&b, "  - {id: P-%d, title: %s, from: [host], to: [server], direction: out, transport: [%s], ports: %d, protocol: %s, need: req, source: T, names: [server.example]%s}\n", port, name, transport, port, name, more)
	}
	for _, name := range protocol.Names() {
		for _, transport := range []scenarios.Transport{scenarios.TCP, scenarios.UDP} {
			switch {
			case protocol.On(name, transport) == nil:
			case transport == scenarios.TCP:
				path(name, transport, more)
			default:
				path(name, transport, "")
			}
		}
	}
	// What belongs to relays, and datagrams of our own.
	for _, name := range []string{protocol.STUN, protocol.TURN} {
		path(name, scenarios.UDP, "")
		path(name, scenarios.TCP, "")
	}
	path(protocol.TURNS, scenarios.TCP, "")
	path(protocol.Datagram, scenarios.UDP, "")
	for _, n := range further {
		port = n - 1
		path("https", scenarios.TCP, more)
	}
	file := filepath.Join(t.TempDir(), "every-protocol.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := scenarios.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// letsOut is a stateful firewall with a helper for the port of FTP.
func letsOut(t testing.TB, s *scenarios.Scenario) lab.Firewall {
	t.Helper()
	for _, p := range s.Paths {
		if p.Protocol == "ftp" {
			return lab.Firewall{Name: "stateful with an FTP helper", Text: fmt.Appendf(nil, `table inet firewall {
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain prerouting {
		type filter hook prerouting priority filter; policy accept;
		tcp dport %s ct helper set "ftp"
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "lan0" accept
	}
}
`, p.Ports)}
		}
	}
	t.Fatal("no FTP among the protocols")
	return lab.Firewall{}
}

// Every protocol as it is, both ends, through a stateful firewall, over IPv4
// and IPv6.
func TestEveryProtocolPassesThroughAFirewallThatLetsItOut(t *testing.T) {
	lab.NeedLab(t)
	t.Parallel()
	s := everyProtocol(t, ", bytes: 100000, idle: 100ms")
	if len(s.Paths) < len(protocol.Names()) {
		t.Fatalf("%d paths for %d protocols", len(s.Paths), len(protocol.Names()))
	}
	c := lab.ConfigFor([]*scenarios.Scenario{s})
	c.Firewall = letsOut(t, s)
	w := lab.Stand(t, c)
	program := programFor(t)
	for _, ipv6 := range []bool{false, true} {
		results, err := w.Measure(t.Context(), lab.Measurement{Scenarios: []*scenarios.Scenario{s}, IPv6: ipv6, Timeout: truthTimeout, Program: program, Read: report.ReadJSON})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range results[0].Findings {
			if f.Verdict != client.Open || f.Spoken != "" {
				t.Errorf("%s over %s, IPv6 %v: %s (%s), spoken %q", f.Title, f.Transport, ipv6, f.Sentence(), f.Why, f.Spoken)
			}
		}
	}
}
