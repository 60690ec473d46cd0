package middlebox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/lab"
	"golang.org/x/sys/unix"
)

// maxFlows bounds the flows a box keeps at one time; datagrams of further ones
// are dropped.
const maxFlows = 1024

// UDP is a transparent proxy for datagrams.
type UDP struct {
	Ports    string        // which server ports, as nft has it: "3478", "8000-8100" or "{ 80, 443 }"
	From     string        // the interface by which clients come in; empty is lan0
	Rewrites []Rewrite     // changes to what is forwarded; offsets are within a datagram
	Timeout  time.Duration // of a flow without replies; 0 is a minute

	// Delay, if set, says how long a datagram of a side is held back; later
	// ones overtake it. Calls may overlap.
	Delay func(Side, []byte) time.Duration

	// Lets, if set, tells of what a client sends whether it passes.
	Lets func(client netip.AddrPort, datagram []byte) bool

	// Edit, if set, changes what one side sends; nil loses it.
	Edit func(from Side, datagram []byte) []byte

	// Answer, if set, plays the server, which then sees nothing at all. It
	// gets what the client sent; nil is no answer.
	Answer func([]byte) []byte

	// Between, if set, plays the server too, as one that has many clients. Their
	// addresses are of type Aimed. It opens sockets towards servers by listen, and
	// returns when its context ends.
	Between func(ctx context.Context, clients net.PacketConn, listen func() (*net.UDPConn, error))
}

// A UDPProxy is a UDP box put into the way.
type UDPProxy struct {
	box       UDP
	host      *lab.Host
	sockets   []*net.UDPConn
	diversion *diversion
	mu        sync.Mutex
	flows     map[flow]*net.UDPConn // towards the server
	readers   sync.WaitGroup
	clients   *clients // of Between
}

// A flow is known by its ends.
type flow struct{ client, server netip.AddrPort }

// Open puts the box into the way on a host.
func (u UDP) Open(h *lab.Host) (*UDPProxy, error) {
	if u.Timeout == 0 {
		u.Timeout = defaultTimeout
	}
	p := &UDPProxy{box: u, host: h, flows: map[flow]*net.UDPConn{}}
	p.clients = newClients(p)
	if err := h.Do(p.listen); err != nil {
		return nil, errors.Join(fmt.Errorf("udp proxy on %s: %w", h.Name(), err), p.Close())
	}
	port := p.sockets[0].LocalAddr().(*net.UDPAddr).Port
	var err error
	if p.diversion, err = divert(h, "udp", u.From, u.Ports, port); err != nil {
		return nil, errors.Join(fmt.Errorf("udp proxy on %s: %w", h.Name(), err), p.Close())
	}
	return p, nil
}

func (p *UDPProxy) listen() error {
	v4, err := transparentUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		return err
	}
	p.sockets = append(p.sockets, v4)
	port := v4.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	v6, err := transparentUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		return err
	}
	p.sockets = append(p.sockets, v6)
	return nil
}

// transparentUDP opens a socket on any address, be it the host's or not.
func transparentUDP(at netip.AddrPort) (*net.UDPConn, error) {
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	config := net.ListenConfig{Control: transparent}
	c, err := config.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// Close lifts the box out of the way without Serve. It may be called again.
func (p *UDPProxy) Close() error {
	var errs []error
	for _, s := range p.sockets {
		if err := s.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if p.diversion != nil {
		errs = append(errs, p.diversion.end())
		p.diversion = nil
	}
	return errors.Join(errs...)
}

// Serve works until ctx ends and returns nil then, after the box has been
// lifted out of the way.
func (p *UDPProxy) Serve(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range p.sockets {
		wg.Go(func() { p.receive(s) })
	}
	if p.box.Between != nil {
		wg.Go(func() { p.box.Between(ctx, p.clients, p.listenOut) })
	}
	<-ctx.Done()
	err := p.Close()
	wg.Wait()
	p.mu.Lock()
	for _, server := range p.flows {
		server.Close()
	}
	p.mu.Unlock()
	p.readers.Wait()
	return err
}

// receive takes what clients send until the socket is closed. A datagram that
// cannot be passed on is lost, as on any way.
func (p *UDPProxy) receive(s *net.UDPConn) {
	buf, oob := make([]byte, 65535), make([]byte, 128)
	for {
		n, oobn, _, client, err := s.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		server, ok := aimedAt(oob[:oobn])
		if !ok {
			continue
		}
		f := flow{client, server}
		if p.box.Answer != nil {
			if reply := p.box.Answer(buf[:n]); reply != nil {
				_ = p.host.Do(func() error { return answerAs(f, reply) })
			}
			continue
		}
		if p.box.Lets != nil && !p.box.Lets(client, buf[:n]) {
			continue
		}
		if p.box.Between != nil {
			p.clients.put(f, buf[:n])
			continue
		}
		if c, err := p.toServer(f); err == nil {
			p.pass(Client, buf[:n], func(b []byte) { _, _ = c.Write(b) })
		}
	}
}

// pass sends a datagram of a side on, edited, at once or after its delay, or
// loses it.
func (p *UDPProxy) pass(from Side, b []byte, send func([]byte)) {
	b = newEditor(p.box.Rewrites, from).edit(b, true)
	if p.box.Edit != nil {
		b = p.box.Edit(from, b)
	}
	if b == nil {
		return
	}
	if p.box.Delay == nil {
		send(b)
		return
	}
	d := p.box.Delay(from, b)
	if d <= 0 {
		send(b)
		return
	}
	b = bytes.Clone(b)
	p.readers.Go(func() {
		time.Sleep(d)
		send(b)
	})
}

// aimedAt finds the address a datagram was sent to in what came with it
// (IP_ORIGDSTADDR, ip(7)).
func aimedAt(oob []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range messages {
		sa, err := unix.ParseOrigDstAddr(&m)
		if err != nil {
			continue
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), true
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), true
		}
	}
	return netip.AddrPort{}, false
}

// answerAs sends a datagram to the client that seems to come from the server.
func answerAs(f flow, reply []byte) error {
	c, err := transparentUDP(f.server)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.WriteToUDPAddrPort(reply, f.client)
	return err
}

// toServer finds or opens the socket of a flow.
func (p *UDPProxy) toServer(f flow) (*net.UDPConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.flows[f]; c != nil {
		return c, nil
	}
	if len(p.flows) >= maxFlows {
		return nil, fmt.Errorf("more than %d flows", maxFlows)
	}
	var c *net.UDPConn
	err := p.host.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.server))
		return err
	})
	if err != nil {
		return nil, err
	}
	p.flows[f] = c
	p.readers.Go(func() { p.reply(f, c) })
	return c, nil
}

// reply passes the server's datagrams on until none has come for the timeout.
func (p *UDPProxy) reply(f flow, c *net.UDPConn) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.flows, f)
		c.Close()
	}()
	buf := make([]byte, 65535)
	for {
		if c.SetReadDeadline(time.Now().Add(p.box.Timeout)) != nil {
			return
		}
		n, err := c.Read(buf)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // the server's port is closed, now; the client may try on
		}
		if err != nil {
			return
		}
		p.pass(Server, buf[:n], func(reply []byte) {
			_ = p.host.Do(func() error { return answerAs(f, reply) })
		})
	}
}
