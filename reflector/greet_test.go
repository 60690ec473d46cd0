package reflector

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// speaking makes one protocol of every port.
func greeting(name string) Config {
	m := make(map[protocol.Port]string)
	for n := range 65536 {
		m[protocol.Port{Transport: scenarios.TCP, Number: uint16(n), Inside: protocol.Named(name).Inside}] = name
	}
	return Config{Speaks: m}
}

// Between its greeting and a token, a connection is in the ledger all the same:
// without that a reset meanwhile would look as if it had never come.
func TestLedgerTellsOfGreetedConnectionsUnderWay(t *testing.T) {
	l := start(t, greeting("submission"))
	if _, err := l.hello(t, "http", testKey); err != nil {
		t.Fatal(err)
	}
	c := l.dial(t)
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "220 ") {
		t.Fatalf("%q, %v", line, err)
	}
	strays := func() []wire.Event {
		list := l.ledger(l.sessions.find(testID)).Strays
		for i := range list {
			list[i].Said = nil
		}
		return list
	}
	got := strays()
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	want := wire.Event{Time: got[0].Time, Transport: scenarios.TCP, Remote: c.LocalAddr().(*net.TCPAddr).AddrPort(), Local: l.at, Stage: protocol.StageBanner, Unfinished: true}
	if diff := cmp.Diff([]wire.Event{want}, got, same); diff != "" {
		t.Errorf("under way (-want +got):\n%s", diff)
	}
	io.WriteString(c, "QUIT\r\n")
	io.ReadAll(r)
	got = strays()
	want.Stage, want.Fault, want.Unfinished = protocol.StageSTARTTLS, protocol.FaultEOF, false
	if len(got) == 1 {
		want.Time = got[0].Time
	}
	if diff := cmp.Diff([]wire.Event{want}, got, same); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
	l.end(t)
}

func TestWhoDoesNotWaitForTheGreetingIsGreeted(t *testing.T) {
	l := start(t, greeting("pop3"))
	c := l.dial(t)
	io.WriteString(c, "QUIT\r\n")
	if text, err := io.ReadAll(c); !strings.HasPrefix(string(text), "+OK") || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	c = l.dial(t)
	io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
	if text, _ := io.ReadAll(c); !strings.HasPrefix(string(text), "HTTP/1.") {
		t.Errorf("a web request is answered by %q", text)
	}
	l.end(t)
}

func TestGreetedConnectionsAreBounded(t *testing.T) {
	var r record
	var l wire.Ledger
	event := func(n int) wire.Event {
		return wire.Event{Transport: scenarios.TCP, Remote: netip.AddrPortFrom(loopback, uint16(n)), Local: local, Unfinished: true}
	}
	for n := range maxStrays + 10 {
		r.greeted(event(n))
	}
	if r.fill(&l); len(l.Strays) != maxStrays {
		t.Errorf("%d strays", len(l.Strays))
	}
	for n := range maxStrays + 10 {
		r.left(event(n))
	}
	if len(r.open) != 0 {
		t.Errorf("%d connections are still open", len(r.open))
	}
	proven := event(1)
	proven.Probe = 5
	r.begin(proven)
	r.left(event(1)) // its own end comes with its own event
	if len(r.open) != 1 {
		t.Error("a proven connection was forgotten")
	}
}
