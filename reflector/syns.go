package reflector

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Bounds on remembered SYNs: 200,000 of one address are three sweeps of all ports.
const (
	synPerSource = 200_000
	synSources   = 4096
	synInAll     = 1_000_000
	synKept      = sessionIdle
	synSweep     = time.Minute // between two searches for what is too old: each looks at everything
	// synBefore: SYNs this long before a session began, as far as the reflector
	// knows, may be its own. Longer, and a run repeated after a change of the
	// firewall would be taken for the one before.
	synBefore = 2 * time.Second
	// synGap parts the SYNs of one address in the journal into runs.
	synGap = time.Second
)

// synStore remembers SYNs witnessed below the sockets. A SYN carries no token,
// so it belongs to a session by its source address alone.
type synStore struct {
	mu     sync.Mutex
	from   map[netip.Addr][]synSeen
	total  int
	swept  time.Time // when forget last looked
	missed uint64    // SYNs for which there was no room
}

type synSeen struct {
	at   time.Time
	port uint16
}

func (t *synStore) add(from netip.Addr, port uint16, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.full(from) && at.Sub(t.swept) >= synSweep {
		t.forget(at)
	}
	if t.full(from) {
		t.missed++
		return
	}
	if t.from == nil {
		t.from = make(map[netip.Addr][]synSeen)
	}
	t.from[from] = append(t.from[from], synSeen{at, port})
	t.total++
}

// full tells whether there is no room for another SYN of an address.
func (t *synStore) full(from netip.Addr) bool {
	list, known := t.from[from]
	return t.total >= synInAll || len(list) >= synPerSource || !known && len(t.from) >= synSources
}

// lost is the number of SYNs that came and were not kept.
func (t *synStore) lost() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.missed
}

// forget drops what is too old to belong to a session; the caller holds the lock.
func (t *synStore) forget(now time.Time) {
	t.swept = now
	for a, list := range t.from {
		fresh := slices.DeleteFunc(list, func(s synSeen) bool { return now.Sub(s.at) > synKept })
		t.total -= len(list) - len(fresh)
		if len(fresh) == 0 {
			delete(t.from, a)
			continue
		}
		t.from[a] = fresh
	}
}

// since counts the SYNs of some sources by port, grouped by their number.
func (t *synStore) since(sources []netip.Addr, from time.Time) []wire.Caught {
	t.mu.Lock()
	n := make(map[uint16]int)
	for _, a := range sources {
		for _, s := range t.from[a] {
			if !s.at.Before(from) {
				n[s.port]++
			}
		}
	}
	t.mu.Unlock()
	return caught(n)
}

// bySource is everything remembered, for the journal: for each address an entry
// for every burst, so that runs one after the other are told apart.
func (t *synStore) bySource() []wire.SourceSYNs {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []wire.SourceSYNs
	for _, a := range slices.SortedFunc(maps.Keys(t.from), netip.Addr.Compare) {
		for _, burst := range bursts(t.from[a]) {
			n := make(map[uint16]int)
			for _, s := range burst {
				n[s.port]++
			}
			out = append(out, wire.SourceSYNs{Source: a, First: burst[0].at, Last: burst[len(burst)-1].at, SYNs: caught(n)})
		}
	}
	return out
}

// bursts cuts a list, which is in order of time, where nothing came for a while.
func bursts(list []synSeen) [][]synSeen {
	var out [][]synSeen
	for first, i := 0, 1; i <= len(list); i++ {
		if i == len(list) || list[i].at.Sub(list[i-1].at) > synGap {
			out = append(out, list[first:i])
			first = i
		}
	}
	return out
}

// caught groups ports by their number of SYNs.
func caught(byPort map[uint16]int) []wire.Caught {
	byN := make(map[int]scenarios.PortSet)
	for _, port := range slices.Sorted(maps.Keys(byPort)) {
		byN[byPort[port]] = appendPort(byN[byPort[port]], port)
	}
	var out []wire.Caught
	for _, n := range slices.Sorted(maps.Keys(byN)) {
		out = append(out, wire.Caught{Ports: byN[n], N: n})
	}
	return out
}
