package reflector

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Bounds on ICE agents.
const (
	maxAgents     = 128              // at one time
	maxOwnAgents  = 4                // of one session
	maxAgentWait  = 30 * time.Second // for a pair and the message over it
	minAgentWait  = 100 * time.Millisecond
	maxCandidates = 16
	maxAgentPeers = 16 // sources whose first check is in the ledger
	portDraws     = 64
	agentLinger   = 500 * time.Millisecond // after an answer, in case that was lost
)

// agents are the ICE agents under way, by the address where they wait.
type agents struct {
	mu      sync.Mutex
	by      map[netip.AddrPort]*session
	closed  bool
	running sync.WaitGroup
}

// owner is the session whose agent waits at an address, nil when there is none.
func (a *agents) owner(at netip.AddrPort) *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.by[at]
}

// enter reserves a place for a session's agent; leave gives it back.
func (a *agents) enter(s *session, at netip.AddrPort) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	own := 0
	for _, other := range a.by {
		if other == s {
			own++
		}
	}
	switch {
	case a.closed:
		return &wire.ControlError{Code: "session", Message: "the reflector is ending"}
	case len(a.by) >= maxAgents || own >= maxOwnAgents:
		return &wire.ControlError{Code: "limit", Message: fmt.Sprintf("too many ICE agents at one time; a session has at most %d", maxOwnAgents)}
	}
	if a.by == nil {
		a.by = make(map[netip.AddrPort]*session)
	}
	a.by[at] = s
	a.running.Add(1)
	return nil
}

func (a *agents) leave(at netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.by, at)
	a.running.Done()
}

// wait lets no more in and waits for those under way, whose context has ended.
func (a *agents) wait() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.running.Wait()
}

// ice makes an agent that waits for a session's checks on a port of its own.
func (r *Reflector) ice(from netip.AddrPort, body []byte) (any, error) {
	q, err := read[wire.ICERequest](body)
	if err != nil {
		return nil, err
	}
	s := r.sessions.find(q.Session)
	if s == nil {
		return nil, &wire.ControlError{Code: "session", Message: "the reflector has no such session"}
	}
	r.sessions.touch(s, from.Addr())
	c, giveBack, err := r.agentSocket(q, from)
	if err != nil {
		return nil, &wire.ControlError{Code: "limit", Message: "no port for an ICE agent: " + err.Error()}
	}
	if err := r.agents.enter(s, c.at); err != nil {
		giveBack()
		return nil, err
	}
	g := &iceAgent{r: r, s: s, q: q, c: c, wait: min(max(q.Wait, minAgentWait), maxAgentWait)}
	c.heard = g.heard
	reply, err := g.start()
	if err != nil {
		giveBack()
		r.agents.leave(c.at)
		return nil, err
	}
	go func() { // agents.wait waits for it
		defer r.agents.leave(c.at)
		defer giveBack()
		defer r.guard("ICE agent", from)
		g.serve()
	}()
	return reply, nil
}

// agentSocket draws one of the ports that were asked for. The address is the
// one that the client aims at or, where a translator stands before this host,
// the one that answers to the client leave from.
func (r *Reflector) agentSocket(q wire.ICERequest, from netip.AddrPort) (c *agentConn, giveBack func(), err error) {
	addr := q.Addr.Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.Is4() != from.Addr().Is4() {
		return nil, nil, fmt.Errorf("%s is no address for an agent that %s can reach", q.Addr, from.Addr())
	}
	ports := slices.Collect(q.Ports.All)
	ports = slices.DeleteFunc(ports, func(p uint16) bool { return p < 1024 })
	if len(ports) == 0 {
		return nil, nil, errors.New("no port from 1024 on was asked for")
	}
	for range portDraws {
		at := netip.AddrPortFrom(addr, ports[rand.IntN(len(ports))])
		var u *net.UDPConn
		if u, giveBack, err = r.set.Borrow(at); err == nil {
			return &agentConn{UDPConn: u, r: r, at: at}, giveBack, nil
		}
		if own, ok := leavingFor(from); ok && own != addr && !bindable(addr) {
			addr = own
		}
	}
	return nil, nil, err
}

// leavingFor is the address from which packets to another one leave.
func leavingFor(to netip.AddrPort) (netip.Addr, bool) {
	c, err := net.Dial("udp", to.String()) // sends nothing
	if err != nil {
		return netip.Addr{}, false
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), true
}

func bindable(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err == nil {
		c.Close()
	}
	return err == nil
}

// An iceAgent is one agent with its session.
type iceAgent struct {
	r     *Reflector
	s     *session
	q     wire.ICERequest
	c     *agentConn
	wait  time.Duration
	agent *ice.Agent

	mu    sync.Mutex
	peers map[netip.AddrPort]bool
}

// start makes the agent and its one candidate.
func (g *iceAgent) start() (wire.ICEReply, error) {
	system, err := stdnet.NewNet()
	if err != nil {
		return wire.ICEReply{}, err
	}
	n := &protocol.ICENet{Net: system, Addr: g.c.at.Addr(), Listen: func(netip.AddrPort) (transport.UDPConn, error) { return g.c, nil }}
	if g.agent, err = protocol.NewICEAgent(n, nil, g.wait); err != nil {
		return wire.ICEReply{}, err
	}
	reply := wire.ICEReply{Port: g.c.at.Port()}
	if reply.Ufrag, reply.Pwd, err = g.agent.GetLocalUserCredentials(); err != nil {
		return reply, errors.Join(err, g.agent.GracefulClose())
	}
	gathered := make(chan struct{})
	if err = g.agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(gathered)
		}
	}); err == nil {
		err = g.agent.GatherCandidates()
	}
	if err != nil {
		return reply, errors.Join(err, g.agent.GracefulClose())
	}
	<-gathered // at once: it is one socket that is open already
	g.addCandidates()
	return reply, nil
}

// addCandidates takes the client's candidates at addresses that it came from,
// where calls back are allowed.
func (g *iceAgent) addCandidates() {
	if !g.r.cfg.Inward {
		return
	}
	sources := g.s.allSources()
	for _, text := range g.q.Candidates[:min(len(g.q.Candidates), maxCandidates)] {
		c, err := ice.UnmarshalCandidate(text)
		if err != nil {
			continue // of a kind that this version does not know
		}
		a, err := netip.ParseAddr(c.Address())
		if err != nil || !slices.Contains(sources, a.Unmap()) || c.NetworkType().IsTCP() {
			continue
		}
		_ = g.agent.AddRemoteCandidate(c) // fails only when the agent is closed
	}
}

// serve waits for a pair and answers the probe's message over it.
func (g *iceAgent) serve() {
	end := sync.OnceFunc(func() { g.agent.GracefulClose() }) // pion's own would panic when called twice at once
	defer end()
	ctx, cancel := context.WithTimeout(g.r.ctx, g.wait)
	defer cancel()
	c, err := g.agent.Accept(ctx, g.q.Ufrag, g.q.Pwd)
	if err != nil {
		return // the checks that came are in the ledger
	}
	defer context.AfterFunc(ctx, end)()
	buf := make([]byte, 2048)
	for range maxAttempts {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		peer := &net.UDPAddr{}
		if pair, err := g.agent.GetSelectedCandidatePair(); err == nil && pair != nil {
			peer = net.UDPAddrFromAddrPort(candidateAt(pair.Remote))
		}
		m, k, err := protocol.ProveToken(string(buf[:n]), peer, untouched{g.r})
		if err != nil || m.Session != g.s.id || m.Probe != g.q.Probe {
			continue
		}
		if _, err := c.Write([]byte(protocol.AnswerToken(m, k, peer, untouched{g.r}))); err != nil {
			return
		}
		g.event(peer.AddrPort(), protocol.StageDone)
		time.AfterFunc(agentLinger, cancel)
	}
}

// candidateAt is where a candidate's packets come from.
func candidateAt(c ice.Candidate) netip.AddrPort {
	a, _ := netip.ParseAddr(c.Address()) // zero for a name, which is never a peer here
	return netip.AddrPortFrom(a, uint16(c.Port()))
}

func (g *iceAgent) event(from netip.AddrPort, stage string) {
	g.s.event(wire.Event{
		Time: g.r.now(), Transport: scenarios.UDP, Remote: unmap(from), Local: netip.AddrPortFrom(g.c.at.Addr(), g.c.at.Port()),
		Session: g.s.id, Probe: g.q.Probe, Stage: stage, Answered: true,
	})
}

// heard notes the first datagram from each source.
func (g *iceAgent) heard(from netip.AddrPort) {
	g.mu.Lock()
	known := g.peers[from] || len(g.peers) >= maxAgentPeers
	if !known {
		if g.peers == nil {
			g.peers = make(map[netip.AddrPort]bool)
		}
		g.peers[from] = true
	}
	g.mu.Unlock()
	if !known {
		g.event(from, protocol.StageChecks)
	}
}

// An agentConn is an agent's socket, on a port that may be served otherwise.
type agentConn struct {
	*net.UDPConn
	r     *Reflector
	at    netip.AddrPort
	heard func(from netip.AddrPort)
}

// LocalAddr is the address where the agent waits, also where the socket stands
// on the unspecified one.
func (c *agentConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.at) }

// ReadFrom leaves out what is meant for the port and not for the agent.
func (c *agentConn) ReadFrom(p []byte) (_ int, _ net.Addr, err error) {
	defer c.r.guardErr("ICE agent", c.at, &err)
	for {
		n, from, err := c.UDPConn.ReadFromUDPAddrPort(p)
		if err != nil {
			return n, nil, err
		}
		from = unmap(from)
		if c.r.shared(p[:n], c.at, from) {
			continue
		}
		if n >= 20 && p[0] < 4 {
			c.heard(from)
		}
		return n, net.UDPAddrFromAddrPort(from), nil
	}
}

// WriteTo sends from the address that was aimed at.
func (c *agentConn) WriteTo(b []byte, to net.Addr) (_ int, err error) {
	defer c.r.guardErr("ICE agent", c.at, &err)
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("send to %s: not a UDP address", to)
	}
	if at, ok := c.UDPConn.LocalAddr().(*net.UDPAddr); ok && !at.IP.IsUnspecified() {
		return c.UDPConn.WriteTo(b, u)
	}
	return len(b), c.r.set.WriteTo(b, c.at, unmap(u.AddrPort()))
}

var _ transport.UDPConn = (*agentConn)(nil)
