package lab_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// everyPort are the ports of everyProtocol.
const everyPort = "9001-9099"

// patience is longer than elsewhere: every protocol is tried at once, on a machine
// that has other things to do. It is what the client waits by itself.
const patience = client.DefaultTimeout

// A generic is a fault that knows nothing of what is spoken, and what must be
// found of every protocol: tcp and udp are the verdicts of all but those in
// except, which are named by protocol and transport and, where a path's ways
// differ, by the way.
type generic struct {
	name     string
	rules    string
	boxes    func(*scene)
	tcp, udp client.Verdict // "" for udp is open: the fault is of streams alone
	except   map[string]client.Verdict
	ipv4     bool // alone: what it hits in IPv6 lies elsewhere
}

func onEveryStream(box middlebox.TCP) func(*scene) {
	box.Ports = everyPort
	return func(s *scene) { s.serve(box.Open(s.firewall())) }
}

func generics() []generic {
	const (
		there = `		iifname "lan0" meta l4proto { tcp, udp } th dport ` + everyPort
		back  = `		iifname "wan0" meta l4proto { tcp, udp } th sport ` + everyPort
		syn   = `		iifname "lan0" tcp dport ` + everyPort
	)
	list := []generic{
		{name: "dropped on the way out", rules: firewall(there + " drop\n"), tcp: client.RequestLost, udp: client.RequestLost},
		{name: "dropped on the way back", rules: firewall(back + " drop\n"), tcp: client.ReplyLost, udp: client.ReplyLost},
		{name: "rejected with a reset", rules: firewall(syn + " reject with tcp reset\n"), tcp: client.Rejected},
		{name: "rejected by ICMP", rules: firewall(there + " reject with icmpx admin-prohibited\n"), tcp: client.Rejected, udp: client.Rejected},
	}
	for what, answer := range map[string]func(net.Conn){
		"who says nothing": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"who hangs up":     middlebox.Hangup,
		"who echoes":       middlebox.Echo,
	} {
		list = append(list, generic{name: "accepted by a stranger " + what, rules: firewall(""), boxes: onEveryStream(middlebox.TCP{Answer: answer}), tcp: client.Impostor})
	}
	list = append(list, stalls()...)
	return append(list, flips()...)
}

// ftpFurther is what becomes of FTP's ways when control lasts long enough: data
// connections are not in the way of the box, but through its own address the
// calls that active ones ask for are refused.
var ftpFurther = map[string]client.Verdict{
	"ftp tcp passive": client.Open, "ftp tcp extended passive": client.Open,
	"ftp tcp active": client.Cut, "ftp tcp extended active": client.Cut,
}

// besides gives the exceptions of several protocols one verdict.
func besides(v client.Verdict, more map[string]client.Verdict, keys ...string) map[string]client.Verdict {
	m := make(map[string]client.Verdict)
	for k, v := range more {
		m[k] = v
	}
	for _, k := range keys {
		m[k] = v
	}
	return m
}

// stalls and resets after so many bytes: what needs fewer is done before.
func stalls() []generic {
	var list []generic
	for _, side := range []middlebox.Side{middlebox.Client, middlebox.Server} {
		for _, n := range []int64{0, 20, 300, 3000} {
			g := generic{rules: firewall("") + translator, tcp: client.Cut, ipv4: true}
			switch {
			case n == 300 && side == middlebox.Client:
				g.except = besides(client.Open, nil, "stun tcp", "ftp tcp")
			case n == 300:
				g.except = besides(client.Open, nil, "stun tcp")
			case n == 3000:
				g.except = besides(client.Open, ftpFurther, "stun tcp")
			}
			stalled, broken := g, g
			stalled.name, stalled.boxes = fmt.Sprintf("stalled after %d bytes of the %s", n, side), onEveryStream(middlebox.TCP{Cut: &middlebox.Cut{From: side, After: n}})
			broken.name, broken.boxes = fmt.Sprintf("reset after %d bytes of the %s", n, side), onEveryStream(middlebox.TCP{Between: resetAfter(side, n)})
			if list = append(list, stalled); n > 0 { // a reset at once may be met while connecting
				list = append(list, broken)
			}
		}
	}
	return list
}

// resetAfter forwards until so many bytes of a side have passed, then resets
// both connections.
func resetAfter(side middlebox.Side, after int64) func(client, server net.Conn) {
	return func(near, far net.Conn) {
		from, to := near, far
		if side == middlebox.Server {
			from, to = far, near
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(from, to)
			_ = from.(*net.TCPConn).CloseWrite()
		}()
		if _, err := io.CopyN(to, from, after); err == nil {
			_ = near.(*net.TCPConn).SetLinger(0)
			_ = far.(*net.TCPConn).SetLinger(0)
			near.Close()
			far.Close()
		} else {
			_ = to.(*net.TCPConn).CloseWrite()
		}
		<-done
	}
}

// flips change one byte of every stream and datagram.
func flips() []generic {
	var list []generic
	for _, side := range []middlebox.Side{middlebox.Client, middlebox.Server} {
		for _, at := range []int64{0, 3, 13, 40, 250, 20000} {
			g := generic{name: fmt.Sprintf("byte %d of the %s changed", at, side), rules: firewall("") + translator, tcp: client.Altered, udp: client.Altered, ipv4: at > 40}
			rewrites := []middlebox.Rewrite{{From: side, At: at}}
			g.boxes = func(s *scene) {
				onEveryStream(middlebox.TCP{Rewrites: rewrites})(s)
				s.serve(middlebox.UDP{Ports: everyPort, Rewrites: rewrites}.Open(s.firewall()))
			}
			g.except = unflipped(side, at)
			list = append(list, g)
		}
	}
	return list
}

// small are those that send datagrams of 84 bytes alone.
var small = []string{"automate-heartbeat udp", "automate-mediator udp", "automate-tray udp", "automate-tunnel udp", "automate-wakeup udp"}

// unflipped are the exceptions to what changes: where nothing is sent that has
// such a byte, and where the change makes what came look like the beginning of
// something longer.
func unflipped(side middlebox.Side, at int64) map[string]client.Verdict {
	switch {
	case at == 0 && side == middlebox.Server:
		return besides(client.Cut, nil, "mysql tcp") // the length of the greeting
	case at == 250 && side == middlebox.Client:
		return besides(client.Open, nil, append(small, "ftp tcp")...)
	case at == 250:
		return besides(client.Open, nil, append(small, "stun tcp", "stun udp")...)
	case at == 20000:
		short := append(small, "dns udp", "goto-media udp", "quic udp", "stun tcp", "stun udp", "turn tcp", "turn udp", "datagram udp")
		if side == middlebox.Client { // who writes a whole stream of TURN in one piece has fewer records
			short = append(short, "turns tcp")
		}
		return besides(client.Open, ftpFurther, short...)
	}
	return nil
}

// wanted is what must be found, of what was found.
func (g *generic) wanted(got map[string]client.Verdict, paths []client.Finding) map[string]client.Verdict {
	want := make(map[string]client.Verdict)
	for i := range paths {
		f := &paths[i]
		v := g.tcp
		if f.Transport == scenarios.UDP {
			if v = g.udp; v == "" {
				v = client.Open
			}
		}
		key := fmt.Sprintf("%s %s", f.Title, f.Transport)
		if _, whole := got[key]; whole {
			want[key] = v
		}
	}
	for key, v := range g.except {
		want[key] = v
	}
	return want
}

// verdicts are those of every path, or of its ways where these differ.
func verdicts(paths []client.Finding) map[string]client.Verdict {
	m := make(map[string]client.Verdict)
	for _, f := range paths {
		key := fmt.Sprintf("%s %s", f.Title, f.Transport)
		if f.Verdict != client.Partial {
			m[key] = f.Verdict
			continue
		}
		for _, p := range f.Parts {
			m[key+" "+p.Target] = p.Verdict
		}
	}
	return m
}

func TestEveryProtocolsVerdictNamesAFaultThatKnowsNoProtocol(t *testing.T) {
	lab.NeedLab(t)
	s := everyProtocol(t, ", bytes: 100000, idle: 100ms")
	program := programFor(t)
	measure := func(t *testing.T, g generic, ipv6 bool) []client.Finding {
		c := lab.ConfigFor([]*scenarios.Scenario{s})
		c.Firewall = lab.Firewall{Name: g.name, Text: []byte(g.rules)}
		w := lab.Stand(t, c)
		if g.boxes != nil {
			g.boxes(&scene{t, w})
		}
		results, err := w.Measure(t.Context(), lab.Measurement{Scenarios: []*scenarios.Scenario{s}, IPv6: ipv6, Timeout: patience, Program: program, Read: report.ReadJSON})
		if err != nil {
			t.Fatal(err)
		}
		return results[0].Findings
	}
	for _, g := range generics() {
		for _, family := range []string{"ipv4", "ipv6"} {
			if g.ipv4 && family == "ipv6" {
				continue
			}
			t.Run(g.name+"/"+family, func(t *testing.T) {
				t.Parallel()
				paths := measure(t, g, family == "ipv6")
				got := verdicts(paths)
				if diff := cmp.Diff(g.wanted(got, paths), got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
					for _, f := range paths {
						t.Logf("%s %s: %s, %s; %s %s", f.Title, f.Transport, f.Sentence(), f.Why, f.Evidence.Near[0].Stage, f.Evidence.Near[0].Fault)
						for _, p := range f.Parts {
							t.Logf("    %s: %s, %s", p.Target, p.Verdict, p.Why)
						}
					}
				}
			})
		}
	}
	t.Run("without a fault all is open", func(t *testing.T) {
		t.Parallel()
		g := generic{name: "open", rules: firewall(""), tcp: client.Open}
		paths := measure(t, g, false)
		got := verdicts(paths)
		if diff := cmp.Diff(g.wanted(got, paths), got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
