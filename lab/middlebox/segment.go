package middlebox

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// The flags of a TCP header (RFC 9293 section 3.1).
const (
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

const (
	etherLen     = 14 // bytes of an Ethernet header
	tcpLen       = 20 // bytes of a TCP header without options
	protocolTCP  = 6
	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd
	ipv4Len      = 20
	ipv6Len      = 40
	injectedTTL  = 64
	rstDataStart = 5 << 4 // the header's length, in words of 32 bits, in the upper half of its byte
)

// A segment is what is of interest in a frame that carries TCP.
type segment struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       netip.AddrPort
	seq, ack       uint32
	flags          byte
	payload        int // bytes
}

// length is what the segment takes up of the sequence space, without FIN,
// after which there is nothing to reset.
func (s segment) length() uint32 {
	if s.flags&flagSYN != 0 {
		return uint32(s.payload) + 1
	}
	return uint32(s.payload)
}

// parseSegment reads an Ethernet frame. It tells false for what is not TCP,
// is a fragment or has IPv6 extension headers.
func parseSegment(frame []byte) (segment, bool) {
	if len(frame) < etherLen {
		return segment{}, false
	}
	s := segment{dstMAC: frame[0:6], srcMAC: frame[6:12]}
	packet := frame[etherLen:]
	var src, dst netip.Addr
	var tcp []byte
	switch {
	case binary.BigEndian.Uint16(frame[12:]) == etherIPv4 && len(packet) >= ipv4Len:
		header, total := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
		fragment := binary.BigEndian.Uint16(packet[6:]) & 0x3fff
		if packet[9] != protocolTCP || fragment != 0 || header < ipv4Len || header > total || total > len(packet) {
			return segment{}, false
		}
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		tcp = packet[header:total]
	case binary.BigEndian.Uint16(frame[12:]) == etherIPv6 && len(packet) >= ipv6Len:
		total := ipv6Len + int(binary.BigEndian.Uint16(packet[4:]))
		if packet[6] != protocolTCP || total > len(packet) {
			return segment{}, false
		}
		src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		tcp = packet[ipv6Len:total]
	}
	if len(tcp) < tcpLen {
		return segment{}, false
	}
	header := int(tcp[12]>>4) * 4
	if header < tcpLen || header > len(tcp) {
		return segment{}, false
	}
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp[0:]))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))
	s.seq, s.ack, s.flags = binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]), tcp[13]
	s.payload = len(tcp) - header
	return s, true
}

// frame writes the segment, which has no payload, as an Ethernet frame.
func (s segment) frame() []byte {
	tcp := binary.BigEndian.AppendUint16(nil, s.src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, s.dst.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, s.seq)
	tcp = binary.BigEndian.AppendUint32(tcp, s.ack)
	tcp = append(tcp, rstDataStart, s.flags, 0, 0, 0, 0, 0, 0)
	src, dst := s.src.Addr().AsSlice(), s.dst.Addr().AsSlice()
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = append(pseudo, 0, protocolTCP, 0, tcpLen)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))

	frame := append(append([]byte{}, s.dstMAC...), s.srcMAC...)
	if s.src.Addr().Is4() {
		frame = binary.BigEndian.AppendUint16(frame, etherIPv4)
		ip := []byte{0x45, 0, 0, ipv4Len + tcpLen, 0, 0, 0, 0, injectedTTL, protocolTCP, 0, 0}
		ip = append(append(ip, src...), dst...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(append(frame, ip...), tcp...)
	}
	frame = binary.BigEndian.AppendUint16(frame, etherIPv6)
	frame = append(frame, 0x60, 0, 0, 0, 0, tcpLen, protocolTCP, injectedTTL)
	frame = append(append(frame, src...), dst...)
	return append(frame, tcp...)
}

// checksum is that of the Internet (RFC 1071); b has an even length.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
