package reflector

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// maxRecent bounds the arrivals that are remembered for sessions which turn out
// later to come from that address.
const maxRecent = 2048

// maxRecentBytes bounds those of them that have their dialogues and handshakes
// still; the older ones lose them.
const maxRecentBytes = 4 << 20

// recent remembers the last arrivals without a token that verifies, whoever
// sent them. The zero value is empty. It is safe for concurrent use.
type recent struct {
	mu   sync.Mutex
	list []wire.Event
	next int
	held int // bytes of what is not bare
	full int // so many of the last are not bare
}

func (r *recent) add(e wire.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < maxRecent {
		r.list = append(r.list, e)
	} else {
		if r.full == maxRecent {
			r.bare()
		}
		r.list[r.next] = e
		r.next = (r.next + 1) % maxRecent
	}
	r.held += e.Size()
	for r.full++; r.held > maxRecentBytes; {
		r.bare()
	}
}

// bare takes what makes it large from the oldest arrival that has it still.
func (r *recent) bare() {
	n := len(r.list)
	e := &r.list[(r.next+n-r.full)%n]
	r.held -= e.Size()
	e.Bare()
	r.full--
}

// from are the arrivals from some addresses since a time, in order.
func (r *recent) from(sources []netip.Addr, since time.Time) []wire.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []wire.Event
	for i := range r.list {
		if e := r.list[(r.next+i)%len(r.list)]; !e.Time.Before(since) && slices.Contains(sources, e.Remote.Addr()) {
			out = append(out, e)
		}
	}
	return out
}

// tie adds to a ledger what came before it was known that the session comes
// from that address, as through a proxy with an address of its own: a proven
// arrival tells, and so does a changed one that still names the session.
func (r *Reflector) tie(l *wire.Ledger) {
	sources := slices.Clone(l.Sources)
	for _, e := range l.Strays {
		if e.Session == l.Session {
			sources = append(sources, e.Remote.Addr())
		}
	}
	type arrival struct {
		at            time.Time
		remote, local netip.AddrPort
	}
	known := make(map[arrival]bool)
	for _, e := range l.Strays {
		known[arrival{e.Time, e.Remote, e.Local}] = true
	}
	other := func(e wire.Event) bool {
		return e.Session != (wire.SessionID{}) && e.Session != l.Session && r.sessions.knows(e.Session)
	}
	for _, e := range r.recent.from(sources, l.Started.Add(-synBefore)) {
		if len(l.Strays) < maxStrays && !known[arrival{e.Time, e.Remote, e.Local}] && !other(e) {
			l.Strays = append(l.Strays, e)
		}
	}
}
