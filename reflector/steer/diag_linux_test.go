package steer

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel tells of a socket is read in full or not at all.
func FuzzParseDiag(f *testing.F) {
	b := make([]byte, diagMessageSize)
	b[0] = unix.AF_INET6
	f.Add(b)
	f.Add(b[:diagMessageSize-1])
	f.Add(append(b, 5, 0, diagV6Only, 0, 1))
	f.Add(append(b, 3, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseDiag(b)
		if ok != (len(b) >= diagMessageSize) {
			t.Fatalf("%x: %+v, %v", b, s, ok)
		}
		if ok && (s.local.Port() != binary.BigEndian.Uint16(b[4:]) || s.remote.Port() != binary.BigEndian.Uint16(b[6:])) {
			t.Errorf("%x: %+v", b, s)
		}
	})
}
