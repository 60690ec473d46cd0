package steer

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// borrow is Borrow for a test.
func borrow(t *testing.T, s *Set, at netip.AddrPort) (*net.UDPConn, func()) {
	t.Helper()
	c, giveBack, err := s.Borrow(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(giveBack)
	return c, giveBack
}

// hearUDP sends a datagram and gives what comes back, "" for nothing.
func hearUDP(t *testing.T, c *net.UDPConn, to netip.AddrPort) string {
	t.Helper()
	buf := make([]byte, 100)
	for range 3 {
		if _, err := c.WriteToUDPAddrPort([]byte("?"), to); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			if from == to { // else a late answer of another port
				return string(buf[:n])
			}
		}
	}
	return ""
}

// mine answers with a word of its own, until the socket is closed.
func mine(c *net.UDPConn) *sync.WaitGroup {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 100)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte("mine"), from)
		}
	})
	return &wg
}

func TestBorrowedPortIsTheBorrowersUntilItIsGivenBack(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s := serve(t, Config{UDP: full(m), Mode: m}, echo{})
		for _, a := range []netip.Addr{near4, any4, near6} {
			if m == Sockets && a == any4 {
				continue // the socket lent is that of all addresses: it answers from the first
			}
			at := netip.AddrPortFrom(a, 40007)
			far := w.packetConn(a.Is4())
			c, giveBack := borrow(t, s, at)
			answering := mine(c)
			got := []string{hearUDP(t, far, at), hearUDP(t, far, netip.AddrPortFrom(a, 40008))}
			giveBack()
			giveBack()
			answering.Wait()
			got = append(got, hearUDP(t, far, at))
			want := []string{"mine", netip.AddrPortFrom(a, 40008).String(), at.String()}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s lent, its neighbour, given back (-want +got):\n%s", at, diff)
			}
		}
	})
}

func TestAnyPortCanBeBorrowed(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s := serve(t, Config{UDP: full(m), Mode: m}, echo{})
		far := w.packetConn(true)
		for range 3 {
			c, giveBack := borrow(t, s, netip.AddrPortFrom(near4, 0))
			at := c.LocalAddr().(*net.UDPAddr).AddrPort()
			answering := mine(c)
			if got := hearUDP(t, far, at); got != "mine" {
				t.Errorf("%s says %q", at, got)
			}
			giveBack()
			answering.Wait()
		}
	})
}

func TestPortIsServedAgainOnlyWhenItsLastBorrowerIsGone(t *testing.T) {
	eachMode(t, steered, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s := serve(t, Config{UDP: full(m), Mode: m}, echo{})
		far := w.packetConn(true)
		one, two := netip.AddrPortFrom(near4, 40009), netip.AddrPortFrom(any4, 40009)
		c1, back1 := borrow(t, s, one)
		c2, back2 := borrow(t, s, two)
		a1, a2 := mine(c1), mine(c2)
		back1()
		a1.Wait()
		got := []string{hearUDP(t, far, two)}
		back2()
		a2.Wait()
		got = append(got, hearUDP(t, far, one), hearUDP(t, far, two))
		if diff := cmp.Diff([]string{"mine", one.String(), two.String()}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestPortIsLentOnceAndNotByAClosedSet(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		newWorld(t)
		s, err := Listen(Config{UDP: full(m), Mode: m})
		if err != nil {
			t.Fatal(err)
		}
		at := netip.AddrPortFrom(near4, 40010)
		_, giveBack := borrow(t, s, at)
		if _, _, err := s.Borrow(at); err == nil {
			t.Error("lent twice")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		giveBack() // after the end, as borrowers that end last do
		if _, _, err := s.Borrow(at); err == nil {
			t.Error("a closed Set lends")
		}
	})
}

// The read loop goes on where its socket was lent while it slept.
func TestLendingNeverEndsTheReadLoop(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		s := serve(t, Config{UDP: full(m), Mode: m}, echo{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var lending sync.WaitGroup
		lending.Go(func() {
			for ctx.Err() == nil {
				if _, giveBack, err := s.Borrow(netip.AddrPortFrom(near4, 40011)); err == nil {
					giveBack()
				}
			}
		})
		if missing := w.ask(near4, ports("40000-40010"), 5); len(missing) > 0 {
			t.Errorf("no answer from %s", missing)
		}
		cancel()
		lending.Wait()
		if missing := w.ask(near4, ports("40011"), 5); len(missing) > 0 {
			t.Errorf("no answer from %s, given back", missing)
		}
	})
}
