package witness

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// A SYN is read from where it stands behind the header, however long that is,
// and nothing is read where there is no room for it.
func FuzzParseSYN(f *testing.F) {
	for _, v4 := range []bool{true, false} {
		f.Add([]byte("abcdefghijklmnop"), []byte("ponmlkjihgfedcba"), uint16(443), uint16(65535), byte(64), byte(0xb8), byte(7), v4, uint16(60))
		f.Add(make([]byte, 16), make([]byte, 16), uint16(0), uint16(1), byte(1), byte(3), byte(5), v4, uint16(39))
		f.Add(make([]byte, 16), make([]byte, 16), uint16(2), uint16(1), byte(1), byte(3), byte(4), v4, uint16(99))
	}
	f.Fuzz(func(t *testing.T, a, b []byte, from, to uint16, ttl, tos, options byte, v4 bool, size uint16) {
		if len(a) != 16 || len(b) != 16 {
			return
		}
		src, dst := netip.AddrFrom16([16]byte(a)), netip.AddrFrom16([16]byte(b))
		p, need := make([]byte, 300), 60
		ports := 40
		if v4 {
			src, dst = netip.AddrFrom4([4]byte(a)), netip.AddrFrom4([4]byte(b))
			words := int(options % 16)
			p[0], p[1], p[8] = 0x40|byte(words), tos, ttl
			copy(p[12:], src.AsSlice())
			copy(p[16:], dst.AsSlice())
			if ports, need = 4*words, max(40, 4*words+4); words < 5 {
				need = len(p) + 1 // no header is so short
			}
		} else {
			p[0], p[1], p[7] = 0x60|tos>>4, tos<<4, ttl
			copy(p[8:], a)
			copy(p[24:], b)
		}
		binary.BigEndian.PutUint16(p[ports:], from)
		binary.BigEndian.PutUint16(p[ports+2:], to)
		p = p[:min(int(size), len(p))]
		got, ok := parseSYN(p)
		want := SYN{Source: netip.AddrPortFrom(src, from), Dest: netip.AddrPortFrom(dst, to)}
		want.TTL, want.TOS = ttl, tos
		if ok != (len(p) >= need) || ok && got != want {
			t.Errorf("%x: %+v, %v; want %+v", p, got, ok, want)
		}
	})
}
