package relay

import (
	"net/netip"

	"github.com/pion/stun"
)

// maxSeen bounds the Bindings of a generation that are remembered; there are two.
const maxSeen = 32768

// seen knows by their transactions from where authentic Bindings came. A
// retransmission (RFC 8489 section 6.2.1) comes from the same address; what
// somebody recorded and sends again from another one does not, over TCP as
// little as over UDP. The zero value has seen none.
type seen struct {
	young, old map[[stun.TransactionIDSize]byte]netip.Addr
}

// first tells whether a Binding is new or comes from where it came from before.
func (s *seen) first(id [stun.TransactionIDSize]byte, from netip.Addr) bool {
	if was, ok := s.young[id]; ok {
		return was == from
	}
	if was, ok := s.old[id]; ok {
		return was == from
	}
	if len(s.young) >= maxSeen {
		s.old, s.young = s.young, nil
	}
	if s.young == nil {
		s.young = make(map[[stun.TransactionIDSize]byte]netip.Addr)
	}
	s.young[id] = from
	return true
}
