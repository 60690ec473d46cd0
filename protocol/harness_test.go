package protocol

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// same compares addresses by value, and nil with empty.
// same leaves out pauses, which differ from run to run.
var same = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty(), cmpopts.EquateErrors(),
	cmpopts.IgnoreFields(wire.Event{}, "Pause")}

var farClock = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// testFar is a reflector with one session.
type testFar struct {
	keys  wire.Keys
	cert  *tls.Certificate
	inner *Protocol                       // what greets inside TLS
	mem   *memoryNet                      // of further connections; nil is loopback
	told  atomic.Pointer[wire.Transcript] // the last of them; nil is none

	shaken atomic.Pointer[wire.TLSSeen] // the same

	further atomic.Int32 // connections that it was asked to make or wait for
}

func (f *testFar) Prove(p []byte, _ net.Addr) (wire.Message, *wire.Keys, error) {
	m, err := wire.Parse(p, &f.keys)
	return m, &f.keys, err
}

func (f *testFar) Tell(said *wire.Transcript) { f.told.Store(said) }

func (f *testFar) Shake(seen wire.TLSSeen) { f.shaken.Store(&seen) }

// Control answers calls to /good as one of a session.
func (f *testFar) Control() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == wire.ControlPath+"good" {
			w.Header().Set(wire.MACHeader, "good")
			return
		}
		http.NotFound(w, r)
	})
}

func (f *testFar) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.cert, nil }

// Inner does what the reflector does inside TLS.
func (f *testFar) Inner(ctx context.Context, c net.Conn) []wire.Event {
	if f.inner != nil {
		return f.inner.TCP.Serve(ctx, c, f)
	}
	return f.claimed(ctx, c, true)
}

// claimed serves what the first bytes ask for, as the reflector does.
func (f *testFar) claimed(ctx context.Context, c net.Conn, inTLS bool) []wire.Event {
	s := &sniffed{Conn: c, r: bufio.NewReader(c)}
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	c.SetReadDeadline(time.Now().Add(farStall))
	if ctx.Err() != nil {
		c.SetReadDeadline(time.Unix(1, 0))
	}
	_, err := s.r.Peek(4)
	p := Claim(s.peek, inTLS)
	if err == nil && p == nil {
		err = ErrForeign
	}
	if err != nil {
		e := Arrived(c, farClock)
		if err == ErrForeign {
			e.Stage = StageToken
		}
		return failed(e, err)
	}
	c.SetReadDeadline(time.Time{})
	return p.TCP.Serve(ctx, s, f)
}

// serve is what the reflector does with a connection to a port of p.
func (f *testFar) serve(ctx context.Context, p *Protocol, c net.Conn) []wire.Event {
	switch {
	case p.Inside:
		f.inner = p
		return serveTLS(ctx, c, f)
	case p.Greets:
		return p.TCP.Serve(ctx, c, f)
	}
	return f.claimed(ctx, c, false)
}

// sniffed is a connection whose first bytes were looked at.
type sniffed struct {
	net.Conn
	r *bufio.Reader
}

func (s *sniffed) Read(b []byte) (int, error) { return s.r.Read(b) }

func (s *sniffed) peek(n int) []byte { b, _ := s.r.Peek(n); return b }

// Listen and Dial are for further connections, over loopback or in memory.
func (f *testFar) Listen(at netip.Addr) (net.Listener, error) {
	f.further.Add(1)
	if f.mem != nil {
		return f.mem.listen(at)
	}
	return net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
}

func (f *testFar) Dial(ctx context.Context, _ wire.Message, from, to netip.AddrPort) (net.Conn, error) {
	f.further.Add(1)
	if f.mem != nil {
		return f.mem.dial(ctx, from, to)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to.String())
}

func (f *testFar) Now() time.Time { return farClock }

var certificate = sync.OnceValue(func() *tls.Certificate { return newCertificate("test") })

func newCertificate(issuer string) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: issuer}, NotBefore: farClock, NotAfter: farClock.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newFar() *testFar {
	return &testFar{keys: wire.Derive(wire.Key{1}, wire.SessionID{2}, wire.Nonce{3}), cert: certificate()}
}

// exchange is what the near end asks for, with the far end's keys.
func (f *testFar) exchange() Exchange {
	return Exchange{Keys: &f.keys, Probe: 7, Attempt: 1, Port: 443, ServerName: "a.example", Stall: 10 * time.Second, Now: func() time.Time { return farClock }}
}

// pair is a TCP connection over loopback.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close(); c.Close() })
	return n.(*net.TCPConn), c.(*net.TCPConn)
}

// A network makes connections for tests.
type network struct {
	name string
	pair func(t *testing.T) (near, far net.Conn)
}

var (
	loopback = network{"loopback", func(t *testing.T) (net.Conn, net.Conn) { return pair(t) }}
	memory   = network{"memory", memoryPair}
	networks = []network{loopback, memory}
)

// A box is what stands between the ends. Each direction is given its bytes
// with their offset and says what goes on; ok is false to break off after that.
type box struct {
	up, down func(offset int64, b []byte) (out []byte, ok bool)
	ending   ending
}

// An ending is how a box breaks off: the same for both ends. Unless it resets,
// it swallows what still comes, for a socket that is closed with something left
// to read sends a reset of its own.
type ending int

const (
	closes ending = iota // both connections are closed
	resets               // both are reset
	stalls               // nothing more passes until an end gives up
)

func pass(_ int64, b []byte) ([]byte, bool) { return b, true }

// flip changes the byte at an offset, and says so once it did.
func flip(at int64, done ...*bool) func(int64, []byte) ([]byte, bool) {
	return func(offset int64, b []byte) ([]byte, bool) {
		if i := at - offset; i >= 0 && i < int64(len(b)) {
			b[i] ^= 0x20
			for _, d := range done {
				*d = true
			}
		}
		return b, true
	}
}

// cutAfter lets a number of bytes through.
func cutAfter(n int64) func(int64, []byte) ([]byte, bool) {
	return func(offset int64, b []byte) ([]byte, bool) {
		if offset+int64(len(b)) < n {
			return b, true
		}
		return b[:n-offset], false
	}
}

func (x box) run(near, far *net.TCPConn) {
	var wg sync.WaitGroup
	var broken atomic.Bool
	carry := func(from, to *net.TCPConn, change func(int64, []byte) ([]byte, bool)) {
		if change == nil {
			change = pass
		}
		buf := make([]byte, boxPiece)
		var offset int64
		for {
			n, err := from.Read(buf)
			if !broken.Load() {
				out, ok := change(offset, buf[:n])
				offset += int64(n)
				if len(out) > 0 {
					if _, werr := to.Write(out); werr != nil && err == nil {
						err = werr
					}
				}
				if !ok {
					broken.Store(true)
					x.breakOff(near, far)
				}
			}
			if err != nil {
				if !broken.Load() || x.ending == stalls {
					to.CloseWrite()
				}
				return
			}
		}
	}
	near.SetWriteBuffer(boxBuffer)
	far.SetWriteBuffer(boxBuffer)
	wg.Go(func() { carry(near, far, x.up) })
	wg.Go(func() { carry(far, near, x.down) })
	wg.Wait()
	near.Close()
	far.Close()
}

// What a box reads at one time, and what its sockets hold of what was not sent
// yet: Linux takes twice what it is told, socket(7).
const (
	boxPiece  = 8 << 10
	boxBuffer = 32 << 10
	boxHolds  = 2*boxBuffer + boxPiece
)

func (x box) breakOff(near, far *net.TCPConn) {
	for _, c := range []*net.TCPConn{near, far} {
		switch x.ending {
		case closes:
			c.CloseWrite()
		case resets:
			c.SetLinger(0)
			c.Close()
		}
	}
}

// play runs both ends of a protocol, with a box between them where it does
// anything. The first event is what the far end's would begin with.
func play(t *testing.T, over network, p spoken, f *testFar, x Exchange, b box) (Result, wire.Event, []wire.Event) {
	t.Helper()
	near, far := over.pair(t)
	var wg sync.WaitGroup
	if b.up != nil || b.down != nil {
		n, boxNear := pair(t)
		boxFar, g := pair(t)
		near, far = n, g
		wg.Go(func() { b.run(boxNear, boxFar) })
	}
	x.Variant = p.variant
	if f.mem = nil; over.name == memory.name {
		f.inMemory(&x, near)
	}
	var events []wire.Event
	wg.Go(func() { events = f.serve(t.Context(), p.Protocol, far); far.Close() })
	res := p.TCP.Probe(t.Context(), near, x)
	near.Close()
	wg.Wait()
	base := wire.Event{Time: farClock, Transport: scenarios.TCP, Remote: AddrPort(far.RemoteAddr()), Local: AddrPort(far.LocalAddr())}
	return res, base, events
}

// inMemory makes the further connections of an exchange in memory.
func (f *testFar) inMemory(x *Exchange, near net.Conn) {
	f.mem = &memoryNet{}
	x.Listen = f.mem.listen
	x.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return f.mem.dial(ctx, netip.AddrPortFrom(AddrPort(near.LocalAddr()).Addr(), 0), to)
	}
}

// untimed takes away what differs from run to run, after a look at it.
func untimed(t *testing.T, r Result) Result {
	t.Helper()
	if r.Took <= 0 || r.RTT < 0 || r.RTT > r.Took {
		t.Errorf("took %v, round trip %v", r.Took, r.RTT)
	}
	r.Took, r.RTT, r.Rate, r.Pause = 0, 0, 0, 0
	return r
}
