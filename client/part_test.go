package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// speaksLast is a far end that has more to say when this end has left. It tells
// how that went.
func speaksLast(t *testing.T) (near net.Conn, ended chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, far) // until this end leaves
		_, _ = io.WriteString(far, "good")
		time.Sleep(50 * time.Millisecond) // in which a reset would come
		_, err := io.WriteString(far, "bye")
		ended <- err
		far.Close()
	}()
	return near, ended
}

// However a connection is left, what the far end still says is read.
func TestConnectionsAreReadToTheirEnd(t *testing.T) {
	for name, leave := range map[string]func(p *partings, c net.Conn){
		"of a probe":             func(p *partings, c net.Conn) { p.part(t.Context(), c, false) },
		"of control, at the end": func(p *partings, c net.Conn) { orderly(p, c, true).Close() },
		"of control, before":     func(p *partings, c net.Conn) { orderly(p, c, false).Close() },
		"of control, twice": func(p *partings, c net.Conn) {
			o := orderly(p, c, true)
			o.Close()
			o.Close()
		},
	} {
		c, ended := speaksLast(t)
		var p partings
		leave(&p, c)
		if err := <-ended; err != nil {
			t.Errorf("a connection %s: %v", name, err)
		}
		p.wait()
	}
}

func orderly(p *partings, c net.Conn, leaving bool) *orderlyConn {
	o := &orderlyConn{Conn: c, partings: p, leaving: new(atomic.Bool), speaks: func([]byte) {}, hears: func() {}}
	o.leaving.Store(leaving)
	return o
}

// A far end that says nothing more holds a run up for a moment at the most, and
// not at all where something may be wrong, or somebody wants the end.
func TestPartingHoldsNobodyUp(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for name, c := range map[string]struct {
		ctx   context.Context
		loose bool
		most  time.Duration
	}{"in order": {t.Context(), false, 2 * parting}, "loose": {t.Context(), true, parting / 2}, "stopped": {stopped, false, parting / 2}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		near, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var p partings
		p.part(c.ctx, near, c.loose)
		p.wait()
		if took := time.Since(began); took > c.most {
			t.Errorf("%s: %v", name, took)
		}
		l.Close()
	}
}

// Only the near end knows which connections are its own, and where they led.
func TestSparesAreCountedUntilSomethingIsHeard(t *testing.T) {
	proxy := &url.URL{Scheme: "http", Host: "192.0.2.1:3128"}
	for name, c := range map[string]struct {
		proxy *url.URL
		hears bool
		fails error
		want  []uint16
	}{
		"heard something":    {hears: true},
		"heard nothing":      {want: []uint16{8002}},
		"never came up":      {fails: errors.New("given up"), want: []uint16{8002}}, // here
		"led to a proxy":     {proxy: proxy},
		"a proxy that fails": {proxy: proxy, fails: errors.New("given up")},
	} {
		f := farEnd{proxy: c.proxy}
		near, far := net.Pipe()
		go io.Copy(far, far)
		conn, err := f.inOrder(func(context.Context, string, string) (net.Conn, error) { return near, c.fails })(t.Context(), "tcp", "reflector.example:8002")
		if err != c.fails {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			conn.Write([]byte("x"))
		}
		if c.hears {
			conn.Read(make([]byte, 1))
		}
		if got := f.spares.all(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
		near.Close()
		far.Close()
	}
}
