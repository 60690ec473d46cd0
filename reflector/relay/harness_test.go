package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

var (
	localAddr  = netip.MustParseAddrPort("192.0.2.1:3478")
	remoteAddr = netip.MustParseAddrPort("203.0.113.9:40001")
)

const patience = 5 * time.Second

// sent is one datagram that the service sent.
type sent struct {
	b             []byte
	local, remote netip.AddrPort
}

// world is a running service whose UDP side is a channel.
type world struct {
	t    testing.TB
	s    *Server
	out  chan sent
	stop func() // ends the service and waits for it

	mu     sync.Mutex
	counts map[string]int
	events []Event
	clock  time.Time
}

// loopbackRelay lets a test relay on loopback, where all its sockets are.
func loopbackRelay(cfg *Config) {
	cfg.RelayAddr = func(netip.Addr) (netip.Addr, bool) { return netip.MustParseAddr("127.0.0.1"), true }
	cfg.Forbidden = func(a netip.Addr) (string, bool) {
		if a == netip.MustParseAddr("127.0.0.1") || a == netip.MustParseAddr("::1") {
			return "", false
		}
		return Forbidden(a)
	}
	cfg.PeerAllowed = func(string, netip.AddrPort) bool { return true }
}

// newWorld runs a service that knows the users wp-a to wp-z, each with the
// password "secret of" and its name, and its name's letter as the session.
func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, out: make(chan sent, 4096), counts: map[string]int{}, clock: time.Unix(1_800_000_000, 0)}
	cfg := Config{
		Realm: "r",
		Credentials: func(u string, _ time.Time) (string, string, bool) {
			return "secret of " + u, strings.TrimPrefix(u, "wp-"), len(u) == 4 && strings.HasPrefix(u, "wp-")
		},
		Now: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.clock },
		Count: func(e string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.counts[e]++
		},
		Event: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			e.Request, e.Answer = bytes.Clone(e.Request), bytes.Clone(e.Answer)
			w.events = append(w.events, e)
		},
		Send: func(b []byte, l, r netip.AddrPort) error {
			select {
			case w.out <- sent{append([]byte(nil), b...), l, r}:
				return nil
			default:
				return errors.New("more answers than any test expects")
			}
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	w.s = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.s.Run(ctx) }()
	w.until("the service runs", func() bool { w.s.mu.Lock(); defer w.s.mu.Unlock(); return w.s.running })
	worlds.Add(1)
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("the service does not end")
		}
		if worlds.Add(-1) == 0 {
			w.until("all goroutines end", func() bool { return !leaked() })
		}
	}
	t.Cleanup(w.stop)
	return w
}

// worlds is how many services run in tests; the last to end looks for leaks.
var worlds atomic.Int32

// leaked reports whether any goroutine but a test's own is still in this
// package or in pion's server.
func leaked() bool {
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "testing.") || strings.Contains(g, "turn/v2.(*Client)") {
			continue
		}
		if strings.Contains(g, "pion/turn/v2") || strings.Contains(g, "reflector/relay.(") {
			return true
		}
	}
	return false
}

func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts[name]
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// kinds returns what the events so far say, in short.
func (w *world) kinds() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		out = append(out, e.Session+" "+string(e.Kind)+" "+e.Result)
	}
	return out
}

// drain returns what was sent so far.
func (w *world) drain() []sent {
	var out []sent
	for {
		select {
		case s := <-w.out:
			out = append(out, s)
		default:
			return out
		}
	}
}

func (w *world) next() sent {
	w.t.Helper()
	select {
	case s := <-w.out:
		return s
	case <-time.After(patience):
		w.t.Fatal("nothing was sent")
		return sent{}
	}
}

// client is a user of TURN over the world's UDP side.
type client struct {
	w             *world
	local, remote netip.AddrPort
	name          string
	nonce         stun.Nonce
}

// pay makes a 5-tuple worth a challenge: a Binding is longer than its answer.
func (w *world) pay(name string, local, remote netip.AddrPort) {
	w.t.Helper()
	req, _, err := protocol.Binding(name, "secret of "+name, "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.s.Datagram(req, local, remote)
	w.next()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = slices.DeleteFunc(w.events, func(e Event) bool { return e.Kind == KindBinding && e.Label == "" })
}

// newUser pays for a 5-tuple and fetches its nonce.
func (w *world) newUser(name string, remote netip.AddrPort) *client {
	w.t.Helper()
	u := &client{w: w, local: localAddr, remote: remote, name: name}
	w.pay(name, u.local, u.remote)
	w.s.Datagram(build(w.t, allocateType, udpTransport), u.local, u.remote)
	res := decode(w.t, w.next().b)
	if err := u.nonce.GetFrom(res); err != nil {
		w.t.Fatalf("challenge %v: %v", res, err)
	}
	return u
}

var (
	allocateType   = stun.NewType(stun.MethodAllocate, stun.ClassRequest)
	refreshType    = stun.NewType(stun.MethodRefresh, stun.ClassRequest)
	permissionType = stun.NewType(stun.MethodCreatePermission, stun.ClassRequest)
	channelType    = stun.NewType(stun.MethodChannelBind, stun.ClassRequest)
	udpTransport   = stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}
	tcpTransport   = stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{6, 0, 0, 0}}
)

func (u *client) sign(typ stun.MessageType, attrs ...stun.Setter) []byte {
	key := stun.NewLongTermIntegrity(u.name, "r", "secret of "+u.name)
	attrs = append(attrs, stun.NewUsername(u.name), stun.NewRealm("r"), u.nonce, key, stun.Fingerprint)
	return build(u.w.t, typ, attrs...)
}

// ask sends a signed request and returns the code of its answer, 0 for
// success, and the answer.
func (u *client) ask(typ stun.MessageType, attrs ...stun.Setter) (stun.ErrorCode, *stun.Message) {
	u.w.t.Helper()
	b := u.sign(typ, attrs...)
	u.w.s.Datagram(b, u.local, u.remote)
	for {
		res := decode(u.w.t, u.w.next().b)
		if string(res.TransactionID[:]) == string(b[8:20]) {
			return codeOf(res), res
		}
	}
}

func codeOf(m *stun.Message) stun.ErrorCode {
	var code stun.ErrorCodeAttribute
	if m.Type.Class == stun.ClassSuccessResponse {
		return 0
	} else if code.GetFrom(m) != nil {
		return -1
	}
	return code.Code
}

// allocate makes an allocation and returns its relayed address.
func (u *client) allocate() netip.AddrPort {
	u.w.t.Helper()
	code, res := u.ask(allocateType, udpTransport)
	if code != 0 {
		u.w.t.Fatalf("allocate: %v", code)
	}
	return relayed(u.w.t, res)
}

func relayed(t testing.TB, res *stun.Message) netip.AddrPort {
	t.Helper()
	v, err := res.Get(stun.AttrXORRelayedAddress)
	if err != nil {
		t.Fatal(err)
	}
	ap, err := parseXORAddress(v, res.TransactionID)
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// build makes a message of a random transaction.
func build(t testing.TB, typ stun.MessageType, attrs ...stun.Setter) []byte {
	t.Helper()
	m, err := stun.Build(append([]stun.Setter{stun.TransactionID, typ}, attrs...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

func decode(t testing.TB, b []byte) *stun.Message {
	t.Helper()
	m := new(stun.Message)
	if err := stun.Decode(b, m); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

// xorPeer is an XOR-PEER-ADDRESS exactly as written, IPv4-mapped included.
type xorPeer netip.AddrPort

func (p xorPeer) AddTo(m *stun.Message) error {
	ap := netip.AddrPort(p)
	v := []byte{0, 1}
	if ap.Addr().Is6() {
		v[1] = 2
	}
	v = binary.BigEndian.AppendUint16(v, ap.Port()^magicCookie>>16)
	mask := append(binary.BigEndian.AppendUint32(nil, magicCookie), m.TransactionID[:]...)
	for i, x := range ap.Addr().AsSlice() {
		v = append(v, x^mask[i])
	}
	m.Add(stun.AttrXORPeerAddress, v)
	return nil
}

func attr(t stun.AttrType, v ...byte) stun.RawAttribute { return stun.RawAttribute{Type: t, Value: v} }

// newPeer is a UDP socket on loopback.
func newPeer(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}
