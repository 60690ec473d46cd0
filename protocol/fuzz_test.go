package protocol

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// opening is what one end of an exchange says first, as a seed.
func opening(f *testing.F, p spoken, near bool) []byte {
	f.Helper()
	a, b := remembered(ftpNearAddr, ftpFarAddr)
	far := newFar()
	x := far.exchange()
	x.Variant = p.variant
	done := make(chan struct{})
	go func() {
		defer close(done)
		if near {
			p.TCP.Probe(f.Context(), a, x)
		} else {
			far.serve(f.Context(), p.Protocol, b)
		}
	}()
	from := a
	if near {
		from = b
	}
	buf := make([]byte, 4<<10)
	from.SetReadDeadline(time.Now().Add(time.Second))
	n := 0
	if near != (p.Greets && !p.Inside) { // else it waits to be spoken to
		n, _ = from.Read(buf)
	}
	buf = buf[:n]
	a.Close()
	b.Close()
	<-done
	return buf
}

// said is a connection with nothing more to come after b.
func said(t *testing.T, b []byte) (c net.Conn) {
	t.Helper()
	peer, c := memoryPair(t)
	go io.Copy(io.Discard, peer)
	peer.Write(b[:min(len(b), room)])
	peer.(*memoryConn).out.close()
	return c
}

// atOnce fails when test waits for anything: for a time that is not real, as
// everything here is in memory, or for ever. The fuzzing engine would take an
// input that never ends for one that takes its time, and pass.
func atOnce(t *testing.T, test func(t *testing.T)) { t.Helper(); endsWithin(t, 0, test) }

// goAway is how long net/http keeps an HTTP/2 connection after an error of the
// peer's, so that the peer hears of it before the end, and without listening for
// the peer's own.
const goAway = time.Second

// endsWithin is atOnce with so much patience.
func endsWithin(t *testing.T, patience time.Duration, test func(t *testing.T)) {
	t.Helper()
	stop := hangs()
	defer stop()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		test(t)
		if d := time.Since(began); d > patience {
			t.Errorf("waited %v, though its peer had ended", d)
		}
	})
}

// hangs ends the process, whose input the engine then keeps, when it is not
// stopped within many times as long as any input takes.
func hangs() (stop func() bool) {
	return time.AfterFunc(10*time.Second, func() {
		debug.SetTraceback("all")
		panic("an input takes more than 10 s of real time")
	}).Stop
}

// Whatever comes, each far end tells of it once and is proven by nothing but a
// token.
func FuzzFarEnds(f *testing.F) {
	all := every(f)
	for i, p := range all {
		f.Add(uint8(i), opening(f, p, true))
		f.Add(uint8(i), []byte("TOKEN\r\n"))
	}
	far := newFar()
	token := far.exchange().Token()
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		p := all[int(which)%len(all)]
		endsWithin(t, goAway, func(t *testing.T) { // what begins like HTTP is served as that, anywhere
			c := said(t, bytes.ReplaceAll(b, []byte("TOKEN"), []byte(token)))
			far := newFar() // what greets inside is told it
			far.mem = &memoryNet{}
			events := far.serve(t.Context(), p.Protocol, c)
			c.Close()
			for _, e := range events {
				if e.Answered && e.Probe != 7 || e.Stage == StageDone && !e.Answered || e.Fault == "" && !e.Answered {
					t.Errorf("%s: %+v", p, e)
				}
			}
			if len(events) == 0 {
				t.Errorf("%s tells nothing", p)
			}
		})
	})
}

// Whatever is answered, no near end takes it for the far end's: there is no
// proof in it.
func FuzzNearEnds(f *testing.F) {
	all := every(f)
	for i, p := range all {
		f.Add(uint8(i), opening(f, p, false))
		f.Add(uint8(i), []byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"))
	}
	f.Add(uint8(0), []byte("220 a\r\n230 b\r\n200 c\r\n227 (127,0,0,1,4,1)\r\n"))
	far := newFar()
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		p := all[int(which)%len(all)]
		atOnce(t, func(t *testing.T) {
			c := said(t, b)
			var mem memoryNet
			x := far.exchange()
			x.Variant, x.Bytes, x.Listen = p.variant, 10, mem.listen
			x.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
				return mem.dial(ctx, netip.AddrPortFrom(AddrPort(c.LocalAddr()).Addr(), 0), to)
			}
			r := p.TCP.Probe(t.Context(), c, x)
			c.Close()
			if r.Stage == StageDone || r.Fault == "" || r.Seen.Probe != 0 {
				t.Errorf("%s: %+v", p, r)
			}
		})
	})
}

// A token is found wherever a text holds it as a word of its own, and nothing
// else is one.
func FuzzTokenText(f *testing.F) {
	far := newFar()
	x := far.exchange()
	token, answer := x.Token(), AnswerToken(x.message(wire.Request), &far.keys, mediaAddr, far)
	f.Add("Bearer ", "", uint8(0))
	f.Add("", "\r\n", uint8(3))
	f.Add("a", " b", uint8(40))
	f.Add(token+" ", "="+answer, uint8(111))
	f.Fuzz(func(t *testing.T, before, after string, at uint8) {
		r, own := &Result{}, before == "" || notToken(rune(before[len(before)-1]))
		own = own && (after == "" || notToken(rune(after[0])))
		for _, s := range []string{before, after} {
			if strings.ContainsFunc(s, func(c rune) bool { return c > '~' }) || len(strings.TrimFunc(s, notToken)) >= tokenText {
				return // may hold another, or a part of a letter
			}
		}
		m, _, err := ProveToken(before+token+after, mediaAddr, far)
		if (err == nil) != own || own && m.Probe != x.Probe {
			t.Errorf("%q, %q: %+v, %v", before, after, m, err)
		}
		if err := x.CheckToken(before+answer+after, r); (err == nil) != own {
			t.Errorf("%q, %q: %v", before, after, err)
		}
		changed := []byte(token)
		if c := changed[int(at)%tokenText]; c == 'A' {
			changed[int(at)%tokenText] = 'B'
		} else {
			changed[int(at)%tokenText] = 'A'
		}
		p, _ := base64.RawURLEncoding.DecodeString(string(changed))
		if _, _, err := ProveToken(before+string(changed)+after, mediaAddr, far); err == nil {
			t.Errorf("%x is proven", p)
		}
	})
}

var mediaAddr = net.UDPAddrFromAddrPort(mediaFrom)

// Lines are recorded as they are given, none is longer than it may be, and what
// follows them is read on.
func FuzzDialogue(f *testing.F) {
	for _, s := range []string{"a\r\nb\n\r\n\nrest", "", strings.Repeat("x", maxLine+1), strings.Repeat("x", maxLine-1) + "\n", "\xff\x00\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) { atOnce(t, func(t *testing.T) { hearLines(t, b) }) })
}

func hearLines(t *testing.T, b []byte) {
	d := newDialogue(said(t, b), farStall)
	var lines []string
	var err error
	for range 3 {
		var line string
		if line, err = d.hear(); err != nil {
			break
		}
		lines = append(lines, line)
	}
	for i, line := range lines {
		if len(line) >= maxLine || strings.Contains(line, "\n") || !bytes.Contains(b, []byte(line)) {
			t.Errorf("line %q of %q", line, b)
		}
		if i >= len(d.said.Said().Heard) {
			t.Errorf("line %q is not recorded", line)
		}
	}
	rest, _ := io.ReadAll(d)
	if err == nil && !bytes.HasSuffix(b[:min(len(b), room)], rest) {
		t.Errorf("%q follows the lines of %q", rest, b)
	}
}

// Names of files and addresses of ICE are read as they are written; what else is
// taken for one names the same.
func FuzzFileSize(f *testing.F) {
	for _, s := range []string{"1024.bin", "/1073741824.bin", "./5.bin", "0.bin", ".bin", "01.bin", "4294967296.bin", "-1.bin", "../1.bin"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		n, ok := fileSize(name)
		if !ok {
			return
		}
		if again, ok := fileSize(fileName(n)); !ok || again != n || !strings.HasSuffix(name, fileName(n)) {
			t.Errorf("%q has %d bytes, %q %d", name, n, fileName(n), again)
		}
	})
}

func FuzzICEAddress(f *testing.F) {
	for _, s := range []string{"192.0.2.1:9", "[2001:db8::1]:65535", "2001:db8::1:7", "fe80::1%eth0:9", "a.local:1", "1.2.3.4:", ":1", "[]:1", "1.2.3.4:65536"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := looseAddrPort(text)
		if err != nil {
			return
		}
		if again, err := looseAddrPort(a.String()); err != nil || again != a {
			t.Errorf("%q is %v, and again %v, %v", text, a, again, err)
		}
	})
}

// What is logged in with is found, whatever else the text holds.
func FuzzPlainCredentials(f *testing.F) {
	f.Add([]byte("\x00name\x00password"))
	f.Add([]byte("other\x00name\x00password"))
	f.Add([]byte("\x00\x00"))
	f.Add([]byte("name"))
	f.Add([]byte("a\x00b\x00c\x00d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		said := plainCredentials(base64.StdEncoding.EncodeToString(b))
		parts := strings.Split(string(b), "\x00")
		if len(parts) == 3 && said != parts[1]+" "+parts[2] || len(parts) != 3 && said != "" {
			t.Errorf("%q is read as %q", b, said)
		}
	})
}
