// Package reflector is the far end: it listens on every documented port,
// speaks what belongs there, answers only what proves to know the key, and
// keeps a ledger of every arrival.
//
// It is made to stand on the open internet: an unproven source never gets more
// bytes than it sent, and everything per source and per session has a bound.
package reflector

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/relay"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
	"github.com/wallprobe/wallprobe/witness"
)

// Config says what to serve. Key and the ports are needed; the rest has good zero values.
type Config struct {
	Key          wire.Key
	Addrs        []netip.Addr // to listen on; empty is every address, IPv4 and IPv6
	TCP, UDP     scenarios.PortSet
	First        steer.Ports              // bound before the others where not all can be
	Speaks       map[protocol.Port]string // what is said where the first bytes do not tell; see protocol.ByPort
	Mode         steer.Mode
	AllowUnbound bool
	Inward       bool      // probe a session's own address when it asks
	PrivatePeers bool      // relay to private addresses that are the session's own: for labs
	PlainSTUN    bool      // answer STUN without credentials, rate-limited
	Journal      io.Writer // JSON lines for wallprobe merge; nil keeps none
	Log          *slog.Logger
	Program      string           // version, told to clients
	Now          func() time.Time // nil is time.Now
}

// A Reflector is bound by Listen and works while Serve runs.
type Reflector struct {
	cfg      Config
	set      *steer.Set
	unserved []wire.Unserved
	sessions sessions
	journal  journal
	ca       *authority
	relay    *relay.Server
	quic     *quicPort
	agents   agents   // of ICE
	inside   sync.Map // *wire.TLSSeen of connections that carry STUN, by netip.AddrPort of the near end
	conns    sources
	unproven unproven
	late     later
	witness  *witness.Packets
	syns     synStore
	recent   recent
	half     atomic.Bool // half-open connections can be listed
	started  time.Time
	own      map[netip.Addr]bool // this host's addresses: never peers of a relay
	ctx      context.Context
	calls    chan struct{} // bounds inward probes under way
	data     chan struct{} // bounds the ports of its own that wait for data connections
	panics   atomic.Int64
}

// Listen binds every port or none; nothing runs yet.
func Listen(cfg Config) (*Reflector, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ca, err := newAuthority(cfg.Now())
	if err != nil {
		return nil, err
	}
	set, err := steer.Listen(steer.Config{Addrs: cfg.Addrs, TCP: cfg.TCP, UDP: cfg.UDP, First: cfg.First, Mode: cfg.Mode, AllowUnbound: cfg.AllowUnbound})
	if err != nil {
		return nil, err
	}
	r := &Reflector{cfg: cfg, set: set, ca: ca, started: cfg.Now(), own: ownAddrs(), ctx: context.Background(), calls: make(chan struct{}, maxInward), data: make(chan struct{}, maxData)}
	r.sessions = sessions{key: cfg.Key, now: cfg.Now, missed: r.missed, ends: r.ended, came: r.unproven.tell, byID: make(map[wire.SessionID]*session), from: make(map[netip.Addr][]*session)}
	r.journal.w = cfg.Journal
	r.relay = relay.New(r.relayConfig())
	r.quic = newQUICPort(r)
	for _, u := range set.Unserved() {
		r.unserved = append(r.unserved, wire.Unserved{Transport: u.Transport, Ports: u.Ports, Reason: u.Err.Error()})
	}
	r.witness, err = witness.Open(cfg.Addrs...)
	if err != nil {
		cfg.Log.Debug("no packet witness", "error", err)
		_, err = witness.HalfOpen()
		r.half.Store(err == nil)
	}
	return r, nil
}

// Describe gives sentences for the start: how ports are served, which are not.
func (r *Reflector) Describe() []string {
	lines := []string{r.set.Mechanism()}
	for _, u := range r.set.Unserved() {
		lines = append(lines, u.String())
	}
	switch r.witnessKind() {
	case "packet":
		lines = append(lines, "SYNs are witnessed below the sockets: a lost answer is told from a lost request")
	case "half-open":
		lines = append(lines, "half-open connections are watched: a lost TCP answer is told from a lost request while it is fresh")
	default:
		lines = append(lines, "SYNs cannot be witnessed here: a TCP connection that never opens will be told as silent")
	}
	return lines
}

// Served gives the ports that are open.
func (r *Reflector) Served() (tcp, udp scenarios.PortSet) { return r.set.Served() }

// Descriptors counts the open sockets.
func (r *Reflector) Descriptors() int { return r.set.Descriptors() }

func (r *Reflector) witnessKind() string {
	switch {
	case r.witness != nil:
		return "packet"
	case r.half.Load():
		return "half-open"
	}
	return ""
}

func (r *Reflector) now() time.Time { return r.cfg.Now() }

// Serve works until ctx ends. When it returns, every ledger is in the journal
// and everything that it started has ended.
func (r *Reflector) Serve(ctx context.Context) error {
	defer r.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.ctx = ctx
	var wg sync.WaitGroup
	part := func(name string, fn func(context.Context) error) {
		wg.Go(func() {
			defer func() {
				if v := recover(); v != nil { // without this part it cannot go on; the ledgers are still kept
					r.panicked(name, netip.AddrPort{}, v)
					cancel(fmt.Errorf("%s: panic: %v", name, v))
				}
			}()
			if err := fn(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("relay", r.relay.Run)
	part("quic", r.quic.run)
	part("ports", func(ctx context.Context) error { return r.set.Serve(ctx, r) })
	if r.witness != nil {
		part("SYN witness", func(ctx context.Context) error { return r.witness.Run(ctx, r.witnessed) })
	}
	part("journal", r.keepBooks)
	<-ctx.Done()
	wg.Wait()
	r.agents.wait()
	r.late.stop()
	r.sessions.expire(true)
	r.journal.close(r)
	if err := context.Cause(ctx); err != context.Canceled {
		return err
	}
	if err := r.journal.Err(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Close gives up the ports; Serve does it by itself.
func (r *Reflector) Close() error {
	if r.witness != nil {
		r.witness.Close()
	}
	return r.set.Close()
}

func (r *Reflector) witnessed(batch []witness.SYN) {
	for _, s := range batch {
		r.syns.add(s.Source.Addr().Unmap(), s.Dest.Port(), s.Time)
	}
}

// keepBooks writes changed ledgers to the journal, drops idle sessions and,
// without a packet witness, looks at half-open connections.
func (r *Reflector) keepBooks(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r.lookHalfOpen()
		for _, s := range r.sessions.all() {
			if r.cfg.Journal != nil && s.changed() {
				r.journal.ledger(r.ledger(s))
			}
		}
		r.sessions.expire(false)
	}
}

// lookHalfOpen adds connections that wait for the last part of the handshake.
func (r *Reflector) lookHalfOpen() {
	if !r.half.Load() {
		return
	}
	list, err := witness.HalfOpen()
	if err != nil {
		r.half.Store(false)
		return
	}
	r.witnessed(list)
}

// ended keeps the ledger of a session that is over.
func (r *Reflector) ended(s *session) { r.journal.ledger(r.ledger(s)) }
