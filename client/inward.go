package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// maxInward is the number of ports that one inward path is tried on: its edges
// and a sample, since each needs a listener here.
const maxInward = 16

// inward listens on the path's ports and asks the reflector to call them.
func (r *runner) inward(ctx context.Context, p Probe) []Observation {
	f := r.ends[WhereFar]
	ports := p.Ports
	if ports.Len() > maxInward {
		ports = samples(ports, maxInward-2*len(ports), nil)
	}
	obs := make(map[uint16]*Observation)
	arrived := make(map[uint16]*atomic.Int64)
	var open []io.Closer
	var serving sync.WaitGroup
	for port := range ports.All {
		o := r.observe(p, port)
		o.Inward, o.Sent, o.Local = true, tries, f.hello.Source.Addr()
		obs[port], arrived[port] = &o, new(atomic.Int64)
		l, err := r.listen(p, port, arrived[port], &serving)
		if err != nil {
			o.Detail = fmt.Sprintf("this end cannot listen on %d/%s: %v", port, p.Transport, err)
			continue
		}
		open = append(open, l)
	}
	var reply wire.InwardReply
	call, cancel := context.WithTimeout(ctx, r.cfg.Timeout+tries*2*time.Second)
	defer cancel()
	err := f.call(call, f.base, wire.CallInward, wire.InwardRequest{
		Session: r.res.Session, Time: time.Now(), Probe: p.ID, Transport: p.Transport, Ports: ports, Attempts: tries,
	}, &reply)
	for _, l := range open {
		l.Close()
	}
	serving.Wait()
	var out []Observation
	for port := range ports.All {
		o := obs[port]
		o.Arrived = int(arrived[port].Load())
		o.called(port, reply, err)
		out = append(out, *o)
		r.advance(p.ID, 1)
	}
	return out
}

// called takes over what the reflector met on one port.
func (o *Observation) called(port uint16, reply wire.InwardReply, err error) {
	if err != nil && o.Detail == "" {
		o.Detail = "the reflector could not be asked to call: " + sentence(err)
		return
	}
	if reply.Open.Contains(port) {
		o.Answered = o.Sent
	}
	for _, x := range reply.Fault {
		if x.Ports.Contains(port) {
			o.Fault = x.Fault
		}
	}
}

// listen answers the reflector's calls on one port.
func (r *runner) listen(p Probe, port uint16, arrived *atomic.Int64, serving *sync.WaitGroup) (io.Closer, error) {
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	if p.Addr.Is6() {
		at = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	if p.Transport == scenarios.UDP {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		serving.Go(func() { r.answerDatagrams(c, arrived) })
		return c, nil
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	serving.Go(func() { r.answerConns(l, arrived) })
	return l, nil
}

// answer makes the Request that answers a proven Call.
func (r *runner) answer(b []byte, arrived *atomic.Int64) []byte {
	f := r.ends[WhereFar]
	m, err := wire.Parse(b, &f.keys)
	if err != nil || m.Kind != wire.Call {
		return nil
	}
	arrived.Add(1)
	m.Kind, m.Time = wire.Request, time.Now()
	return m.Append(nil, &f.keys)
}

func (r *runner) answerDatagrams(c *net.UDPConn, arrived *atomic.Int64) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if b := r.answer(buf[:n], arrived); b != nil {
			c.WriteToUDPAddrPort(b, from)
		}
	}
}

func (r *runner) answerConns(l net.Listener, arrived *atomic.Int64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.SetDeadline(time.Now().Add(r.cfg.Timeout)) // one at a time: the reflector makes one attempt after the other
		buf := make([]byte, wire.MessageSize)
		if _, err := io.ReadFull(c, buf); err == nil {
			if b := r.answer(buf, arrived); b != nil {
				c.Write(b)
			}
		}
		c.Close()
	}
}
