package reflector

import (
	"cmp"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Bounds of one session's record.
const (
	maxProbes   = 4096
	maxWide     = 64  // probes with a table over all ports, 128 KiB each
	maxEvents   = 32  // per probe
	maxStrays   = 256 // per session
	narrowPorts = 64  // distinct ports that a probe may have before it gets a table
	maxAttempts = 64  // attempts told apart per port of a narrow probe
	wideAttempt = 8   // and of a wide one
)

// A record is what a session's ledger is made from. The zero value is empty.
// It is safe for concurrent use.
type record struct {
	mu      sync.Mutex
	started time.Time
	sources []netip.Addr
	probes  map[uint32]*probeRecord
	wide    int
	strays  []wire.Event
	open    map[tuple][]open          // connections under way; one may carry several probes
	labels  map[netip.AddrPort]uint32 // probes of STUN 5-tuples
	late    int                       // packets that wait for their silence to end
	held    int64                     // bytes that it has of shared
	shared  *budget                   // of all sessions; nil has no end
	dirty   bool                      // since the journal last looked
}

// A tuple is the two ends of a connection.
type tuple struct{ remote, local netip.AddrPort }

// open is a connection under way.
type open struct {
	event wire.Event
	said  *wire.Transcript // which goes on; nil is none
}

func endsOf(e *wire.Event) tuple { return tuple{e.Remote, e.Local} }

// tries are the attempts at one port, a bit for each.
type tries struct{ seen, answered uint64 }

// wideTries is tries for the table over all ports.
type wideTries struct{ seen, answered uint8 }

type probeRecord struct {
	narrow map[uint16]tries
	wide   *[65536]wideTries
	events []wire.Event
	more   int
}

// addSource notes an address that the session came from, and whether it is new.
func (r *record) addSource(a netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sources) >= maxSources || slices.Contains(r.sources, a) {
		return false
	}
	r.sources = append(r.sources, a)
	r.dirty = true
	return true
}

// began notes that the session is older than its first arrival.
func (r *record) began(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.Before(r.started) {
		r.started = at
	}
}

func (r *record) allSources() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sources)
}

// changed tells whether anything came since the last call.
func (r *record) changed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.dirty
	r.dirty = false
	return was
}

// probe gives a probe's record, or nil when the session has too many.
func (r *record) probe(id uint32) *probeRecord {
	r.dirty = true
	p := r.probes[id]
	if p == nil && len(r.probes) < maxProbes {
		if r.probes == nil {
			r.probes = make(map[uint32]*probeRecord)
		}
		if !r.take(probeBytes) {
			return nil
		}
		p = &probeRecord{narrow: make(map[uint16]tries)}
		r.probes[id] = p
	}
	return p
}

// arrival notes one datagram; port is what tells the probe's attempts apart:
// the aimed-at port or, where the near end varies its own, the source port.
// It says whether the datagram is new; a replayed one must not be answered.
func (r *record) arrival(id uint32, port uint16, attempt uint16) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.probe(id)
	if p == nil || attempt >= maxAttempts {
		return false
	}
	if p.wide == nil && len(p.narrow) >= narrowPorts {
		if _, known := p.narrow[port]; !known && !r.widen(p) {
			return false
		}
	}
	if p.wide != nil {
		if attempt >= wideAttempt {
			return false
		}
		t := &p.wide[port]
		fresh := t.seen&(1<<attempt) == 0
		t.seen |= 1 << attempt
		return fresh
	}
	t := p.narrow[port]
	fresh := t.seen&(1<<attempt) == 0
	t.seen |= 1 << attempt
	p.narrow[port] = t
	return fresh
}

// widen gives a probe its table over all ports.
func (r *record) widen(p *probeRecord) bool {
	if r.wide >= maxWide || !r.take(wideBytes) {
		return false
	}
	r.wide++
	p.wide = new([65536]wideTries)
	for port, t := range p.narrow {
		p.wide[port] = wideTries{uint8(t.seen), uint8(t.answered)}
	}
	p.narrow = nil
	return true
}

// answered notes that an arrival was answered.
func (r *record) answered(id uint32, port uint16, attempt uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.probes[id]
	switch {
	case p == nil:
	case p.wide != nil:
		p.wide[port].answered |= 1 << attempt
	default:
		t := p.narrow[port]
		t.answered |= 1 << attempt
		p.narrow[port] = t
	}
}

// begin keeps a connection of a probe until over, or the event of its end.
func (r *record) begin(o open) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.probe(o.event.Probe) != nil {
		r.keep(o)
	}
}

// unproven keeps a connection that has not said yet which probe it is, until
// over, begin or the event of its end.
func (r *record) unproven(o open) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := maxStrays
	if o.event.Stage == protocol.StageConnect {
		room /= 2 // the rest is for those that say something
	}
	if len(r.open) < room {
		r.keep(o)
	}
}

// ofAnother forgets a connection that was unproven and is another session's.
func (r *record) ofAnother(t tuple) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended(&wire.Event{Remote: t.remote, Local: t.local})
}

// keep adds to what is under way; the caller holds the lock. What was unproven on
// a connection is so no more.
func (r *record) keep(o open) {
	if r.open == nil {
		r.open = make(map[tuple][]open)
	}
	r.ended(&o.event)
	t := endsOf(&o.event)
	r.open[t] = append(r.open[t], o)
}

// ended takes away what an event of the same connection puts an end to; the
// caller holds the lock.
func (r *record) ended(e *wire.Event) {
	t := endsOf(e)
	left := slices.DeleteFunc(r.open[t], func(o open) bool { return o.event.Probe == 0 || o.event.Probe == e.Probe })
	if delete(r.open, t); len(left) > 0 {
		r.open[t] = left
	}
}

// event keeps an event of a probe.
func (r *record) event(e wire.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended(&e)
	p := r.probe(e.Probe)
	switch {
	case p == nil:
	case len(p.events) < maxEvents && r.room(&e):
		p.events = append(p.events, e)
	default:
		p.more++
	}
}

// waits counts the packets that wait for their silence to end.
func (r *record) waits(by int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late += by
}

// busy tells whether something of the session is still under way, however
// silent.
func (r *record) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.late > 0 || len(r.open) > 0
}

// stray keeps an arrival without a token that verifies.
func (r *record) stray(e wire.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Transport == scenarios.TCP {
		r.ended(&e)
	}
	r.dirty = true
	if len(r.strays) < maxStrays && r.room(&e) {
		r.strays = append(r.strays, e)
	}
}

// over forgets a connection that was under way.
func (r *record) over(t tuple) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, t)
}

// fill copies the record into a ledger.
func (r *record) fill(l *wire.Ledger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.Started = r.started
	l.Sources = slices.Clone(r.sources)
	l.Strays = slices.Clone(r.strays)
	under := r.underWay()
	for _, e := range under {
		if e.Probe == 0 && len(l.Strays) < maxStrays {
			l.Strays = append(l.Strays, e)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.probes)) {
		p := r.probes[id]
		events := slices.Clone(p.events)
		for _, e := range under {
			if e.Probe == id {
				events = append(events, e)
			}
		}
		l.Probes = append(l.Probes, wire.ProbeRecord{Probe: id, Counts: p.counts(), Events: events, More: p.more})
	}
}

// underWay are the connections under way, in order of arrival, with what was
// said so far as long as the session has room for it: a copy may take no more
// than what it is a copy of. The caller holds the lock.
func (r *record) underWay() []wire.Event {
	var list []wire.Event
	for _, connection := range r.open {
		for _, o := range connection {
			e := o.event
			if o.said != nil {
				e.Said = o.said.Said()
			}
			e.Bound()
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b wire.Event) int {
		return cmp.Or(a.Time.Compare(b.Time), a.Remote.Compare(b.Remote), a.Local.Compare(b.Local))
	})
	held := r.held
	for i := range list {
		if held += int64(list[i].Size()); held > maxRich {
			list[i].Bare()
		}
	}
	return list
}

// counts groups ports that fared alike.
func (p *probeRecord) counts() []wire.Count {
	ports := make(map[[2]int]scenarios.PortSet)
	add := func(port uint16, seen, answered int) {
		k := [2]int{seen, answered}
		ports[k] = appendPort(ports[k], port)
	}
	if p.wide != nil {
		for port, t := range p.wide {
			if t.seen != 0 {
				add(uint16(port), bits.OnesCount8(t.seen), bits.OnesCount8(t.answered))
			}
		}
	}
	for _, port := range slices.Sorted(maps.Keys(p.narrow)) {
		t := p.narrow[port]
		add(port, bits.OnesCount64(t.seen), bits.OnesCount64(t.answered))
	}
	var out []wire.Count
	for k, set := range ports {
		out = append(out, wire.Count{Ports: set, Seen: k[0], Answered: k[1]})
	}
	slices.SortFunc(out, func(a, b wire.Count) int { return int(a.Ports[0].First) - int(b.Ports[0].First) })
	return out
}

// appendPort adds a port that is higher than all in the set.
func appendPort(s scenarios.PortSet, port uint16) scenarios.PortSet {
	if n := len(s); n > 0 && int(s[n-1].Last)+1 == int(port) {
		s[n-1].Last = port
		return s
	}
	return append(s, scenarios.PortRange{First: port, Last: port})
}
