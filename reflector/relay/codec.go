package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/pion/stun"
)

const (
	headerLen     = 20
	magicCookie   = 0x2112A442
	maxAttributes = 64
	requestedUDP  = 17 // REQUESTED-TRANSPORT, RFC 8656 section 18.7
)

var (
	errLength     = errors.New("length does not match the message")
	errAttributes = errors.New("more than 64 attributes")
	errTrailing   = errors.New("attribute after the integrity or fingerprint")
	errSize       = errors.New("attribute of wrong size")
)

// looksLikeSTUN reports whether b starts as a STUN message does: two zero
// bits and the magic cookie (RFC 8489 section 5).
func looksLikeSTUN(b []byte) bool {
	return len(b) >= headerLen && b[0] < 4 && binary.BigEndian.Uint32(b[4:]) == magicCookie
}

// check walks a STUN message and refuses whatever a decoder could stumble
// over. It is stricter than RFC 8489: nothing but MESSAGE-INTEGRITY-SHA256
// and FINGERPRINT may follow MESSAGE-INTEGRITY, so no attribute that the MAC
// does not cover is ever looked at.
func check(b []byte) error {
	if int(binary.BigEndian.Uint16(b[2:])) != len(b)-headerLen || len(b)%4 != 0 {
		return errLength
	}
	sealed := false
	for n, rest := 0, b[headerLen:]; len(rest) > 0; n++ {
		if n == maxAttributes {
			return errAttributes
		}
		typ := stun.AttrType(binary.BigEndian.Uint16(rest))
		size := int(binary.BigEndian.Uint16(rest[2:]))
		if padded := 4 + (size+3)&^3; padded > len(rest) {
			return errLength
		} else {
			rest = rest[padded:]
		}
		switch typ {
		case stun.AttrMessageIntegrity:
			if sealed {
				return errTrailing
			} else if size != 20 {
				return errSize
			}
			sealed = true
		case stun.AttrMessageIntegritySHA256:
		case stun.AttrFingerprint:
			if size != 4 {
				return errSize
			} else if len(rest) > 0 {
				return errTrailing
			}
		default:
			if sealed {
				return errTrailing
			}
		}
	}
	return nil
}

// begin makes m an empty message of the given type and transaction.
func begin(m *stun.Message, typ stun.MessageType, id [stun.TransactionIDSize]byte) {
	m.Reset()
	m.Type, m.TransactionID = typ, id
	m.WriteHeader()
}

// xorAddress encodes ap as XOR-MAPPED-ADDRESS and its kin do (RFC 8489
// section 14.2) and returns the used part of buf.
func xorAddress(buf *[20]byte, ap netip.AddrPort, id [stun.TransactionIDSize]byte) []byte {
	var mask [16]byte
	binary.BigEndian.PutUint32(mask[:], magicCookie)
	copy(mask[4:], id[:])
	a := ap.Addr().Unmap()
	n := copy(buf[4:], a.AsSlice())
	buf[0], buf[1] = 0, 1
	if a.Is6() {
		buf[1] = 2
	}
	binary.BigEndian.PutUint16(buf[2:], ap.Port()^magicCookie>>16)
	for i := range n {
		buf[4+i] ^= mask[i]
	}
	return buf[:4+n]
}

// parseXORAddress is the inverse of xorAddress. An IPv4-mapped address comes
// back as the IPv4 address it stands for.
func parseXORAddress(v []byte, id [stun.TransactionIDSize]byte) (netip.AddrPort, error) {
	if !(len(v) == 8 && v[1] == 1 || len(v) == 20 && v[1] == 2) {
		return netip.AddrPort{}, errSize
	}
	var mask, a [16]byte
	binary.BigEndian.PutUint32(mask[:], magicCookie)
	copy(mask[4:], id[:])
	n := copy(a[:], v[4:])
	for i := range n {
		a[i] ^= mask[i]
	}
	addr, _ := netip.AddrFromSlice(a[:n])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(v[2:])^magicCookie>>16), nil
}

// errorReply makes m the error answer to req. It has no reason phrase,
// because every byte counts against the request's length.
func errorReply(m, req *stun.Message, code stun.ErrorCode) {
	begin(m, stun.NewType(req.Type.Method, stun.ClassErrorResponse), req.TransactionID)
	m.Add(stun.AttrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)})
}

// seal adds MESSAGE-INTEGRITY and FINGERPRINT.
func seal(m *stun.Message, key stun.MessageIntegrity) error {
	if err := key.AddTo(m); err != nil {
		return err
	}
	return stun.Fingerprint.AddTo(m)
}
