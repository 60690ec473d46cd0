package client

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A Mark tells of datagrams, or of a SYN, whose header fields were set on purpose.
type Mark struct {
	TTL      uint8 `json:"ttl"`           // sent
	TOS      uint8 `json:"tos,omitempty"` // sent, with the ECN bits
	Answered bool  `json:"answered,omitempty"`
	SeenTTL  uint8 `json:"seenTTL,omitempty"` // as they arrived, where the reflector could tell
	SeenTOS  uint8 `json:"seenTOS,omitempty"`
	Plain    bool  `json:"plain,omitempty"`   // wallprobe's own messages on a path of another protocol: that they are lost says nothing
	Back     bool  `json:"back,omitempty"`    // the answer left with the same marks
	BackTTL  uint8 `json:"backTTL,omitempty"` // as the answer arrived, where this end could tell
	BackTOS  uint8 `json:"backTOS,omitempty"`
}

// mark sends up to three marked datagrams and reads from the answer how they
// arrived, and how the answer did. That they are lost stops nothing:
// applications go on without. Where the path's own datagrams are others, one has
// to do.
func (r *runner) mark(ctx context.Context, p Probe, port uint16, o *Observation) {
	f := r.ends[p.Where]
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(ownPort()), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, port)))
	if err != nil {
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	o.Routed = routed(p.Addr)
	m, err := marked(c, p.Addr.Is4())
	if err != nil {
		return
	}
	p.ID += markStage
	m.Plain = !bare(p)
	o.Mark = m
	times, last := tries, r.cfg.Timeout/4
	if m.Plain {
		times, last = 1, r.spacing()
	}
	for attempt := range times {
		q := r.message(p, port, attempt)
		q.Marked = true
		if p.Speak == protocol.Datagram && o.Detail == "" { // else the large ones do not pass as they are
			q.Size = max(wire.MessageSize, p.Datagram)
		}
		if _, err := c.Write(q.Append(nil, &f.keys)); err != nil {
			continue
		}
		wait := r.spacing()
		if attempt == times-1 {
			wait = last
		}
		if m.hear(c, &f.keys, p.ID, time.Now().Add(wait)) {
			return
		}
	}
	if ctx.Err() != nil {
		o.Mark = nil // the answer was not waited for
	}
}

// markStream makes one more connection, with a marked SYN and without data: on
// the port passes what is expected there. How the SYN arrived is in the
// reflector's ledger. Of a protocol's ways the first one has to do, and of several
// paths to one port: what follows a SYN does not tell how that is treated. Where
// the far end greets there is none: waiting and logging in twice costs more than
// it tells.
//
// How the reflector's own segments arrive, this end does not learn as it does of
// datagrams. TCP gives no control messages with what is read (IP_RECVTTL and
// IP_RECVTOS set, recvmsg brings none), TCP_INFO has no header fields, and a SYN
// is saved (TCP_SAVE_SYN) at the listening end alone. Linux tells of the last
// segment by IPV6_2292PKTOPTIONS, over IPv6; its like over IPv4, IP_PKTOPTIONS,
// is filled in for accepted connections alone: at the end that connects it gives
// the socket's own 1 and 0, whatever arrived. What would tell over both, a packet
// socket, wants CAP_NET_RAW.
func (r *runner) markStream(ctx context.Context, p Probe, port uint16, o *Observation) {
	named := protocol.Named(p.Speak)
	if o.TCP == nil || o.TCP.TTL == 0 || len(named.Variants) > 0 && p.Variant != named.Variants[0] {
		return // the system may not tell of its SYNs
	}
	if named.Greets || !r.first(netip.AddrPortFrom(p.Addr, port)) {
		return
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	const dscp = wire.MarkTOS &^ 3
	m := &Mark{TTL: o.TCP.TTL, TOS: dscp}
	c, err := dialMarked(ctx, netip.AddrPortFrom(p.Addr, port), dscp)
	if err != nil {
		if protocol.FaultOf(err) == protocol.FaultTimeout && ctx.Err() != context.Canceled {
			o.Mark = m
		}
		return
	}
	x := r.exchange(p, port)
	x.Probe, x.Bytes, x.Idle = x.Probe+markStage, 0, 0
	res := protocol.On(p.Speak, scenarios.TCP).Probe(ctx, c, x)
	r.leave(whole, c, res.Stage)
	if res.Stage == protocol.StageDone {
		m.Answered, o.Mark = true, m // else the connection came up, and nothing is known of its SYN
	}
}

// first tells whether no stream to a port was marked before.
func (r *runner) first(to netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.marked[to] {
		return false
	}
	r.marked[to] = true
	return true
}

// bare tells whether a probe's datagrams are wallprobe's own messages as they are.
func bare(p Probe) bool {
	ends := protocol.On(p.Speak, scenarios.UDP)
	return p.Speak == protocol.Datagram || ends != nil && ends.Answer == nil && !ends.Stream
}

// marked sets the header fields of a socket, and lets it tell of those that come.
func marked(c *net.UDPConn, v4 bool) (*Mark, error) {
	tellMarks(c, v4)
	m := &Mark{TTL: wire.MarkTTL}
	if runtime.GOOS != "windows" { // which takes the marks and sends none
		m.TOS = wire.MarkTOS
	}
	if v4 {
		p := ipv4.NewConn(c)
		if err := p.SetTTL(wire.MarkTTL); err != nil {
			return nil, err
		}
		return m, p.SetTOS(int(m.TOS))
	}
	p := ipv6.NewConn(c)
	if err := p.SetHopLimit(wire.MarkTTL); err != nil {
		return nil, err
	}
	return m, p.SetTrafficClass(int(m.TOS))
}

// hear waits for the answer to one of the probe's datagrams.
func (m *Mark) hear(c *net.UDPConn, keys *wire.Keys, probe uint32, until time.Time) bool {
	buf := make([]byte, 2048)
	c.SetReadDeadline(until)
	for {
		n, ttl, tos, err := readMarked(c, buf)
		if err != nil {
			return false // be it silence or an ICMP error: the next attempt may fare better
		}
		if got, err := wire.Parse(buf[:n], keys); err == nil && got.Kind == wire.Reply && got.Probe == probe {
			m.Answered, m.SeenTTL, m.SeenTOS = true, got.TTL, got.TOS
			m.Back, m.BackTTL, m.BackTOS = got.Marked, ttl, tos
			return true
		}
	}
}

// routed tells whether an address is beyond this machine's own links, so that
// at least one router counts the time to live down.
func routed(to netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil || to.IsLoopback() || to.IsLinkLocalUnicast() {
		return false
	}
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ones, bits := n.Mask.Size(); ones == bits && n.IP.To4() == nil == to.Is6() && !n.IP.IsLoopback() {
			return false // a tunnel's own address: its far end may be the one asked about
		}
		if n.Contains(to.AsSlice()) {
			return false
		}
	}
	return true
}
