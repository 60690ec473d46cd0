package relay

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun"
)

// serve carries out an authenticated TURN request: it checks it, writes it
// anew and hands it to the allocation's own pion server, which answers. A
// code other than 0 is the answer instead.
func (s *Server) serve(o origin, req *stun.Message, u user) (stun.ErrorCode, string) {
	a := s.lookup(o.tuple)
	if a != nil && a.username != u.name {
		return stun.CodeWrongCredentials, "another user's allocation"
	}
	if req.Type.Method == stun.MethodAllocate {
		return s.allocate(o, req, u, a)
	}
	if a == nil {
		return stun.CodeAllocMismatch, "no allocation"
	}
	switch req.Type.Method {
	case stun.MethodRefresh:
		return a.refresh(req, u)
	case stun.MethodChannelBind:
		return a.bindChannel(req, u)
	}
	return a.permit(req, u)
}

// allocate serves RFC 8656 section 7.2; the reservation of ports is not
// offered.
func (s *Server) allocate(o origin, req *stun.Message, u user, a *allocation) (stun.ErrorCode, string) {
	transport, err := req.Get(stun.AttrRequestedTransport)
	switch {
	case err != nil || len(transport) != 4:
		return stun.CodeBadRequest, "no requested transport"
	case transport[0] != requestedUDP:
		return stun.CodeUnsupportedTransProto, "requested transport is not udp"
	case reserves(req):
		return stun.CodeInsufficientCapacity, "no port reservation"
	}
	if a == nil {
		addr, ok := s.relayAddr(o, req)
		if !ok {
			return stun.CodeAddrFamilyNotSupported, "no relay address of that family"
		}
		var code stun.ErrorCode
		var reason string
		if a, code, reason = s.admit(o, u, addr); code != 0 {
			s.cfg.Count("turn-quota")
			return code, reason
		}
		a.even = req.Contains(stun.AttrEvenPort)
		if err := a.start(); err != nil {
			s.cfg.Count("turn-socket")
			return stun.CodeInsufficientCapacity, "no relay socket"
		}
	}
	a.submit(req, u, netip.AddrPort{}, func(m *stun.Message) {
		m.Add(stun.AttrRequestedTransport, []byte{requestedUDP, 0, 0, 0})
		m.Add(stun.AttrLifetime, s.lifetime(req, false))
	})
	return 0, ""
}

// reserves reports whether a request wants a port beside its own kept for later
// (RFC 8656 sections 18.6 and 18.7). An even port alone can be had.
func reserves(req *stun.Message) bool {
	v, err := req.Get(stun.AttrEvenPort)
	return err == nil && (len(v) != 1 || v[0]&0x80 != 0) || req.Contains(stun.AttrReservationToken)
}

// relayAddr chooses the relay's address. REQUESTED-ADDRESS-FAMILY (RFC 8656
// section 18.8) is obeyed; without it the family is the reflector's choice,
// not always IPv4, so that a client on an IPv6-only path gets a relay at all.
func (s *Server) relayAddr(o origin, req *stun.Message) (netip.Addr, bool) {
	addr, ok := s.cfg.RelayAddr(o.local.Addr())
	addr = addr.Unmap()
	if v, err := req.Get(stun.AttrRequestedAddressFamily); err == nil && ok {
		ok = len(v) == 4 && (v[0] == 1 && addr.Is4() || v[0] == 2 && addr.Is6())
	}
	return addr, ok && addr.IsValid()
}

// lifetime returns the LIFETIME to grant, in seconds as on the wire. Zero
// ends an allocation, but cannot begin one.
func (s *Server) lifetime(req *stun.Message, mayEnd bool) []byte {
	limit := uint32(s.cfg.Limits.Lifetime / time.Second)
	asked := limit
	if v, err := req.Get(stun.AttrLifetime); err == nil && len(v) == 4 {
		asked = min(binary.BigEndian.Uint32(v), limit)
	}
	if asked == 0 && !mayEnd {
		asked = limit
	}
	return binary.BigEndian.AppendUint32(nil, asked)
}

func (a *allocation) refresh(req *stun.Message, u user) (stun.ErrorCode, string) {
	a.submit(req, u, netip.AddrPort{}, func(m *stun.Message) {
		m.Add(stun.AttrLifetime, a.s.lifetime(req, true))
	})
	return 0, ""
}

// permit serves CreatePermission (RFC 8656 section 10.2): all of the peers or
// none of them.
func (a *allocation) permit(req *stun.Message, u user) (stun.ErrorCode, string) {
	peers, code, reason := a.peersOf(req)
	if code != 0 {
		return code, reason
	}
	if !a.vouch(peers, 0) {
		a.s.cfg.Count("turn-quota")
		return stun.CodeInsufficientCapacity, "too many permissions"
	}
	a.submit(req, u, peers[0], func(m *stun.Message) {
		for _, p := range peers {
			addPeer(m, p)
		}
	})
	return 0, ""
}

// bindChannel serves ChannelBind (RFC 8656 section 12.2) for the channels 0x4000
// to 0x7FFF that RFC 5766 section 11 has. Those from 0x5000 on, which RFC 8656
// leaves to others on a shared port, are told by their allocation.
func (a *allocation) bindChannel(req *stun.Message, u user) (stun.ErrorCode, string) {
	v, err := req.Get(stun.AttrChannelNumber)
	if err != nil || len(v) != 4 || v[0]>>6 != 1 {
		return stun.CodeBadRequest, "no channel number"
	}
	peers, code, reason := a.peersOf(req)
	if code != 0 {
		return code, reason
	}
	if len(peers) != 1 {
		return stun.CodeBadRequest, "more than one peer"
	}
	if !a.vouch(peers, binary.BigEndian.Uint16(v)) {
		a.s.cfg.Count("turn-quota")
		return stun.CodeInsufficientCapacity, "too many channels"
	}
	number := []byte{v[0], v[1], 0, 0}
	a.submit(req, u, peers[0], func(m *stun.Message) {
		m.Add(stun.AttrChannelNumber, number)
		addPeer(m, peers[0])
	})
	return 0, ""
}

// peersOf returns the peers that a request names, if every one is allowed.
func (a *allocation) peersOf(req *stun.Message) ([]netip.AddrPort, stun.ErrorCode, string) {
	var peers []netip.AddrPort
	for _, attr := range req.Attributes {
		if attr.Type != stun.AttrXORPeerAddress {
			continue
		}
		p, err := parseXORAddress(attr.Value, req.TransactionID)
		if err != nil {
			return nil, stun.CodeBadRequest, "malformed peer address"
		}
		peers = append(peers, p)
	}
	if len(peers) == 0 {
		return nil, stun.CodeBadRequest, "no peer address"
	}
	for _, p := range peers {
		if reason, ok := a.peer(p); !ok {
			a.s.cfg.Count("turn-peer")
			return nil, stun.CodeForbidden, "peer " + p.String() + ": " + reason
		}
	}
	for _, p := range peers {
		if p.Addr().Is4() != a.addr.Is4() {
			return nil, stun.CodePeerAddrFamilyMismatch, "peer of another family"
		}
	}
	return peers, 0, ""
}

func addPeer(m *stun.Message, p netip.AddrPort) {
	var buf [20]byte
	m.Add(stun.AttrXORPeerAddress, xorAddress(&buf, p, m.TransactionID))
}

// sendIndication passes a Send indication (RFC 8656 section 11.2) on. It
// carries no credentials, so it counts only from a 5-tuple with an
// allocation, and nothing is ever answered.
func (s *Server) sendIndication(o origin, m *stun.Message) verdict {
	a := s.lookup(o.tuple)
	if a == nil {
		s.cfg.Count("turn-no-allocation")
		return stranger
	}
	data, err := m.Get(stun.AttrData)
	if err != nil || unknownAttributes(m) != nil {
		s.cfg.Count("turn-bad-indication")
		return authentic
	}
	peers, code, _ := a.peersOf(m)
	if code != 0 || len(peers) != 1 {
		s.cfg.Count("turn-bad-indication")
		return authentic
	}
	var out stun.Message
	begin(&out, sendIndication, m.TransactionID)
	addPeer(&out, peers[0])
	out.Add(stun.AttrData, data)
	a.push(job{b: out.Raw})
	return authentic
}

// channelData passes ChannelData (RFC 8656 section 12.4) on. Padding up to
// four bytes is all that may follow the data.
func (s *Server) channelData(a *allocation, b []byte) {
	if spare := len(b) - 4 - int(binary.BigEndian.Uint16(b[2:])); spare < 0 || spare > 3 {
		s.cfg.Count("turn-bad-channel-data")
		return
	}
	a.push(job{b: append([]byte(nil), b...)})
}
