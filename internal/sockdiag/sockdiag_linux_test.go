package sockdiag

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel tells of a socket is read in full or not at all.
func FuzzParse(f *testing.F) {
	b := make([]byte, messageSize)
	b[0] = unix.AF_INET6
	f.Add(b)
	f.Add(b[:messageSize-1])
	f.Add(append(b, 5, 0, v6Only, 0, 1))
	f.Add(append(b, 3, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parse(b)
		if ok != (len(b) >= messageSize) {
			t.Fatalf("%x: %+v, %v", b, s, ok)
		}
		if ok && (s.Local.Port() != binary.BigEndian.Uint16(b[4:]) || s.Remote.Port() != binary.BigEndian.Uint16(b[6:])) {
			t.Errorf("%x: %+v", b, s)
		}
	})
}
