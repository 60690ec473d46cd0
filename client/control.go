package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A farEnd is one reflector as this end knows it.
type farEnd struct {
	where   Where
	addr    netip.Addr
	name    string // of its host; empty where only the address is known
	key     wire.Key
	session wire.SessionID
	began   time.Time // of the run
	keys    wire.Keys
	offline bool     // keys come from the zero nonce: probes did not wait for control
	contact          // what is known of control; empty until it is there
	proxy   *url.URL // that control goes through; nil is none
	http    *http.Client
	delay   time.Duration // round-trip time, when it was known before probing began
	sweep   sync.Mutex    // held by the one sweep that this end has to answer
	trying  chan error    // ends when control is there or every port has failed

	partings partings    // of control
	leaving  atomic.Bool // control is not needed any more
	hellos   protocol.Hellos
	spares   spares
}

// spares counts by port the connections that were begun and on which nothing was
// heard. The zero value has none.
type spares struct {
	mu sync.Mutex
	at map[uint16]int
}

// add counts by more connections at a port.
func (s *spares) add(port uint16, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = make(map[uint16]int)
	}
	s.at[port] += by
}

// all lists the port of each.
func (s *spares) all() (ports []uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, port := range slices.Sorted(maps.Keys(s.at)) {
		ports = append(ports, slices.Repeat([]uint16{port}, s.at[port])...)
	}
	return ports
}

// contact is how control was found.
type contact struct {
	hello *wire.HelloReply
	tried []Tried
	base  string        // "https://host:port" of the port that carries control
	via   string        // "443/tcp"
	rtt   time.Duration // of the TCP handshake with that port
}

// controlPort is one way to try control.
type controlPort struct {
	port     uint16
	secure   bool
	nameless bool // by address, although the host has a name
}

// controlPorts orders the TCP ports of a plan: 443 first.
func controlPorts(p Plan) []controlPort {
	out := []controlPort{{port: 443, secure: true}}
	for _, pr := range p.Probes {
		if pr.Transport != scenarios.TCP || pr.Sweeps() || pr.Where == WhereInward {
			continue
		}
		for port := range pr.Ports.All {
			c := controlPort{port: port, secure: protocol.Secure(pr.Speak)}
			if !slices.ContainsFunc(out, func(o controlPort) bool { return o.port == port }) {
				out = append(out, c)
			}
		}
	}
	return out[:min(len(out), maxControlPorts)]
}

const maxControlPorts = 24

// newFarEnd prepares a reflector; no packet is sent.
func newFarEnd(where Where, addr netip.Addr, key wire.Key, id wire.SessionID, proxy *url.URL) *farEnd {
	d := plaintcp.Dialer()
	if where != WhereFar {
		proxy = nil
	}
	f := &farEnd{proxy: proxy, where: where, addr: addr, key: key, session: id, began: time.Now(), offline: true, keys: wire.Derive(key, id, wire.Nonce{})}
	t := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, // #nosec: calls carry MACs
		MaxIdleConns:    4,
		IdleConnTimeout: 20 * time.Second, // a firewall may forget what says nothing for longer
	}
	dial := d.DialContext
	if proxy != nil {
		t.Proxy, t.OnProxyConnectResponse = http.ProxyURL(proxy), onConnect
	} else { // to the address that was looked up, whatever the name gives now
		dial = func(ctx context.Context, network, to string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(to)
			if err != nil {
				return nil, err
			}
			return d.DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
		}
	}
	t.DialContext = f.inOrder(dial)
	f.http = &http.Client{Transport: t, CheckRedirect: stay}
	return f
}

// A dialFunc is http.Transport.DialContext.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// inOrder makes connections that end in order. Those that never come up, or on which
// something was said in vain, are spares too: a box in between may have connected with
// the far end all the same, and said nothing there.
func (f *farEnd) inOrder(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		spare := func(int) {}
		if _, text, err := net.SplitHostPort(addr); err == nil && f.proxy == nil {
			port, _ := strconv.ParseUint(text, 10, 16)
			spare = func(by int) { f.spares.add(uint16(port), by) }
		}
		spare(1)
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &orderlyConn{Conn: c, partings: &f.partings, leaving: &f.leaving, speaks: f.hellos.Note, hears: func() { spare(-1) }}, nil
	}
}

// stay follows no redirect: whoever sends one, a captive portal, is not the reflector.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (f *farEnd) close() {
	f.leaving.Store(true)
	f.http.CloseIdleConnections()
	f.partings.wait()
}

// connect tries ports one after the other, each a little later than the one
// before, until one carries control. It keeps what each port said. One port that
// refuses may be somebody else's; two are believed.
func (f *farEnd) connect(ctx context.Context, ports []controlPort, stagger time.Duration, program string) (contact, error) {
	type answer struct {
		i     int
		hello wire.HelloReply
		rtt   time.Duration
		err   error
		tried Tried
	}
	if f.name != "" { // which a filter may not like, or a proxy not find
		ports = append(slices.Clone(ports), controlPort{port: ports[0].port, secure: ports[0].secure, nameless: true})
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answer, len(ports))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i, p := range ports {
		wg.Go(func() {
			a := answer{i: i}
			select {
			case <-time.After(time.Duration(i) * stagger):
				a.hello, a.rtt, a.err = f.greet(ctx, f.url(p), program, &a.tried)
			case <-ctx.Done():
				a.err = context.Cause(ctx)
				a.tried.Error = sentence(a.err)
			}
			a.tried.Port = p.port
			answers <- a
		})
	}
	tried := make([]Tried, len(ports))
	var refusals []*wire.ControlError
	refusing := make(map[uint16]bool)
	for range ports {
		a := <-answers
		tried[a.i] = a.tried
		if refusal, ok := errors.AsType[*wire.ControlError](a.err); ok && !refusing[a.tried.Port] {
			refusing[a.tried.Port] = true
			if refusals = append(refusals, refusal); len(refusals) == 2 {
				break
			}
		}
		if a.err == nil {
			return contact{hello: &a.hello, rtt: a.rtt, base: f.url(ports[a.i]), via: fmt.Sprintf("%d/tcp", ports[a.i].port)}, nil
		}
	}
	if len(refusals) > 0 {
		return contact{}, refusals[0]
	}
	var c contact
	for _, t := range tried {
		if !slices.Contains(c.tried, t) { // by name and by address alike
			c.tried = append(c.tried, t)
		}
	}
	return c, nil
}

// adopt lets probes use keys that both ends' nonces went into. It must not be
// called once probes are on their way.
func (f *farEnd) adopt() {
	if f.hello != nil {
		f.delay = f.rtt
		f.keys, f.offline = wire.Derive(f.key, f.session, f.hello.Nonce), false
	}
}

// url says the host's name where there is one, which is then the server name of
// TLS and what a proxy is asked for: many allow no bare addresses.
func (f *farEnd) url(p controlPort) string {
	scheme, host := "http", f.name
	if p.secure {
		scheme = "https"
	}
	if host == "" || p.nameless {
		host = f.addr.String()
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(p.port)))
}

// greet says hello and measures the round-trip time by the way. Why it failed is
// in tried.
func (f *farEnd) greet(ctx context.Context, base, program string, tried *Tried) (hello wire.HelloReply, rtt time.Duration, err error) {
	var c reach
	err = f.call(c.trace(ctx), base, wire.CallHello, wire.HelloRequest{Session: f.session, Time: time.Now(), Age: time.Since(f.began), Program: program}, &hello)
	tried.Error, tried.Proxy = f.failed(err, &c)
	return hello, time.Duration(c.took.Load()), err
}

func (f *farEnd) call(ctx context.Context, base, name string, body, into any) error {
	req, err := wire.NewControl(f.key, base, name, body)
	if err != nil {
		return err
	}
	resp, err := f.http.Do(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err = wire.ReadControl(f.key, req, name, resp, into); f.proxy != nil && req.URL.Scheme == "http" {
		err = viaProxy(err, resp)
	}
	return err
}

// ledgerTries: a kept connection may be broken, one that waited at a reflector which
// ends as well. The one after that is refused, or answered by whoever came in its place.
const ledgerTries = 3

// ledger fetches what the far end saw; nil when control has no way. A connection that
// broke, as a firewall breaks those that it forgets, says nothing of the far end:
// another is tried.
func (f *farEnd) ledger(ctx context.Context) (l *wire.Ledger, err error) {
	if f.base == "" {
		return nil, errors.New("no port carries control")
	}
	for range ledgerTries {
		l = new(wire.Ledger)
		err = f.call(ctx, f.base, wire.CallLedger, wire.LedgerRequest{Session: f.session, Time: time.Now()}, l)
		if err == nil {
			return l, nil
		}
		if !broke(err) {
			break
		}
	}
	return nil, err
}

// broke tells whether a connection that had been there ended before the answer.
func broke(err error) bool {
	fault := protocol.FaultOf(err)
	return fault == protocol.FaultReset || fault == protocol.FaultEOF
}

// bye lets the far end forget the session.
func (f *farEnd) bye(ctx context.Context) error {
	return f.call(ctx, f.base, wire.CallBye, wire.ByeRequest{Session: f.session, Time: time.Now()}, new(wire.ByeReply))
}

const (
	noAnswer     = "no answer"
	proxyConnect = "proxyconnect" // the net.OpError of net/http for a connection with a proxy
)

// sentence shortens a dial error to what a person needs.
func sentence(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return noAnswer
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return noAnswer
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if o, ok := errors.AsType[*net.OpError](err); ok && o.Err != nil {
		if o.Op == proxyConnect {
			return "the proxy: " + sentence(o.Err)
		}
		err = o.Err
	}
	if protocol.FaultOf(err) == protocol.FaultEOF {
		return "the connection was closed"
	}
	return err.Error()
}
