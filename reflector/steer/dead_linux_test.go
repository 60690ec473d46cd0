package steer

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"testing"
)

// peerHandler tells whose connections it is given.
type peerHandler chan net.Addr

func (h peerHandler) Conn(c net.Conn)                        { h <- c.RemoteAddr() }
func (h peerHandler) Datagrams([]Datagram, func([]Datagram)) {}

func TestConnectionResetBeforeAcceptStillHasItsPeer(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := l.Addr().String()
	port := netip.MustParseAddrPort(to).Port()
	l.Close()
	s, err := Listen(Config{
		Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, TCP: ports(strconv.Itoa(int(port))), Mode: Sockets,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	want := c.LocalAddr().String()
	c.(*net.TCPConn).SetLinger(0) // a reset and no FIN
	c.Close()
	h := make(peerHandler, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, h) }()
	if got := <-h; got == nil || got.String() != want {
		t.Errorf("peer %v of a connection to port %d, want %s", got, port, want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
