package lab

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/internal/need"
)

var enterErr error

func TestMain(m *testing.M) {
	flag.Parse()
	inside, code, err := Enter(context.Background())
	if !inside && err == nil {
		os.Exit(code)
	}
	enterErr = err
	if os.Getenv(helperMark) != "" {
		fmt.Fprintln(os.Stderr, helper())
		os.Exit(1)
	}
	code = m.Run()
	if dir := tempDirMade; dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

var tempDirMade string

// tempDir makes the one directory that outlives a test and not the binary.
func tempDir() (dir string, err error) {
	tempDirMade, err = os.MkdirTemp("", "wallprobe-lab")
	return tempDirMade, err
}

// build makes a world that ends with the test.
func build(t testing.TB, c Config) *World {
	t.Helper()
	needLab(t)
	w, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func needLab(t testing.TB) {
	t.Helper()
	if enterErr == nil {
		return
	}
	need.Missing(t, enterErr)
}

func builtin(t testing.TB, name string) Firewall {
	t.Helper()
	f, err := OpenFirewall(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// listenUDP opens a socket on a host.
func listenUDP(t testing.TB, h *Host, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echoUDP answers every datagram at a port of a host, on all its addresses.
func echoUDP(t testing.TB, h *Host, port uint16) {
	t.Helper()
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		c := listenUDP(t, h, netip.AddrPortFrom(a, port))
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		t.Cleanup(func() { c.Close(); <-done })
	}
}

// exchange sends one datagram and says what came back within the time.
func exchange(c *net.UDPConn, to netip.AddrPort, wait time.Duration) error {
	sent := []byte("are you there")
	if _, err := c.WriteToUDPAddrPort(sent, to); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return err
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if string(buf[:n]) != string(sent) || from != to {
		return fmt.Errorf("got %q from %s", buf[:n], from)
	}
	return nil
}

func addrs(h *Host) []netip.Addr {
	v4, v6 := h.Addrs()
	return []netip.Addr{v4, v6}
}
