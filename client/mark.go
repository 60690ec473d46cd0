package client

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/wallprobe/wallprobe/wire"
)

// What marked datagrams carry: expedited forwarding (RFC 3246) as media do,
// ECT(0) (RFC 3168), and the time to live that most systems begin with.
const (
	markTTL = 64
	markTOS = 46<<2 | 2
)

// A Mark tells of datagrams whose header fields were set on purpose.
type Mark struct {
	TTL      uint8 `json:"ttl"`           // sent
	TOS      uint8 `json:"tos,omitempty"` // sent, with the ECN bits
	Answered bool  `json:"answered,omitempty"`
	SeenTTL  uint8 `json:"seenTTL,omitempty"` // as they arrived, where the reflector could tell
	SeenTOS  uint8 `json:"seenTOS,omitempty"`
}

// mark sends up to three marked datagrams and reads from the answer how they
// arrived. That they are lost stops nothing: applications go on without.
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
	o.Mark = m
	for attempt := range tries {
		q := r.message(p, port, attempt)
		if o.Detail == "" { // else the large ones do not pass as they are
			q.Size = max(wire.MessageSize, p.Datagram)
		}
		if _, err := c.Write(q.Append(nil, &f.keys)); err != nil {
			continue
		}
		wait := r.spacing()
		if attempt == tries-1 {
			wait = r.cfg.Timeout / 4
		}
		if m.hear(c, &f.keys, p.ID, time.Now().Add(wait)) {
			return
		}
	}
}

// marked sets the header fields of a socket.
func marked(c *net.UDPConn, v4 bool) (*Mark, error) {
	m := &Mark{TTL: markTTL}
	if runtime.GOOS != "windows" { // which takes the marks and sends none
		m.TOS = markTOS
	}
	if v4 {
		p := ipv4.NewConn(c)
		if err := p.SetTTL(markTTL); err != nil {
			return nil, err
		}
		return m, p.SetTOS(int(m.TOS))
	}
	p := ipv6.NewConn(c)
	if err := p.SetHopLimit(markTTL); err != nil {
		return nil, err
	}
	return m, p.SetTrafficClass(int(m.TOS))
}

// hear waits for the answer to one of the probe's datagrams.
func (m *Mark) hear(c *net.UDPConn, keys *wire.Keys, probe uint32, until time.Time) bool {
	buf := make([]byte, 2048)
	c.SetReadDeadline(until)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return false // be it silence or an ICMP error: the next attempt may fare better
		}
		if got, err := wire.Parse(buf[:n], keys); err == nil && got.Kind == wire.Reply && got.Probe == probe {
			m.Answered, m.SeenTTL, m.SeenTOS = true, got.TTL, got.TOS
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
