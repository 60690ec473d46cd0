package reflector

import (
	"crypto/rand"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// What one reflector keeps at the most. Sessions exist only for holders of the
// key; the bounds are for mistakes and for stolen keys.
const (
	maxSessions = 1000
	sessionIdle = 15 * time.Minute // after the last sign of life
	byeGrace    = 10 * time.Second // after the client's goodbye, for packets that are still on their way
	clockSkew   = 24 * time.Hour   // how far a client's clock may be off
	maxSources  = 64               // addresses that one session may come from
	maxOver     = 1 << 16          // ended sessions that are remembered
)

var (
	errSessionLimit = errors.New("too many sessions; try again in some minutes")
	errOver         = errors.New("the session has ended")
	errClock        = errors.New("the two ends' clocks differ by more than a day")
)

// A session is one client's stay.
type session struct {
	record
	id      wire.SessionID
	nonce   wire.Nonce
	keys    wire.Keys // with the nonce
	offline wire.Keys // with the zero nonce, for probes sent before control
	touched time.Time
	left    time.Time // when the client said goodbye; zero while it has not
	missed  uint64    // SYNs that the reflector had lost when the session began
}

// sessions is the table of all stays. It is safe for concurrent use.
type sessions struct {
	key wire.Key
	now func() time.Time
	// missed counts the SYNs that the reflector lost so far; nil is none.
	missed func() uint64
	ends   func(*session)             // called without the lock when a session is dropped
	came   func(*session, netip.Addr) // and when one came from an address for the first time; nil is none
	memory budget                     // of all records

	mu   sync.Mutex
	byID map[wire.SessionID]*session
	from map[netip.Addr][]*session // by every address that a proven arrival came from

	// Sessions that ended do not begin anew: a datagram recorded then and sent
	// again would be answered, to whatever address it claims.
	over  map[wire.SessionID]bool
	ended []wire.SessionID // the keys of over, oldest first
}

// open finds or makes a session for somebody who proved to know the key.
// claimed is the sender's clock.
func (t *sessions) open(id wire.SessionID, claimed time.Time) (*session, error) {
	now := t.now()
	if d := now.Sub(claimed); d > clockSkew || d < -clockSkew {
		return nil, errClock
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byID[id]; s != nil {
		s.touched = now
		return s, nil
	}
	if t.over[id] {
		return nil, errOver
	}
	if len(t.byID) >= maxSessions {
		return nil, errSessionLimit
	}
	s := &session{id: id, touched: now}
	rand.Read(s.nonce[:])
	s.keys = wire.Derive(t.key, id, s.nonce)
	s.offline = wire.Derive(t.key, id, wire.Nonce{})
	s.started, s.shared = now, &t.memory
	if t.missed != nil {
		s.missed = t.missed()
	}
	t.byID[id] = s
	return s, nil
}

// find gives a session without making one.
func (t *sessions) find(id wire.SessionID) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// knows tells whether there is such a session, or was.
func (t *sessions) knows(id wire.SessionID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id] != nil || t.over[id]
}

// prove checks a whole message and gives its session, making it when the
// message is the first of a session that began without control.
func (t *sessions) prove(p []byte) (wire.Message, *session, error) {
	m, err := wire.ParseHead(p)
	if err != nil {
		return m, nil, err
	}
	s := t.find(m.Session)
	if s == nil {
		if !m.Offline {
			return m, nil, wire.ErrAltered
		}
		keys := wire.Derive(t.key, m.Session, wire.Nonce{})
		if _, err = wire.Parse(p, &keys); err != nil {
			return m, nil, err
		}
		if s, err = t.open(m.Session, m.Time); err != nil {
			return m, nil, err
		}
	}
	if m, err = wire.Parse(p, s.keysFor(m)); err != nil {
		return m, s, err
	}
	return m, s, nil
}

func (s *session) keysFor(m wire.Message) *wire.Keys {
	if m.Offline {
		return &s.offline
	}
	return &s.keys
}

// touch notes a proven sign of life from an address.
func (t *sessions) touch(s *session, from netip.Addr) {
	from = from.Unmap()
	isNew := s.addSource(from)
	t.mu.Lock()
	s.touched = t.now()
	isNew = isNew && t.byID[s.id] == s
	if isNew {
		t.from[from] = append(t.from[from], s)
	}
	t.mu.Unlock()
	if isNew && t.came != nil {
		t.came(s, from)
	}
}

// of gives the sessions that came from an address.
func (t *sessions) of(from netip.Addr) []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.from[from.Unmap()])
}

// drop removes a session from the table; the caller holds the lock.
func (t *sessions) drop(s *session) {
	delete(t.byID, s.id)
	s.release()
	if t.over == nil {
		t.over = make(map[wire.SessionID]bool)
	}
	if t.over[s.id] = true; len(t.ended) >= maxOver {
		delete(t.over, t.ended[0])
		t.ended = t.ended[1:]
	}
	t.ended = append(t.ended, s.id)
	for _, a := range s.allSources() {
		t.from[a] = slices.DeleteFunc(t.from[a], func(o *session) bool { return o == s })
		if len(t.from[a]) == 0 {
			delete(t.from, a)
		}
	}
}

// all gives every session, for the journal.
func (t *sessions) all() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Values(t.byID))
}

// leave notes that a session's client needs it no more, and tells whether there
// is one. It stays for byeGrace, so that what is still on its way is answered and
// recorded as before.
func (t *sessions) leave(id wire.SessionID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byID[id]
	if s != nil && s.left.IsZero() {
		s.left = t.now()
	}
	return s != nil
}

// lapsed tells whether a session's time is over; the caller holds the lock. After
// a goodbye no sign of life makes it longer: what is late is no client.
func (t *sessions) lapsed(s *session) bool {
	since, stays := s.touched, sessionIdle
	if !s.left.IsZero() {
		since, stays = s.left, byeGrace
	}
	return t.now().Sub(since) > stays && !s.busy()
}

// expire drops what is over; all drops every session.
func (t *sessions) expire(all bool) {
	t.mu.Lock()
	var gone []*session
	for _, s := range t.byID {
		if all || t.lapsed(s) {
			gone = append(gone, s)
			t.drop(s)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(gone, func(a, b *session) int { return a.started.Compare(b.started) })
	for _, s := range gone {
		t.ends(s)
	}
}
