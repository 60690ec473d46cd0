package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
)

// What a comparison changes of an exchange whose TLS handshake failed.
const (
	OtherName = "other-name" // another server name of the same length
	NoALPN    = "no-alpn"    // the same hello without ALPN
	OtherPort = "other-port" // the same hello at another port
	NoTLS     = "no-tls"     // wallprobe's own message without TLS
)

// A Comparison is an exchange that differs in one thing from one that failed:
// what passes here and not there tells what a firewall goes by.
type Comparison struct {
	What        string   `json:"what"`
	Probe       uint32   `json:"probe"` // in the ledger
	Port        uint16   `json:"port"`
	ServerName  string   `json:"serverName,omitempty"`
	ALPN        []string `json:"alpn,omitempty"` // offered
	Stage       string   `json:"stage"`          // last stage begun
	Fault       string   `json:"fault,omitempty"`
	HelloDigest string   `json:"helloDigest,omitempty"`
}

// passed tells whether the exchange reached the reflector and came back.
func (c *Comparison) passed() bool { return c.Stage == protocol.StageDone }

// compare repeats a probe whose TLS handshake failed, each time with one thing
// changed. It takes no longer than the timeout of a run.
func (r *runner) compare(ctx context.Context, p Probe, port uint16, o *Observation) {
	if !r.suspicious(p, o) || ctx.Err() != nil {
		return
	}
	list := r.comparisons(p, port, o)
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i := range list {
		wg.Go(func() { r.comparison(ctx, p, o.Said != nil, &list[i]) })
	}
	wg.Wait()
	if ctx.Err() == nil || ctx.Err() == context.DeadlineExceeded {
		o.Controls = list
	}
}

// suspicious tells whether an exchange failed in its TLS handshake, or after
// one with somebody else.
func (r *runner) suspicious(p Probe, o *Observation) bool {
	if o.TLS == nil || o.Fault == "" || o.Fault == protocol.FaultAltered {
		return false
	}
	if o.Stage == protocol.StageTLS {
		return true
	}
	r.mu.Lock()
	hello := r.ends[p.Where].hello // may come any time
	r.mu.Unlock()
	chain := o.TLS.Chain
	return hello != nil && len(chain) > 0 && chain[len(chain)-1].Digest != hello.Issuer
}

// comparisons are those that an exchange allows: where TLS begins only after a
// dialogue, other ports speak other things.
func (r *runner) comparisons(p Probe, port uint16, o *Observation) []Comparison {
	var list []Comparison
	add := func(what string, stage uint32, port uint16, name string, alpn []string) {
		list = append(list, Comparison{What: what, Probe: p.ID + stage, Port: port, ServerName: name, ALPN: alpn, Stage: protocol.StageConnect})
	}
	if p.ServerName != "" {
		add(OtherName, nameStage, port, neutral(p.ServerName), o.TLS.Offered)
	}
	if len(o.TLS.Offered) > 0 {
		add(NoALPN, alpnStage, port, p.ServerName, nil)
	}
	if o.Said != nil {
		return list
	}
	add(NoTLS, plainStage, port, "", nil)
	for i, other := range r.otherPorts(p, port) {
		add(OtherPort, portStages[i], other, p.ServerName, o.TLS.Offered)
	}
	return list
}

// otherPorts are ports of the same far end: where control got through comes first.
func (r *runner) otherPorts(p Probe, not uint16) []uint16 {
	r.mu.Lock()
	via, _, _ := strings.Cut(r.ends[p.Where].via, "/")
	r.mu.Unlock()
	var out []uint16
	add := func(port uint16) {
		if port != not && port != 0 && len(out) < len(portStages) && !slices.Contains(out, port) {
			out = append(out, port)
		}
	}
	n, _ := strconv.ParseUint(via, 10, 16)
	add(uint16(n))
	for _, q := range r.plan.Probes {
		if q.Where == p.Where && q.Transport == scenarios.TCP && !q.Sweeps() {
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
func (r *runner) comparison(ctx context.Context, p Probe, dialogue bool, c *Comparison) {
	conn, a := r.dial(ctx, netip.AddrPortFrom(p.Addr, c.Port))
	if conn == nil {
		var o Observation
		o.fault(a)
		c.Fault = o.Fault
		return
	}
	defer conn.Close()
	speak := "tls"
	switch {
	case c.What == NoTLS:
		speak = "plain"
	case dialogue:
		speak = p.Speak
	}
	x := r.exchange(p, c.Port)
	x.Probe, x.ServerName, x.Bytes, x.Idle = c.Probe, c.ServerName, 0, 0
	x.Offer = append([]string{}, c.ALPN...)
	x.Stall = r.cfg.Timeout / 2
	res := protocol.On(speak, scenarios.TCP).Probe(ctx, conn, x)
	c.Stage, c.Fault = res.Stage, res.Fault
	if res.TLS != nil {
		c.HelloDigest = res.TLS.HelloDigest
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

// hellosOf are the digests of every ClientHello that the near end sent.
func hellosOf(list []Finding) map[string]bool {
	m := make(map[string]bool)
	for _, f := range list {
		for _, o := range f.Evidence.Near {
			if o.TLS != nil && o.TLS.HelloDigest != "" {
				m[o.TLS.HelloDigest] = true
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
	passed := func(what string) *Comparison {
		for i := range o.Controls {
			if c := &o.Controls[i]; c.What == what && c.passed() {
				return c
			}
		}
		return nil
	}
	tried := func(what string) bool {
		return slices.ContainsFunc(o.Controls, func(c Comparison) bool { return c.What == what })
	}
	switch {
	case len(o.Controls) == 0 || o.TLS == nil:
		return ""
	case passed(OtherName) != nil:
		return fmt.Sprintf("; by name: with another server name in place of %q the same hello passes on this port", o.TLS.ServerName)
	case passed(NoALPN) != nil:
		return fmt.Sprintf("; by ALPN: without %s the same hello passes on this port", strings.Join(o.TLS.Offered, ", "))
	}
	name := ""
	if tried(OtherName) {
		name = "another name fares the same here, while "
	}
	where := ""
	if c := passed(OtherPort); c != nil {
		where = fmt.Sprintf("the same hello passes on port %d", c.Port)
		if o.TLS.ServerName != "" {
			where = fmt.Sprintf("the name passes on port %d", c.Port)
		}
	}
	switch {
	case passed(NoTLS) != nil && where != "":
		return fmt.Sprintf("; by protocol: %swhat is not TLS passes on this port, and %s", name, where)
	case passed(NoTLS) != nil:
		return fmt.Sprintf("; by protocol: %swhat is not TLS passes on this port", name)
	case where != "":
		return fmt.Sprintf("; by port: %s%s", name, where)
	}
	return ""
}
