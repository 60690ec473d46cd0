package reflector

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/wire"
)

// A siege is a bench whose QUIC runs. Datagrams come from a real socket, or are
// made up with whatever source; what leaves for these is only counted.
type siege struct {
	*bench
	t     *testing.T
	front *net.UDPConn
	moved func(b []byte) (from netip.AddrPort, ok bool) // what the real socket got is as if from there; nil is as it is

	mu      sync.Mutex
	got     map[netip.AddrPort]int // bytes from each source
	sent    map[netip.AddrPort]int // bytes to it
	answers chan netip.AddrPort    // to whom something was sent; only the last ones are kept
}

// newSiege begins one; change is done to its bench before.
func newSiege(t *testing.T, change ...func(*bench)) *siege {
	front, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	s := &siege{bench: newBench(t, Config{}), t: t, front: front, got: make(map[netip.AddrPort]int), sent: make(map[netip.AddrPort]int), answers: make(chan netip.AddrPort, 1<<16)}
	s.quic.send = func(b []byte, _, remote netip.AddrPort) error {
		s.mu.Lock()
		s.sent[remote] += len(b)
		s.mu.Unlock()
		if remote.Addr().IsLoopback() {
			_, err := front.WriteToUDPAddrPort(b, remote)
			return err
		}
		select {
		case s.answers <- remote:
		default:
		}
		return nil
	}
	for _, c := range change {
		c(s.bench)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.ctx = ctx
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.quic.run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(s.receive)
	t.Cleanup(func() { cancel(); front.Close(); wg.Wait() })
	return s
}

// receive is the read loop of the real socket.
func (s *siege) receive() {
	at := s.front.LocalAddr().(*net.UDPAddr).AddrPort()
	buf := make([]byte, 2048)
	for {
		n, from, err := s.front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.moved != nil {
			if other, ok := s.moved(buf[:n]); ok {
				from = other
				s.got[from] += n
			}
		}
		s.mu.Unlock()
		s.Datagrams([]steer.Datagram{{Local: at, Remote: from, Payload: buf[:n]}}, func([]steer.Datagram) {})
	}
}

// attack delivers a made-up datagram.
func (s *siege) attack(from netip.AddrPort, b []byte) {
	s.t.Helper()
	s.mu.Lock()
	s.got[from] += len(b)
	s.mu.Unlock()
	for _, d := range s.deliver(from, b) {
		s.t.Fatalf("answered outside of QUIC: %v", d)
	}
}

// settle waits until the library has had all that was delivered: it answers an
// unknown version in turn.
func (s *siege) settle() {
	s.t.Helper()
	last := netip.MustParseAddrPort("203.0.113.250:9")
	end := time.After(20 * time.Second)
	for range 3 {
		s.attack(last, unknownVersionPacket(1200))
		for answered := false; !answered; {
			select {
			case to := <-s.answers:
				answered = to == last
			case <-time.After(time.Second):
				s.attack(last, unknownVersionPacket(1200)) // the queue was full
			case <-end:
				s.t.Fatal("QUIC no longer answers")
			}
		}
	}
}

// check demands that nobody got more than it sent, and gives how much all got.
func (s *siege) check() (total int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for to, n := range s.sent {
		if to.Addr().IsLoopback() {
			continue
		}
		if n > s.got[to] {
			s.t.Errorf("%v sent %d bytes and got %d", to, s.got[to], n)
		}
		total += n
	}
	return total
}

func (s *siege) sentTo(a netip.AddrPort) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[a]
}

// connect is a client that does what all are there for.
func (s *siege) connect(probe uint32) protocol.Result {
	s.t.Helper()
	c, err := net.DialUDP("udp4", nil, s.front.LocalAddr().(*net.UDPAddr))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	k := wire.Derive(testKey, testID, wire.Nonce{})
	return protocol.Named(protocol.QUIC).UDP.Probe(s.t.Context(), c, protocol.Exchange{Keys: &k, Offline: true, Probe: probe, Port: 1,
		ServerName: "a.example", Bytes: 5000, Stall: 10 * time.Second, Now: s.clock.now})
}

// initial is an Initial with random connection ids and a token of any length.
func initial(r *rand.Rand, size, token int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	b[0] = 0xc0 | b[0]&0x03
	binary.BigEndian.PutUint32(b[1:], 1)
	b[5], b[14] = 8, 8
	binary.BigEndian.PutUint16(b[23:], 0x4000|uint16(token))
	at := 25 + token
	if token == 0 {
		b[23], at = 0, 24
	}
	if at+2 < size {
		binary.BigEndian.PutUint16(b[at:], 0x4000|uint16(size-at-2))
	}
	return b
}

// genuine is the first packet that a client sends.
func genuine(t *testing.T) []byte {
	t.Helper()
	mute, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	c, err := net.DialUDP("udp4", nil, mute.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k := wire.Derive(testKey, testID, wire.Nonce{})
		protocol.Named(protocol.QUIC).UDP.Probe(ctx, c, protocol.Exchange{Keys: &k, ServerName: "a.example", Stall: 10 * time.Second, Now: time.Now})
	}()
	buf := make([]byte, 2048)
	mute.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := mute.Read(buf)
	cancel()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func unknownVersionPacket(size int) []byte {
	b := make([]byte, size)
	b[0], b[5], b[14] = 0xc0, 8, 8
	binary.BigEndian.PutUint32(b[1:], 0x5a6a7a8a)
	return b
}

func spoofed(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), uint16(1024+i))
}

// Attack 14: whatever looks like QUIC and proves nothing is never answered with
// more bytes than it has. Of these the library alone would answer none with
// more, by Retry and its own factor of 3; what the port itself withholds shows
// where a connection moves, below.
func TestUnprovenQUICNeverGetsMoreThanItSent(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	garbage := func(first, mask byte, size int) []byte {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[0] = b[0]&^mask | first
		return b
	}
	coalesced := func(int) []byte {
		return append(initial(r, 600, 0), initial(r, 600, 0)...)
	}
	hello := genuine(t)
	for name, c := range map[string]struct {
		make   func(i int) []byte
		answer bool // some of it is answered, else nothing may be
	}{
		"spoofed Initials":                {func(int) []byte { return initial(r, 1200, 0) }, true},
		"genuine Initials, replayed":      {func(int) []byte { return hello }, true},
		"Initials with a forged token":    {func(i int) []byte { return initial(r, 1200, 1+i%200) }, true},
		"short Initials":                  {func(i int) []byte { return initial(r, 100+i, 0) }, false},
		"unknown versions":                {func(int) []byte { return unknownVersionPacket(1200) }, true},
		"short ones of unknown versions":  {func(i int) []byte { return unknownVersionPacket(21 + i) }, false},
		"garbage with a long header":      {func(i int) []byte { return garbage(0xc0, 0xc0, 21+5*i) }, true},
		"garbage with a short header":     {func(i int) []byte { return garbage(0x40, 0xc0, 21+5*i) }, false},
		"coalesced Initials":              {coalesced, true},
		"version negotiation thrown back": {func(int) []byte { b := unknownVersionPacket(1200); clear(b[1:5]); return b }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSiege(t)
			for i := range 250 {
				s.attack(spoofed(i), c.make(i))
			}
			s.settle()
			control := 3 * 1200 // what settle itself is answered with is less
			if total := s.check(); c.answer && total == 0 || !c.answer && total > control {
				t.Errorf("%d bytes were sent", total)
			} else if !c.answer {
				for i := range 250 {
					if n := s.sentTo(spoofed(i)); n > 0 {
						t.Errorf("%v was sent %d bytes", spoofed(i), n)
					}
				}
			}
		})
	}
}

// Short headers of connections that nobody has are not answered while others
// are under way either: no stateless reset ever leaves, so none can loop.
func TestShortHeadersOfNobodysConnectionGetNoResetBesideOthers(t *testing.T) {
	s := newSiege(t)
	if !s.quic.count(netip.AddrPortFrom(loopback, 9), 1) { // as if a connection were under way
		t.Fatal("not counted")
	}
	for i := range 500 {
		b := make([]byte, 21+i*2)
		b[0] = 0x40 | byte(i)&0x3f
		s.attack(spoofed(i), b)
	}
	s.settle()
	for i := range 500 {
		if n := s.sentTo(spoofed(i)); n > 0 {
			t.Fatalf("%v was sent %d bytes", spoofed(i), n)
		}
	}
}

func TestTenThousandSpoofedInitialsLeaveNothingBehind(t *testing.T) {
	s := newSiege(t)
	if res := s.connect(1); res.Stage != protocol.StageDone {
		t.Fatalf("before: %+v", res)
	}
	r := rand.New(rand.NewPCG(1, 2))
	packet := initial(r, 1200, 0)
	measure := func() (heap uint64, routines int) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	heap, routines := measure()
	const attacks = 10_000
	for i := range attacks {
		binary.BigEndian.PutUint64(packet[6:], r.Uint64())
		s.attack(spoofed(i), packet)
	}
	s.settle()
	s.check()
	s.mu.Lock()
	clear(s.got)
	clear(s.sent)
	s.mu.Unlock()
	after, now := measure()
	if grown := int64(after) - int64(heap); grown > 12<<20 {
		t.Errorf("%d bytes more than before", grown)
	}
	if now > routines+10 {
		t.Errorf("%d goroutines, %d before", now, routines)
	}
	s.quic.mu.Lock()
	total, sources := s.quic.total, len(s.quic.source)
	s.quic.mu.Unlock()
	if total > 1 || sources > 1 {
		t.Errorf("%d connections of %d sources", total, sources)
	}
	if res := s.connect(2); res.Stage != protocol.StageDone {
		t.Errorf("afterwards: %+v", res)
	}
}

// Who has a connection can send its packets in the name of others. The library
// then probes these, with 1200 bytes for a packet of any size (RFC 9000 section
// 8.2.1 allows as much as was received three times): the port lets it send
// no more than came.
func TestAddressThatAConnectionMovesToNeverGetsMoreThanItSent(t *testing.T) {
	s := newSiege(t)
	names := 0
	s.mu.Lock()
	s.moved = func(b []byte) (netip.AddrPort, bool) {
		if b[0]&0x80 != 0 || len(b) > 400 { // of the handshake, or large enough to pay for a probe
			return netip.AddrPort{}, false
		}
		names++
		return spoofed(names), true
	}
	s.mu.Unlock()
	res := s.connect(1)
	s.settle()
	s.check()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.quic.withheld.Load(); names == 0 || n == 0 {
		t.Errorf("%d packets came in other names, %d answers were withheld: nothing was tried; %+v", names, n, res)
	}
}

// The library may send what it likes to an address that a connection moved to:
// without one of its own it gets what it sent.
func TestPacketsToUnprovenAddressesAreTakenFromTheirCredit(t *testing.T) {
	b := newBench(t, Config{})
	sent := 0
	b.quic.send = func(p []byte, _, _ netip.AddrPort) error { sent += len(p); return nil }
	c := quicConn{b.quic}
	peer := &quicPeer{remote: near, local: local}
	peer.credit.Store(100)
	for range 3 {
		if n, err := c.WriteTo(make([]byte, 60), peer); n != 60 || err != nil {
			t.Fatal(n, err)
		}
	}
	if sent != 60 {
		t.Errorf("%d bytes were sent for 100", sent)
	}
	b.quic.count(near, 1)
	c.WriteTo(make([]byte, 1000), peer)
	if sent != 1060 {
		t.Errorf("%d bytes were sent, with a connection", sent)
	}
	b.quic.count(near, -1)
	c.WriteTo(make([]byte, 10), peer)
	if sent != 1060 {
		t.Errorf("%d bytes were sent, after it ended", sent)
	}
}

func TestQUICConnectionsAreBoundedPerSourceAndOverall(t *testing.T) {
	b := newBench(t, Config{})
	admitted := 0
	for i := range 100 {
		if b.quic.count(netip.AddrPortFrom(near.Addr(), uint16(i)), 1) {
			admitted++
		}
	}
	if admitted != maxQUICPerSource {
		t.Errorf("%d of one source", admitted)
	}
	for i := range 3000 {
		if b.quic.count(spoofed(i), 1) {
			admitted++
		}
	}
	if admitted != maxQUIC {
		t.Errorf("%d overall", admitted)
	}
}

// Whoever's address no Retry has proven is not admitted, even if the library
// let it through.
func TestUnvalidatedQUICIsNotAdmitted(t *testing.T) {
	b := newBench(t, Config{})
	peer := &quicPeer{remote: near, local: local}
	for _, info := range []*quic.ClientInfo{{RemoteAddr: peer}, {RemoteAddr: net.UDPAddrFromAddrPort(near), AddrVerified: true}} {
		if _, err := b.quic.admit(t.Context(), info); err == nil {
			t.Errorf("%+v is admitted", info)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := b.quic.admit(ctx, &quic.ClientInfo{RemoteAddr: peer, AddrVerified: true}); err != nil {
		t.Error(err)
	}
	cancel()
}
