package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"sync"
)

// A mac proves messages with one key: HMAC-SHA-256 (RFC 2104), cut to macSize
// bytes. A sweep makes and checks hundreds of thousands, so the states that the
// key alone decides are kept: that halves the hashing and allocates nothing.
// It is safe for concurrent use.
type mac struct {
	key    []byte
	states sync.Pool // of *macState
}

type macState struct {
	hash hash.Hash
	sum  [sha256.Size]byte
}

func newMAC(key []byte) *mac {
	return &mac{key: key, states: sync.Pool{New: func() any { return &macState{hash: hmac.New(sha256.New, key)} }}}
}

// of computes the MAC of p, its own field left out. The state goes back to the
// pool when its sum has been used.
func (m *mac) of(p []byte) *macState {
	s := m.states.Get().(*macState)
	s.hash.Reset()
	s.hash.Write(p[:macOffset])
	s.hash.Write(p[macOffset+macSize:])
	s.hash.Sum(s.sum[:0])
	return s
}

// put writes the MAC of a message into it.
func (m *mac) put(p []byte) {
	s := m.of(p)
	copy(p[macOffset:macOffset+macSize], s.sum[:])
	m.states.Put(s)
}

// holds tells whether a message's MAC is right.
func (m *mac) holds(p []byte) bool {
	s := m.of(p)
	ok := hmac.Equal(p[macOffset:macOffset+macSize], s.sum[:macSize])
	m.states.Put(s)
	return ok
}
