package reflector

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wallprobe/wallprobe/reflector/relay"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// same leaves out how a SYN arrived: only some systems tell, and each time another.
var same = cmp.Options{cmpopts.IgnoreFields(wire.Event{}, "TCP", "Pause"), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty()}

var (
	testKey  = wire.Key{1, 2, 3}
	testID   = wire.SessionID{0xa0, 15: 0xaf}
	loopback = netip.MustParseAddr("127.0.0.1")
	local    = netip.MustParseAddrPort("198.51.100.10:3478")
	near     = netip.MustParseAddrPort("192.0.2.7:50000")
)

// A clock is set by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// A bench is a reflector without ports whose relay answers into a list.
type bench struct {
	*Reflector
	clock   *clock
	relayed []steer.Datagram
}

func newBench(t testing.TB, cfg Config) *bench {
	t.Helper()
	b := &bench{clock: newClock()}
	cfg.Key, cfg.Addrs, cfg.Now = testKey, []netip.Addr{loopback}, b.clock.now
	r, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); r.late.stop() })
	rc := r.relayConfig()
	rc.Send = func(p []byte, local, remote netip.AddrPort) error {
		b.relayed = append(b.relayed, steer.Datagram{Local: local, Remote: remote, Payload: bytes.Clone(p)})
		return nil
	}
	r.relay = relay.New(rc)
	b.Reflector = r
	return b
}

// deliver gives a datagram to the port sharing and collects what leaves.
func (b *bench) deliver(from netip.AddrPort, payload []byte) (out []steer.Datagram) {
	b.relayed = nil
	b.Datagrams([]steer.Datagram{{Local: local, Remote: from, TTL: 57, TOS: 0xb8, Payload: payload}}, func(d []steer.Datagram) {
		for _, x := range d {
			x.Payload = bytes.Clone(x.Payload)
			out = append(out, x)
		}
	})
	return append(out, b.relayed...)
}

// request is a proven datagram of a session that began without control.
func (b *bench) request(id wire.SessionID, change func(*wire.Message)) []byte {
	m := wire.Message{Kind: wire.Request, Offline: true, Port: local.Port(), Session: id, Probe: 3, Size: wire.MessageSize, Time: b.clock.now()}
	if change != nil {
		change(&m)
	}
	k := wire.Derive(testKey, id, wire.Nonce{})
	return m.Append(nil, &k)
}

// taken is a session's ledger with what differs from machine to machine taken out.
func (b *bench) taken(t *testing.T, id wire.SessionID) *wire.Ledger {
	t.Helper()
	s := b.sessions.find(id)
	if s == nil {
		return nil
	}
	l := b.ledger(s)
	l.Witness = ""
	return l
}

// end drops one session at once, as if its time were over.
func (t *sessions) end(id wire.SessionID) {
	t.mu.Lock()
	s := t.byID[id]
	if s != nil {
		t.drop(s)
	}
	t.mu.Unlock()
	if s != nil {
		t.ends(s)
	}
}

func ports(t testing.TB, s string) scenarios.PortSet {
	t.Helper()
	set, err := scenarios.ParsePortSet(s)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A buffer may be written and read at one time.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A live reflector serves one port over TCP and UDP on loopback.
type live struct {
	*Reflector
	at      netip.AddrPort
	journal *buffer
	stop    context.CancelFunc
	served  chan error
}

func start(t *testing.T, cfg Config) *live {
	t.Helper()
	l := &live{journal: new(buffer), served: make(chan error, 1)}
	cfg.Key, cfg.Addrs, cfg.Journal = testKey, []netip.Addr{loopback}, l.journal
	for range 20 {
		port := freePort(t)
		l.at = netip.AddrPortFrom(loopback, port)
		cfg.TCP = scenarios.PortSet{{First: port, Last: port}}
		cfg.UDP = cfg.TCP
		r, err := Listen(cfg)
		if _, taken := errors.AsType[*steer.BindError](err); taken {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Reflector = r
		ctx, cancel := context.WithCancel(context.Background())
		l.stop = cancel
		go func() { l.served <- r.Serve(ctx) }()
		t.Cleanup(cancel)
		return l
	}
	t.Fatal("no free port in 20 tries")
	return nil
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.Addr().(*net.TCPAddr).AddrPort().Port()
}

// ended stops the reflector and waits for it.
func (l *live) end(t *testing.T) {
	t.Helper()
	l.stop()
	select {
	case err := <-l.served:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("Serve did not return:\n%s", stacks())
	}
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// running are the goroutines of this package that no test started.
func running() []string {
	var out []string
	for g := range strings.SplitSeq(stacks(), "\n\n") {
		if strings.Contains(g, "wallprobe/reflector") && !strings.Contains(g, "_test.go") && !strings.Contains(g, "testing.tRunner") {
			out = append(out, g)
		}
	}
	return out
}

// insecure makes a transport for control calls, which prove themselves.
func insecure() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
}
