package steer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// connHandler is a Handler of connections alone.
type connHandler func(net.Conn)

func (h connHandler) Conn(c net.Conn)                        { h(c) }
func (h connHandler) Datagrams([]Datagram, func([]Datagram)) {}

// onePort listens on one port of loopback.
func onePort(t *testing.T) (s *Set, to string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to = l.Addr().String()
	l.Close()
	s, err = Listen(Config{
		Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, TCP: ports(strconv.Itoa(l.Addr().(*net.TCPAddr).Port)), Mode: Sockets,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, to
}

// serving serves with what happens to connections, until stop.
func serving(t *testing.T, s *Set, h connHandler) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, h) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestConnectionResetBeforeAcceptStillHasItsPeer(t *testing.T) {
	s, to := onePort(t)
	c, err := net.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	want := c.LocalAddr().String()
	c.(*net.TCPConn).SetLinger(0) // a reset and no FIN
	c.Close()
	peers := make(chan net.Addr, 1)
	stop := serving(t, s, func(c net.Conn) { peers <- c.RemoteAddr() })
	if got := <-peers; got == nil || got.String() != want {
		t.Errorf("peer %v of a connection to %s, want %s", got, to, want)
	}
	stop()
}

// Else a bare acknowledgement follows every first request: a seventh of all packets
// of a sweep.
func TestAcknowledgementsRideOnAnswersFromTheFirstOneOn(t *testing.T) {
	s, to := onePort(t)
	quick := make(chan int, 1)
	stop := serving(t, s, func(c net.Conn) {
		raw, err := c.(*net.TCPConn).SyscallConn()
		on := -1
		if err == nil {
			err = raw.Control(func(fd uintptr) { on, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK) })
		}
		if err != nil {
			t.Error(err)
		}
		quick <- on
	})
	c, err := net.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if on := <-quick; on != 0 {
		t.Errorf("TCP_QUICKACK is %d on a connection that came in", on)
	}
	stop()
}

// Nobody would know that a port is served no more.
func TestListenerThatListensNoMoreEndsServe(t *testing.T) {
	s, _ := onePort(t)
	if err := unix.Shutdown(s.socks[0].fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), connHandler(func(net.Conn) {})); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Serve: %v", err)
	}
}
