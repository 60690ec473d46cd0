package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// A Flow is one end's record of the datagrams between two addresses, for a
// protocol that drops without a word what does not authenticate, as QUIC does
// (RFC 9001 section 9.5): what arrived and was never sent was changed.
type Flow struct {
	Remote netip.AddrPort `json:"remote,omitzero"` // at the far end: where they came from, as they arrived
	Local  netip.AddrPort `json:"local,omitzero"`  // at the far end: what they were aimed at
	Sent   Prints         `json:"sent,omitzero"`
	Heard  Prints         `json:"heard,omitzero"`
}

// MaxPrints bounds the datagrams that are kept of a direction: more than a
// handshake has, and than the data that a path carries unless it is told to.
const MaxPrints = 64

// Prints are the first datagrams of a direction.
type Prints struct {
	N     int     `json:"n,omitempty"` // all of them, those that are not kept included
	First []Print `json:"first,omitempty"`
}

// Add counts a datagram and keeps its print while there is room.
func (p *Prints) Add(b []byte) {
	if p.N++; len(p.First) < MaxPrints {
		p.First = append(p.First, PrintOf(b))
	}
}

// A Print is what tells a datagram from others: its length, its beginning, and
// of all of it the first bytes of SHA-256. In text it is the three of them,
// "1200:c3000000…:9f86d081884c7d65".
type Print struct {
	Length int
	head   [headSize]byte
	digest [8]byte
}

// headSize holds a long header of QUIC with a connection id that the other end
// has chosen or drawn at random (RFC 9000 section 17.2).
const headSize = 24

// PrintOf makes the print of a datagram.
func PrintOf(b []byte) Print {
	p := Print{Length: len(b)}
	copy(p.head[:], b)
	sum := sha256.Sum256(b)
	copy(p.digest[:], sum[:])
	return p
}

// Head is the datagram's beginning.
func (p Print) Head() []byte { return p.head[:min(p.Length, headSize)] }

// MarshalText is encoding.TextMarshaler.
func (p Print) MarshalText() ([]byte, error) {
	return []byte(strconv.Itoa(p.Length) + ":" + hex.EncodeToString(p.Head()) + ":" + hex.EncodeToString(p.digest[:])), nil
}

var errPrint = errors.New("not the print of a datagram")

// UnmarshalText is encoding.TextUnmarshaler.
func (p *Print) UnmarshalText(text []byte) error {
	fields := strings.Split(string(text), ":")
	if len(fields) != 3 {
		return errPrint
	}
	n, err := strconv.ParseUint(fields[0], 10, 16)
	head, noHead := hex.DecodeString(fields[1])
	digest, noDigest := hex.DecodeString(fields[2])
	if err != nil || noHead != nil || noDigest != nil || len(digest) != len(p.digest) || len(head) != min(int(n), headSize) {
		return errPrint
	}
	*p = Print{Length: int(n), digest: [8]byte(digest)}
	copy(p.head[:], head)
	return nil
}

// Changed finds the first datagram that was heard and never sent, though one of
// its length and of nearly its beginning was: with connection ids that are drawn
// at random, nobody else's is alike. at is the first byte that differs, -1 where
// that is beyond the beginning. Where more were sent than are kept, nothing can
// be said to never have been sent.
func (sent Prints) Changed(heard Prints) (p Print, at int, ok bool) {
	if sent.N > len(sent.First) {
		return p, 0, false
	}
	known := make(map[Print]bool)
	for _, s := range sent.First {
		known[s] = true
	}
	for _, h := range heard.First {
		if known[h] {
			continue
		}
		for _, s := range sent.First {
			if s.Length == h.Length && alike(s.Head(), h.Head()) {
				return h, differs(s.Head(), h.Head()), true
			}
		}
	}
	return p, 0, false
}

// Shares tells whether one of the datagrams arrived as it was sent.
func (sent Prints) Shares(heard Prints) bool {
	for _, h := range heard.First {
		for _, s := range sent.First {
			if s == h {
				return true
			}
		}
	}
	return false
}

// alike tells whether three quarters of two beginnings are the same.
func alike(a, b []byte) bool {
	same := 0
	for i := range a {
		if a[i] == b[i] {
			same++
		}
	}
	return len(a) > 0 && 4*same >= 3*len(a)
}

func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	at := 0
	for a[at] == b[at] {
		at++
	}
	return at
}
