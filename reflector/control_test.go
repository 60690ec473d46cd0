package reflector

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// call makes a control call as it arrives from an address.
func (b *bench) call(t *testing.T, key wire.Key, from, name string, body, into any) error {
	t.Helper()
	req, err := wire.NewControl(key, "http://reflector", name, body)
	if err != nil {
		t.Fatal(err)
	}
	req.RemoteAddr = from
	w := httptest.NewRecorder()
	b.ServeHTTP(w, req)
	return wire.ReadControl(key, req, name, w.Result(), into)
}

func TestHelloTellsWhatAClientMustKnow(t *testing.T) {
	b := newBench(t, Config{Program: "wallprobe test", Inward: true})
	b.unserved = []wire.Unserved{{Transport: scenarios.TCP, Ports: ports(t, "25"), Reason: "in use"}}
	var got wire.HelloReply
	if err := b.call(t, testKey, "[::ffff:192.0.2.7]:50000", wire.CallHello, wire.HelloRequest{Session: testID, Time: b.clock.now()}, &got); err != nil {
		t.Fatal(err)
	}
	want := wire.HelloReply{Nonce: b.sessions.find(testID).nonce, Program: "wallprobe test", Source: near, Unserved: b.unserved,
		Witness: b.witnessKind(), Inward: true, Issuer: digest(b.ca.cert.Raw)}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var again wire.HelloReply
	if err := b.call(t, testKey, "192.0.2.8:1", wire.CallHello, wire.HelloRequest{Session: testID, Time: b.clock.now()}, &again); err != nil || again.Nonce != got.Nonce {
		t.Errorf("a second hello: %v, another nonce: %v", err, again.Nonce != got.Nonce)
	}
	if diff := cmp.Diff([]netip.Addr{near.Addr(), netip.MustParseAddr("192.0.2.8")}, b.taken(t, testID).Sources, same); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestCallsThatAreRefusedSayWhy(t *testing.T) {
	b := newBench(t, Config{})
	if _, err := b.sessions.open(testID, b.clock.now()); err != nil {
		t.Fatal(err)
	}
	at := b.clock.now()
	noSession := wire.SessionID{7}
	inward := func(id wire.SessionID) wire.InwardRequest {
		return wire.InwardRequest{Session: id, Time: at, Transport: scenarios.TCP, Ports: ports(t, "9"), Attempts: 1}
	}
	for name, c := range map[string]struct {
		key  wire.Key
		call string
		body any
		want wire.ControlError
	}{
		"wrong key":       {wire.Key{9}, wire.CallHello, wire.HelloRequest{Session: testID, Time: at}, wire.ControlError{Wallprobe: 1, Code: "key", Message: "the reflector does not accept this key"}},
		"wrong clock":     {testKey, wire.CallHello, wire.HelloRequest{Session: noSession}, wire.ControlError{Wallprobe: 1, Code: "session", Message: "the two ends' clocks differ by more than a day"}},
		"another shape":   {testKey, wire.CallHello, []int{1}, wire.ControlError{Wallprobe: 1, Code: "request", Message: "the request cannot be read: json: cannot unmarshal array into Go value of type wire.HelloRequest"}},
		"ledger of none":  {testKey, wire.CallLedger, wire.LedgerRequest{Session: noSession}, wire.ControlError{Wallprobe: 1, Code: "session", Message: "the reflector has no such session; it was restarted, or the session expired"}},
		"bye to none":     {testKey, wire.CallBye, wire.LedgerRequest{Session: noSession}, wire.ControlError{Wallprobe: 1, Code: "session", Message: "the reflector has no such session; it was restarted, or the session expired"}},
		"inward":          {testKey, wire.CallInward, inward(testID), wire.ControlError{Wallprobe: 1, Code: "forbidden", Message: "the reflector's operator did not allow calls back; start it with --inward"}},
		"an oversize one": {testKey, wire.CallHello, strings.Repeat("x", wire.MaxControlBody), wire.ControlError{Wallprobe: 1, Code: "request", Message: "a control call has at most 65536 bytes"}},
	} {
		err := b.call(t, c.key, near.String(), c.call, c.body, new(any))
		got, ok := errors.AsType[*wire.ControlError](err)
		if !ok {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(&c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if b.sessions.find(noSession) != nil || len(b.sessions.of(near.Addr())) > 0 {
		t.Error("a refused call left something behind")
	}
}

func TestRefusalsHaveTheirStatus(t *testing.T) {
	b := newBench(t, Config{})
	body := `{"session":"` + testID.String() + `","time":"2026-03-14T15:09:26Z"}`
	good := wire.RequestMAC(testKey, wire.CallHello, []byte(body))
	big := strings.Repeat("x", wire.MaxControlBody+1)
	for name, c := range map[string]struct {
		method, path, mac, body string
		want                    int
	}{
		"good":               {"POST", wire.ControlPath + "hello", good, body, 200},
		"wrong key":          {"POST", wire.ControlPath + "hello", wire.RequestMAC(wire.Key{}, "hello", []byte(body)), body, 403},
		"no MAC":             {"POST", wire.ControlPath + "hello", "", body, 403},
		"tampered body":      {"POST", wire.ControlPath + "hello", good, body + " ", 403},
		"MAC of another":     {"POST", wire.ControlPath + "ledger", good, body, 403},
		"unknown call":       {"POST", wire.ControlPath + "halt", wire.RequestMAC(testKey, "halt", []byte(body)), body, 404},
		"no call":            {"POST", wire.ControlPath, good, body, 404},
		"another path":       {"POST", "/", good, body, 404},
		"wrong method":       {"GET", wire.ControlPath + "hello", good, body, 404},
		"body over the edge": {"POST", wire.ControlPath + "hello", wire.RequestMAC(testKey, "hello", []byte(big)), big, 413},
		"no such session":    {"POST", wire.ControlPath + "ledger", wire.RequestMAC(testKey, "ledger", []byte("{}")), "{}", 409},
	} {
		req := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		req.Header.Set(wire.MACHeader, c.mac)
		w := httptest.NewRecorder()
		b.ServeHTTP(w, req)
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
		if mac := w.Header().Get(wire.MACHeader); (mac != "") != (c.want == 200) || mac != "" && mac != wire.ReplyMAC(testKey, "hello", c.mac, w.Body.Bytes()) {
			t.Errorf("%s: the answer's MAC is %q", name, mac)
		}
		if strings.Contains(w.Body.String(), testKey.String()) {
			t.Errorf("%s: the key is in the answer", name)
		}
	}
}

// What is late is answered and recorded, and then nothing is left.
func TestSessionStaysForAMomentAfterAGoodbye(t *testing.T) {
	journal := new(buffer)
	b := newBench(t, Config{Journal: journal})
	b.deliver(near, b.request(testID, nil))
	bye := wire.ByeRequest{Session: testID, Time: b.clock.now()}
	for range 2 { // the second changes nothing
		if err := b.call(t, testKey, near.String(), wire.CallBye, bye, new(wire.ByeReply)); err != nil {
			t.Fatal(err)
		}
		b.clock.pass(byeGrace / 2)
	}
	b.sessions.expire(false)
	if out := b.deliver(near, b.request(testID, func(m *wire.Message) { m.Attempt++ })); len(out) != 1 {
		t.Fatalf("what is late is answered with %d datagrams", len(out))
	}
	want := b.ledger(b.sessions.find(testID))
	b.clock.pass(1)
	b.sessions.expire(false)
	if b.sessions.find(testID) != nil || b.sessions.memory.used.Load() != 0 {
		t.Errorf("the session is still there, with %d bytes", b.sessions.memory.used.Load())
	}
	var line wire.JournalLine
	if err := json.Unmarshal([]byte(journal.String()), &line); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(2, want.Probes[0].Counts[0].Seen); diff != "" {
		t.Errorf("late (-want +got):\n%s", diff)
	}
	line.Ledger.Taken = want.Taken
	if diff := cmp.Diff(wire.JournalLine{Ledger: want}, line, same); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// A goodbye needs the key and the session's own number.
func TestStrangersCannotEndASession(t *testing.T) {
	b := newBench(t, Config{})
	b.deliver(near, b.request(testID, nil))
	for name, c := range map[string]struct {
		key wire.Key
		id  wire.SessionID
	}{"another key": {wire.Key{9}, testID}, "another session": {testKey, wire.SessionID{7}}} {
		if err := b.call(t, c.key, near.String(), wire.CallBye, wire.ByeRequest{Session: c.id, Time: b.clock.now()}, new(wire.ByeReply)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	b.clock.pass(sessionIdle)
	b.sessions.expire(false)
	if b.sessions.find(testID) == nil {
		t.Error("the session is gone")
	}
}

// answering listens on an address and answers calls as a client does.
func answering(t *testing.T, at string, keys wire.Keys) (port uint16, calls func() int) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		need.Missing(t, "no second loopback address here:", err)
	}
	var mu sync.Mutex
	n := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, wire.MessageSize)
			io.ReadFull(c, buf)
			if m, err := wire.Parse(buf, &keys); err == nil && m.Kind == wire.Call {
				mu.Lock()
				n++
				mu.Unlock()
				m.Kind = wire.Request
				c.Write(m.Append(nil, &keys))
			}
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), func() int { mu.Lock(); defer mu.Unlock(); return n }
}

func TestCallsBackGoOnlyToTheCallersOwnAddress(t *testing.T) {
	b := newBench(t, Config{Inward: true})
	s, err := b.sessions.open(testID, b.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	port, called := answering(t, "127.0.0.1:0", s.keys)
	ask := func(from string) (reply wire.InwardReply, err error) {
		// Whatever address the body may name, it is not read.
		body := map[string]any{"session": testID, "time": b.clock.now(), "probe": 4, "transport": "tcp", "ports": scenarios.PortSet{{First: port, Last: port}},
			"attempts": 1, "address": "127.0.0.1", "source": "127.0.0.1:1", "host": "127.0.0.1"}
		return reply, b.call(t, testKey, from, wire.CallInward, body, &reply)
	}
	set := scenarios.PortSet{{First: port, Last: port}}
	got, err := ask("127.0.0.1:5")
	if diff := cmp.Diff(wire.InwardReply{Sent: 1, Made: []wire.Caught{{Ports: set, N: 1}}, Open: set}, got, same); diff != "" || err != nil || called() != 1 {
		t.Errorf("%v, %d calls (-want +got):\n%s", err, called(), diff)
	}
	got, err = ask("127.0.0.2:5")
	want := wire.InwardReply{Sent: 1, Made: []wire.Caught{{Ports: set, N: 1}}, Fault: []wire.InwardFault{{Ports: set, Fault: "refused"}}}
	if diff := cmp.Diff(want, got, same); diff != "" || err != nil || called() != 1 {
		t.Errorf("from elsewhere: %v, %d calls (-want +got):\n%s", err, called(), diff)
	}
}

func TestCallsBackAreLimited(t *testing.T) {
	b := newBench(t, Config{Inward: true})
	if _, err := b.sessions.open(testID, b.clock.now()); err != nil {
		t.Fatal(err)
	}
	ask := func(id wire.SessionID, set string, attempts int) string {
		err := b.call(t, testKey, "127.0.0.1:5", wire.CallInward, wire.InwardRequest{Session: id, Transport: scenarios.TCP, Ports: ports(t, set), Attempts: attempts}, new(wire.InwardReply))
		e, _ := errors.AsType[*wire.ControlError](err)
		if e == nil {
			return "accepted"
		}
		return e.Code + ": " + e.Message
	}
	const limit = "limit: an inward call has at most 256 ports and 5 attempts"
	got := []string{ask(testID, "1-257", 1), ask(testID, "9", 0), ask(testID, "9", -1), ask(testID, "9", 6), ask(wire.SessionID{8}, "9", 1)}
	for range maxInward {
		b.calls <- struct{}{}
	}
	got = append(got, ask(testID, "9", 1))
	want := []string{limit, limit, limit, limit, "session: the reflector has no such session", "limit: too many inward calls at one time; try again in a second"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The answers of whoever is met on the way in, one listener for each.
func TestCallsBackSayWhatTheyMet(t *testing.T) {
	k := wire.Derive(testKey, testID, wire.Nonce{1})
	m := wire.Message{Kind: wire.Call, Session: testID, Probe: 4, Size: wire.MessageSize}
	for name, c := range map[string]struct {
		answer func(call []byte) []byte
		want   string
	}{
		"an echo":        {func(b []byte) []byte { return b }, "foreign"},
		"a banner":       {func([]byte) []byte { return bytes.Repeat([]byte("220 hello "), 10) }, "foreign"},
		"too little":     {func(b []byte) []byte { return b[:40] }, "eof"},
		"another probe":  {func([]byte) []byte { q := m; q.Kind, q.Probe = wire.Request, 5; return q.Append(nil, &k) }, "foreign"},
		"the right one":  {func([]byte) []byte { q := m; q.Kind = wire.Request; return q.Append(nil, &k) }, ""},
		"nothing at all": {func([]byte) []byte { return nil }, "eof"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if conn, err := l.Accept(); err == nil {
				buf := make([]byte, wire.MessageSize)
				io.ReadFull(conn, buf)
				conn.Write(c.answer(buf))
				conn.Close()
			}
		})
		if got := callOnce(t.Context(), scenarios.TCP, l.Addr().(*net.TCPAddr).AddrPort(), m, &k); got != (called{1, true, c.want}) {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
		l.Close()
		wg.Wait()
		if got := callOnce(t.Context(), scenarios.TCP, l.Addr().(*net.TCPAddr).AddrPort(), m, &k); got != (called{1, false, "refused"}) {
			t.Errorf("after that: %+v", got)
		}
	}
}
