package wire

import "encoding/binary"

// TCPSeen is one end's view of a TCP handshake: the near end's SYN as it was
// sent or as it arrived, and the far end's answer. Zero is unknown.
type TCPSeen struct {
	TTL       uint8  `json:"ttl,omitempty"`       // of the SYN; IPv6: hop limit
	TOS       uint8  `json:"tos,omitempty"`       // of the SYN, with the ECN bits; meaningless without TTL
	MSS       int    `json:"mss,omitempty"`       // in the SYN (RFC 9293 section 3.7.1)
	Timestamp uint32 `json:"timestamp,omitempty"` // TSval of the SYN, or of the same clock up to a few seconds later (RFC 7323 section 3)
	Back      int    `json:"back,omitempty"`      // MSS in the SYN-ACK
	AtLeast   bool   `json:"atLeast,omitempty"`   // the near end's own link hides by how much Back is larger
}

// ParseSYN reads the headers of a SYN, from the IP header on. ok is false for
// what is not TCP or is cut off.
func ParseSYN(p []byte) (s TCPSeen, ok bool) {
	var tcp []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		header := int(p[0]&0xf) * 4
		if p[9] != 6 || header < 20 || header > len(p) {
			return s, false
		}
		s.TTL, s.TOS, tcp = p[8], p[1], p[header:]
	case len(p) >= 40 && p[0]>>4 == 6:
		if p[6] != 6 {
			return s, false
		}
		s.TTL, s.TOS, tcp = p[7], p[0]<<4|p[1]>>4, p[40:]
	}
	if len(tcp) < 20 {
		return TCPSeen{}, false
	}
	header := int(tcp[12]>>4) * 4
	if header < 20 || header > len(tcp) {
		return TCPSeen{}, false
	}
	s.options(tcp[20:header])
	return s, true
}

// options reads those of RFC 9293 section 3.1 and RFC 7323 that matter here.
func (s *TCPSeen) options(b []byte) {
	const end, nop, mss, timestamps = 0, 1, 2, 8
	for len(b) > 0 && b[0] != end {
		if b[0] == nop {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return
		}
		switch data := b[2:b[1]]; {
		case b[0] == mss && len(data) == 2:
			s.MSS = int(binary.BigEndian.Uint16(data))
		case b[0] == timestamps && len(data) == 8:
			s.Timestamp = binary.BigEndian.Uint32(data)
		}
		b = b[b[1]:]
	}
}
