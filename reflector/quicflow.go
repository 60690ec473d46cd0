package reflector

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// Bounds of what is kept of QUIC's datagrams: a full flow takes 14 KiB. They
// bound what is read of Initial packets from whomever as well.
const (
	maxFlows          = 512
	maxFlowsPerSource = 32
	flowIdle          = time.Minute // until a flow may give way to another
)

// quicFlows are the prints of the datagrams that may be QUIC, by their two ends.
// It is safe for concurrent use; the zero value is empty.
type quicFlows struct {
	mu   sync.Mutex
	list []*quicFlow // oldest first
	at   map[tuple]*quicFlow
}

type quicFlow struct {
	wire.Flow
	key    tuple
	source netip.Addr
	last   time.Time
	hello  protocol.InitialReader
}

// heard notes a datagram. A flow is kept from its first datagram on or not at
// all: begins tells that this one may be the first.
func (t *quicFlows) heard(remote, local netip.AddrPort, b []byte, now time.Time, begins bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := tuple{remote, local}
	f := t.at[k]
	if f == nil {
		if !begins || !t.room(sourceOf(remote.Addr()), now) {
			return
		}
		if t.at == nil {
			t.at = make(map[tuple]*quicFlow)
		}
		f = &quicFlow{key: k, Flow: wire.Flow{Remote: unmap(remote), Local: unmap(local)}, source: sourceOf(remote.Addr())}
		t.at[k], t.list = f, append(t.list, f)
	}
	f.last = now
	f.Heard.Add(b)
	f.hello.Read(b)
}

// hello is the ClientHello that came on a flow, as a record of TLS; nil where it
// is not known.
func (t *quicFlows) hello(remote, local netip.AddrPort) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.at[tuple{remote, local}]; f != nil {
		return f.hello.Record()
	}
	return nil
}

// sent notes what goes back on a flow.
func (t *quicFlows) sent(remote, local netip.AddrPort, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.at[tuple{remote, local}]; f != nil {
		f.Sent.Add(b)
	}
}

// room makes room for a flow of a source, if need be in place of the oldest one
// that is idle: the source's own where it has as many as one may have.
func (t *quicFlows) room(source netip.Addr, now time.Time) bool {
	own, idle, idleOwn := 0, -1, -1
	for i, f := range t.list {
		resting := now.Sub(f.last) > flowIdle
		if resting && idle < 0 {
			idle = i
		}
		if f.source == source {
			if own++; resting && idleOwn < 0 {
				idleOwn = i
			}
		}
	}
	switch {
	case own >= maxFlowsPerSource:
		idle = idleOwn
	case len(t.list) < maxFlows:
		return true
	}
	if idle < 0 {
		return false
	}
	delete(t.at, t.list[idle].key)
	t.list = slices.Delete(t.list, idle, idle+1)
	return true
}

// of copies the flows that came from one of the addresses.
func (t *quicFlows) of(sources []netip.Addr) (list []wire.Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.list {
		if slices.Contains(sources, f.Remote.Addr()) {
			c := f.Flow
			c.Sent.First, c.Heard.First = slices.Clone(c.Sent.First), slices.Clone(c.Heard.First)
			list = append(list, c)
		}
	}
	return list
}
