package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/pion/stun"
)

// bindingSize is what a Binding request is padded to, in bytes: it pays for
// its answer and for a TURN challenge after it, so that neither amplifies.
const bindingSize = 256

const magicCookie = 0x2112A442 // RFC 8489 section 5

// Binding makes an authenticated STUN Binding request (RFC 8489 section 9.1,
// short-term credential). USERNAME is username:label, so that the far end
// knows the probe; PADDING (RFC 5780 section 7.6) fills it up to 256 bytes.
func Binding(username, password, label string) ([]byte, [stun.TransactionIDSize]byte, error) {
	id := stun.NewTransactionID()
	b, err := BindingAs(id, username, password, label)
	return b, id, err
}

// BindingAs is Binding with a transaction id that is given.
func BindingAs(id [stun.TransactionIDSize]byte, username, password, label string) ([]byte, error) {
	m := stun.New()
	m.Type, m.TransactionID = stun.BindingRequest, id
	m.WriteHeader()
	if err := stun.NewUsername(username + ":" + label).AddTo(m); err != nil {
		return nil, fmt.Errorf("stun binding: user name: %w", err)
	}
	const seals = 24 + 8 // MESSAGE-INTEGRITY and FINGERPRINT
	if room := bindingSize - len(m.Raw) - 4 - seals; room >= 0 {
		m.Add(stun.AttrPadding, make([]byte, room))
	}
	if err := stun.NewShortTermIntegrity(password).AddTo(m); err != nil {
		return nil, fmt.Errorf("stun binding: integrity: %w", err)
	}
	err := stun.Fingerprint.AddTo(m)
	return m.Raw, err
}

// ParseBinding checks the answer to the Binding with that transaction id, its
// MAC and fingerprint, and gives the address that the far end saw.
func ParseBinding(b []byte, password string, id [stun.TransactionIDSize]byte) (netip.AddrPort, error) {
	if len(b) < 20 || b[0] > 3 || binary.BigEndian.Uint32(b[4:]) != magicCookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-20 {
		return netip.AddrPort{}, ErrForeign
	}
	m := stun.New()
	if err := stun.Decode(b, m); err != nil {
		return netip.AddrPort{}, fmt.Errorf("stun answer: %w", err)
	}
	if m.TransactionID != id || m.Type != stun.BindingSuccess {
		return netip.AddrPort{}, ErrForeign
	}
	if stun.Fingerprint.Check(m) != nil || stun.NewShortTermIntegrity(password).Check(m) != nil {
		return netip.AddrPort{}, errAltered
	}
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(m); err != nil {
		return netip.AddrPort{}, fmt.Errorf("stun answer: xor-mapped-address: %w", err)
	}
	addr, ok := netip.AddrFromSlice(mapped.IP)
	if !ok || mapped.Port < 0 || mapped.Port > 65535 {
		return netip.AddrPort{}, errors.New("stun answer: xor-mapped-address of wrong size")
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(mapped.Port)), nil
}
