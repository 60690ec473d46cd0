package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A farEnd is one reflector as this end knows it.
type farEnd struct {
	where   Where
	addr    netip.Addr
	key     wire.Key
	session wire.SessionID
	began   time.Time // of the run
	keys    wire.Keys
	offline bool // keys come from the zero nonce: probes did not wait for control
	contact      // what is known of control; empty until it is there
	http    *http.Client
	delay   time.Duration // round-trip time, when it was known before probing began
	sweep   sync.Mutex    // held by the one sweep that this end has to answer
	trying  chan error    // ends when control is there or every port has failed
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
	port   uint16
	secure bool
}

// controlPorts orders the TCP ports of a plan: 443 first.
func controlPorts(p Plan) []controlPort {
	out := []controlPort{{443, true}}
	for _, pr := range p.Probes {
		if pr.Transport != scenarios.TCP || pr.Sweeps() || pr.Where == WhereInward {
			continue
		}
		for port := range pr.Ports.All {
			c := controlPort{port, protocol.Secure(pr.Speak)}
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
	d := &net.Dialer{}
	d.SetMultipathTCP(false) // it would change what the firewall sees
	t := &http.Transport{
		DialContext:     d.DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, // #nosec: calls carry MACs
		MaxIdleConns:    4,
		IdleConnTimeout: 20 * time.Second, // a firewall may forget what says nothing for longer
	}
	if proxy != nil && where == WhereFar {
		t.Proxy = http.ProxyURL(proxy)
	}
	return &farEnd{where: where, addr: addr, key: key, session: id, began: time.Now(), offline: true,
		keys: wire.Derive(key, id, wire.Nonce{}), http: &http.Client{Transport: t, CheckRedirect: stay}}
}

// stay follows no redirect: whoever sends one, a captive portal, is not the reflector.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (f *farEnd) close() { f.http.CloseIdleConnections() }

// connect tries ports one after the other, each a little later than the one
// before, until one carries control. It keeps what each port said. One port that
// refuses may be somebody else's; two are believed.
func (f *farEnd) connect(ctx context.Context, ports []controlPort, stagger time.Duration, program string) (contact, error) {
	type answer struct {
		i     int
		hello wire.HelloReply
		rtt   time.Duration
		err   error
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
				a.hello, a.rtt, a.err = f.greet(ctx, f.url(p), program)
			case <-ctx.Done():
				a.err = context.Cause(ctx)
			}
			answers <- a
		})
	}
	said := make([]error, len(ports))
	var refusals []*wire.ControlError
	for range ports {
		a := <-answers
		said[a.i] = a.err
		if refusal, ok := errors.AsType[*wire.ControlError](a.err); ok {
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
	for i, p := range ports {
		c.tried = append(c.tried, Tried{Port: p.port, Error: sentence(said[i])})
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

func (f *farEnd) url(p controlPort) string {
	scheme := "http"
	if p.secure {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(f.addr.String(), strconv.Itoa(int(p.port)))
}

// greet says hello and measures the round-trip time by the way.
func (f *farEnd) greet(ctx context.Context, base, program string) (hello wire.HelloReply, rtt time.Duration, err error) {
	var began, took atomic.Int64 // a connection may still be tried when the call has ended
	start := time.Now()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectStart: func(string, string) { began.Store(int64(time.Since(start))) },
		ConnectDone:  func(string, string, error) { took.Store(int64(time.Since(start)) - began.Load()) },
	})
	err = f.call(ctx, base, wire.CallHello, wire.HelloRequest{Session: f.session, Time: time.Now(), Age: time.Since(f.began), Program: program}, &hello)
	return hello, time.Duration(took.Load()), err
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
	return wire.ReadControl(f.key, req, name, resp, into)
}

// ledger fetches what the far end saw; nil when control has no way.
func (f *farEnd) ledger(ctx context.Context) (*wire.Ledger, error) {
	if f.base == "" {
		return nil, errors.New("no port carries control")
	}
	var l wire.Ledger
	if err := f.call(ctx, f.base, wire.CallLedger, wire.LedgerRequest{Session: f.session, Time: time.Now()}, &l); err != nil {
		return nil, err
	}
	return &l, nil
}

// sentence shortens a dial error to what a person needs.
func sentence(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return "no answer"
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return "no answer"
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if o, ok := errors.AsType[*net.OpError](err); ok && o.Err != nil {
		err = o.Err
	}
	return err.Error()
}
