package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// A Kind says what a message is.
type Kind uint8

// The kinds.
const (
	Request Kind = 1 // client to reflector
	Reply   Kind = 2 // reflector to client, at once
	Late    Kind = 3 // reflector to client, after Message.Idle of silence
	Done    Kind = 4 // either end of a TCP exchange: all data arrived unaltered
	Call    Kind = 5 // reflector to client, unasked on this path: an inbound probe
)

// A Message is what plain probes carry: a whole UDP datagram, or the first
// bytes of a TCP (or TLS) stream. All numbers are big-endian.
//
//	 0  b7 'w' 'p' 01          magic and version; 0xb7 lies in the RTP class of
//	                           RFC 9443, so it never looks like STUN, TURN or QUIC
//	 4  kind  flags  port(2)   port: the port the request was aimed at
//	 8  session(16)
//	24  probe(4)
//	28  attempt(2) size(2)     size: length of this message in bytes, padding included
//	32  time(8)                microseconds since 1970, sender's clock
//	40  address(16) port(2) ttl tos   see Seen, TTL and TOS
//	60  idle(4)                milliseconds of silence before the late message
//	64  bytes(4)               data phase: bytes each way
//	68  mac(16)                HMAC-SHA256, cut to 16 bytes, over everything else
//	84  padding
type Message struct {
	Kind    Kind
	Offline bool   // keys were derived with the zero nonce
	ByLocal bool   // the probe varies the near end's own port, in Seen, and not Port
	Marked  bool   // requests: the reply is to leave with MarkTTL and MarkTOS; replies: it did
	Port    uint16 // aimed at
	Session SessionID
	Probe   uint32
	Attempt uint16
	Size    int // bytes; at least MessageSize
	Time    time.Time
	Seen    netip.AddrPort // requests: the near end's own address; replies: where the request came from as it arrived
	TTL     uint8          // replies: of the request as it arrived; 0 is unknown
	TOS     uint8
	Idle    time.Duration // to the millisecond
	Bytes   uint32
}

// MessageSize is the length of a message without padding. A reply is never
// longer than its request because every message is at least this long.
const MessageSize = 84

const (
	magic     = 0xb7777001
	macOffset = 68
	macSize   = 16
	flagOff   = 1
	flagLocal = 2
	flagMark  = 4
)

// What marked datagrams carry in their headers: expedited forwarding (RFC 3246)
// as media do, ECT(0) (RFC 3168), and the time to live that most systems begin
// with.
const (
	MarkTTL = 64
	MarkTOS = 46<<2 | 2
)

var (
	// ErrNotMessage means that the bytes are none of ours.
	ErrNotMessage = errors.New("not a wallprobe message")
	// ErrAltered means that the bytes were ours once, but do not verify.
	ErrAltered = errors.New("message altered or made with another key")
)

// IsMessage tells from the first four bytes whether a message begins here.
func IsMessage(b []byte) bool { return len(b) >= 4 && binary.BigEndian.Uint32(b) == magic }

// mac: each direction has its own, so that a reply reflected back is no request.
func (k *Keys) mac(kind Kind) *mac {
	if kind == Request {
		return k.request
	}
	return k.reply
}

// Append appends the message, padded to m.Size, to b.
func (m *Message) Append(b []byte, k *Keys) []byte {
	size := max(m.Size, MessageSize)
	start := len(b)
	b = slices.Grow(b, size)[:start+size]
	p := b[start:]
	clear(p)
	binary.BigEndian.PutUint32(p, magic)
	p[4] = byte(m.Kind)
	if m.Offline {
		p[5] |= flagOff
	}
	if m.ByLocal {
		p[5] |= flagLocal
	}
	if m.Marked {
		p[5] |= flagMark
	}
	binary.BigEndian.PutUint16(p[6:], m.Port)
	copy(p[8:], m.Session[:])
	binary.BigEndian.PutUint32(p[24:], m.Probe)
	binary.BigEndian.PutUint16(p[28:], m.Attempt)
	binary.BigEndian.PutUint16(p[30:], uint16(size))
	binary.BigEndian.PutUint64(p[32:], uint64(m.Time.UnixMicro()))
	if m.Seen.IsValid() {
		a := m.Seen.Addr().As16()
		copy(p[40:], a[:])
		binary.BigEndian.PutUint16(p[56:], m.Seen.Port())
	}
	p[58], p[59] = m.TTL, m.TOS
	binary.BigEndian.PutUint32(p[60:], uint32(m.Idle.Milliseconds()))
	binary.BigEndian.PutUint32(p[64:], m.Bytes)
	for i := MessageSize; i < size; i++ {
		p[i] = byte(i) // not all alike, so that a rewritten tail shows
	}
	k.mac(m.Kind).put(p)
	return b
}

// ParseHead reads a message's fields without proving them; use Verify before
// believing any. It needs the first MessageSize bytes.
func ParseHead(p []byte) (Message, error) {
	if len(p) < MessageSize || !IsMessage(p) {
		return Message{}, ErrNotMessage
	}
	m := Message{
		Kind:    Kind(p[4]),
		Offline: p[5]&flagOff != 0,
		ByLocal: p[5]&flagLocal != 0,
		Marked:  p[5]&flagMark != 0,
		Port:    binary.BigEndian.Uint16(p[6:]),
		Session: SessionID(p[8:24]),
		Probe:   binary.BigEndian.Uint32(p[24:]),
		Attempt: binary.BigEndian.Uint16(p[28:]),
		Size:    int(binary.BigEndian.Uint16(p[30:])),
		Time:    time.UnixMicro(int64(binary.BigEndian.Uint64(p[32:]))),
		TTL:     p[58],
		TOS:     p[59],
		Idle:    time.Duration(binary.BigEndian.Uint32(p[60:])) * time.Millisecond,
		Bytes:   binary.BigEndian.Uint32(p[64:]),
	}
	if a, port := netip.AddrFrom16([16]byte(p[40:56])).Unmap(), binary.BigEndian.Uint16(p[56:]); port != 0 {
		m.Seen = netip.AddrPortFrom(a, port)
	}
	return m, nil
}

// Parse reads and proves a whole message. The errors are ErrNotMessage and ErrAltered.
func Parse(p []byte, k *Keys) (Message, error) {
	m, err := ParseHead(p)
	if err != nil {
		return m, err
	}
	if m.Size != len(p) || m.Session != k.ID || !k.mac(m.Kind).holds(p) {
		return m, ErrAltered
	}
	return m, nil
}
