package client

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/wallprobe/wallprobe/client/survey"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// What a comparison changes of an exchange that failed.
const (
	OtherName     = "other-name"     // another name of the same length
	NoALPN        = "no-alpn"        // the same hello without ALPN
	OtherPort     = "other-port"     // the same bytes at another port
	NoTLS         = "no-tls"         // wallprobe's own messages without TLS
	OtherProtocol = "other-protocol" // wallprobe's own messages
)

// plainBytes is what wallprobe's own messages are followed by each way where they
// stand in for a protocol: as much as a handshake has, so that a rule for sizes
// is not taken for one for protocols.
const plainBytes = 2048

// A Comparison is an exchange that differs in one thing from one that failed:
// what passes here and not there tells what a firewall goes by.
type Comparison struct {
	What        string   `json:"what"`
	Probe       uint32   `json:"probe"` // in the ledger
	Port        uint16   `json:"port"`
	Speak       string   `json:"speak,omitempty"` // the protocol
	ServerName  string   `json:"serverName,omitempty"`
	Instead     string   `json:"instead,omitempty"` // with another name: of which one
	ALPN        []string `json:"alpn,omitempty"`    // offered
	Stage       string   `json:"stage"`             // last stage begun
	Fault       string   `json:"fault,omitempty"`
	HelloDigest string   `json:"helloDigest,omitempty"`
	Said        string   `json:"said,omitempty"`  // the first line of a dialogue
	Begun       int      `json:"begun,omitempty"` // connections, where the first was long in coming up
}

// passed tells whether the exchange reached the reflector and came back.
func (c *Comparison) passed() bool { return c.Stage == protocol.StageDone }

// compare repeats a probe that failed early, each time with one thing changed. It
// takes no longer than the timeout of a run.
func (r *runner) compare(ctx context.Context, p Probe, port uint16, o *Observation) {
	if !r.suspicious(p, o) || ctx.Err() != nil {
		return
	}
	list := r.comparisons(p, port, o)
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i := range list {
		wg.Go(func() { r.comparison(ctx, p, &list[i]) })
	}
	wg.Wait()
	if ctx.Err() == nil || ctx.Err() == context.DeadlineExceeded {
		o.Controls = list
	}
}

// suspicious tells whether an exchange failed before its data, where firewalls
// look; of one in TLS, in its handshake, or after one with somebody else. Over
// UDP silence may be the far end's absence: then there is nothing to compare.
func (r *runner) suspicious(p Probe, o *Observation) bool {
	if o.Fault == "" || o.Fault == protocol.FaultAltered {
		return false
	}
	r.mu.Lock()
	hello, via := r.ends[p.Where].hello, r.ends[p.Where].via // may come any time
	r.mu.Unlock()
	switch {
	case p.Transport == scenarios.UDP && (via == "" || o.Fault != protocol.FaultTimeout && o.Fault != protocol.FaultForeign):
		return false
	case o.TLS == nil:
		return !slices.Contains([]string{protocol.StageConnect, protocol.StageData, protocol.StageIdle}, o.Stage)
	case o.Stage == protocol.StageTLS:
		return true
	}
	chain := o.TLS.Chain
	return hello != nil && len(chain) > 0 && chain[len(chain)-1].Digest != hello.Issuer
}

// comparisons are those that an exchange allows: where TLS begins only after a
// dialogue, other ports speak other things.
func (r *runner) comparisons(p Probe, port uint16, o *Observation) []Comparison {
	var list []Comparison
	add := func(what string, part uint32, c Comparison) {
		c.What, c.Probe, c.Stage = what, p.ID+part, protocol.StageConnect
		list = append(list, c)
	}
	same := Comparison{Port: port, Speak: p.Speak, ServerName: p.ServerName}
	known, stream := protocol.Named(p.Speak), p.Transport == scenarios.TCP
	begun := o.TLS != nil && o.Said == nil // with TLS
	if begun && stream {
		same.Speak = "tls"
	}
	named := p.ServerName
	switch {
	case o.TLS != nil:
		same.ALPN = o.TLS.Offered
	case !known.Names:
		named = known.Says
	}
	if named != "" {
		c := same
		c.ServerName, c.Instead = neutral(named), named
		add(OtherName, nameStage, c)
	}
	if len(same.ALPN) > 0 && stream {
		c := same
		c.ALPN = nil
		add(NoALPN, alpnStage, c)
	}
	if o.TLS != nil && !begun {
		return list
	}
	switch bare := (Comparison{Port: port, Speak: protocol.Plain}); {
	case begun && stream:
		add(NoTLS, plainStage, bare)
	case p.Speak != protocol.Plain:
		add(OtherProtocol, plainStage, bare)
	}
	for i, other := range r.otherPorts(p, port, begun) {
		c := same
		c.Port = other
		add(OtherPort, portStages[i], c)
	}
	return list
}

// otherPorts are ports of the same far end at which it knows what is spoken: by
// the first bytes, else where the plan speaks the same. That of control, which
// got through, comes first.
func (r *runner) otherPorts(p Probe, not uint16, inTLS bool) []uint16 {
	var out []uint16
	add := func(port uint16) {
		if port != not && port != 0 && len(out) < len(portStages) && !slices.Contains(out, port) {
			out = append(out, port)
		}
	}
	anywhere := inTLS || p.Transport == scenarios.TCP && protocol.Named(p.Speak).Claims != nil
	if anywhere && p.Transport == scenarios.TCP {
		r.mu.Lock()
		via, _, _ := strings.Cut(r.ends[p.Where].via, "/")
		r.mu.Unlock()
		n, _ := strconv.ParseUint(via, 10, 16)
		add(uint16(n))
	}
	for _, q := range r.plan.Probes {
		ends := protocol.On(q.Speak, q.Transport)
		taken := q.Transport == scenarios.UDP && ends != nil && ends.Answer != nil // by a protocol of the port's own
		if q.Where == p.Where && q.Transport == p.Transport && !q.Sweeps() && (anywhere && !taken || q.Speak == p.Speak) {
			add(q.Ports[0].First)
		}
	}
	return out
}

// neutral is a server name of the same length that nobody has (RFC 2606).
func neutral(name string) string {
	const under = ".invalid"
	b := make([]byte, max(len(name)-len(under), 1))
	for i := range b {
		b[i] = byte('a' + rand.IntN(26))
	}
	return string(b) + under
}

// comparison runs one of them.
func (r *runner) comparison(ctx context.Context, p Probe, c *Comparison) {
	x := r.exchange(p, c.Port)
	x.Probe, x.ServerName, x.Bytes, x.Idle, x.Alone = c.Probe, c.ServerName, 0, 0, true
	x.Stall = r.cfg.Timeout * 3 / 4
	switch {
	case c.Speak == protocol.Plain && p.Transport == scenarios.UDP:
		r.compareDatagrams(ctx, p, c)
		return
	case c.Speak == protocol.Plain:
		x.Bytes = plainBytes
	case c.What == OtherName && !protocol.Named(p.Speak).Names:
		x.Says = c.ServerName
	}
	if c.What == NoALPN || len(c.ALPN) > 0 {
		x.Offer = append([]string{}, c.ALPN...)
	}
	conn := r.connectTo(ctx, p, c)
	if conn == nil {
		return
	}
	res := protocol.On(c.Speak, p.Transport).Probe(ctx, conn, x)
	r.leave(ctx, conn, res.Stage)
	c.Stage, c.Fault = res.Stage, res.Fault
	if res.TLS != nil {
		c.HelloDigest = res.TLS.HelloDigest
	}
	if res.Said != nil && len(res.Said.Sent) > 0 {
		c.Said = res.Said.Sent[0]
	}
}

// connectTo connects for a comparison; nil is no connection.
func (r *runner) connectTo(ctx context.Context, p Probe, c *Comparison) net.Conn {
	to := netip.AddrPortFrom(p.Addr, c.Port)
	if p.Transport == scenarios.UDP {
		u, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(ownPort()), net.UDPAddrFromAddrPort(to))
		if err != nil {
			c.Fault = protocol.FaultOf(err)
			return nil
		}
		return u
	}
	conn, a := r.dial(ctx, to)
	if a.Sent > 1 {
		c.Begun = int(a.Sent)
	}
	if conn == nil {
		var o Observation
		o.fault(a)
		c.Fault = o.Fault
	}
	return conn
}

// compareDatagrams sends wallprobe's own messages in place of a protocol over
// UDP, as long as its queries or its first packets are.
func (r *runner) compareDatagrams(ctx context.Context, p Probe, c *Comparison) {
	p.ID, p.Datagram = c.Probe, 384
	if p.streams() {
		p.Datagram = DefaultDatagram
	}
	c.Stage, c.Fault = protocol.StageToken, protocol.FaultTimeout
	a := r.survey(ctx, p, c.Port, survey.UDP{Attempts: tries, Spacing: r.spacing(), Wait: r.cfg.Timeout / 4, DontFragment: true, MaxReply: p.Datagram + 1}, 0)
	if a.Answered > 0 {
		c.Stage, c.Fault = protocol.StageDone, ""
	}
}

// compares tells whether a probe of the ledger is one of the comparisons.
func (o *Observation) compares(probe uint32) bool {
	return slices.ContainsFunc(o.Controls, func(c Comparison) bool { return c.Probe == probe })
}

// comparedAt is how many comparisons connected to a port.
func (o *Observation) comparedAt(port uint16) int {
	n := 0
	for _, c := range o.Controls {
		if c.Port == port && c.Stage != protocol.StageConnect {
			n++
		}
	}
	return n
}

// saidOf are the lines with which the dialogues of comparisons began.
func saidOf(list []Finding) map[string]bool {
	m := make(map[string]bool)
	for _, f := range list {
		for _, o := range f.Evidence.Near {
			for _, c := range o.Controls {
				if c.Said != "" {
					m[c.Said] = true
				}
			}
		}
	}
	return m
}

// sparesOf are the connections by port that comparisons began and did not need.
func sparesOf(list []Finding) map[uint16]int {
	m := make(map[uint16]int)
	for _, f := range list {
		for _, o := range f.Evidence.Near {
			for _, c := range o.Controls {
				m[c.Port] += max(c.Begun-1, 0)
			}
		}
	}
	return m
}

// comparedSaid tells whether a dialogue that the far end heard, perhaps not to the
// end of its first line, is that of a comparison and not the probe's own: another
// protocol may have been tried on its port.
func (v *farView) comparedSaid(near *Observation, s *wire.Said) bool {
	if s == nil || len(s.Heard) == 0 || s.Heard[0] == "" {
		return false
	}
	for _, c := range near.Controls {
		other := func(line string) bool { return strings.Contains(line, c.ServerName) }
		if c.What == OtherName && slices.ContainsFunc(s.Heard, other) {
			return true
		}
	}
	first := s.Heard[0]
	if near.Said != nil && len(near.Said.Sent) > 0 && strings.HasPrefix(near.Said.Sent[0], first) {
		return false
	}
	for line := range v.said {
		if strings.HasPrefix(line, first) {
			return true
		}
	}
	return false
}

// hellosOf are the digests of every ClientHello that the near end sent.
func hellosOf(list []Finding) map[string]bool {
	m := make(map[string]bool)
	for _, f := range list {
		for _, o := range f.Evidence.Near {
			if o.TLS != nil && o.TLS.HelloDigest != "" {
				m[o.TLS.HelloDigest] = true
			}
			if o.ICE != nil {
				for _, digest := range o.ICE.Hellos {
					m[digest] = true
				}
			}
			for _, c := range o.Controls {
				if c.HelloDigest != "" {
					m[c.HelloDigest] = true
				}
			}
		}
	}
	return m
}

// compared says what the comparisons show: by what the firewall went.
func (e *portEvidence) compared() string {
	o := e.near
	passed := func(what ...string) *Comparison {
		for i := range o.Controls {
			if c := &o.Controls[i]; slices.Contains(what, c.What) && c.passed() {
				return c
			}
		}
		return nil
	}
	kind, name, sent, bare := "name", "", "request", e.speak
	if o.TLS != nil {
		kind, name, sent, bare = "server name", o.TLS.ServerName, "hello", "TLS"
	}
	if e.speak == protocol.QUIC {
		bare = "QUIC"
	}
	tried := ""
	for _, c := range o.Controls {
		if c.What == OtherName {
			name, tried = cmp.Or(c.Instead, name), "another name fares the same here, while "
		}
	}
	switch {
	case passed(OtherName) != nil:
		return fmt.Sprintf("; by name: with another %s in place of %q the same %s passes on this port", kind, name, sent)
	case passed(NoALPN) != nil:
		return fmt.Sprintf("; by ALPN: without %s the same hello passes on this port", strings.Join(o.TLS.Offered, ", "))
	}
	where := ""
	if c := passed(OtherPort); c != nil {
		where = fmt.Sprintf("the same %s passes on port %d", sent, c.Port)
		if name != "" {
			where = fmt.Sprintf("the name passes on port %d", c.Port)
		}
	}
	switch {
	case passed(NoTLS, OtherProtocol) != nil && where != "":
		return fmt.Sprintf("; by protocol: %swhat is not %s passes on this port, and %s", tried, bare, where)
	case passed(NoTLS, OtherProtocol) != nil:
		return fmt.Sprintf("; by protocol: %swhat is not %s passes on this port", tried, bare)
	case where != "":
		return fmt.Sprintf("; by port: %s%s", tried, where)
	}
	return ""
}
