package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/stun"
	"github.com/pion/transport/v2/stdnet"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// An ICE is what a session of RFC 8445 came to.
type ICE struct {
	Won     *ICEPair  `json:"won,omitempty"`     // the pair that was selected
	Connect float64   `json:"connect,omitempty"` // seconds until then
	Pairs   []ICEPair `json:"pairs,omitempty"`   // all that were tried
	// Absent are the candidates that could not be had: STUN and TURN servers
	// that gave none.
	Absent []string `json:"absent,omitempty"`
	Hellos []string `json:"hellos,omitempty"` // digests of the ClientHellos to TURN servers
}

// An ICEPair is a candidate of this end and one of the reflector's.
type ICEPair struct {
	Local  ICECandidate `json:"local"`
	Remote ICECandidate `json:"remote"`
	State  string       `json:"state"` // of RFC 8445 section 6.1.2.6: "waiting", "in-progress", "failed", "succeeded"
	RTT    float64      `json:"rtt_ms,omitempty"`
}

// An ICECandidate is one end of a pair.
type ICECandidate struct {
	Type string         `json:"type"` // "host", "srflx", "prflx" or "relay"
	Addr netip.AddrPort `json:"addr"`
	Base netip.AddrPort `json:"base,omitzero"` // own address behind it
	Via  string         `json:"via,omitempty"` // of a relay: "udp 3478", "tcp 3478", "tls 443"
}

// String is a candidate in words.
func (c ICECandidate) String() string {
	switch {
	case c.Via != "":
		proto, port, _ := strings.Cut(c.Via, " ")
		return "relay over " + strings.ToUpper(proto) + " " + port
	case c.Type == "relay":
		return "relay " + c.Addr.String()
	}
	return c.Type + " " + c.Addr.String()
}

// An iceProbe is one session under way.
type iceProbe struct {
	r        *runner
	p        Probe
	o        *Observation
	net      *protocol.ICENet
	agent    *ice.Agent
	relays   map[string]string // "udp": "udp 3478"
	urls     []*stun.URI
	stop     func() // closes the agent, once
	gathered chan struct{}

	mu    sync.Mutex
	known []ice.Candidate // of this end
}

// ice makes a whole session with an agent at the reflector: signalling over
// control, checks, the token over the pair that won.
func (r *runner) ice(ctx context.Context, p Probe) Observation {
	o := r.observe(p, p.Ports[0].First)
	o.Stage, o.ICE, o.Sent = protocol.StageSignal, &ICE{}, 1
	i := &iceProbe{r: r, p: p, o: &o}
	fail := func(err error) Observation {
		o.Fault, o.Detail = protocol.FaultOf(err), sentence(err)
		return o
	}
	base := r.controlBase(ctx, r.ends[p.Where])
	if base == "" {
		return fail(errors.New("no port carries control"))
	}
	if err := i.prepare(); err != nil {
		return fail(err)
	}
	defer i.stop()
	defer context.AfterFunc(ctx, i.stop)()
	began := time.Now()
	reply, err := i.signal(ctx, base)
	if err != nil {
		return fail(err)
	}
	o.Ports = scenarios.PortSet{{First: reply.Port, Last: reply.Port}}
	o.Stage = protocol.StageChecks
	wait, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c, err := i.agent.Dial(wait, reply.Ufrag, reply.Pwd)
	o.Seconds = time.Since(began).Seconds()
	if err != nil {
		i.pairs()
		return fail(os.ErrDeadlineExceeded)
	}
	o.ICE.Connect = o.Seconds
	o.Stage = protocol.StageToken
	err = i.token(c)
	i.pairs()
	if err != nil {
		return fail(err)
	}
	o.Stage, o.Answered, o.Seconds = protocol.StageDone, 1, 0
	o.Detail = o.ICE.sentence()
	return o
}

// controlBase waits for control, which goes on being tried while probes run.
func (r *runner) controlBase(ctx context.Context, f *farEnd) string {
	tick := time.NewTicker(r.cfg.Timeout / 40)
	defer tick.Stop()
	for end := time.Now().Add(r.cfg.Timeout); ; {
		r.mu.Lock()
		base := f.base
		r.mu.Unlock()
		if base != "" || time.Now().After(end) {
			return base
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ""
		}
	}
}

// prepare makes the near agent and begins to gather its candidates.
func (i *iceProbe) prepare() error {
	local, err := localFor(i.p.Addr)
	if err != nil {
		return err
	}
	i.o.Local = local
	system, err := stdnet.NewNet()
	if err != nil {
		return err
	}
	user, pass := wire.TURN(i.r.cfg.Key, i.r.res.Session, i.r.res.Started)
	label := fmt.Sprint(i.p.ID)
	i.net = &protocol.ICENet{Net: system, Addr: local, Dialing: i.r.cfg.Timeout,
		Binding: func(id [stun.TransactionIDSize]byte) ([]byte, error) {
			return protocol.BindingAs(id, user, pass, label)
		}}
	i.servers(user, pass)
	if i.agent, err = protocol.NewICEAgent(i.net, i.urls, i.r.cfg.Timeout); err != nil {
		return err
	}
	i.stop = sync.OnceFunc(func() { i.net.Shut(); _ = i.agent.GracefulClose() }) // its error is that of a closed agent
	i.gathered = make(chan struct{})
	err = i.agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(i.gathered)
			return
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		i.known = append(i.known, c)
	})
	if err == nil {
		err = i.agent.GatherCandidates()
	}
	if err != nil {
		i.stop()
	}
	return err
}

// localFor is the own address from which packets to another one leave.
func localFor(to netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))) // sends nothing
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// servers are the STUN and TURN servers that the scenario has at the same end.
func (i *iceProbe) servers(user, pass string) {
	i.relays = make(map[string]string)
	for _, q := range i.r.plan.Probes {
		if q.Where != i.p.Where || q.Sweeps() {
			continue
		}
		u := stun.URI{Scheme: stun.SchemeTypeTURN, Proto: stun.ProtoTypeUDP, Host: q.Addr.String(), Port: int(q.Ports[0].First), Username: user, Password: pass}
		via := "udp"
		switch {
		case q.Speak == protocol.STUN && q.Transport == scenarios.UDP:
			via, u.Scheme = "stun", stun.SchemeTypeSTUN
		case q.Speak == protocol.TURN && q.Transport == scenarios.TCP:
			via, u.Proto = "tcp", stun.ProtoTypeTCP
		case q.Speak == protocol.TURNS:
			via, u.Scheme, u.Proto = "tls", stun.SchemeTypeTURNS, stun.ProtoTypeTCP
		case q.Speak != protocol.TURN:
			continue
		}
		if _, taken := i.relays[via]; !taken { // one of a kind
			i.relays[via] = fmt.Sprintf("%s %d", via, u.Port)
			i.urls = append(i.urls, &u)
			if u.Proto == stun.ProtoTypeUDP {
				i.net.Asked = append(i.net.Asked, netip.AddrPortFrom(q.Addr, uint16(u.Port)))
			}
		}
	}
}

// signal gives the far agent this one's credentials and gets its.
func (i *iceProbe) signal(ctx context.Context, base string) (wire.ICEReply, error) {
	select {
	case <-i.gathered:
	case <-time.After(i.r.cfg.Timeout / 16): // the rest is learnt from its checks
	case <-ctx.Done():
		return wire.ICEReply{}, context.Cause(ctx)
	}
	var reply wire.ICEReply
	ufrag, pwd, err := i.agent.GetLocalUserCredentials()
	if err != nil {
		return reply, err
	}
	q := wire.ICERequest{Session: i.r.res.Session, Time: time.Now(), Probe: i.p.ID, Addr: i.p.Addr, Ports: i.p.Ports,
		Wait: i.r.cfg.Timeout + i.r.cfg.Timeout/2, Ufrag: ufrag, Pwd: pwd}
	i.mu.Lock()
	for _, c := range i.known {
		q.Candidates = append(q.Candidates, c.Marshal())
	}
	i.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, i.r.cfg.Timeout)
	defer cancel()
	if err := i.r.ends[i.p.Where].call(call, base, wire.CallICE, q, &reply); err != nil {
		return reply, err
	}
	far, err := ice.NewCandidateHost(&ice.CandidateHostConfig{Network: "udp", Address: i.p.Addr.String(), Port: int(reply.Port), Component: ice.ComponentRTP})
	if err != nil {
		return reply, err
	}
	return reply, i.agent.AddRemoteCandidate(far)
}

// token exchanges the probe's message over the pair that won.
func (i *iceProbe) token(c *ice.Conn) error {
	var res protocol.Result
	x := i.r.exchange(i.p, i.o.Ports[0].First)
	x.Bytes, x.Idle = 0, 0
	answers := make(chan error, 1)
	go func() { // until the answer, or until stop closes the agent
		buf := make([]byte, 2048)
		for {
			n, err := c.Read(buf)
			if err == nil && x.CheckToken(string(buf[:n]), &res) != nil {
				continue
			}
			answers <- err
			return
		}
	}()
	sent := time.Now()
	for range tries {
		if _, err := c.Write([]byte(x.Token())); err != nil {
			break
		}
		select {
		case err := <-answers:
			i.o.Seen, i.o.RTT = res.Seen.Seen, ms(time.Since(sent))
			return err
		case <-time.After(i.r.spacing()):
		}
	}
	i.pairs() // while there are some
	i.stop()
	if err := <-answers; err == nil {
		return nil
	}
	return os.ErrDeadlineExceeded
}

// pairs notes what was tried, and what could not be.
func (i *iceProbe) pairs() {
	i.o.ICE.Hellos = i.net.Hellos.All()
	local, err1 := i.agent.GetLocalCandidates()
	remote, err2 := i.agent.GetRemoteCandidates()
	stats := i.agent.GetCandidatePairsStats()
	if err1 != nil || err2 != nil {
		return // closed: noted before
	}
	byID := make(map[string]ICECandidate)
	for _, c := range slices.Concat(local, remote) {
		byID[c.ID()] = i.candidate(c)
	}
	won, selected := i.agent.GetSelectedCandidatePairStats()
	out := i.o.ICE
	out.Pairs, out.Won, out.Absent = nil, nil, nil
	for _, s := range stats {
		p := ICEPair{Local: byID[s.LocalCandidateID], Remote: byID[s.RemoteCandidateID], State: s.State.String(), RTT: ms(time.Duration(s.CurrentRoundTripTime * float64(time.Second)))}
		out.Pairs = append(out.Pairs, p)
		if selected && s.LocalCandidateID == won.LocalCandidateID && s.RemoteCandidateID == won.RemoteCandidateID {
			out.Won = &p
		}
	}
	i.absent(byID)
}

// absent lists the servers that gave no candidate. A server-reflexive one that
// equals a host candidate is one nevertheless.
func (i *iceProbe) absent(have map[string]ICECandidate) {
	gave := make(map[string]bool)
	for _, c := range have {
		gave[c.Via] = true
		gave["stun"] = gave["stun"] || c.Type == "srflx"
	}
	for _, via := range []string{"udp", "tcp", "tls"} {
		if server := i.relays[via]; server != "" && !gave[server] {
			i.o.ICE.Absent = append(i.o.ICE.Absent, "relay over "+strings.ToUpper(via)+server[len(via):])
		}
	}
	if server := i.relays["stun"]; server != "" && !gave["stun"] {
		i.o.ICE.Absent = append(i.o.ICE.Absent, "srflx from "+server)
	}
}

func (i *iceProbe) candidate(c ice.Candidate) ICECandidate {
	addr, _ := netip.ParseAddr(c.Address()) // zero for a name, of which there are none
	out := ICECandidate{Type: c.Type().String(), Addr: netip.AddrPortFrom(addr, uint16(c.Port()))}
	if rel := c.RelatedAddress(); rel != nil {
		if a, err := netip.ParseAddr(rel.Address); err == nil {
			out.Base = netip.AddrPortFrom(a.Unmap(), uint16(rel.Port))
		}
	}
	if r, ok := c.(*ice.CandidateRelay); ok {
		out.Via = i.relays[r.RelayProtocol()]
	}
	return out
}

// sentence names the pair that won.
func (s *ICE) sentence() string {
	if s.Won == nil {
		return "connected"
	}
	text := fmt.Sprintf("%s ↔ %s", s.Won.Local, s.Won.Remote)
	return text + fmt.Sprintf(", %.0f ms to connect", s.Connect*1000)
}

// failed says which kinds of candidates were tried in vain, and which were not
// to be had.
func (s *ICE) failed() string {
	var tried []string
	for _, p := range s.Pairs {
		what := p.Local.Type
		if p.Local.Via != "" {
			what = p.Local.String()
		}
		if what = what + " " + p.State; !slices.Contains(tried, what) {
			tried = append(tried, what)
		}
	}
	slices.Sort(tried) // the order of the pairs is that in which they came up
	for _, a := range s.Absent {
		tried = append(tried, "no "+a)
	}
	if len(tried) == 0 {
		return "no candidates"
	}
	return strings.Join(tried, ", ")
}

// judgeICE: a session that did not come up.
func (e *portEvidence) judgeICE() (Verdict, string) {
	o := e.near
	switch {
	case o.Stage == protocol.StageSignal:
		return Unmeasured, "the agents could not be introduced to each other: " + o.Detail
	case o.Stage == protocol.StageToken:
		why := "a pair was selected, but the message over it got no answer"
		if o.ICE.Won != nil {
			why = fmt.Sprintf("%s ↔ %s was selected, but the message over it got no answer", o.ICE.Won.Local, o.ICE.Won.Remote)
		}
		return Cut, why
	case !e.ledger:
		return Silent, "no pair of candidates won, and the reflector's ledger could not be had: " + o.ICE.failed()
	case len(e.events) > 0:
		return ReplyLost, "checks reached the reflector's agent, its answers did not arrive: " + o.ICE.failed()
	}
	return RequestLost, "no check reached the reflector's agent: " + o.ICE.failed()
}
