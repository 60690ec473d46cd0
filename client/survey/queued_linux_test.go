package survey

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A message from the error queue is no longer than it says.
func FuzzParseQueued(f *testing.F) {
	for _, level := range []byte{unix.SOL_IP, unix.SOL_IPV6} {
		kind := byte(unix.IP_RECVERR)
		if level == unix.SOL_IPV6 {
			kind = unix.IPV6_RECVERR
		}
		for _, n := range []byte{15, 16, 20, 32, 44} {
			b := append([]byte{16 + n, 0, 0, 0, 0, 0, 0, 0, level, 0, 0, 0, kind, 0, 0, 0}, make([]byte, n)...)
			if n > 16 {
				b[16], b[20], b[32] = byte(unix.EHOSTUNREACH), unix.SO_EE_ORIGIN_ICMP, unix.AF_INET
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, ok := parseQueued(b)
		if !ok && (o.err != nil || o.icmp.IsValid()) || ok && o.err == nil {
			t.Errorf("%x: %+v, %v", b, o, ok)
		}
	})
}
