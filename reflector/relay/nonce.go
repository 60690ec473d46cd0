package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// nonceLifetime is the hour that RFC 8656 section 5 recommends.
const nonceLifetime = time.Hour

const nonceMAC = 12 // bytes of the MAC that a nonce carries

// nonce makes a nonce that is good for this 5-tuple until an hour from now:
// base64 of {expiry, seconds of Unix time, 4 bytes | HMAC-SHA256, 12 bytes}.
func (s *Server) nonce(t tuple, now time.Time) []byte {
	var b [4 + nonceMAC]byte
	binary.BigEndian.PutUint32(b[:], uint32(now.Add(nonceLifetime).Unix()))
	copy(b[4:], s.nonceSum(t, b[:4]))
	return base64.RawURLEncoding.AppendEncode(nil, b[:])
}

// nonceGood reports whether this server gave n to this 5-tuple within the
// last hour.
func (s *Server) nonceGood(t tuple, n []byte, now time.Time) bool {
	var b [4 + nonceMAC]byte
	if len(n) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return false
	}
	if _, err := base64.RawURLEncoding.Strict().Decode(b[:], n); err != nil {
		return false
	}
	left := int64(binary.BigEndian.Uint32(b[:])) - now.Unix()
	return left > 0 && left <= int64(nonceLifetime/time.Second) &&
		hmac.Equal(b[4:], s.nonceSum(t, b[:4]))
}

func (s *Server) nonceSum(t tuple, expiry []byte) []byte {
	h := hmac.New(sha256.New, s.secret[:])
	h.Write(expiry)
	for _, ap := range []interface{ MarshalBinary() ([]byte, error) }{t.local, t.remote} {
		b, _ := ap.MarshalBinary() // cannot fail, and the length tells the family
		h.Write([]byte{byte(len(b))})
		h.Write(b)
	}
	if t.tcp {
		h.Write([]byte{1})
	}
	return h.Sum(nil)[:nonceMAC]
}
