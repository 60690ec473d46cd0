//go:build unix

package plaintcp

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

// option reads a whole number that a socket has set.
func option(t *testing.T, c net.Conn, level, name int) (value int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { value, failed = syscall.GetsockoptInt(int(fd), level, name) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestNoConnectionProbesASilence(t *testing.T) {
	l, err := ListenConfig().Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := Dialer().DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	f, err := dialed.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	made, err := FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	for name, c := range map[string]net.Conn{"dialed": dialed, "accepted": accepted, "made of a file": made} {
		if on := option(t, c, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE); on != 0 {
			t.Errorf("%s: keep-alive is on", name)
		}
	}
}
