package reflector

import (
	"net/netip"
	"sync"
)

// maxConnsPerSource leaves room for others beside one client that sweeps with
// every worker it has, and beside one stranger that only holds connections.
const maxConnsPerSource = 3000

// sources counts the connections of each source. The zero value is empty.
type sources struct {
	mu sync.Mutex
	n  map[netip.Addr]int
}

// sourceOf is what counts as one: an IPv4 address, or the /64 that one
// subscriber has (RFC 6177).
func sourceOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.Prefix(64) // fails for longer ones only
		return p.Addr()
	}
	return a
}

// enter counts a connection, unless its source has too many.
func (t *sources) enter(a netip.Addr) bool {
	a = sourceOf(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n[a] >= maxConnsPerSource {
		return false
	}
	if t.n == nil {
		t.n = make(map[netip.Addr]int)
	}
	t.n[a]++
	return true
}

func (t *sources) leave(a netip.Addr) {
	a = sourceOf(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n[a]--; t.n[a] == 0 {
		delete(t.n, a)
	}
}
