package relay

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

// A scripted connection says what it has to say, ends, and keeps what it hears.
type scripted struct {
	addressed
	says  io.Reader
	heard bytes.Buffer
}

func (c *scripted) Read(b []byte) (int, error)       { return c.says.Read(b) }
func (c *scripted) Write(b []byte) (int, error)      { return c.heard.Write(b) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzConn feeds a stream what strangers may send: they cause nothing, draw
// whole messages alone, and how their bytes are cut into packets tells nothing.
func FuzzConn(f *testing.F) {
	for _, b := range malformedMessages(f) {
		if len(b) < 2000 {
			f.Add(b)
		}
	}
	binding, _, err := protocol.Binding("wp-a", "not the secret of wp-a", "")
	if err != nil {
		f.Fatal(err)
	}
	allocate := build(f, allocateType, udpTransport)
	f.Add(append(bytes.Clone(allocate), allocate...))
	f.Add(append(bytes.Clone(binding), allocate[:30]...))
	f.Add([]byte{0x40, 1, 0, 3, 1, 2, 3, 0, 0x40, 1, 0, 0})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	w := newWorld(f, func(cfg *Config) {
		cfg.PlainSTUN = true
		cfg.Limits.Plain, cfg.Limits.PlainTotal = 1<<30, 1<<30 // its clock stands still
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := &scripted{says: bytes.NewReader(b)}
		pieces := &scripted{says: iotest.OneByteReader(bytes.NewReader(b))}
		err1, err2 := w.s.Conn(whole), w.s.Conn(pieces)
		if err1 == nil || err2 == nil || err1.Error() != err2.Error() || whole.heard.Len() != pieces.heard.Len() {
			t.Errorf("%x, whole: %d bytes, %v; byte by byte: %d bytes, %v", b, whole.heard.Len(), err1, pieces.heard.Len(), err2)
		}
		for rest := whole.heard.Bytes(); len(rest) > 0; {
			var m stun.Message
			if len(rest) < headerLen || len(rest) < headerLen+int(rest[2])<<8+int(rest[3]) {
				t.Fatalf("%x was answered %x, which is cut", b, rest)
			}
			n := headerLen + int(rest[2])<<8 + int(rest[3])
			if err := stun.Decode(rest[:n], &m); err != nil || m.Type.Class == stun.ClassRequest || !bytes.Contains(b, m.TransactionID[:]) {
				t.Errorf("%x was answered %x: %v", b, rest[:n], err)
			}
			rest = rest[n:]
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, e := range w.events {
			t.Errorf("a stranger causes %+v", e)
		}
		w.events = nil
	})
}

var _ net.Conn = (*scripted)(nil)

// Addresses are read as they are written, and nothing else is one.
func FuzzXORAddress(f *testing.F) {
	id := [stun.TransactionIDSize]byte{1, 2, 3}
	for _, a := range []string{"192.0.2.1:9", "[2001:db8::1]:65535", "[::ffff:192.0.2.1]:1", "0.0.0.0:0"} {
		var buf [20]byte
		f.Add(bytes.Clone(xorAddress(&buf, netip.MustParseAddrPort(a), id)), id[:])
	}
	f.Add([]byte{0, 2, 1, 1, 1, 1, 1, 1}, id[:])
	f.Fuzz(func(t *testing.T, v, id []byte) {
		if len(id) != stun.TransactionIDSize {
			return
		}
		a, err := parseXORAddress(v, [stun.TransactionIDSize]byte(id))
		if err != nil {
			return
		}
		var buf [20]byte
		again, err := parseXORAddress(xorAddress(&buf, a, [stun.TransactionIDSize]byte(id)), [stun.TransactionIDSize]byte(id))
		if err != nil || again != a || a.Addr().Is4In6() {
			t.Errorf("%x is %v, and again %v, %v", v, a, again, err)
		}
	})
}

// No nonce is good but those given to this address within the hour.
func FuzzNonce(f *testing.F) {
	s := New(Config{})
	s.secret = [len(s.secret)]byte{1} // of all the engine's processes
	now := time.Unix(1_800_000_000, 0)
	own, others := tuple{localAddr, remoteAddr, false}, tuple{localAddr, remoteAddr, true}
	given := s.nonce(own, now)
	f.Add(given, int64(0))
	f.Add(given, int64(3599))
	f.Add(given, int64(3600))
	f.Add(given, int64(-1))
	f.Add(append(bytes.Clone(given), '='), int64(0))
	f.Add([]byte("____________________"), int64(1))
	f.Fuzz(func(t *testing.T, n []byte, after int64) {
		after %= 1e9
		at := now.Add(time.Duration(after) * time.Second)
		want := bytes.Equal(n, given) && after >= 0 && after < 3600
		if got := s.nonceGood(own, n, at); got != want {
			t.Errorf("%q after %d s: good %v", n, after, got)
		}
		if s.nonceGood(others, n, at) {
			t.Errorf("%q after %d s: good for another", n, after)
		}
	})
}
