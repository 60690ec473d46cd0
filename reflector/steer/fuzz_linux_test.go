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
