package reflector

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	line, err := r.ReadString('\n')
	if !strings.HasPrefix(line, "220 ") {
		t.Fatalf("%q, %v", line, err)
	}
	strays := func() []wire.Event { return l.ledger(l.sessions.find(testID)).Strays }
	got := strays()
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	want := wire.Event{Time: got[0].Time, Transport: scenarios.TCP, Remote: c.LocalAddr().(*net.TCPAddr).AddrPort(), Local: l.at, Stage: protocol.StageBanner, Unfinished: true,
		Said: &wire.Said{Sent: []string{strings.TrimSpace(line)}}}
	if diff := cmp.Diff([]wire.Event{want}, got, same); diff != "" {
		t.Errorf("under way (-want +got):\n%s", diff)
	}
	io.WriteString(c, "QUIT\r\n")
	goodbye, _ := io.ReadAll(r)
	got = strays()
	want.Stage, want.Fault, want.Unfinished = protocol.StageSTARTTLS, protocol.FaultEOF, false
	want.Said = &wire.Said{Sent: append(want.Said.Sent, strings.TrimSpace(string(goodbye))), Heard: []string{"QUIT"}}
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

// A connection is in the ledger from its beginning: of one on which nothing comes
// through, or only one way, the near end would else learn that there was none.
func TestLedgerTellsOfConnectionsOnWhichNothingWasProven(t *testing.T) {
	t.Run("after the session began", func(t *testing.T) { tellsOfUnproven(t, false) })
	t.Run("and before", func(t *testing.T) { tellsOfUnproven(t, true) })
}

func tellsOfUnproven(t *testing.T, early bool) {
	l := start(t, Config{})
	var c net.Conn
	if early {
		c = l.dial(t)
	}
	if _, err := l.hello(t, "http", testKey); err != nil {
		t.Fatal(err)
	}
	if !early {
		c = l.dial(t)
	}
	told := func(stage string) wire.Event {
		t.Helper()
		var list []wire.Event
		// The reflector accepts and reads in its own time, and says nothing by which
		// this end could tell when it has.
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			list = l.ledger(l.sessions.find(testID)).Strays
			if len(list) == 1 && list[0].Stage == stage {
				return list[0]
			}
		}
		t.Fatalf("stage %s is awaited: %+v", stage, list)
		return wire.Event{}
	}
	want := wire.Event{Transport: scenarios.TCP, Remote: c.LocalAddr().(*net.TCPAddr).AddrPort(), Local: l.at, Stage: protocol.StageConnect, Unfinished: true}
	got := told(protocol.StageConnect)
	want.Time = got.Time
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("nothing came (-want +got):\n%s", diff)
	}

	deaf := &firstWritten{Conn: c, closed: make(chan struct{})}
	go tls.Client(deaf, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}}).HandshakeContext(t.Context())
	got = told(protocol.StageTLS)
	seen := &wire.TLSSeen{}
	protocol.Hear(seen, deaf.first.Load().([]byte))
	seen.ServerName = "a.example"
	want.Stage, want.Time, want.TLS = protocol.StageTLS, got.Time, seen
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("a ClientHello came (-want +got):\n%s", diff)
	}
	close(deaf.closed)
	c.Close()
	for got.Unfinished {
		got = told(protocol.StageTLS)
	}
	if got.Fault == "" { // which one, is chance: the client leaves with an answer unread
		t.Errorf("after the end: %+v", got)
	}
	l.end(t)
	if n := len(l.unproven.from); n != 0 {
		t.Errorf("connections from %d addresses are still under way", n)
	}
}

// A firstWritten connection keeps what was written first, and reads nothing.
type firstWritten struct {
	net.Conn
	first  atomic.Value
	closed chan struct{}
}

func (c *firstWritten) Write(b []byte) (int, error) {
	c.first.CompareAndSwap(nil, bytes.Clone(b))
	return c.Conn.Write(b)
}

func (c *firstWritten) Read([]byte) (int, error) {
	<-c.closed
	return 0, io.EOF
}

func TestUnprovenConnectionsUnderWayAreBounded(t *testing.T) {
	event := func(n int) wire.Event {
		return wire.Event{Transport: scenarios.TCP, Remote: netip.AddrPortFrom(loopback, uint16(n)), Local: local, Unfinished: true}
	}
	for stage, most := range map[string]int{protocol.StageConnect: maxStrays / 2, protocol.StageBanner: maxStrays} {
		var r record
		var l wire.Ledger
		for n := range maxStrays + 10 {
			e := event(n)
			e.Stage = stage
			r.unproven(open{event: e})
		}
		if r.fill(&l); len(l.Strays) != most {
			t.Errorf("stage %s: %d strays", stage, len(l.Strays))
		}
		for n := range maxStrays + 10 {
			r.stray(event(n))
		}
		if len(r.open) != 0 {
			t.Errorf("stage %s: %d connections are still open", stage, len(r.open))
		}
	}
}

// A proxy sends several probes over one connection. Each is under way until its
// own event comes.
func TestSeveralProbesAreUnderWayOnOneConnection(t *testing.T) {
	var r record
	event := func(probe uint32, unfinished bool) wire.Event {
		return wire.Event{Transport: scenarios.TCP, Remote: near, Local: local, Probe: probe, Unfinished: unfinished}
	}
	of := func() map[uint32]bool {
		var l wire.Ledger
		r.fill(&l)
		m := make(map[uint32]bool)
		for _, p := range append(l.Probes, wire.ProbeRecord{Events: l.Strays}) {
			for _, e := range p.Events {
				m[p.Probe] = e.Unfinished
			}
		}
		return m
	}
	for _, step := range []struct {
		do   func()
		want map[uint32]bool
	}{
		{func() { r.unproven(open{event: event(0, true)}) }, map[uint32]bool{0: true}},
		{func() { r.begin(open{event: event(1, true)}) }, map[uint32]bool{1: true}},
		{func() { r.begin(open{event: event(2, true)}) }, map[uint32]bool{1: true, 2: true}},
		{func() { r.event(event(1, false)) }, map[uint32]bool{1: false, 2: true}},
		{func() { r.over(tuple{near, local}) }, map[uint32]bool{1: false}},
	} {
		step.do()
		if diff := cmp.Diff(step.want, of()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// Web requests without a token are told of while they are under way, and what is
// answered; control is not, which would tell of the one who asks.
func TestLedgerTellsOfWebRequestsUnderWayAndNotOfControl(t *testing.T) {
	l := start(t, Config{})
	if _, err := l.hello(t, "http", testKey); err != nil {
		t.Fatal(err)
	}
	c := l.dial(t)
	io.WriteString(c, "GET /wp-login HTTP/1.1\r\nHost: a.example\r\n\r\n")
	line, _ := bufio.NewReader(c).ReadString('\n')
	control := l.dial(t)
	io.WriteString(control, "GET "+wire.ControlPath+" HTTP/1.1\r\nHost: a.example\r\n\r\n")
	if line, err := bufio.NewReader(control).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 4") {
		t.Fatalf("%q, %v", line, err)
	}
	list := l.ledger(l.sessions.find(testID)).Strays
	if len(list) != 1 || !list[0].Unfinished || list[0].Remote != c.LocalAddr().(*net.TCPAddr).AddrPort() ||
		list[0].Said == nil || len(list[0].Said.Sent) == 0 || list[0].Said.Sent[0] != strings.TrimSpace(line) ||
		!slices.Contains(list[0].Said.Heard, "GET /wp-login HTTP/1.1") {
		t.Errorf("%+v", list)
	}
	l.end(t)
}

// An addressed connection has two ends and nothing to carry.
type addressed struct{ net.Conn }

func (addressed) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(near) }
func (addressed) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(local) }

// Two runs from one address: as long as nobody knows whose a connection is, both
// are told of it.
func TestConnectionThatProvesItselfIsNoOtherSessionsAnyMore(t *testing.T) {
	b := newBench(t, Config{})
	own, other := numbered(1), numbered(2)
	for _, id := range []wire.SessionID{own, other} {
		s, err := b.sessions.open(id, b.clock.now())
		if err != nil {
			t.Fatal(err)
		}
		b.sessions.touch(s, near.Addr())
	}
	u := b.underWay(context.WithValue(t.Context(), toldKey{}, new(told)), protocol.Arrived(addressed{}, b.clock.now()), protocol.StageToken)
	var said wire.Transcript
	u.Tell(&said)
	said.Hear("hello")
	check := func(id wire.SessionID, strays, probes int) {
		t.Helper()
		l := b.taken(t, id)
		all := l.Strays
		for _, p := range l.Probes {
			all = append(all, p.Events...)
		}
		if len(l.Strays) != strays || len(l.Probes) != probes {
			t.Errorf("%+v", l)
		}
		for _, e := range all {
			if !e.Unfinished || e.Said == nil || len(e.Said.Heard) != 1 {
				t.Errorf("%+v", e)
			}
		}
	}
	check(own, 1, 0)
	check(other, 1, 0)
	if _, _, err := u.Prove(b.request(own, nil), addressed{}.RemoteAddr()); err != nil {
		t.Fatal(err)
	}
	check(own, 0, 1)
	check(other, 0, 0)
}
