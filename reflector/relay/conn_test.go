package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
)

// addressed is one end of a pipe that looks like a TCP connection.
type addressed struct {
	net.Conn
	deadline time.Time // as last set by SetReadDeadline
}

func (c *addressed) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(localAddr) }
func (c *addressed) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(remoteAddr) }
func (c *addressed) SetReadDeadline(t time.Time) error {
	c.deadline = t
	return c.Conn.SetReadDeadline(t)
}

// connect returns the far end of a connection that the service serves.
func (w *world) connect() net.Conn {
	near, far := net.Pipe()
	w.t.Cleanup(func() { far.Close() })
	go w.s.Conn(&addressed{Conn: near})
	return far
}

// streamClient is a user of TURN over one TCP connection.
type streamClient struct {
	t     *testing.T
	c     net.Conn
	nonce stun.Nonce
}

func (w *world) dialUser(t *testing.T, addr net.Addr) *streamClient {
	t.Helper()
	u := &streamClient{t: t, c: dial(t, addr)}
	res := u.exchange(build(t, allocateType, udpTransport))
	if err := u.nonce.GetFrom(res); err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *streamClient) exchange(b []byte) *stun.Message {
	u.t.Helper()
	if _, err := u.c.Write(b); err != nil {
		u.t.Fatal(err)
	}
	head := make([]byte, 20)
	if _, err := io.ReadFull(u.c, head); err != nil {
		u.t.Fatal(err)
	}
	rest := make([]byte, int(head[2])<<8|int(head[3]))
	if _, err := io.ReadFull(u.c, rest); err != nil {
		u.t.Fatal(err)
	}
	return decode(u.t, append(head, rest...))
}

func (u *streamClient) ask(typ stun.MessageType, attrs ...stun.Setter) stun.ErrorCode {
	u.t.Helper()
	key := stun.NewLongTermIntegrity("wp-a", "r", "secret of wp-a")
	attrs = append(attrs, stun.NewUsername("wp-a"), stun.NewRealm("r"), u.nonce, key)
	return codeOf(u.exchange(build(u.t, typ, attrs...)))
}

// wantClosed fails unless the far end closes the connection by itself.
func wantClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("still open after %v", patience)
		}
	}
}

// Attack 9.
func TestIdleConnectionsAreClosedInTime(t *testing.T) {
	binding, _, err := protocol.Binding("wp-a", "secret of wp-a", "")
	if err != nil {
		t.Fatal(err)
	}
	plain := build(t, stun.BindingRequest)
	const second = time.Second
	for _, c := range []struct {
		name string
		says []byte        // after ten seconds
		then []byte        // byte by byte, one a second
		want time.Duration // when it is closed
	}{
		{"says nothing", nil, nil, 30 * second},
		{"begins a header", binding[:2], nil, 30 * second},
		{"begins a message", binding[:40], nil, 30 * second},
		{"is done", binding, nil, 40 * second},
		{"begins another", append(binding[:len(binding):len(binding)], 0), nil, 40 * second},
		{"says a byte now and then", binding, binding, 41 * second},
		{"is a stranger", plain, nil, 30 * second},
		{"is a stranger with much to say", plain, append(plain[:len(plain):len(plain)], plain...), 30 * second},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			conn := w.connect()
			began := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(10 * second)
				conn.Write(c.says)
				for _, b := range c.then {
					time.Sleep(second)
					if _, err := conn.Write([]byte{b}); err != nil {
						return
					}
				}
			}()
			wantClosed(t, conn)
			if got := time.Since(began); got != c.want {
				t.Errorf("who %s: closed after %v, not %v", c.name, got, c.want)
			}
			w.until("counted", func() bool { return w.count("tcp-idle") == 1 })
			<-done
		})
	}
}

func TestConnectionMayBeSilentWhileItHasAnAllocation(t *testing.T) {
	w := newWorld(t)
	near, far := net.Pipe()
	defer far.Close()
	c := &addressed{Conn: near}
	k := &conn{s: w.s, c: c, t: tuple{localAddr, remoteAddr, true}, start: time.Now()}
	deadline := func(set func() error) string {
		before := time.Now().Add(30 * time.Second)
		if err := set(); err != nil {
			t.Error(err)
		}
		switch {
		case c.deadline.IsZero():
			return "never"
		case c.deadline.Before(before):
			return "from the start"
		}
		return "from now"
	}
	got := []string{deadline(k.await)}
	k.authed = true
	got = append(got, deadline(k.await))
	w.s.mu.Lock()
	w.s.allocs[k.t] = &allocation{}
	w.s.mu.Unlock()
	got = append(got, deadline(k.await), deadline(k.hurry))
	w.s.mu.Lock()
	delete(w.s.allocs, k.t)
	w.s.mu.Unlock()
	got = append(got, deadline(func() error { k.allocationEnded(); return nil }))
	want := []string{"from the start", "from now", "never", "from now", "from now"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestConnectionsAreLimitedPerAddressAndInAll(t *testing.T) {
	for name, limits := range map[string]Limits{"per address": {ConnsPerAddr: 3}, "in all": {Conns: 3}} {
		w := newWorld(t, func(cfg *Config) { cfg.Limits = limits })
		addr := listen(t, w)
		var conns []net.Conn
		for i := range 3 {
			conns = append(conns, dial(t, addr))
			w.until("taken", func() bool { return w.s.Stats().Conns == i+1 })
		}
		wantClosed(t, dial(t, addr))
		w.until(name+": counted", func() bool { return w.count("tcp-limit") == 1 })
		conns[0].Close()
		w.until("given back", func() bool { return w.s.Stats().Conns == 2 })
		u := &streamClient{t: t, c: dial(t, addr)}
		if code := codeOf(u.exchange(build(t, allocateType, udpTransport))); code != stun.CodeUnauthorized {
			t.Errorf("%s: afterwards %v", name, code)
		}
	}
}

// Attack 10.
func TestAllocationEndsWithItsConnection(t *testing.T) {
	w := newWorld(t, loopbackRelay)
	addr := listen(t, w)
	for range 20 {
		u := w.dialUser(t, addr)
		if code := u.ask(allocateType, udpTransport); code != 0 {
			t.Fatal(code)
		}
		u.c.Close()
		w.until("nothing is left", func() bool { return w.s.Stats() == Stats{} })
	}
	if code := w.dialUser(t, addr).ask(refreshType); code != stun.CodeAllocMismatch {
		t.Errorf("a new connection finds an allocation: %v", code)
	}
}

func TestMalformedStreamIsClosed(t *testing.T) {
	w := newWorld(t)
	addr := listen(t, w)
	n := 0
	for name, b := range malformedMessages(t) {
		switch name {
		case "length zero", "length too short", "trailing bytes", "odd and not padded", "length too long", "length 65532", "10,000 attributes":
			continue // a stream has no end of packet to contradict, or it is too long to be sent
		}
		c := dial(t, addr)
		c.Write(b)
		wantClosed(t, c)
		n++
		w.until(name+": counted", func() bool { return w.count("tcp-malformed") == n })
	}
	for _, b := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "\x40\x01\x00\x04abcd", "\x00\x01\xff\xfc\x21\x12\xa4\x42", "\x50\x00\x00\x00"} {
		c := dial(t, addr)
		c.Write([]byte(b))
		wantClosed(t, c)
		n++
		w.until("counted", func() bool { return w.count("tcp-malformed") == n })
	}
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	w := newWorld(t, loopbackRelay, func(cfg *Config) { cfg.Limits.Idle = time.Second })
	peer, peerAddr := newPeer(t)
	u := w.dialUser(t, listen(t, w))
	u.c.(*net.TCPConn).SetReadBuffer(4096)
	if code := u.ask(allocateType, udpTransport); code != 0 {
		t.Fatal(code)
	}
	if code := u.ask(permissionType, xorPeer(peerAddr)); code != 0 {
		t.Fatal(code)
	}
	relay := w.relayOf(t)
	payload := make([]byte, 1400)
	w.until("the connection is cut off", func() bool {
		for range 200 {
			peer.WriteToUDPAddrPort(payload, relay)
		}
		return w.s.Stats() == Stats{}
	})
}

// relayOf returns the only relayed address there is.
func (w *world) relayOf(t *testing.T) netip.AddrPort {
	t.Helper()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for ap := range w.s.relays {
		return ap
	}
	t.Fatal("no relay")
	return netip.AddrPort{}
}
