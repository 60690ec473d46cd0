package steer

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// batchSize is the number of datagrams read or written by one system call.
const batchSize = 64

const (
	maxDatagram = 1 << 16
	controlSize = 192 // time 32, lost 24, TTL 24, TOS 24, aimed at 48
)

// A readBatch receives up to batchSize datagrams at a time. Its 4 MB of
// buffers take real memory only as far as datagrams have filled them.
type readBatch struct {
	hdrs     [batchSize]mmsghdr
	iovs     [batchSize]unix.Iovec
	names    [batchSize]unix.RawSockaddrInet6
	controls [batchSize][controlSize]byte
	payloads []byte
	grams    [batchSize]Datagram
	zones    map[uint32]string
}

func newReadBatch() *readBatch {
	b := &readBatch{payloads: make([]byte, batchSize*maxDatagram), zones: map[uint32]string{}}
	for i := range b.hdrs {
		b.iovs[i].Base = &b.payloads[i*maxDatagram]
		b.iovs[i].SetLen(maxDatagram)
		h := &b.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Control = &b.controls[i][0]
	}
	return b
}

// recv reads what is there without waiting.
func (b *readBatch) recv(fd int) (int, error) {
	for i := range b.hdrs {
		h := &b.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlSize)
	}
	return mmsg(unix.SYS_RECVMMSG, fd, b.hdrs[:], unix.MSG_DONTWAIT)
}

// mmsg calls recvmmsg or sendmmsg.
func mmsg(call uintptr, fd int, hdrs []mmsghdr, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// payload is the datagram or packet in place i.
func (b *readBatch) payload(i int) []byte {
	start := i * maxDatagram
	return b.payloads[start : start+int(b.hdrs[i].n)]
}

// datagram reads place i. It reports false for what cannot be answered: no
// address aimed at, or one of many hosts.
func (b *readBatch) datagram(i int, s *socket) (d Datagram, ok bool, drops uint32) {
	d.Remote = b.remote(i)
	d.Payload = b.payload(i)
	drops = d.told(b.controls[i][:b.hdrs[i].hdr.Controllen], s.drops)
	to := d.Local.Addr()
	ok = to.IsValid() && !to.IsMulticast() && to != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && d.Remote.Port() != 0
	return d, ok, drops
}

// told reads the kernel's control messages: where the datagram was aimed at,
// how it arrived, and how many were dropped, which it tells after a change only.
func (d *Datagram) told(oob []byte, known uint32) (drops uint32) {
	drops = known
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && len(data) >= 16:
			d.Time = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			drops = binary.NativeEndian.Uint32(data)
		case (h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL || h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT) && len(data) >= 4:
			d.TTL = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			d.TOS = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			d.TOS = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= 8:
			d.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:])), binary.BigEndian.Uint16(data[2:]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= 24:
			d.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:])), binary.BigEndian.Uint16(data[2:]))
		}
	}
	return drops
}

func (b *readBatch) remote(i int) netip.AddrPort {
	n := &b.names[i]
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&n.Port))[:])
	if n.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(n)).Addr), port)
	}
	a := netip.AddrFrom16(n.Addr)
	if n.Scope_id != 0 && a.IsLinkLocalUnicast() {
		zone, ok := b.zones[n.Scope_id]
		if !ok {
			zone = strconv.FormatUint(uint64(n.Scope_id), 10)
			b.zones[n.Scope_id] = zone
		}
		a = a.WithZone(zone)
	}
	return netip.AddrPortFrom(a, port)
}

// A writeBatch sends up to batchSize datagrams at a time through one socket.
// Each is a header made here, if any, and the caller's payload.
type writeBatch struct {
	fd       int
	n        int
	hdrs     [batchSize]mmsghdr
	iovs     [batchSize][2]unix.Iovec
	names    [batchSize]unix.RawSockaddrInet6
	controls [batchSize][88]byte // in_pktinfo 32, in6_pktinfo 40; TTL 24, TOS 24
	headers  [batchSize][48]byte // IPv6 40 + UDP 8
	grams    [batchSize]Datagram
}

// add puts a datagram in the batch, with a crafted IP and UDP header if raw.
func (b *writeBatch) add(d Datagram, raw bool) {
	i := b.n
	b.n++
	b.grams[i] = d
	iovs := b.iovs[i][:0]
	if raw {
		header := appendHeader(b.headers[i][:0], d)
		iovs = append(iovs, unix.Iovec{Base: &b.headers[i][0]})
		iovs[0].SetLen(len(header))
	}
	if len(d.Payload) > 0 {
		v := unix.Iovec{Base: &d.Payload[0]}
		v.SetLen(len(d.Payload))
		iovs = append(iovs, v)
	}
	h := &b.hdrs[i].hdr
	h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	h.Namelen = putName(&b.names[i], d.Remote, raw)
	h.Iov = &b.iovs[i][0]
	h.SetIovlen(len(iovs))
	h.Control = &b.controls[i][0]
	clear(b.controls[i][:]) // of the datagram that was here before
	used := putSource(&b.controls[i], d.Local.Addr())
	if !raw {
		used = putMarks(b.controls[i][:], used, d)
	}
	h.SetControllen(used)
}

// flush sends the batch. Where the kernel refuses a datagram, rescue gets it
// and the rest goes on.
func (b *writeBatch) flush(rescue func(Datagram, error)) (sent int) {
	for start := 0; start < b.n; {
		n, err := mmsg(unix.SYS_SENDMMSG, b.fd, b.hdrs[start:b.n], 0)
		sent += n
		start += n
		if err != nil {
			rescue(b.grams[start], err)
			start++
		}
	}
	clear(b.grams[:b.n])
	clear(b.iovs[:b.n])
	b.n = 0
	return sent
}

// putName writes a socket address and returns its length. Raw IPv6 sockets
// want no port (raw(7), ipv6(7)).
func putName(n *unix.RawSockaddrInet6, to netip.AddrPort, raw bool) uint32 {
	port := (*[2]byte)(unsafe.Pointer(&n.Port))
	binary.BigEndian.PutUint16(port[:], to.Port())
	if to.Addr().Is4() {
		n.Family = unix.AF_INET
		(*unix.RawSockaddrInet4)(unsafe.Pointer(n)).Addr = to.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	if raw {
		binary.BigEndian.PutUint16(port[:], 0)
	}
	n.Family, n.Flowinfo, n.Addr = unix.AF_INET6, 0, to.Addr().As16()
	n.Scope_id = zoneIndex(to.Addr().Zone())
	return unix.SizeofSockaddrInet6
}

// putSource writes a control message that makes from the source address, which
// also chooses the route where routes depend on the source.
func putSource(c *[88]byte, from netip.Addr) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(c))
	data := c[unix.CmsgLen(0):]
	if from.Is4() {
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		a := from.As4()
		copy(data[4:], a[:]) // ipi_spec_dst; interface and ipi_addr stay 0
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	a := from.As16()
	copy(data, a[:])
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// putMarks writes further control messages, behind the used bytes, for header
// fields that are not the usual ones.
func putMarks(c []byte, used int, d Datagram) int {
	level, ttl, tos := int32(unix.IPPROTO_IPV6), int32(unix.IPV6_HOPLIMIT), int32(unix.IPV6_TCLASS)
	if d.Local.Addr().Is4() {
		level, ttl, tos = unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
	}
	for _, m := range []struct {
		kind  int32
		value uint8
	}{{ttl, d.TTL}, {tos, d.TOS}} {
		if m.value == 0 {
			continue
		}
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[used]))
		h.Level, h.Type = level, m.kind
		h.SetLen(unix.CmsgLen(4))
		binary.NativeEndian.PutUint32(c[used+unix.CmsgLen(0):], uint32(m.value))
		used += unix.CmsgSpace(4)
	}
	return used
}
