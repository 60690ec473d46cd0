package middlebox

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// clients are all clients of a box, as a server on an unconnected socket has
// them.
type clients struct {
	proxy *UDPProxy
	in    chan aimedDatagram
	wake  chan struct{}
}

type aimedDatagram struct {
	from    *Aimed
	payload []byte
}

// Aimed is the address of a client, with that of the server that it aimed at.
type Aimed struct{ Client, Server netip.AddrPort }

// Network and String are those of the client.
func (a *Aimed) Network() string { return "udp" }
func (a *Aimed) String() string  { return a.Client.String() }

func newClients(p *UDPProxy) *clients {
	return &clients{p, make(chan aimedDatagram, 256), make(chan struct{}, 1)}
}

// put loses what nobody reads.
func (c *clients) put(f flow, b []byte) {
	select {
	case c.in <- aimedDatagram{&Aimed{f.client, f.server}, bytes.Clone(b)}:
	default:
	}
}

func (c *clients) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(b, d.payload), d.from, nil
	case <-c.wake:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (c *clients) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*Aimed)
	if !ok {
		return 0, fmt.Errorf("send to %v: not a client", to)
	}
	return len(b), c.proxy.host.Do(func() error { return answerAs(flow{a.Client, a.Server}, b) })
}

// SetReadDeadline wakes a reader when the time is over already; nobody asks for
// another.
func (c *clients) SetReadDeadline(t time.Time) error {
	if t.IsZero() || t.After(time.Now()) {
		return nil
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

func (c *clients) Close() error                   { return c.SetReadDeadline(time.Unix(1, 0)) }
func (*clients) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (c *clients) SetDeadline(t time.Time) error  { return c.SetReadDeadline(t) }
func (*clients) SetWriteDeadline(time.Time) error { return nil }
func (*clients) SetReadBuffer(int) error          { return nil }
func (*clients) SetWriteBuffer(int) error         { return nil }

// listenOut opens a socket of the box's host towards servers.
func (p *UDPProxy) listenOut() (u *net.UDPConn, err error) {
	err = p.host.Do(func() (err error) { u, err = net.ListenUDP("udp", nil); return err })
	return u, err
}
