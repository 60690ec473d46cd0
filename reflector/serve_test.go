package reflector

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func contextFor(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func (l *live) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", l.at.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (l *live) exchange(id wire.SessionID, speak string) (wire.Keys, protocol.Exchange, *protocol.Protocol) {
	k := wire.Derive(testKey, id, wire.Nonce{})
	return k, protocol.Exchange{Keys: &k, Offline: true, Probe: 11, Port: l.at.Port(), ServerName: "a.example", Bytes: 20000, Stall: 5 * time.Second, Now: time.Now}, protocol.Named(speak)
}

func (l *live) read(t *testing.T) *client.Journal {
	t.Helper()
	j, err := client.ReadJournal(strings.NewReader(l.journal.String()))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestGracefulStopLosesNoLedgerAndLeavesNothingRunning(t *testing.T) {
	l := start(t, Config{})
	tcpAt, udpAt := wire.SessionID{1}, wire.SessionID{2}
	_, x, p := l.exchange(tcpAt, "plain")
	c := l.dial(t)
	if res := p.TCP.Probe(t.Context(), c, x); res.Stage != protocol.StageDone {
		t.Fatalf("%+v", res)
	}
	io.ReadAll(c) // until the far end is done with it

	keys := wire.Derive(testKey, udpAt, wire.Nonce{})
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(l.at))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	m := wire.Message{Kind: wire.Request, Offline: true, Port: l.at.Port(), Session: udpAt, Probe: 12, Time: time.Now()}
	u.Write(m.Append(nil, &keys))
	u.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 2048)
	n, err := u.Read(buf)
	if got, perr := wire.Parse(buf[:n], &keys); err != nil || perr != nil || got.Kind != wire.Reply {
		t.Fatalf("%+v, %v, %v", got, err, perr)
	}
	l.end(t)

	j := l.read(t)
	if len(j.Ledgers) != 2 || len(j.Unclaimed) != 1 {
		t.Fatalf("%d ledgers, %d ends", len(j.Ledgers), len(j.Unclaimed))
	}
	at := scenarios.PortSet{{First: l.at.Port(), Last: l.at.Port()}}
	if e := j.Ledgers[tcpAt].Probes[0].Events; len(e) != 1 || e[0].Stage != protocol.StageDone || e[0].BytesIn != 20000 || e[0].BytesOut != 20000 {
		t.Errorf("TCP: %+v", e)
	}
	if diff := cmp.Diff([]wire.Count{{Ports: at, Seen: 1, Answered: 1}}, j.Ledgers[udpAt].Probes[0].Counts, same); diff != "" {
		t.Errorf("UDP (-want +got):\n%s", diff)
	}
	for range 1000 {
		if len(running()) == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("still running:\n%s", strings.Join(running(), "\n\n"))
}

// Both ends give up after 10 s; Serve must not wait for that.
func TestIdleAndSlowPeersDoNotHoldUpTheEnd(t *testing.T) {
	l := start(t, Config{})
	_, x, _ := l.exchange(testID, "plain")
	m := wire.Message{Kind: wire.Request, Offline: true, Session: testID, Time: time.Now(), Idle: time.Hour}
	for name, first := range map[string]string{
		"silent":              "",
		"one byte":            "G",
		"half a message":      string(m.Append(nil, x.Keys)[:50]),
		"idle for an hour":    string(m.Append(nil, x.Keys)),
		"half a ClientHello":  "\x16\x03\x01\x02\x00\x01",
		"half a STUN header":  "\x00\x01\x00",
		"a STUN header":       "\x00\x01\x00\x40\x21\x12\xa4\x42abcdefghijkl",
		"half an HTTP header": "POST /wallprobe/1/hello HTTP/1.1\r\nHost: x\r\n",
		"half an HTTP body":   "POST /wallprobe/1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
		"rubbish":             "\xff\xff\xff\xff\xff",
	} {
		if _, err := io.WriteString(l.dial(t), first); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	began := time.Now()
	l.end(t)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the end took %v", d)
	}
}

func TestTCPPeersThatStandStillAreDropped(t *testing.T) {
	b := newBench(t, Config{})
	for name, first := range map[string]string{"silent": "", "one byte": "G", "half a STUN header": "\x00\x01\x00\x00\x21"} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			if first != "" {
				go near.Write([]byte(first))
			}
			began := time.Now()
			events := b.stream(t.Context(), far, true)
			if d := time.Since(began); d != firstBytes {
				t.Errorf("%s: dropped after %v", name, d)
			}
			want := wire.Event{Time: b.clock.now(), Transport: scenarios.TCP, Stage: protocol.StageConnect, Fault: protocol.FaultTimeout,
				BytesIn: int64(len(first)), Digest: digest([]byte(first))}
			if len(first) >= 4 {
				want.Stage, want.Fault = protocol.StageToken, protocol.FaultForeign
			}
			if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		})
	}
}

func TestOnePortCarriesEverything(t *testing.T) {
	l := start(t, Config{})
	for _, speak := range []string{"plain", "tls"} {
		_, x, p := l.exchange(testID, speak)
		c := l.dial(t)
		if res := p.TCP.Probe(t.Context(), c, x); res.Stage != protocol.StageDone || (res.TLS != nil) != (speak == "tls") {
			t.Errorf("%s: %+v", speak, res)
		}
		c.Close()
	}
	for _, scheme := range []string{"http", "https"} {
		hello, err := l.hello(t, scheme, testKey)
		if err != nil || hello.Source.Addr() != loopback || hello.Issuer != l.ca.digest() {
			t.Errorf("%s: %+v, %v", scheme, hello, err)
		}
		_, err = l.hello(t, scheme, wire.Key{9})
		if e, ok := errors.AsType[*wire.ControlError](err); !ok || e.Code != "key" {
			t.Errorf("%s with a wrong key: %v", scheme, err)
		}
	}
	user, pass := wire.TURN(testKey, testID, time.Now())
	msg, id, err := protocol.Binding(user, pass, "5")
	if err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{false, true} {
		c := l.dial(t)
		if secure {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 2048)
		c.Write(msg)
		n, err := c.Read(buf)
		if seen, perr := protocol.ParseBinding(buf[:n], pass, id); err != nil || perr != nil || seen.Addr() != loopback {
			t.Errorf("STUN, in TLS %v: %v, %v, %v", secure, seen, err, perr)
		}
		c.Close()
	}
	l.end(t)
	if j := l.read(t); len(j.Ledgers) != 1 {
		t.Errorf("%d ledgers", len(j.Ledgers))
	}
}

func (l *live) hello(t *testing.T, scheme string, key wire.Key) (hello wire.HelloReply, err error) {
	t.Helper()
	req, err := wire.NewControl(key, scheme+"://"+l.at.String(), wire.CallHello, wire.HelloRequest{Session: testID, Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	tr := insecure()
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return hello, err
	}
	defer resp.Body.Close()
	return hello, wire.ReadControl(key, req, wire.CallHello, resp, &hello)
}

// What proves nothing is kept with the sessions of its address and in the journal.
func TestStrayConnectionIsKeptWithTheSessionsOfItsAddress(t *testing.T) {
	l := start(t, Config{})
	if _, err := l.hello(t, "http", testKey); err != nil {
		t.Fatal(err)
	}
	c := l.dial(t)
	io.WriteString(c, "EHLO example\r\n")
	io.ReadAll(c)
	from := c.LocalAddr().(*net.TCPAddr).AddrPort()
	c.Close()
	l.end(t)
	j := l.read(t)
	for name, strays := range map[string][]wire.Event{"ledger": j.Ledgers[testID].Strays, "unclaimed": j.Unclaimed[0].Strays} {
		if len(strays) != 1 {
			t.Errorf("%s: %+v", name, strays)
			continue
		}
		want := wire.Event{Time: strays[0].Time, Transport: scenarios.TCP, Remote: from, Local: l.at, Stage: protocol.StageToken,
			Fault: protocol.FaultForeign, BytesIn: 14, Digest: digest([]byte("EHLO example\r\n"))}
		if diff := cmp.Diff(want, strays[0], same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// A journal's writer that fails is left alone; the reflector goes on.
func TestJournalKeepsItsFirstError(t *testing.T) {
	j := journal{w: failing{}}
	j.ledger(&wire.Ledger{})
	j.ledger(&wire.Ledger{})
	if err := j.Err(); err == nil || err.Error() != "disk full" {
		t.Errorf("%v", err)
	}
	var none journal
	none.ledger(&wire.Ledger{})
	none.stray(wire.Event{})
	if none.Err() != nil || len(none.strays) > 0 {
		t.Errorf("%v, %d strays", none.Err(), len(none.strays))
	}
	full := journal{w: io.Discard}
	for range maxUnclaimed + 10 {
		full.stray(wire.Event{})
	}
	if len(full.strays) != maxUnclaimed {
		t.Errorf("%d strays", len(full.strays))
	}
}

func TestServeTellsThatTheJournalCouldNotBeKept(t *testing.T) {
	r, err := Listen(Config{Key: testKey, Addrs: []netip.Addr{loopback}, Journal: failing{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextFor(t)
	cancel()
	if err := r.Serve(ctx); err == nil || err.Error() != "journal: disk full" {
		t.Errorf("%v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestEveryNameGetsALeafOfItsOwn(t *testing.T) {
	c := newClock()
	a, err := newAuthority(c.now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".example"
	seen := make(map[string]string)
	for _, name := range []string{"a.example", "b.example", "192.0.2.1", "2001:db8::1", long} {
		got, err := a.certificate(&tls.ClientHelloInfo{ServerName: name}, c.now())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		leaf, err := x509.ParseCertificate(got.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: c.now()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if was, ok := seen[string(leaf.Raw)]; ok {
			t.Errorf("%s has the leaf of %s", name, was)
		}
		seen[string(leaf.Raw)] = name
		if again, _ := a.certificate(&tls.ClientHelloInfo{ServerName: name}, c.now()); again != got {
			t.Errorf("%s has a new leaf each time", name)
		}
	}
}

func TestWithoutANameTheLeafIsForTheAddress(t *testing.T) {
	a, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := a.certificate(&tls.ClientHelloInfo{Conn: c}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(got.Certificate[0])
	if err != nil || leaf.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("%v, %v", err, leaf.Subject)
	}
}

func TestLeavesAreBoundedAndNamesTooLongRefused(t *testing.T) {
	a, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxLeaves + 20 {
		name := fmt.Sprintf("h%d.example", i)
		if _, err := a.certificate(&tls.ClientHelloInfo{ServerName: name}, time.Now()); err != nil || a.leaves[name] == nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if len(a.leaves) != maxLeaves {
		t.Errorf("%d leaves are kept", len(a.leaves))
	}
	for name, want := range map[string]string{
		strings.Repeat("a.", 126) + "aa": "server name of 254 bytes: at most 253",
		"ö.example":                      `certificate for "ö.example": x509: "ö.example" cannot be encoded as an IA5String`,
	} {
		if _, err := a.certificate(&tls.ClientHelloInfo{ServerName: name}, time.Now()); err == nil || err.Error() != want {
			t.Errorf("%.20s: %v, want %s", name, err, want)
		}
	}
	if len(a.leaves) != maxLeaves {
		t.Errorf("%d leaves are kept after refusals", len(a.leaves))
	}
}

func TestTakenPortIsNamedAndNothingHalfStarted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	before := runtime.NumGoroutine()
	r, err := Listen(Config{Key: testKey, Addrs: []netip.Addr{loopback}, TCP: scenarios.PortSet{{First: port, Last: port}}})
	if err == nil {
		r.Close()
		t.Fatal("a taken port was bound")
	}
	if want := fmt.Sprintf("port %d/tcp is already in use; ", port); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want it to begin %q", err, want)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines more", n-before)
	}
}

func TestConnectionUnderWayIsInTheLedgerUntilItsEndIs(t *testing.T) {
	l := start(t, Config{})
	k, x, _ := l.exchange(testID, "plain")
	m := wire.Message{Kind: wire.Request, Offline: true, Port: l.at.Port(), Session: testID, Probe: x.Probe, Attempt: 2, Time: time.Now(), Idle: time.Hour}
	c := l.dial(t)
	c.Write(m.Append(nil, &k))
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, wire.MessageSize)); err != nil {
		t.Fatal(err)
	}
	from := c.LocalAddr().(*net.TCPAddr).AddrPort()
	want := wire.Event{Transport: scenarios.TCP, Remote: from, Local: l.at, Session: testID, Probe: x.Probe, Attempt: 2, Stage: protocol.StageToken, Unfinished: true}
	events := l.ledger(l.sessions.find(testID)).Probes[0].Events
	if len(events) == 1 {
		want.Time = events[0].Time
	}
	if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
		t.Errorf("under way (-want +got):\n%s", diff)
	}
	c.Close()
	ended := func() bool {
		events := l.ledger(l.sessions.find(testID)).Probes[0].Events
		return len(events) == 1 && !events[0].Unfinished
	}
	for deadline := time.Now().Add(5 * time.Second); !ended() && time.Now().Before(deadline); {
		runtime.Gosched() // the far end reads the close on its own goroutine
	}
	l.end(t)
	events = l.read(t).Ledgers[testID].Probes[0].Events
	want.Stage, want.Answered, want.Unfinished = protocol.StageIdle, true, false
	if len(events) == 1 {
		want.Time, want.Fault = events[0].Time, events[0].Fault // a close or a reset, as the system has it
	}
	if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" || want.Fault == "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
}
