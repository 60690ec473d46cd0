package protocol

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/wire"
)

// STUNLines puts a STUN message into lines, so that both ends' records of it can
// be laid side by side: what it is and its transaction, then an attribute a line
// (RFC 8489 section 14). What does not verify is shown as far as it can be read;
// of what is no STUN there is nothing.
func STUNLines(b []byte) []string {
	if len(b) < 20 || b[0] > 3 {
		return nil
	}
	var typ stun.MessageType
	typ.ReadValue(binary.BigEndian.Uint16(b))
	id := [stun.TransactionIDSize]byte(b[8:20])
	lines := []string{fmt.Sprintf("%s %x", typ, id)}
	for rest := b[20:]; len(rest) >= 4; {
		size := int(binary.BigEndian.Uint16(rest[2:]))
		if size > len(rest)-4 {
			return append(lines, fmt.Sprintf("%d bytes that are no attribute", len(rest)))
		}
		attr := stun.AttrType(binary.BigEndian.Uint16(rest))
		lines = append(lines, fmt.Sprintf("%s %s", attr, stunValue(attr, rest[4:4+size], id)))
		rest = rest[min(len(rest), 4+(size+3)&^3):]
	}
	return lines
}

// STUNSaid is one end's record of messages, each by STUNLines and an empty line
// behind it, which ends it.
func STUNSaid(sent, heard [][]byte) *wire.Said {
	var t wire.Transcript
	put := func(record func(string), list [][]byte) {
		for _, b := range list {
			for _, line := range STUNLines(b) {
				record(line)
			}
			if len(b) > 0 {
				record("")
			}
		}
	}
	put(t.Say, sent)
	put(t.Hear, heard)
	return t.Said()
}

// maxHex is up to how many bytes a value without words is shown whole: those of
// a MESSAGE-INTEGRITY.
const maxHex = 20

// stunValue says the value of an attribute.
func stunValue(attr stun.AttrType, v []byte, id [stun.TransactionIDSize]byte) string {
	switch attr {
	case stun.AttrXORMappedAddress, stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress:
		if a, ok := stunAddress(v, id); ok {
			return a.String()
		}
	case stun.AttrErrorCode:
		if len(v) >= 4 {
			return strings.TrimSpace(fmt.Sprintf("%d%02d %s", v[2], v[3], stunText(v[4:])))
		}
	case stun.AttrLifetime:
		if len(v) == 4 {
			return fmt.Sprintf("%d s", binary.BigEndian.Uint32(v))
		}
	case stun.AttrUsername, stun.AttrRealm, stun.AttrNonce, stun.AttrSoftware:
		return stunText(v)
	}
	if len(v) > maxHex {
		return fmt.Sprintf("%d bytes, digest %.6x", len(v), sha256.Sum256(v))
	}
	return fmt.Sprintf("0x%x", v)
}

// stunText is a value in words, or in figures where it holds what is none.
func stunText(v []byte) string {
	for rest := v; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if r == utf8.RuneError && n < 2 || !unicode.IsPrint(r) {
			return fmt.Sprintf("0x%x", v)
		}
		rest = rest[n:]
	}
	return string(v)
}

// stunAddress reads an XOR-ed address (RFC 8489 section 14.2).
func stunAddress(v []byte, id [stun.TransactionIDSize]byte) (netip.AddrPort, bool) {
	m := stun.New()
	m.TransactionID = id
	m.Add(stun.AttrXORMappedAddress, v)
	if !(len(v) == 8 && v[1] == 1 || len(v) == 20 && v[1] == 2) {
		return netip.AddrPort{}, false
	}
	a, err := addressIn(m, stun.AttrXORMappedAddress)
	return a, err == nil
}
