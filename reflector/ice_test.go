package reflector

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/ice/v2"
	"github.com/pion/transport/v2/stdnet"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// agentCall asks for an agent of a session.
func (b *bench) agentCall(t *testing.T, id wire.SessionID, change func(*wire.ICERequest)) (wire.ICEReply, error) {
	t.Helper()
	q := wire.ICERequest{Session: id, Time: b.clock.now(), Probe: 5, Addr: loopback, Ports: ports(t, "20000-65535"),
		Wait: 100 * time.Millisecond, Ufrag: "nearfrag", Pwd: "nearpasswordnearpassword"}
	if change != nil {
		change(&q)
	}
	var reply wire.ICEReply
	err := b.call(t, testKey, "127.0.0.1:50000", wire.CallICE, q, &reply)
	return reply, err
}

// withSession is a bench that knows two sessions.
func withSession(t *testing.T, cfg Config) (*bench, wire.SessionID, wire.SessionID) {
	t.Helper()
	b := newBench(t, cfg)
	t.Cleanup(b.agents.wait)
	other := wire.SessionID{0xb0}
	for _, id := range []wire.SessionID{testID, other} {
		if _, err := b.sessions.open(id, b.clock.now()); err != nil {
			t.Fatal(err)
		}
	}
	return b, testID, other
}

func TestAgentsAreForSessionsAndBounded(t *testing.T) {
	b, id, other := withSession(t, Config{})
	got := make(map[string]string)
	try := func(name string, id wire.SessionID, change func(*wire.ICERequest)) {
		_, err := b.agentCall(t, id, change)
		var refused *wire.ControlError
		switch {
		case err == nil:
			got[name] = "given"
		case errors.As(err, &refused):
			got[name] = refused.Code
		default:
			got[name] = err.Error()
		}
	}
	long := func(q *wire.ICERequest) { q.Wait = time.Second }
	try("no session", wire.SessionID{9}, nil)
	try("privileged port", id, func(q *wire.ICERequest) { q.Ports = ports(t, "53") })
	try("no port", id, func(q *wire.ICERequest) { q.Ports = nil })
	try("no address", id, func(q *wire.ICERequest) { q.Addr = netip.IPv4Unspecified() })
	try("multicast", id, func(q *wire.ICERequest) { q.Addr = netip.MustParseAddr("224.0.0.1") })
	try("another family", id, func(q *wire.ICERequest) { q.Addr = netip.IPv6Loopback() })
	for n := range maxOwnAgents + 1 {
		try(fmt.Sprintf("agent %d", n), id, long)
	}
	try("another session's", other, long)
	want := map[string]string{"no session": "session", "privileged port": "limit", "no port": "limit", "no address": "limit", "multicast": "limit",
		"another family": "limit", "agent 0": "given", "agent 1": "given", "agent 2": "given", "agent 3": "given", "agent 4": "limit", "another session's": "given"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAgentIsThePeerOfItsSessionAloneAndOnlyWhileItLives(t *testing.T) {
	b, id, other := withSession(t, Config{})
	b.own[loopback] = true // as an address of this host is
	reply, err := b.agentCall(t, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(loopback, reply.Port)
	got := map[string]bool{
		"the session": b.peerAllowed(id.String(), at), "another session": b.peerAllowed(other.String(), at),
		"another port":    b.peerAllowed(id.String(), netip.AddrPortFrom(loopback, reply.Port+1)),
		"another address": b.peerAllowed(id.String(), netip.AddrPortFrom(loopback.Next(), reply.Port)),
	}
	b.agents.wait() // it gives up after its time
	got["after its end"] = b.peerAllowed(id.String(), at)
	want := map[string]bool{"the session": true, "another session": false, "another port": false, "another address": false, "after its end": false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
		t.Errorf("its port is still taken: %v", err)
	} else {
		c.Close()
	}
}

func TestAgentAnswersItsProbeOverThePairThatWins(t *testing.T) {
	b, id, _ := withSession(t, Config{})
	n := &protocol.ICENet{Net: new(stdnet.Net), Addr: loopback}
	near, err := protocol.NewICEAgent(n, nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer near.GracefulClose()
	if err := errors.Join(near.OnCandidate(func(ice.Candidate) {}), near.GatherCandidates()); err != nil {
		t.Fatal(err)
	}
	reply, err := b.agentCall(t, id, func(q *wire.ICERequest) {
		q.Wait = 5 * time.Second
		q.Ufrag, q.Pwd, _ = near.GetLocalUserCredentials()
	})
	if err != nil {
		t.Fatal(err)
	}
	far, err := ice.NewCandidateHost(&ice.CandidateHostConfig{Network: "udp", Address: loopback.String(), Port: int(reply.Port), Component: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := near.AddRemoteCandidate(far); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := near.Dial(ctx, reply.Ufrag, reply.Pwd)
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { near.Close() })()
	keys := wire.Derive(testKey, id, wire.Nonce{})
	x := protocol.Exchange{Keys: &keys, Offline: true, Probe: 5, Port: reply.Port, Now: b.clock.now}
	other := x
	other.Probe = 6
	for _, text := range []string{"rubbish", other.Token(), x.Token()} { // the first two get no answer
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	size, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	var res protocol.Result
	if err := x.CheckToken(string(buf[:size]), &res); err != nil {
		t.Errorf("%q: %v", buf[:size], err)
	}
	var stages []string
	for _, p := range b.taken(t, id).Probes {
		for _, e := range p.Events {
			if e.Local.Port() == reply.Port && e.Probe == 5 && !slices.Contains(stages, e.Stage) {
				stages = append(stages, e.Stage)
			}
		}
	}
	if !slices.Contains(stages, protocol.StageChecks) {
		t.Errorf("the ledger tells of %q", stages)
	}
}

// The reflector sends nothing to addresses that a session merely names.
func TestCandidatesElsewhereAreNotChecked(t *testing.T) {
	victim, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Skip(err) // systems where 127.0.0.2 is no address
	}
	defer victim.Close()
	own, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	candidate := func(c *net.UDPConn) string {
		a := c.LocalAddr().(*net.UDPAddr)
		return fmt.Sprintf("1 1 udp 2130706431 %s %d typ host", a.IP, a.Port)
	}
	hears := func(c *net.UDPConn) bool {
		c.SetReadDeadline(time.Now().Add(time.Millisecond)) // all that would come is there
		_, _, err := c.ReadFromUDP(make([]byte, 2048))
		return err == nil
	}
	for _, inward := range []bool{false, true} {
		b, id, _ := withSession(t, Config{Inward: inward})
		_, err := b.agentCall(t, id, func(q *wire.ICERequest) {
			q.Wait, q.Candidates = 300*time.Millisecond, []string{candidate(victim), candidate(own), "no candidate", "1 1 udp 1 name.example 9 typ host"}
		})
		if err != nil {
			t.Fatal(err)
		}
		b.agents.wait()
		if hears(victim) {
			t.Errorf("inward %v: an address that the session never came from was sent to", inward)
		}
		if got := hears(own); got != inward {
			t.Errorf("inward %v: the session's own address was sent to: %v", inward, got)
		}
	}
}

func TestEchoIsForTheSessionOfTheAllocationAlone(t *testing.T) {
	b, id, other := withSession(t, Config{})
	p := b.request(id, nil)
	got := map[string]bool{
		"its own":           b.echo(id.String(), p, local) != nil,
		"another session's": b.echo(other.String(), p, local) != nil,
		"rubbish":           b.echo(id.String(), []byte("rubbish"), local) != nil,
	}
	if diff := cmp.Diff(map[string]bool{"its own": true, "another session's": false, "rubbish": false}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An agent stands on a port that is served: a sweep must find it as before.
func TestPortOfAnAgentAnswersProbesMeanwhile(t *testing.T) {
	var b *bench
	var port uint16
	for b == nil {
		port = freePort(t)
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, port)))
		if err != nil {
			continue // taken over UDP
		}
		c.Close()
		b, _, _ = withSession(t, Config{UDP: ports(t, fmt.Sprint(port))})
	}
	reply, err := b.agentCall(t, testID, func(q *wire.ICERequest) { q.Wait, q.Ports = time.Second, ports(t, fmt.Sprint(port)) })
	if err != nil || reply.Port != port {
		t.Fatalf("port %d: %v", reply.Port, err)
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, port)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b.request(testID, func(m *wire.Message) { m.Port = port })); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	keys := wire.Derive(testKey, testID, wire.Nonce{})
	m, bad := wire.Parse(buf[:n], &keys)
	if err != nil || bad != nil || m.Kind != wire.Reply {
		t.Errorf("%d bytes, kind %d: %v, %v", n, m.Kind, err, bad)
	}
}
