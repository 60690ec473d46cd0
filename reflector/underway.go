package reflector

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// underWay is protocol.Far for one connection: ledgers tell of it from the moment
// that it was accepted, with what was said so far, and not only when it has ended.
// A near end that waited in vain would else learn that there was no connection.
type underWay struct {
	*Reflector
	told *told
	ends tuple

	mu    sync.Mutex
	event wire.Event
	said  *wire.Transcript // nil where nothing is said in text
}

// underWay begins in a stage of one who has proven nothing.
func (r *Reflector) underWay(ctx context.Context, arrived wire.Event, stage string) *underWay {
	u := &underWay{Reflector: r, event: arrived, ends: endsOf(&arrived)}
	if u.told, _ = ctx.Value(toldKey{}).(*told); u.told == nil {
		u.told = new(told)
	}
	u.event.Stage, u.event.Unfinished, u.event.TLS = stage, true, protocol.Inside(ctx)
	return u
}

// in goes on in another stage.
func (u *underWay) in(stage string) *underWay {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.event.Stage = stage
	return u
}

// soFar is what there is to tell.
func (u *underWay) soFar() open {
	u.mu.Lock()
	defer u.mu.Unlock()
	return open{u.event, u.said}
}

// Tell is protocol.Far: before a token, the sessions of that address are told,
// those that begin later as well.
func (u *underWay) Tell(said *wire.Transcript) {
	u.mu.Lock()
	u.said = said
	u.mu.Unlock()
	u.unproven.add(u) // before it is asked for sessions, so that none is missed that begins just now
	for _, s := range u.sessions.of(u.ends.remote.Addr()) {
		u.told.tell(s, u.soFar())
	}
}

// Shake is protocol.Far.
func (u *underWay) Shake(seen wire.TLSSeen) {
	u.mu.Lock()
	u.event.Stage, u.event.TLS = protocol.StageTLS, &seen
	said := u.said
	u.mu.Unlock()
	u.Tell(said)
}

// Prove is protocol.Far.
func (u *underWay) Prove(p []byte, from net.Addr) (wire.Message, *wire.Keys, error) {
	m, keys, err := u.Reflector.Prove(p, from)
	if err != nil || m.Kind != wire.Request {
		return m, keys, err
	}
	if s := u.sessions.find(m.Session); s != nil {
		o := u.soFar()
		o.event.Session, o.event.Probe, o.event.Attempt, o.event.Stage = m.Session, m.Probe, m.Attempt, protocol.StageToken
		u.told.add(s)
		u.claim(s)
		s.begin(o)
	}
	return m, keys, err
}

// Control is protocol.Far: no ledger tells of what is for control.
func (u *underWay) Control() http.Handler {
	u.claim(nil)
	return u.Reflector.Control()
}

// claim: the connection is known to be a session's, nil for none of them, so that
// the ledgers of others tell of it no more.
func (u *underWay) claim(s *session) {
	u.unproven.remove(u.ends)
	u.told.hush(s, u.ends)
}

// unproven are the connections under way that may be those of a session of which
// nobody knows yet. There are no more of them than connections.
type unproven struct {
	mu   sync.Mutex
	from map[netip.Addr]map[tuple]*underWay
}

func (p *unproven) add(u *underWay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := u.ends.remote.Addr()
	if p.from == nil {
		p.from = make(map[netip.Addr]map[tuple]*underWay)
	}
	if p.from[from] == nil {
		p.from[from] = make(map[tuple]*underWay)
	}
	p.from[from][u.ends] = u
}

func (p *unproven) remove(t tuple) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.from[t.remote.Addr()]
	if delete(from, t); len(from) == 0 {
		delete(p.from, t.remote.Addr())
	}
}

// tell tells a session of the connections from an address that is its own from
// now on.
func (p *unproven) tell(s *session, from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.from[from] {
		u.told.tell(s, u.soFar())
	}
}

// told are the sessions whose ledgers tell of a connection under way. When it
// ends they must not any more, whatever became of its event: a session with
// something under way does not expire.
type told struct {
	mu    sync.Mutex
	list  []*session
	quiet bool // nobody else is told any more
}

type toldKey struct{}

// tell lets the ledgers of one more session tell of the connection.
func (t *told) tell(s *session, o open) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.quiet {
		return
	}
	t.remember(s)
	s.unproven(o)
}

// add remembers a session that was told.
func (t *told) add(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remember(s)
}

func (t *told) remember(s *session) {
	if !slices.Contains(t.list, s) {
		t.list = append(t.list, s)
	}
}

// hush: the connection is but's, or nobody's, and not that of any other session.
func (t *told) hush(but *session, ends tuple) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quiet = true
	for _, s := range t.list {
		if s != but {
			s.ofAnother(ends)
		}
	}
}

// left: the connection has ended.
func (t *told) left(ends tuple) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quiet = true
	for _, s := range t.list {
		s.over(ends)
	}
}
