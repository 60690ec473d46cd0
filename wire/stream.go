package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
)

// A Stream is the data phase of one direction of one TCP exchange: bytes that
// both ends can make and nobody else, so that the first altered byte is known.
type Stream struct{ rng *rand.ChaCha8 }

// NewStream makes the stream of a probe's attempt. Both ends get the same bytes.
func (k *Keys) NewStream(kind Kind, probe uint32, attempt uint16) *Stream {
	h := hmac.New(sha256.New, k.stream)
	h.Write([]byte{byte(kind)})
	h.Write(binary.BigEndian.AppendUint32(nil, probe))
	h.Write(binary.BigEndian.AppendUint16(nil, attempt))
	return &Stream{rng: rand.NewChaCha8([32]byte(h.Sum(nil)))}
}

// Read fills p; it never fails.
func (s *Stream) Read(p []byte) (int, error) { return s.rng.Read(p) }
