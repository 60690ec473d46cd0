package steer

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addressesOf makes what an IP header can hold of 16 bytes each; ok is false for
// IPv6 addresses that stand for IPv4 ones.
func addressesOf(a, b []byte, v4 bool) (src, dst netip.Addr, ok bool) {
	if len(a) != 16 || len(b) != 16 {
		return src, dst, false
	}
	if v4 {
		return netip.AddrFrom4([4]byte(a)), netip.AddrFrom4([4]byte(b)), true
	}
	src, dst = netip.AddrFrom16([16]byte(a)), netip.AddrFrom16([16]byte(b))
	return src, dst, !src.Is4In6() && !dst.Is4In6()
}

// A SYN is read from where it stands behind the header, however long that is,
// and nothing is read where there is no room for it.
func FuzzParseSYN(f *testing.F) {
	for _, v4 := range []bool{true, false} {
		f.Add([]byte("abcdefghijklmnop"), []byte("ponmlkjihgfedcba"), uint16(443), uint16(65535), byte(64), byte(0xb8), byte(7), v4, uint16(60))
		f.Add(make([]byte, 16), make([]byte, 16), uint16(0), uint16(1), byte(1), byte(3), byte(5), v4, uint16(39))
		f.Add(make([]byte, 16), make([]byte, 16), uint16(2), uint16(1), byte(1), byte(3), byte(4), v4, uint16(99))
	}
	f.Fuzz(func(t *testing.T, a, b []byte, from, to uint16, ttl, tos, options byte, v4 bool, size uint16) {
		src, dst, ok := addressesOf(a, b, v4)
		if !ok {
			return
		}
		// The UDP header that is ours to write has its ports where TCP has them.
		p := appendHeader(nil, Datagram{Local: netip.AddrPortFrom(src, from), Remote: netip.AddrPortFrom(dst, to), Payload: make([]byte, 100)})
		p = append(p, make([]byte, 100)...)
		need := 60
		if v4 {
			words := int(options % 16)
			p[0], p[1], p[8] = 0x40|byte(words), tos, ttl
			if p, need = slices.Insert(p, 20, make([]byte, max(0, words-5)*4)...), max(40, 4*words+4); words < 5 {
				need = len(p) + 1 // no header is so short
			}
		} else {
			p[0], p[1], p[7] = 0x60|tos>>4, tos<<4, ttl
		}
		p = p[:min(int(size), len(p))]
		got, ok := parseSYN(p)
		want := SYN{Source: netip.AddrPortFrom(src, from), Dest: netip.AddrPortFrom(dst, to)}
		want.TTL, want.TOS = ttl, tos
		if ok != (len(p) >= need) || ok && got != want {
			t.Errorf("%x: %+v, %v; want %+v", p, got, ok, want)
		}
	})
}

// What the kernel tells of a datagram is read wherever it stands among what else
// it tells, and what is too short for it is not read.
func FuzzControlMessages(f *testing.F) {
	message := func(level, kind int32, data []byte) []byte {
		b := make([]byte, unix.CmsgSpace(len(data)))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		h.Level, h.Type = level, kind
		h.SetLen(unix.CmsgLen(len(data)))
		copy(b[unix.CmsgLen(0):], data)
		return b
	}
	at := []byte{unix.AF_INET, 0, 0x0d, 0x96, 198, 51, 100, 10, 0, 0, 0, 0, 0, 0, 0, 0}
	f.Add([]byte(nil), []byte{57, 0, 0, 0}, at)
	f.Add(message(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, make([]byte, 16)), []byte{64, 0, 0, 0}, at)
	f.Add(message(unix.IPPROTO_IP, unix.IP_TOS, nil), []byte{1}, at[:7])
	f.Add(message(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, []byte{1}), []byte(nil), []byte(nil))
	f.Add(bytes.Repeat([]byte{0xff}, 16), []byte{1, 2, 3, 4}, at)
	f.Fuzz(func(t *testing.T, before, ttl, at []byte) {
		var d Datagram
		d.told(before, 7) // whatever it is
		d = Datagram{}
		drops := d.told(slices.Concat(message(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, ttl), message(unix.IPPROTO_IP, unix.IP_TTL, ttl), message(unix.IPPROTO_IP, unix.IP_ORIGDSTADDR, at)), 7)
		var want Datagram
		told := uint32(7)
		if len(ttl) >= 4 {
			told = binary.NativeEndian.Uint32(ttl)
			want.TTL = uint8(told)
		}
		if len(at) >= 8 {
			want.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(at[4:8])), binary.BigEndian.Uint16(at[2:]))
		}
		if drops != told || d.TTL != want.TTL || d.Local != want.Local {
			t.Errorf("%x, %x: %+v, %d dropped; want %+v, %d", ttl, at, d, drops, want, told)
		}
	})
}

// Only a table of ours is ever deleted, and each is known again.
func FuzzTablesIn(f *testing.F) {
	for _, s := range []string{"table inet wallprobe_443\ntable inet filter\n", "table inet wallprobe_\n", "table inet wallprobe_65536\n", "table inet wallprobe_007\r\n", "table ip wallprobe_1"} {
		f.Add(s, uint16(443))
	}
	f.Fuzz(func(t *testing.T, list string, port uint16) {
		ports := tablesIn(list)
		for _, p := range ports {
			if !strings.Contains(list, "table inet "+tableName(p)) {
				t.Errorf("%d is not in %q", p, list)
			}
		}
		if got := tablesIn(list + "\n\ttable inet " + tableName(port) + "\n"); !slices.Equal(got, append(ports, port)) {
			t.Errorf("%q and %d: %d", list, port, got)
		}
	})
}
