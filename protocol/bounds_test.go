package protocol

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// held serves a connection in a bubble (testing/synctest) whose near end does what
// talk says, and tells how long the far end bore with it. The clock in there is the
// bubble's own, so that sleeping for hours takes no time.
func held(t *testing.T, p *Protocol, talk func(t *testing.T, near net.Conn, f *testFar)) (took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar()
		f.mem = &memoryNet{}
		near, far := memoryPair(t)
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			p.TCP.Serve(t.Context(), far, f)
			took = time.Since(began)
			far.Close()
		})
		talk(t, near, f)
		near.Close()
		wg.Wait()
	})
	return took
}

// askedAgain asks for pages with a pause before each and reads the answers, as
// often as it is answered and at most so often.
func askedAgain(near net.Conn, pause time.Duration, most int, first ...string) (answered int) {
	r := bufio.NewReader(near)
	for i := range most {
		ask := "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
		if i < len(first) {
			ask = first[i]
		} else if i > 0 {
			time.Sleep(pause) // of the bubble's time, as everywhere in this file
		}
		if _, err := io.WriteString(near, ask); err != nil {
			return answered
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return answered
		}
		io.Copy(io.Discard, resp.Body)
		answered++
	}
	return answered
}

// However politely somebody goes on asking for the page, it is on another
// connection after a while; who is of a session keeps this one.
func TestStrangersCannotHoldAnHTTPConnection(t *testing.T) {
	call := func(name string) string {
		return "POST " + wire.ControlPath + name + " HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n"
	}
	for name, c := range map[string]struct {
		pause time.Duration
		first func(f *testFar) string
		stays bool
	}{
		"a browser":                   {20 * time.Second, nil, false},
		"one that asks all the time":  {2500 * time.Millisecond, nil, false},
		"a call that is no session's": {20 * time.Second, func(*testFar) string { return call("bad") }, false},
		"a session's call":            {20 * time.Second, func(*testFar) string { return call("good") }, true},
		"a session's token": {20 * time.Second, func(f *testFar) string {
			x := f.exchange()
			x.Bytes = 1 // more is to come
			return bearer("GET /", x.Token(), "")
		}, true},
	} {
		var answered int
		const most = 30
		took := held(t, plainHTTP, func(_ *testing.T, near net.Conn, f *testFar) {
			var first []string
			if c.first != nil {
				first = append(first, c.first(f))
			}
			answered = askedAgain(near, c.pause, most, first...)
		})
		switch {
		case c.stays && (answered < most || took < 5*time.Minute):
			t.Errorf("%s is answered %d times in %v", name, answered, took)
		case !c.stays && (answered < 2 || took < unprovenTime/2 || took > unprovenTime+2*time.Second):
			t.Errorf("%s is answered %d times and stays for %v", name, answered, took)
		}
	}
}

// What is being asked when the time is over is answered, and says that it is the last.
func TestAnswerUnderWayIsNotCutOff(t *testing.T) {
	var closes bool
	took := held(t, plainHTTP, func(t *testing.T, near net.Conn, _ *testFar) {
		time.Sleep(5 * time.Second)
		io.WriteString(near, "GET / HTTP/1.1\r\n") // unasked bears with it for farStall
		io.WriteString(near, "Host: a.example\r\n\r\n")
		r := bufio.NewReader(near)
		http.ReadResponse(r, nil)
		time.Sleep(unprovenTime - 6*time.Second) // a second before the time is over
		x := newFar().exchange()
		m := x.message(wire.Request)
		frame := appendFrame(nil, m.Append(nil, x.Keys))
		frame[40] ^= 1 // it takes its time and proves nothing
		io.WriteString(near, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n", framedPath, 4+wire.MessageSize))
		time.Sleep(5 * time.Second) // the time is over meanwhile
		near.Write(frame)
		io.Copy(io.Discard, io.LimitReader(r, int64(len(page))))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		closes = resp.Close
	})
	if !closes || took < unprovenTime+3*time.Second || took > unprovenTime+farStall {
		t.Errorf("closes: %v, after %v", closes, took)
	}
}

// A peer that has proven itself and drips gets some minutes, not hours: with
// commands, with a file's bytes, over FTP and SFTP.
func TestProvenPeersThatDripAreBounded(t *testing.T) {
	login := func(t *testing.T, near net.Conn, f *testFar) *bufio.Reader {
		r := bufio.NewReader(near)
		r.ReadString('\n')
		x := f.exchange()
		x.Bytes = MaxBytes
		fmt.Fprintf(near, "USER %s\r\n", x.Token())
		if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "230") {
			t.Fatalf("%q, %v", line, err)
		}
		return r
	}
	drip := func(c io.Writer, pause time.Duration, from io.Reader) {
		b := make([]byte, 1)
		for range 24 * time.Hour / pause {
			time.Sleep(pause)
			from.Read(b)
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		p    *Protocol
		talk func(t *testing.T, near net.Conn, f *testFar)
	}{
		"FTP commands": {ftp, func(t *testing.T, near net.Conn, f *testFar) {
			r := login(t, near, f)
			go io.Copy(io.Discard, r)
			drip(near, 9*time.Second, strings.NewReader(strings.Repeat("NOOP\r\n", 1000)))
		}},
		"FTP bytes of a file":       {ftp, func(t *testing.T, near net.Conn, f *testFar) { ftpDrip(t, near, f, login, drip, "any") }},
		"FTP bytes of a known file": {ftp, func(t *testing.T, near net.Conn, f *testFar) { ftpDrip(t, near, f, login, drip, fileName(MaxBytes)) }},
		"a stream's bytes": {plain, func(t *testing.T, near net.Conn, f *testFar) {
			x := f.exchange()
			x.Bytes = MaxBytes
			near.Write(x.AppendAsk(nil))
			go io.Copy(io.Discard, near)
			drip(near, 9*time.Second, f.keys.NewStream(wire.Request, x.Probe, x.Attempt))
		}},
		"SFTP requests": {sftp, func(t *testing.T, near net.Conn, f *testFar) {
			x := f.exchange()
			x.Bytes = MaxBytes
			c, chans, reqs, err := ssh.NewClientConn(near, "far", &ssh.ClientConfig{User: x.Token(), HostKeyCallback: ssh.InsecureIgnoreHostKey()})
			if err != nil {
				t.Fatal(err)
			}
			s, err := pkgsftp.NewClient(ssh.NewClient(c, chans, reqs))
			if err != nil {
				t.Fatal(err)
			}
			for {
				time.Sleep(50 * time.Second) // often enough never to be idle
				if _, err := s.ReadDir("/"); err != nil {
					return
				}
			}
		}},
	} {
		if took := held(t, c.p, c.talk); took < 10*time.Second || took > strangersTime+ftpPatience {
			t.Errorf("%s: %v", name, took)
		}
	}
}

// ftpDrip stores a file a byte at a time.
func ftpDrip(t *testing.T, near net.Conn, f *testFar, login func(*testing.T, net.Conn, *testFar) *bufio.Reader,
	drip func(io.Writer, time.Duration, io.Reader), file string) {
	r := login(t, near, f)
	io.WriteString(near, "EPSV\r\n")
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, at, _, err := splitAddress(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	client, server := AddrPort(near.LocalAddr()), AddrPort(near.RemoteAddr())
	fmt.Fprintf(near, "STOR %s\r\n", file)
	data, err := f.mem.dial(t.Context(), netip.AddrPortFrom(client.Addr(), 0), netip.AddrPortFrom(server.Addr(), at.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	x := f.exchange()
	drip(data, 9*time.Second, f.keys.NewStream(wire.Request, x.Probe, x.Attempt))
}

// A leisurely connection sends 2 KiB a second.
type leisurely struct{ net.Conn }

func (l leisurely) Write(b []byte) (n int, err error) {
	for err == nil && n < len(b) {
		time.Sleep(500 * time.Millisecond) // for each KiB: slow, and above the least rate
		var k int
		k, err = l.Conn.Write(b[n:min(len(b), n+1<<10)])
		n += k
	}
	return n, err
}

// A slow line is not taken for somebody who drips.
func TestSlowLinesCarryAllTheyAreAskedFor(t *testing.T) {
	var got Result
	took := held(t, plain, func(t *testing.T, near net.Conn, f *testFar) {
		x := f.exchange()
		x.Bytes, x.Stall = 300<<10, time.Minute
		got = probePlain(t.Context(), leisurely{near}, x)
	})
	if got.Stage != StageDone || took < 2*time.Minute {
		t.Errorf("%+v after %v", got, took)
	}
}
