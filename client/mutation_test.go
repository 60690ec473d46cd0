package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A mutant is one change to the bytes of one direction of a connection.
type mutant struct {
	up   bool
	at   int64
	kind string
	with byte
}

var mutations = []string{"flipped", "put in", "taken out", "doubled", "the last one"}

func newMutant(r *rand.Rand) mutant {
	return mutant{up: r.IntN(2) == 0, at: r.Int64N(1 << (2 + r.IntN(11))), kind: mutations[r.IntN(len(mutations))], with: byte(1 + r.IntN(255))}
}

// apply changes a piece that begins at offset; hit tells whether it did, done
// that nothing may follow.
func (m mutant) apply(b []byte, offset int64) (out []byte, hit, done bool) {
	i := m.at - offset
	if i < 0 || i >= int64(len(b)) {
		return b, false, false
	}
	switch m.kind {
	case "flipped":
		for (inVersion(b, i) || inPadding(b, i)) && i+1 < int64(len(b)) {
			i++
		}
		b[i] ^= m.with
	case "put in":
		b = slices.Insert(b, int(i), m.with)
	case "taken out":
		b = slices.Delete(b, int(i), int(i)+1)
	case "doubled":
		b = slices.Insert(b, int(i), b[i])
	case "the last one":
		b, done = b[:i+1], true
	}
	return b, true, done
}

// inVersion tells whether a byte may be of the version of a TLS record in clear,
// which nobody may mind (RFC 8446 section 5.1).
func inVersion(b []byte, i int64) bool {
	begins := func(at int64) bool { return at >= 0 && b[at] >= 20 && b[at] <= 22 && b[at+1] == 3 }
	return i >= 1 && begins(i-1) || i >= 2 && begins(i-2)
}

// inPadding tells whether a byte is one of a STUN message that has no meaning
// (RFC 8489 sections 14 and 14.8). Where the message is signed it is covered; in
// TURN's challenge nobody may mind it.
func inPadding(b []byte, i int64) bool {
	if !stun.IsMessage(b) {
		return false
	}
	for at := int64(20); at+4 <= int64(len(b)); {
		value := at + 4
		end := value + int64(binary.BigEndian.Uint16(b[at+2:]))
		reserved := stun.AttrType(binary.BigEndian.Uint16(b[at:])) == stun.AttrErrorCode && (i == value || i == value+1)
		if at = (end + 3) &^ 3; reserved || i >= end && i < at {
			return true
		}
	}
	return false
}

// A served port is one of the reflector's.
type served struct {
	transport scenarios.Transport
	port      uint16
}

// A tamperer stands at an address of its own before a reflector, and does to
// every connection to a port, and to every datagram, what its mutant says.
type tamperer struct {
	at, far netip.Addr

	mu      sync.Mutex
	mutants map[served]mutant
	hit     map[served]bool
}

func (x *tamperer) set(m map[served]mutant) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mutants, x.hit = m, make(map[served]bool)
}

func (x *tamperer) was(s served) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.hit[s]
}

func (x *tamperer) note(s served) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.hit != nil {
		x.hit[s] = true
	}
}

// mutant is what is done in a direction; nil is nothing.
func (x *tamperer) mutant(s served, up bool) *mutant {
	x.mu.Lock()
	defer x.mu.Unlock()
	if m, ok := x.mutants[s]; ok && m.up == up {
		return &m
	}
	return nil
}

// serve takes connections until l is closed, and waits for the last.
func (x *tamperer) serve(l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	s := served{scenarios.TCP, port}
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer near.Close()
			far, err := net.Dial("tcp", netip.AddrPortFrom(x.far, port).String())
			if err != nil {
				return
			}
			defer far.Close()
			var both sync.WaitGroup
			both.Go(func() { x.carry(far.(*net.TCPConn), near.(*net.TCPConn), s, x.mutant(s, true)) })
			both.Go(func() { x.carry(near.(*net.TCPConn), far.(*net.TCPConn), s, x.mutant(s, false)) })
			both.Wait()
		})
	}
}

func (x *tamperer) carry(to, from *net.TCPConn, s served, m *mutant) {
	buf := make([]byte, 8<<10, 8<<10+1)
	var offset int64
	for {
		n, err := from.Read(buf)
		out, hit, last := buf[:n], false, false
		if m != nil {
			out, hit, last = m.apply(out, offset)
		}
		offset += int64(n)
		if _, werr := to.Write(out); werr != nil {
			err = werr
		}
		if last || err != nil {
			to.CloseWrite()
			rest, _ := io.Copy(io.Discard, from)
			hit = hit && (!last || len(out) < n || rest > 0) // else it was the last one anyway
		}
		if hit {
			x.note(s)
		}
		if last || err != nil {
			return
		}
	}
}

// relay does the same for datagrams until c is closed. Each near end has a
// socket of its own before the reflector.
func (x *tamperer) relay(c *net.UDPConn) {
	var wg sync.WaitGroup
	defer wg.Wait()
	s := served{scenarios.UDP, c.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	flows := make(map[netip.AddrPort]*net.UDPConn)
	defer func() {
		for _, far := range flows {
			far.Close()
		}
	}()
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier one
		}
		far := flows[from]
		if far == nil {
			if far, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(x.far, s.port))); err != nil {
				continue
			}
			flows[from] = far
			wg.Go(func() {
				buf := make([]byte, 2048)
				for {
					n, err := far.Read(buf)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					c.WriteToUDPAddrPort(x.datagram(buf[:n], s, false), from)
				}
			})
		}
		far.Write(x.datagram(buf[:n], s, true))
	}
}

// datagram is what becomes of one, wherever in it the mutant's place is.
func (x *tamperer) datagram(b []byte, s served, up bool) []byte {
	m := x.mutant(s, up)
	if m == nil || len(b) == 0 {
		return b
	}
	m.at %= int64(len(b))
	out, _, last := m.apply(b, 0)
	if !last || len(out) < len(b) {
		x.note(s)
	}
	return out
}

// tunnels is a proxy for control, which nobody tampers with.
func (x *tamperer) tunnels(w http.ResponseWriter, req *http.Request) {
	to, err := netip.ParseAddrPort(req.Host)
	if err != nil || req.Method != http.MethodConnect {
		http.Error(w, "tunnels alone", http.StatusBadGateway)
		return
	}
	far, err := net.Dial("tcp", netip.AddrPortFrom(x.far, to.Port()).String())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(far, rw); far.(*net.TCPConn).CloseWrite() })
	wg.Go(func() { io.Copy(near, far); near.(*net.TCPConn).CloseWrite() })
	wg.Wait()
}

// everyProtocol is a scenario of one path for each protocol.
func everyProtocol(t *testing.T, base int) *scenarios.Scenario {
	t.Helper()
	var b strings.Builder
	b.WriteString(`schema: wallprobe/scenario/1
name: every-protocol
title: every protocol
version: 1
sources: [{id: D0, file: own.txt, title: own notes, language: en}]
roles: [{name: agent, title: the agent, site: here}, {name: server, title: the server, site: there}]
paths:
`)
	var ids []string
	for i, name := range append(protocol.Names(), protocol.Datagram, protocol.STUN, protocol.TURN) {
		var over []string
		switch p := protocol.Named(name); {
		case name == protocol.Datagram:
			over = []string{"udp"}
		case p == nil:
			over = []string{"tcp", "udp"}
		default:
			if p.TCP != nil {
				over = append(over, "tcp")
			}
			if p.UDP != nil {
				over = append(over, "udp")
			}
		}
		id := fmt.Sprintf("M-%d", i)
		ids = append(ids, id)
		fmt.Fprintf(&b, "  - {id: %s, title: %s, from: [agent], to: [server], direction: out, transport: [%s], ports: \"%d\", protocol: %s, names: [a.example], need: req, source: D0, quote: q}\n",
			id, name, strings.Join(over, ", "), base+i, name)
	}
	fmt.Fprintf(&b, "outcomes:\n  - {id: all, title: all, roles: [agent], ways: [{title: all, paths: [%s]}]}\n", strings.Join(ids, ", "))
	s, err := scenarios.Parse("every.yaml", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A tampered reflector is one behind a tamperer.
type tampered struct {
	*tamperer
	scenario *scenarios.Scenario
	proxy    *url.URL
	log      *bytes.Buffer // of the reflector; to be read after stop
	stop     func()        // and wait
}

func startTampered(t *testing.T) *tampered {
	t.Helper()
	for range 20 {
		x := &tampered{tamperer: &tamperer{at: netip.MustParseAddr("127.77.0.1"), far: loopback}, log: new(bytes.Buffer)}
		x.scenario = everyProtocol(t, 10000+rand.IntN(9000))
		tcp, udp := scenarios.Ports(x.scenario)
		serve, shut, err := x.listen(tcp, udp)
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			if runtime.GOOS == "linux" {
				t.Fatal(err) // where all of 127/8 is this machine's
			}
			t.Skip(err) // systems where 127.77.0.1 is no address
		}
		if err != nil {
			continue
		}
		r, err := reflector.Listen(reflector.Config{Key: testKey, Addrs: []netip.Addr{loopback}, TCP: tcp, UDP: udp, Mode: steer.Sockets,
			Speaks: protocol.ByPort(x.scenario), Log: slog.New(slog.NewTextHandler(x.log, &slog.HandlerOptions{Level: slog.LevelError}))})
		if _, taken := errors.AsType[*steer.BindError](err); taken {
			shut()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() {
			if err := r.Serve(ctx); err != nil {
				t.Error(err)
			}
		})
		wg.Go(serve)
		proxy := httptest.NewServer(http.HandlerFunc(x.tunnels))
		x.proxy, _ = url.Parse(proxy.URL)
		x.stop = sync.OnceFunc(func() { shut(); cancel(); proxy.CloseClientConnections(); wg.Wait(); proxy.Close() })
		t.Cleanup(x.stop)
		return x
	}
	t.Fatal("no free ports in 20 tries")
	return nil
}

// listen opens all ports or none; serve returns after shut.
func (x *tamperer) listen(tcp, udp scenarios.PortSet) (serve, shut func(), err error) {
	var open []io.Closer
	var each []func()
	shut = func() {
		for _, c := range open {
			c.Close()
		}
	}
	for port := range tcp.All {
		l, err := net.Listen("tcp", netip.AddrPortFrom(x.at, port).String())
		if err != nil {
			shut()
			return nil, nil, err
		}
		open, each = append(open, l), append(each, func() { x.serve(l) })
	}
	for port := range udp.All {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(x.at, port)))
		if err != nil {
			shut()
			return nil, nil, err
		}
		open, each = append(open, c), append(each, func() { x.relay(c) })
	}
	serve = func() {
		var wg sync.WaitGroup
		for _, f := range each {
			wg.Go(f)
		}
		wg.Wait()
	}
	return serve, shut, nil
}

// run measures it; a run that does not end fails with all stacks.
func (x *tampered) run(t *testing.T, timeout time.Duration) *Result {
	t.Helper()
	hung := time.AfterFunc(3*time.Minute, func() {
		b := make([]byte, 1<<20)
		panic(fmt.Sprintf("a run does not end:\n%s", b[:runtime.Stack(b, true)]))
	})
	defer hung.Stop()
	got, err := Run(t.Context(), Config{Scenario: x.scenario, Reflector: x.at, Key: testKey, Proxy: x.proxy, Timeout: timeout, Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// rounds, each with one change to every protocol's exchange: some 300.
const rounds = 8

// Whatever is done to a byte, on whatever protocol, between a real client and a
// real reflector: nobody panics or hangs, nothing is left running, and never is
// a path called open.
func TestTamperedPathIsNeverOpen(t *testing.T) {
	x := startTampered(t)
	for _, f := range x.run(t, 10*time.Second).Findings {
		// The ports of FTP's data connections have nobody before the reflector.
		if (f.Verdict == Open) != (f.Protocol != "ftp") {
			t.Errorf("untampered, %s over %s: %s, %s", f.Protocol, f.Transport, f.Sentence(), f.Why)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	all, hits := 0, 0
	for round := range rounds {
		mutants := make(map[served]mutant)
		for _, p := range x.scenario.Paths {
			for _, t := range p.Transport {
				mutants[served{t, p.Ports[0].First}] = newMutant(r)
			}
		}
		x.set(mutants)
		for _, f := range x.run(t, time.Second).Findings {
			at := served{f.Transport, f.Ports[0].First}
			all++
			if !x.was(at) {
				continue
			}
			if hits++; f.Verdict == Open {
				t.Errorf("round %d, %s over %s: open, though this was done to it: %+v (%s)", round, f.Protocol, f.Transport, mutants[at], f.Sentence())
			}
		}
	}
	x.stop()
	if hits < all/2 {
		t.Errorf("%d of %d exchanges were tampered with", hits, all)
	}
	if x.log.Len() > 0 {
		t.Errorf("the reflector's log:\n%s", x.log)
	}
	nothingRuns(t)
}

// nothingRuns waits for what ends by itself, and fails for what does not.
func nothingRuns(t *testing.T) {
	t.Helper()
	var left []string
	for range 300 {
		b := make([]byte, 1<<20)
		left = nil
		for g := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
			if strings.Contains(g, "wallprobe/") && !strings.Contains(g, "testing.tRunner") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond) // between looks at what ends by itself
	}
	t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
}
