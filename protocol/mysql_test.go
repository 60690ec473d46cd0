package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// aGreeting is one of those that the far end sends.
func aGreeting() mysqlGreeting {
	g := mysqlGreeting{Version: mysqlVersion, Thread: 7, Caps: mysqlOffered, Charset: mysqlCharset, Status: mysqlAuto, Plugin: mysqlNative}
	copy(g.Salt[:], "abcdefghijklmnopqrst")
	return g
}

func packet(seq byte, p []byte) []byte {
	return append([]byte{byte(len(p)), byte(len(p) >> 8), byte(len(p) >> 16), seq}, p...)
}

// The bytes of the protocol's description: dev.mysql.com, "Protocol::HandshakeV10".
func TestMySQLGreetingHasTheDocumentedLayout(t *testing.T) {
	want := fmt.Sprintf("%x", "\x0a8.0.36-wallprobe\x00\x07\x00\x00\x00abcdefgh\x00") +
		"0daa" + "2d" + "0200" + "0800" + "15" + strings.Repeat("00", 10) + fmt.Sprintf("%x", "ijklmnopqrst\x00mysql_native_password\x00")
	if diff := cmp.Diff(want, fmt.Sprintf("%x", aGreeting().Append(nil))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMySQLFarEndTellsWhatStrangersSend(t *testing.T) {
	f := newFar()
	login := func(user string) []byte {
		return mysqlLogin{Caps: mysqlOffered &^ (mysqlWithDB | mysqlSSL), User: user, Plugin: mysqlNative}.Append(nil)
	}
	other := newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	for name, c := range map[string]struct {
		send         []byte
		stage, fault string
		answer       string // a part of what comes after the greeting
	}{
		"nothing":                  {nil, StageBanner, FaultEOF, ""},
		"half a header":            {[]byte{3, 0}, StageBanner, FaultEOF, ""},
		"half a packet":            {packet(1, login("me"))[:20], StageBanner, FaultEOF, ""},
		"an empty packet":          {packet(1, nil), StageBanner, FaultForeign, ""},
		"an endless packet":        {[]byte{0xff, 0xff, 0xff, 1}, StageBanner, FaultForeign, ""},
		"a packet out of sequence": {packet(0, login("me")), StageBanner, FaultForeign, ""},
		"a short login":            {packet(1, login("me")[:31]), StageBanner, FaultAltered, ""},
		"an old client's login":    {packet(1, make([]byte, 40)), StageBanner, FaultAltered, ""},
		"a TLS alert":              {alert, StageBanner, FaultForeign, ""},
		"a line":                   {[]byte("GET / HTTP/1.1\r\n\r\n"), StageBanner, FaultForeign, ""},
		"a login without a token":  {packet(1, login("root")), StageLogin, FaultForeign, "Access denied"},
		"another key's token":      {packet(1, login(other.exchange().Token())), StageLogin, FaultAltered, "Access denied"},
		"a request for TLS alone":  {packet(1, mysqlLogin{Caps: mysqlOffered}.request(nil)), StageTLS, FaultEOF, ""},
	} {
		near, far := pair(t)
		heard := make(chan []byte, 1)
		go func() {
			near.Write(c.send)
			near.CloseWrite()
			b, _ := io.ReadAll(near)
			heard <- b
		}()
		events := serveMySQL(t.Context(), far, f)
		far.Close()
		b := <-heard
		if len(events) != 1 || events[0].Stage != c.stage || events[0].Fault != c.fault || events[0].Answered {
			t.Errorf("%s: %+v", name, events)
		}
		if len(b) < 5 || b[4] != 10 || !bytes.Contains(b, []byte(c.answer)) || c.answer == "" && len(b) != 4+len(aGreeting().Append(nil)) {
			t.Errorf("%s: answered with %q", name, b)
		}
		if c.answer != "" && binary.LittleEndian.Uint16(b[4+len(aGreeting().Append(nil))+5:]) != 1045 {
			t.Errorf("%s: not error 1045: %q", name, b)
		}
	}
}

func TestMySQLNearEndTellsWhatStrangersAnswer(t *testing.T) {
	greeting := aGreeting()
	plain := greeting
	plain.Caps &^= mysqlSSL
	refusal := mysqlRefusal(1130, "HY000", "Host is not allowed")
	for name, c := range map[string]struct {
		answers      [][]byte // each after what the near end says
		stage, fault string
	}{
		"nothing":               {nil, StageBanner, FaultEOF},
		"a banner":              {[][]byte{[]byte("220 mail.example ESMTP\r\n")}, StageBanner, FaultForeign},
		"half a greeting":       {[][]byte{packet(0, greeting.Append(nil))[:30]}, StageBanner, FaultEOF},
		"a cut greeting":        {[][]byte{packet(0, greeting.Append(nil)[:30])}, StageBanner, FaultForeign},
		"an old version":        {[][]byte{packet(0, append([]byte{9}, greeting.Append(nil)[1:]...))}, StageBanner, FaultForeign},
		"a refusal":             {[][]byte{packet(0, refusal)}, StageBanner, FaultForeign},
		"no TLS, and a refusal": {[][]byte{packet(0, plain.Append(nil)), packet(2, refusal)}, StageSTARTTLS, "no TLS offered: login: error 1130 HY000Host is not allowed"},
		"no TLS, and a welcome": {[][]byte{packet(0, plain.Append(nil)), packet(2, mysqlFine("hello"))}, StageSTARTTLS, FaultForeign},
		"no TLS after all":      {[][]byte{packet(0, greeting.Append(nil)), packet(2, refusal)}, StageTLS, FaultForeign},
	} {
		near, far := pair(t)
		go func() {
			for i, b := range c.answers {
				if i > 0 {
					far.Read(make([]byte, 4096))
				}
				far.Write(b)
			}
			far.CloseWrite()
			io.Copy(io.Discard, far)
		}()
		got := probeMySQL(t.Context(), near, newFar().exchange())
		near.Close()
		if got.Stage != c.stage || got.Fault != c.fault {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A box that takes the offer of TLS away is told even where the login passes.
func TestMySQLWithoutItsOfferOfTLSIsAltered(t *testing.T) {
	f := newFar()
	at := 4 + 1 + len(mysqlVersion) + 1 + 4 + 8 + 1 + 1
	got, _, events := play(t, loopback, spoken{name: "mysql", Protocol: mysql}, f, f.exchange(), box{down: func(offset int64, b []byte) ([]byte, bool) {
		if i := int64(at) - offset; i >= 0 && i < int64(len(b)) {
			b[i] &^= mysqlSSL >> 8
		}
		return b, true
	}})
	if got.Stage != StageSTARTTLS || got.Fault != FaultAltered || len(got.Said.Heard) != 1 || !strings.Contains(got.Said.Heard[0], "tls false") {
		t.Errorf("near end: %+v", got)
	}
	if len(events) != 1 || !events[0].Answered || !strings.Contains(events[0].Said.Sent[0], "tls true") {
		t.Errorf("far end: %+v", events)
	}
}

// loggedInMySQL is a near end that may ask, and the events of its far end.
func loggedInMySQL(t *testing.T, f *testFar) (*mysqlConn, <-chan []wire.Event) {
	t.Helper()
	near, far := pair(t)
	done := make(chan []wire.Event, 1)
	go func() { done <- serveMySQL(t.Context(), far, f); far.Close() }()
	m := &mysqlConn{Conn: near, stall: 10 * time.Second}
	if _, err := m.readPacket(); err != nil {
		t.Fatal(err)
	}
	x := f.exchange()
	if err := x.loginMySQL(m, &Result{}); err != nil {
		t.Fatal(err)
	}
	return m, done
}

func TestMySQLClientThatAsksWithoutEndIsLeft(t *testing.T) {
	m, done := loggedInMySQL(t, newFar())
	for i := range maxPackets {
		m.seq = 0
		if err := m.writePacket([]byte{mysqlPing}); err != nil {
			t.Fatal(err)
		}
		if p, err := m.readPacket(); err != nil || p[0] != mysqlOK {
			t.Fatalf("ping %d: %x, %v", i, p, err)
		}
	}
	if _, err := m.readPacket(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if events := <-done; events[0].Fault != "more than 64 commands" {
		t.Errorf("%+v", events)
	}
}

func FuzzMySQLGreeting(f *testing.F) {
	f.Add(aGreeting().Append(nil))
	f.Add([]byte{10, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		if g, err := parseMySQLGreeting(p); err == nil && !bytes.Equal(g.Append(nil), p) {
			t.Errorf("%x is read as %+v", p, g)
		}
	})
}

func FuzzMySQLLogin(f *testing.F) {
	f.Add(mysqlLogin{Caps: mysqlOffered, User: "me", Auth: []byte("12345678901234567890"), Database: "db", Plugin: mysqlNative}.Append(nil))
	f.Add(mysqlLogin{Caps: mysqlOffered}.request(nil))
	f.Add(append(make([]byte, 32), 0, 255))
	f.Fuzz(func(t *testing.T, p []byte) {
		l, tls, err := parseMySQLLogin(p)
		if err != nil || tls || len(p) == mysqlSSLRequestSize {
			return
		}
		again, _, err := parseMySQLLogin(l.Append(nil))
		if diff := cmp.Diff(l, again, same); err != nil || diff != "" {
			t.Errorf("%x: %v (-first +again):\n%s", p, err, diff)
		}
	})
}

// FuzzMySQLFarEnd speaks to the far end in clear.
func FuzzMySQLFarEnd(f *testing.F) {
	far := newFar()
	token := far.exchange().Token()
	good := packet(1, mysqlLogin{Caps: mysqlOffered &^ mysqlSSL, User: token, Database: "db", Plugin: mysqlNative}.Append(nil))
	f.Add(slices.Concat(good, packet(0, []byte("\x03SELECT 1")), packet(0, []byte{mysqlQuit})))
	f.Add(packet(1, mysqlLogin{Caps: mysqlOffered}.request(nil)))
	f.Fuzz(func(t *testing.T, b []byte) { heardByFarEnd(t, mysql, far, b) })
}

// heardByFarEnd gives a far end bytes and an end; it may not think that all is
// well without a token in them.
func heardByFarEnd(t *testing.T, p *Protocol, f *testFar, b []byte) {
	t.Helper()
	atOnce(t, func(t *testing.T) {
		c := said(t, b)
		events := p.TCP.Serve(t.Context(), c, f)
		c.Close()
		if len(events) != 1 || events[0].Answered && events[0].Probe != 7 || events[0].Stage == StageDone && !events[0].Answered {
			t.Errorf("%x: %+v", b, events)
		}
	})
}

// No byte of a greeting can change without changing its line, or being refused.
func TestMySQLGreetingsLineTellsEveryByte(t *testing.T) {
	p := aGreeting().Append(nil)
	for i := range p {
		for _, bit := range []byte{1, 0x20, 0x80} {
			p[i] ^= bit
			if g, err := parseMySQLGreeting(p); err == nil && g.String() == aGreeting().String() {
				t.Errorf("byte %d changed by %#x: %s", i, bit, g)
			}
			p[i] ^= bit
		}
	}
}

// The far end is no database: whatever is asked, it gives no data, and never
// asks a client for a file (LOAD DATA LOCAL, whose request begins with 0xfb).
func TestMySQLAnswersNothingButItsOneQuery(t *testing.T) {
	f := newFar()
	m, done := loggedInMySQL(t, f)
	asked := [][]byte{{0x04, 't'}, {0x0a}, {0x11, 'r', 0}, {0x12}, {0x16, '1'}, {0x1b, 0, 0}, {0x1f}}
	for _, q := range []string{"LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE t", "LOAD DATA INFILE '/etc/passwd' INTO TABLE t", "SELECT LOAD_FILE('/etc/passwd')",
		"SELECT 1; SELECT 2", "SELECT * FROM mysql.user", "SHOW DATABASES", "SELECT SLEEP(1000)", ""} {
		asked = append(asked, append([]byte{mysqlQuery}, q...))
	}
	for _, p := range asked {
		m.seq = 0
		if err := m.writePacket(p); err != nil {
			t.Fatal(err)
		}
		if a, err := m.readPacket(); err != nil || a[0] != mysqlERR {
			t.Errorf("%q is answered by %q, %v", p, a, err)
		}
	}
	m.Close()
	if e := <-done; f.further.Load() > 0 || e[0].Stage != StageDone {
		t.Errorf("%d further connections, %+v", f.further.Load(), e)
	}
}

// A server that asks the near end for a file gets none.
func TestMySQLNearEndGivesNoFile(t *testing.T) {
	const localFiles = 1 << 7 // CLIENT_LOCAL_FILES
	if mysqlOffered&localFiles != 0 {
		t.Error("files are offered")
	}
	plain := aGreeting()
	plain.Caps &^= mysqlSSL
	near, far := pair(t)
	said := make(chan int, 1)
	go func() {
		far.Write(packet(0, plain.Append(nil)))
		far.Read(make([]byte, 4096)) // the login
		far.Write(packet(2, append([]byte{0xfb}, "/etc/hostname"...)))
		b, _ := io.ReadAll(far)
		said <- len(b)
	}()
	got := probeMySQL(t.Context(), near, newFar().exchange())
	near.Close()
	if n := <-said; n > 0 || got.Stage == StageDone || got.Fault == "" {
		t.Errorf("%d bytes were given: %+v", n, got)
	}
}
