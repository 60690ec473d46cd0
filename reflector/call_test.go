package reflector

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// The reflector calls a session's own address, where its operator allows it,
// and nobody else.
func TestCallsGoToTheSessionsOwnAddressAlone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := l.Addr().(*net.TCPAddr).AddrPort()
	own, from := netip.MustParseAddr("127.0.0.1"), netip.AddrPortFrom(loopback, 0)
	for name, c := range map[string]struct {
		inward bool
		known  netip.Addr
		to     netip.AddrPort
		want   string
	}{
		"allowed":           {true, own, open, ""},
		"mapped":            {true, own, netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), open.Port()), ""},
		"not allowed":       {false, own, open, "start it with --inward"},
		"another address":   {true, netip.MustParseAddr("127.0.0.2"), open, "127.0.0.1 is not an address that this session came from"},
		"no session":        {true, netip.Addr{}, open, "127.0.0.1 is not an address that this session came from"},
		"a service's port":  {true, own, netip.AddrPortFrom(own, 22), "port 22 is not one that a client has for data"},
		"the last of those": {true, own, netip.AddrPortFrom(own, 1023), "port 1023 is not one"},
	} {
		b := newBench(t, Config{Inward: c.inward})
		m := wire.Message{Session: testID}
		if c.known.IsValid() {
			s, err := b.sessions.open(testID, b.clock.now())
			if err != nil {
				t.Fatal(err)
			}
			b.sessions.touch(s, c.known)
		}
		conn, err := b.Dial(t.Context(), m, from, c.to)
		if conn != nil {
			conn.Close()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestCallsLeaveFromAPortThatIsServed(t *testing.T) {
	r := start(t, Config{Inward: true})
	defer r.end(t)
	s, err := r.sessions.open(testID, r.now())
	if err != nil {
		t.Fatal(err)
	}
	r.sessions.touch(s, loopback)
	// Twice at one time: two transfers of two clients leave from one port.
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := r.Dial(t.Context(), wire.Message{Session: testID}, r.at, l.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if from := got.RemoteAddr().String(); from != r.at.String() {
			t.Errorf("the call came from %s, want %s", from, r.at)
		}
	}
}

func TestServedPortsStayTheReflectorsOwn(t *testing.T) {
	r := start(t, Config{})
	defer r.end(t)
	at := scenarios.PortSet{{First: r.at.Port(), Last: r.at.Port()}}
	if second, err := Listen(Config{Key: testKey, Addrs: []netip.Addr{loopback}, TCP: at}); err == nil {
		second.Close()
		t.Error("a second reflector has the same port")
	}
	if l, err := net.Listen("tcp", r.at.String()); err == nil {
		l.Close()
		t.Error("another program has the same port")
	}
}

func TestPortsForDataAreNotServedOnes(t *testing.T) {
	b := newBench(t, Config{})
	l, err := b.Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp, _ := b.Served()
	if at := l.Addr().(*net.TCPAddr).AddrPort(); at.Addr() != loopback || tcp.Contains(at.Port()) {
		t.Errorf("%s", at)
	}
}
