package protocol

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

var (
	ftpNearAddr = netip.MustParseAddrPort("127.0.0.1:40000")
	ftpFarAddr  = netip.MustParseAddrPort("127.0.0.1:21")
)

// farScript answers commands by their verbs; "" hangs up.
func farScript(c net.Conn, greeting string, answers map[string]string) {
	defer c.Close()
	if _, err := io.WriteString(c, greeting); err != nil || !strings.HasSuffix(greeting, "\n") {
		return
	}
	in := bufio.NewScanner(c)
	for in.Scan() {
		verb, _, _ := strings.Cut(in.Text(), " ")
		if answers[verb] == "" {
			return
		}
		io.WriteString(c, answers[verb]+"\r\n")
	}
}

func TestNearEndOfFTPTellsWhatStrangersAnswer(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes, x.Variant = 1000, ftpPassive
	m := x.message(wire.Reply)
	login := "230 fine, " + textOf(&m, &f.keys)
	with := func(more map[string]string) map[string]string {
		all := map[string]string{"USER": login, "TYPE": "200 fine"}
		for k, v := range more {
			all[k] = v
		}
		return all
	}
	for name, c := range map[string]struct {
		greeting, variant    string
		answers              map[string]string
		stage, fault, detail string
	}{
		"nothing":                           {"", "", nil, StageBanner, FaultEOF, ""},
		"a truncated greeting":              {"22", "", nil, StageBanner, FaultEOF, ""},
		"an endless line":                   {strings.Repeat("2", 5000), "", nil, StageBanner, errLongLine.Error(), ""},
		"endless lines":                     {strings.Repeat("220-more\r\n", 50) + "\n", "", nil, StageBanner, FaultForeign, ""},
		"rubbish":                           {"\x16\x03\x01\x00\xff\r\n", "", nil, StageBanner, FaultForeign, ""},
		"another protocol":                  {"SSH-2.0-OpenSSH_9.2\r\n", "", nil, StageBanner, FaultForeign, ""},
		"a server that asks for a password": {"220 ProFTPD\r\n", "", map[string]string{"USER": "331 password?"}, StageLogin, FaultForeign, ""},
		"a server that lets all in":         {"220-hello\r\n220 there\r\n", "", map[string]string{"USER": "230 welcome"}, StageLogin, FaultForeign, ""},
		"one that hangs up at login":        {"220 a\r\n", "", nil, StageLogin, FaultEOF, ""},
		"no type":                           {"220 a\r\n", "", with(map[string]string{"TYPE": "504 no"}), StageData, `answered "504 no"`, "TYPE I"},
		"no mode":                           {"220 a\r\n", "", with(map[string]string{"PASV": "502 no"}), StageData, `answered "502 no"`, "PASV"},
		"a mode without an address":         {"220 a\r\n", "", with(map[string]string{"PASV": "227 (1,2,3)"}), StageData, FaultForeign, "PASV"},
		"an address without parentheses":    {"220 a\r\n", ftpExtendedPassive, with(map[string]string{"EPSV": "229 |||1|"}), StageData, FaultForeign, "EPSV"},
		"a port where nobody is":            {"220 a\r\n", "", with(map[string]string{"PASV": "227 (127,0,0,1,4,1)"}), StageData, FaultRefused, "connecting to 127.0.0.1:1025"},
		"a far end that cannot call":        {"220 a\r\n", ftpActive, with(map[string]string{"PORT": "200 a", "RETR": "425 no call"}), StageData, `answered "425 no call"`, "PORT 127,0,0,1,195,81, waiting"},
		"an address refused":                {"220 a\r\n", ftpExtendedActive, with(map[string]string{"EPRT": "500 not yours"}), StageData, `answered "500 not yours"`, "EPRT |1|127.0.0.1|50001|"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := remembered(ftpNearAddr, ftpFarAddr)
			mem := &memoryNet{}
			x := x
			if x.Listen = mem.listen; c.variant != "" {
				x.Variant = c.variant
			}
			x.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) { return mem.dial(ctx, ftpNearAddr, to) }
			var wg sync.WaitGroup
			wg.Go(func() { farScript(far, c.greeting, c.answers) })
			got := probeFTP(t.Context(), near, x)
			near.Close()
			wg.Wait()
			if got.Stage != c.stage || got.Fault != c.fault || !strings.Contains(got.Step, c.detail) {
				t.Errorf("stage %s, fault %s, step %q", got.Stage, got.Fault, got.Step)
			}
		})
	}
}

// Who answers 227 with somebody else's address must not make the near end
// connect there.
func TestNearEndOfFTPNeverConnectsToSomebodyElse(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Variant = ftpPassive
	m := x.message(wire.Reply)
	near, far := remembered(ftpNearAddr, ftpFarAddr)
	var to []netip.AddrPort
	x.Dial = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		to = append(to, a)
		return nil, errors.New("far enough")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		farScript(far, "220 a\r\n", map[string]string{"USER": "230 " + textOf(&m, &f.keys), "TYPE": "200 a", "PASV": "227 (192,0,2,66,0,22)"})
	})
	got := probeFTP(t.Context(), near, x)
	near.Close()
	wg.Wait()
	if want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:22")}; !slices.Equal(to, want) {
		t.Errorf("connected to %v, want %v", to, want)
	}
	if want := "PASV named 192.0.2.66:22; connected to 127.0.0.1:22 as control is"; got.Detail != want {
		t.Errorf("detail %q", got.Detail)
	}
}

func TestCallsOfStrangersAreNotTakenForData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar()
		x := f.exchange()
		x.Variant, x.Stall = ftpActive, 3*time.Second
		m := x.message(wire.Reply)
		near, far := remembered(ftpNearAddr, ftpFarAddr)
		mem := &memoryNet{}
		x.Listen = mem.listen
		stranger := netip.MustParseAddrPort("203.0.113.9:20")
		var wg sync.WaitGroup
		wg.Go(func() {
			farScript(far, "220 a\r\n", map[string]string{"USER": "230 " + textOf(&m, &f.keys), "TYPE": "200 a", "PORT": "200 a", "NLST": "150 a"})
		})
		wg.Go(func() {
			time.Sleep(time.Second)
			c, err := mem.dial(t.Context(), stranger, netip.MustParseAddrPort("127.0.0.1:50001"))
			if err != nil {
				t.Error(err)
				return
			}
			if n, err := c.Read(make([]byte, 1)); n > 0 || err != io.EOF {
				t.Errorf("the stranger got %d bytes, %v", n, err)
			}
		})
		got := probeFTP(t.Context(), near, x)
		near.Close()
		wg.Wait()
		if got.Stage != StageData || got.Fault != FaultTimeout || !strings.Contains(got.Step, "203.0.113.9:20 called, which is not 127.0.0.1") {
			t.Errorf("%+v", got)
		}
	})
}

// A visit is somebody who speaks with the far end by hand, in memory.
type visit struct {
	*testing.T
	far    *testFar
	conn   *memoryConn
	in     *bufio.Scanner
	events chan []wire.Event
}

func visitFTP(t *testing.T) *visit {
	near, c := remembered(ftpNearAddr, ftpFarAddr)
	v := &visit{T: t, far: newFar(), conn: near, in: bufio.NewScanner(near), events: make(chan []wire.Event, 1)}
	v.far.mem = &memoryNet{}
	go func() { v.events <- serveFTP(t.Context(), c, v.far); c.Close() }()
	v.expect("220 ")
	return v
}

func (v *visit) expect(prefix string) string {
	v.Helper()
	if !v.in.Scan() || !strings.HasPrefix(v.in.Text(), prefix) {
		v.Errorf("heard %q, want %q", v.in.Text(), prefix)
	}
	return v.in.Text()
}

func (v *visit) ask(line, prefix string) string {
	v.Helper()
	io.WriteString(v.conn, line+"\r\n")
	return v.expect(prefix)
}

func (v *visit) login() {
	v.Helper()
	v.ask("USER "+v.far.exchange().Token(), "230 ")
}

// end hangs up and gives how the far end tells of it.
func (v *visit) end() wire.Event {
	v.Helper()
	v.conn.Close()
	events := <-v.events
	if len(events) != 1 {
		v.Fatalf("%d events", len(events))
	}
	return events[0]
}

// dial makes a data connection to where 227 says.
func (v *visit) dial(from, line string) net.Conn {
	v.Helper()
	_, to, _, err := splitAddress(line)
	if err != nil {
		v.Fatal(err)
	}
	c, err := v.far.mem.dial(v.Context(), netip.MustParseAddrPort(from), netip.AddrPortFrom(ftpFarAddr.Addr(), to.Port()))
	if err != nil {
		v.Fatal(err)
	}
	return c
}

func TestUnprovenUsersOfFTPGetNothing(t *testing.T) {
	v := visitFTP(t)
	for _, line := range []string{"PASS x", "PASV", "PORT 127,0,0,1,200,1", "LIST", "RETR 5.bin", "STOR 5.bin", "\xff\xfe\x00"} {
		if got := v.ask(line, "530 "); got != "530 log in with a token as user name" {
			t.Errorf("%q: %q", line, got)
		}
	}
	if len(v.far.mem.listeners) > 0 {
		t.Error("a port was opened")
	}
	other := newFar()
	other.keys = wire.Derive(wire.Key{9}, v.far.keys.ID, wire.Nonce{})
	v.ask("USER "+other.exchange().Token(), "530 not a token")
	if e := v.end(); e.Answered || e.Stage != StageLogin || e.Fault != FaultAltered || e.Probe != 7 {
		t.Errorf("%+v", e)
	}
	v = visitFTP(t)
	for range maxUnproven {
		v.ask("NOOP", "530 ")
	}
	v.expect("421 ")
	if e := v.end(); e.Stage != StageLogin || e.Fault != "more than 10 commands" {
		t.Errorf("%+v", e)
	}
}

func TestFarEndOfFTPCallsNobodyElse(t *testing.T) {
	for line, want := range map[string]string{
		"PORT 198,51,100,7,200,1":        "500 198.51.100.7:51201 is not your address: control came from 127.0.0.1",
		"EPRT |1|198.51.100.7|51201|":    "500 198.51.100.7:51201 is not your address: control came from 127.0.0.1",
		"EPRT |2|::1|51201|":             "500 [::1]:51201 is not your address: control came from 127.0.0.1",
		"PORT 127,0,0,1,0,22":            "500 port 22 is none that a client has for data",
		"EPRT |1|127.0.0.1|1023|":        "500 port 1023 is none that a client has for data",
		"PORT 127,0,0,1":                 `501 not an address: "127,0,0,1"`,
		"EPRT |||51201|":                 `501 not an address: "|||51201|"`,
		"EPRT":                           `501 not an address: ""`,
		"PORT \x01\x02":                  `501 not an address: "\x01\x02"`,
		"PORT 127,0,0,1,200,1":           "200 PORT accepted",
		"eprt |2|::ffff:127.0.0.1|5000|": "200 EPRT accepted",
	} {
		v := visitFTP(t)
		v.login()
		if got := v.ask(line, ""); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
		if want[0] == '5' {
			v.ask("RETR 5.bin", "425 PASV, EPSV, PORT or EPRT comes first")
		}
		v.end()
	}
}

func TestDataConnectionsOfStrangersAreTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := visitFTP(t)
		v.login()
		stranger := v.dial("203.0.113.9:4000", v.ask("PASV", "227 "))
		v.ask("RETR 5.bin", "425 a data connection came from 203.0.113.9:4000, but control from 127.0.0.1")
		if n, err := stranger.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			t.Errorf("the stranger got %d bytes, %v", n, err)
		}
		if e := v.end(); e.BytesOut != 0 || e.Fault != "a data connection came from 203.0.113.9:4000, but control from 127.0.0.1" {
			t.Errorf("%+v", e)
		}
	})
}

func TestDataConnectionThatNeverComesIsWaitedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := visitFTP(t)
		v.login()
		v.ask("EPSV", "229 ")
		began := time.Now()
		v.ask("RETR 5.bin", "425 wait for a data connection")
		if d := time.Since(began); d != farStall {
			t.Errorf("after %v", d)
		}
		if e := v.end(); e.Stage != StageData || e.Fault != FaultTimeout || !e.Answered {
			t.Errorf("%+v", e)
		}
	})
}

func TestControlThatEndsTakesTheTransferWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := visitFTP(t)
		v.login()
		c := v.dial("127.0.0.1:4000", v.ask("PASV", "227 "))
		v.ask("RETR 4294967295.bin", "150 ")
		if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if e := v.end(); e.Stage != StageData || e.Fault != FaultEOF || e.BytesOut < 1<<20 || time.Since(began) > 0 {
			t.Errorf("%+v after %v", e, time.Since(began))
		}
	})
}

func TestAbortEndsTheTransferAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := visitFTP(t)
		v.login()
		c := v.dial("127.0.0.1:4000", v.ask("PASV", "227 "))
		v.ask("RETR 4294967295.bin", "150 ")
		if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		v.ask("\xff\xf4\xff\xf2ABOR", "451 ")
		v.expect("226 ")
		v.ask("NOOP", "200 ")
		v.end()
	})
}

// A peer that sends a byte now and then gains nothing on a data connection.
func TestTricklesOfFilesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := visitFTP(t)
		v.login()
		c := v.dial("127.0.0.1:4000", v.ask("PASV", "227 "))
		v.ask("STOR 20480.bin", "150 ")
		began := time.Now()
		s := v.far.keys.NewStream(wire.Request, 7, 1)
		b := make([]byte, 1000)
		s.Read(b)
		go trickle(c, b)
		v.expect("451 ")
		if d := time.Since(began); d != farStall {
			t.Errorf("after %v", d)
		}
		v.end()
		c.Close()
		time.Sleep(2 * time.Second) // for the one that trickles
	})
}

func TestFilesOfFTPAreCheckedToTheLastByte(t *testing.T) {
	f := newFar()
	good := make([]byte, 5001)
	f.keys.NewStream(wire.Request, 7, 1).Read(good)
	changed := slices.Clone(good[:5000])
	changed[4321] ^= 1
	for name, c := range map[string]struct {
		file  string
		sent  []byte
		said  string
		in    int64
		fault string
	}{
		"as it should be":  {"5000.bin", good[:5000], "226 ", 5000, FaultEOF},
		"changed":          {"5000.bin", changed, "550 byte 4321: ", 4321, FaultAltered},
		"too short":        {"5000.bin", good[:4999], "451 EOF", 4999, FaultEOF},
		"too long":         {"5000.bin", good, "550 more came than the file has", 5000, FaultAltered},
		"one's own":        {"letter.txt", []byte("dear reader"), "226 ", 11, FaultEOF},
		"nothing of one's": {"empty", nil, "226 ", 0, FaultEOF},
	} {
		v := visitFTP(t)
		v.login()
		data := v.dial("127.0.0.1:4000", v.ask("PASV", "227 "))
		v.ask("STOR "+c.file, "150 ")
		data.Write(c.sent)
		data.Close()
		v.expect(c.said)
		if e := v.end(); e.BytesIn != c.in || e.Fault != c.fault {
			t.Errorf("%s: %d bytes in, %s", name, e.BytesIn, e.Fault)
		}
	}
}

func TestFilesOfFTPBeginWhereAsked(t *testing.T) {
	v := visitFTP(t)
	v.login()
	want := make([]byte, 5000)
	v.far.keys.NewStream(wire.Reply, 7, 1).Read(want)
	for _, from := range []int{0, 1, 4999, 5000} {
		v.ask(fmt.Sprintf("REST %d", from), "350 ")
		data := v.dial("127.0.0.1:4000", v.ask("EPSV", "229 "))
		v.ask("RETR 5000.bin", "150 ")
		got, err := io.ReadAll(data)
		if err != nil || !cmp.Equal(want[from:], got) && len(got)+len(want[from:]) > 0 {
			t.Errorf("from %d: %d bytes, %v", from, len(got), err)
		}
		v.expect("226 ")
	}
	v.ask("REST 5001", "350 ")
	v.ask("RETR 5000.bin", "550 ")
	v.ask("SIZE 5000.bin", "213 5000")
	v.ask("SIZE /etc/passwd", "550 ")
	v.ask("RETR /etc/passwd", "550 ")
	v.ask("DELE 5000.bin", "502 DELE is not spoken here")
	v.ask("QUIT", "221 ")
	if e := v.end(); e.Stage != StageDone || e.BytesOut != 5000+4999+1 {
		t.Errorf("%+v", e)
	}
}

func TestSilenceOfFTPIsKeptAndTold(t *testing.T) {
	for name, c := range map[string]struct {
		during       string
		stage, fault string
		after        time.Duration
	}{
		"kept":                {"", StageDone, "", 50 * time.Second},
		"the near end speaks": {"NOOP\r\n", StageIdle, FaultAltered, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := remembered(ftpNearAddr, ftpFarAddr)
				f := newFar()
				f.mem = &memoryNet{}
				x := f.exchange()
				x.Idle, x.Variant, x.Listen = 50*time.Second, ftpActive, f.mem.listen
				var events []wire.Event
				var wg sync.WaitGroup
				began := time.Now()
				var took time.Duration
				wg.Go(func() { events = serveFTP(t.Context(), far, f); took = time.Since(began); far.Close() })
				if c.during != "" {
					time.AfterFunc(20*time.Second, func() { near.SetWriteDeadline(time.Time{}); near.Write([]byte(c.during)) })
				}
				got := probeFTP(t.Context(), near, x)
				near.Close()
				wg.Wait()
				if len(events) != 1 || events[0].Stage != c.stage || events[0].Fault != c.fault || took != c.after || got.Stage != c.stage {
					t.Errorf("%+v, %+v after %v", got, events, took)
				}
			})
		})
	}
}
