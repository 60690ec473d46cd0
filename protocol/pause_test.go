package protocol

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// A stalling connection stands still once in each direction that has an offset,
// before the byte there. The near end's data connections are like it.
type stalling struct {
	net.Conn
	down, up *stall
}

type stall struct {
	mu   sync.Mutex
	left int // bytes, over all connections
	time time.Duration
}

func (s *stall) pass(n int) {
	if s == nil {
		return
	}
	s.mu.Lock()
	before := s.left
	s.left -= n
	s.mu.Unlock()
	if before > 0 && before <= n {
		time.Sleep(s.time) // this is the stall, which both ends must measure
	}
}

func (s stalling) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.down.pass(n)
	return n, err
}

func (s stalling) Write(b []byte) (int, error) {
	s.up.pass(len(b))
	return s.Conn.Write(b)
}

func (s stalling) CloseWrite() error { return s.Conn.(*net.TCPConn).CloseWrite() }

// Each end measures what comes to it: a system takes what goes, whether or not
// it gets through.
func TestPausesAreToldByTheEndThatAwaits(t *testing.T) {
	const size, still = 1 << 20, 1200 * time.Millisecond
	for _, p := range every(t) {
		if !p.Bulk {
			continue
		}
		for _, up := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", p, up), func(t *testing.T) {
				t.Parallel()
				s := &stall{left: size / 2, time: still}
				slow := func(c net.Conn) net.Conn {
					if up {
						return stalling{c, nil, s}
					}
					return stalling{c, s, nil}
				}
				f := newFar()
				x := f.exchange()
				x.Bytes, x.Variant = size, p.variant
				x.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
					c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
					if err != nil {
						return nil, err
					}
					return slow(c), nil
				}
				x.Listen = func(at netip.Addr) (net.Listener, error) {
					l, err := net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
					return stallingListener{l, slow}, err
				}
				near, far := pair(t)
				var events []wire.Event
				var wg sync.WaitGroup
				wg.Go(func() { events = f.serve(t.Context(), p.Protocol, far); Part(t.Context(), far, farStall) })
				got := p.TCP.Probe(t.Context(), slow(near), x)
				near.Close()
				wg.Wait()
				if got.Stage != StageDone || len(events) != 1 || events[0].Stage != StageDone {
					t.Fatalf("%+v, %+v", got, events)
				}
				here, there := got.Pause.Seconds() >= 1, events[0].Pause >= 1
				if here == up || there != up {
					t.Errorf("%v here, %v s at the far end", got.Pause, events[0].Pause)
				}
			})
		}
	}
}

// A stallingListener is for what is called.
type stallingListener struct {
	net.Listener
	slow func(net.Conn) net.Conn
}

func (l stallingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.slow(c), nil
}
