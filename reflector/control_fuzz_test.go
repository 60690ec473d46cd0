package reflector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// controlled gives a call to the reflector as it stands in a request, and waits
// for the agents that it started. Their context ends at once.
func (b *bench) controlled(t *testing.T, from, name string, body []byte, mac string) *http.Response {
	t.Helper()
	stuck := time.AfterFunc(10*time.Second, func() { panic("a call takes more than 10 s of real time") })
	defer stuck.Stop()
	defer b.agents.running.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ctx = ctx
	w := httptest.NewRecorder()
	b.ServeHTTP(w, &http.Request{Method: http.MethodPost, URL: &url.URL{Path: wire.ControlPath + name}, RemoteAddr: from,
		Header: http.Header{wire.MACHeader: {mac}}, Body: io.NopCloser(bytes.NewReader(body))})
	return w.Result()
}

// forget takes away what earlier inputs left, as a new bench is slow to make.
func (b *bench) forget() {
	b.sessions.mu.Lock()
	defer b.sessions.mu.Unlock()
	clear(b.sessions.byID)
	clear(b.sessions.from)
	clear(b.sessions.over)
	b.sessions.ended = nil
}

// Whatever a call asks for, it is answered in the key or refused with a reason,
// and without the key nothing is.
func FuzzControl(f *testing.F) {
	b := newBench(f, Config{})
	ask := func(v any) []byte {
		body, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		return body
	}
	at := b.clock.now()
	for _, own := range []bool{true, false} {
		f.Add(wire.CallHello, ask(wire.HelloRequest{Session: testID, Time: at, Age: -1}), own)
		f.Add(wire.CallLedger, ask(wire.LedgerRequest{Session: testID, Time: at}), own)
		f.Add(wire.CallInward, ask(wire.InwardRequest{Session: testID, Ports: ports(f, "9"), Attempts: 1}), own)
		f.Add(wire.CallICE, ask(wire.ICERequest{Session: testID, Addr: loopback, Ports: ports(f, "20000-65535"), Ufrag: "frag", Pwd: "password", Wait: 1 << 62}), own)
		f.Add(wire.CallBye, ask(wire.ByeRequest{Session: testID, Time: at}), own)
		f.Add("", []byte("{}"), own)
		f.Add(wire.CallHello, []byte(`{"session":"a0","time":1}`), own)
	}
	f.Fuzz(func(t *testing.T, name string, body []byte, own bool) {
		b.forget()
		if _, err := b.sessions.open(testID, at); err != nil {
			t.Fatal(err)
		}
		mac := wire.RequestMAC(wire.Key{9}, name, body)
		if own {
			mac = wire.RequestMAC(testKey, name, body)
		}
		resp := b.controlled(t, "127.77.0.7:50000", name, body, mac)
		var answer json.RawMessage
		err := wire.ReadControl(testKey, &http.Request{Header: http.Header{wire.MACHeader: {mac}}}, name, resp, &answer)
		refused, told := errors.AsType[*wire.ControlError](err)
		switch {
		case calls[name] == nil:
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%q is a call: %d", name, resp.StatusCode)
			}
		case err == nil:
			if !own || len(answer) == 0 {
				t.Errorf("%s %s: answered %s", name, body, answer)
			}
		case !told || refused.Code == "" || refused.Message == "" || own == (refused.Code == "key"):
			t.Errorf("%s %s: %v", name, body, err)
		}
	})
}

// An agent waits on one of the ports that were asked for, gives it back when it
// ends, and nothing that the client says of itself does more.
func FuzzICECall(f *testing.F) {
	const host = "1 1 udp 2130706431 127.77.0.7 9 typ host"
	f.Add("20000-65535", "127.77.0.8", int64(time.Second), "nearfrag", "nearpasswordnearpassword", host)
	f.Add("1-1024", "127.77.0.8", int64(-1), "", "", "candidate:"+host)
	f.Add("30000", "224.0.0.1", int64(0), "f", "p", "1 1 tcp 1 127.77.0.7 9 typ host tcptype active")
	f.Add("30000", "::ffff:127.77.0.8", int64(1)<<62, "f", "p", "1 1 udp 1 a.local 0 typ host")
	f.Add("443", "::1", int64(1), "\x00", "\xff", "1 1 udp 4294967296 127.77.0.7 65536 typ srflx raddr")
	f.Add("40000-40010", "127.77.0.8", int64(1e8), "frag", "pwd", "1 1 udp 1 127.77.0.7 9 typ relay raddr 127.0.0.1 rport 1 generation 0 network-cost")
	b := newBench(f, Config{Inward: true})
	if _, err := b.sessions.open(testID, b.clock.now()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, set, addr string, wait int64, ufrag, pwd, candidate string) {
		asked, err := scenarios.ParsePortSet(set)
		if err != nil {
			return
		}
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return
		}
		q := wire.ICERequest{Session: testID, Time: b.clock.now(), Probe: 5, Addr: a, Ports: asked, Wait: time.Duration(wait), Ufrag: ufrag, Pwd: pwd,
			Candidates: []string{candidate, candidate}}
		body, err := json.Marshal(q)
		if err != nil {
			return // no such text in JSON
		}
		mac := wire.RequestMAC(testKey, wire.CallICE, body)
		resp := b.controlled(t, "127.77.0.7:50000", wire.CallICE, body, mac)
		var reply wire.ICEReply
		if err := wire.ReadControl(testKey, &http.Request{Header: http.Header{wire.MACHeader: {mac}}}, wire.CallICE, resp, &reply); err != nil {
			if _, told := errors.AsType[*wire.ControlError](err); !told {
				t.Errorf("%s: %v", body, err)
			}
			return
		}
		// RFC 8839 section 5.4: 4 characters and 22 at least.
		if !asked.Contains(reply.Port) || reply.Port < 1024 || len(reply.Ufrag) < 4 || len(reply.Pwd) < 22 {
			t.Errorf("%s: %+v", body, reply)
		}
		at := netip.AddrPortFrom(a.Unmap(), reply.Port)
		if b.agents.owner(at) != nil {
			t.Errorf("%s: the agent at %v outlives its context", body, at)
		}
		if c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
			c.Close()
		} else if a.IsLoopback() {
			t.Errorf("%s: %v is still taken: %v", body, at, err)
		}
	})
}
