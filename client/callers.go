package client

import (
	"context"
	"net/netip"
	"sync"

	"github.com/wallprobe/wallprobe/witness"
)

// callers knows which SYNs of the reflector's calls arrived here, although no
// connection may have come of them: a lost answer is not a lost call.
type callers struct {
	from    netip.Addr // the reflector
	packets *witness.Packets
	running sync.WaitGroup
	stop    context.CancelFunc
	hidden  uint64 // SYNs that left nothing half open, before

	mu     sync.Mutex
	syns   map[uint16]int  // of the reflector, by the port called
	others map[uint16]bool // ports that somebody else called
	blind  string          // why a SYN may be missing
}

// watchCalls begins to watch. Without the privilege for packets, what is half
// open at the end is looked at.
func watchCalls(from netip.Addr) *callers {
	c := &callers{from: from.Unmap().WithZone(""), syns: make(map[uint16]int), others: make(map[uint16]bool)}
	packets, err := witness.Open()
	if err != nil {
		c.hidden, _ = witness.Hidden()
		return c
	}
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	c.packets = packets
	c.running.Go(func() { packets.Run(ctx, c.see) })
	return c
}

func (c *callers) see(list []witness.SYN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range list {
		if s.Source.Addr().Unmap().WithZone("") == c.from {
			c.syns[s.Dest.Port()]++
		} else {
			c.others[s.Dest.Port()] = true
		}
	}
}

// end ends the watching. The called ports must listen until then.
func (c *callers) end() {
	switch {
	case c == nil:
	case c.packets != nil:
		if c.packets.Lost() > 0 {
			c.blind = "SYNs arrived here faster than they could be looked at"
		}
		c.stop()
		c.running.Wait()
		c.packets.Close()
	default:
		c.look()
	}
}

// look takes in what is half open. Some SYNs leave nothing; the system counts
// them without a word on whose they were.
func (c *callers) look() {
	list, err := witness.HalfOpen()
	c.see(list)
	hidden, uncounted := witness.Hidden()
	switch {
	case err != nil || uncounted != nil:
		c.blind = "this system does not tell of SYNs that arrive"
	case hidden != c.hidden:
		c.blind = "meanwhile this machine lost sight of SYNs, of which this may have been one"
	}
}

// tell fills in what arrived at a port.
func (c *callers) tell(o *Observation, port uint16) {
	if c == nil {
		return
	}
	o.SYNs = max(o.Arrived, min(c.syns[port], o.Sent)) // one may be sent, or seen, several times
	switch {
	case o.SYNs > 0:
	case c.others[port]:
		o.Blind = "somebody called the port, but from another address than the reflector's"
	default:
		o.Blind = c.blind
	}
}
