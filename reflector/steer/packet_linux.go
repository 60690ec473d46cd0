package steer

import (
	"cmp"
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"
)

const (
	answerTTL = 64
	udpHeader = 8
)

// appendHeader appends the IP and UDP headers of d, with TOS 0: an answer does
// not repeat its request's.
//
// IPv4 (RFC 791): the kernel fills in total length, identification and header
// checksum (raw(7)); don't fragment is set, as on any Linux UDP datagram that
// fits the path. IPv6 (RFC 8200): no extension headers.
func appendHeader(b []byte, d Datagram) []byte {
	length := uint16(udpHeader + len(d.Payload))
	start := len(b)
	ttl := cmp.Or(d.TTL, answerTTL)
	if d.Local.Addr().Is4() {
		src, dst := d.Local.Addr().As4(), d.Remote.Addr().As4()
		b = append(b, 0x45, d.TOS)
		b = binary.BigEndian.AppendUint16(b, 20+length)
		b = append(b, 0, 0, 0x40, 0, ttl, unix.IPPROTO_UDP, 0, 0)
		b = append(append(b, src[:]...), dst[:]...)
	} else {
		src, dst := d.Local.Addr().As16(), d.Remote.Addr().As16()
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(d.TOS)<<20)
		b = binary.BigEndian.AppendUint16(b, length)
		b = append(b, unix.IPPROTO_UDP, ttl)
		b = append(append(b, src[:]...), dst[:]...)
	}
	udp := len(b)
	b = binary.BigEndian.AppendUint16(b, d.Local.Port())
	b = binary.BigEndian.AppendUint16(b, d.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, length)
	b = append(b, 0, 0)

	// RFC 768: ones' complement of addresses, protocol, length, header and payload.
	addrs := b[start+12 : udp]
	if !d.Local.Addr().Is4() {
		addrs = b[start+8 : udp]
	}
	sum := onesSum(uint64(unix.IPPROTO_UDP)+uint64(length), addrs)
	sum = onesSum(sum, b[udp:])
	sum = onesSum(sum, d.Payload)
	check := ^fold(sum)
	if check == 0 {
		check = 0xffff // 0 would mean no checksum
	}
	binary.BigEndian.PutUint16(b[udp+6:], check)
	return b
}

// onesSum adds b to a ones' complement sum, eight bytes at a time (RFC 1071
// section 2 allows any word size).
func onesSum(sum uint64, b []byte) uint64 {
	var carry uint64
	for ; len(b) >= 8; b = b[8:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), 0)
		sum += carry
	}
	if len(b) > 0 {
		var tail [8]byte
		copy(tail[:], b)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(tail[:]), 0)
		sum += carry
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
