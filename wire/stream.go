package wire

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// A Stream is the data phase of one direction of one TCP exchange: bytes that
// both ends can make and nobody else, so that the first altered byte is known.
//
// They are AES-128 in counter mode: of what nobody can compress, find twice or
// foretell it is the fastest where the processor has AES, as both ends' have
// nearly everywhere, and each end makes every byte twice: to send and to compare.
type Stream struct{ ctr cipher.Stream }

// NewStream makes the stream of a probe's attempt. Both ends get the same bytes.
func (k *Keys) NewStream(kind Kind, probe uint32, attempt uint16) *Stream {
	h := hmac.New(sha256.New, k.stream)
	h.Write([]byte{byte(kind)})
	h.Write(binary.BigEndian.AppendUint32(nil, probe))
	h.Write(binary.BigEndian.AppendUint16(nil, attempt))
	sum := h.Sum(nil)
	block, err := aes.NewCipher(sum[:16])
	if err != nil {
		panic(err) // only for lengths that AES cannot have
	}
	return &Stream{ctr: cipher.NewCTR(block, sum[16:])}
}

// Read fills p; it never fails.
func (s *Stream) Read(p []byte) (int, error) {
	clear(p)
	s.ctr.XORKeyStream(p, p)
	return len(p), nil
}
