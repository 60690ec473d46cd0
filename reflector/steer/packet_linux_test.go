package steer

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzHeader checks lengths, ports and the UDP checksum against a sum made two
// bytes at a time, as RFC 1071 section 4.1 writes it.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(nil), []byte("abcdefghijklmnop"), []byte("ponmlkjihgfedcba"), uint16(1), uint16(65535), true)
	f.Add([]byte("x"), []byte("0123456789abcdef"), []byte("fedcba9876543210"), uint16(3478), uint16(40000), false)
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff"), make([]byte, 16), make([]byte, 16), uint16(0xffff), uint16(0), true)
	f.Fuzz(func(t *testing.T, payload, src, dst []byte, from, to uint16, v4 bool) {
		if len(src) != 16 || len(dst) != 16 || len(payload) > maxPayload(v4) {
			return
		}
		s, d, header, version := netip.AddrFrom16([16]byte(src)), netip.AddrFrom16([16]byte(dst)), 40, byte(6)
		if v4 {
			s, d, header, version = netip.AddrFrom4([4]byte(src)), netip.AddrFrom4([4]byte(dst)), 20, 4
		} else if s.Is4In6() || d.Is4In6() {
			return
		}
		b := appendHeader(nil, Datagram{Local: netip.AddrPortFrom(s, from), Remote: netip.AddrPortFrom(d, to), Payload: payload})
		if len(b) != header+udpHeader || b[0]>>4 != version {
			t.Fatalf("header of %d bytes, version %d", len(b), b[0]>>4)
		}
		udp := b[header:]
		if binary.BigEndian.Uint16(udp) != from || binary.BigEndian.Uint16(udp[2:]) != to || int(binary.BigEndian.Uint16(udp[4:])) != 8+len(payload) {
			t.Errorf("UDP header %x", udp)
		}
		sum := uint32(unix.IPPROTO_UDP) + uint32(8+len(payload))
		all := append(append(append([]byte(nil), s.AsSlice()...), d.AsSlice()...), udp...)
		all = append(append(all, payload...), 0)
		for i := 0; i+1 < len(all); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(all[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		if sum != 0xffff || binary.BigEndian.Uint16(udp[6:]) == 0 {
			t.Errorf("checksum %x sums to %x", udp[6:8], sum)
		}
	})
}
