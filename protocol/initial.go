package protocol

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
)

// An InitialReader puts a ClientHello together from the Initial packets of a
// client of QUIC version 1. Their keys are made from the connection id that the
// client drew (RFC 9001 section 5.2), so that everybody on the way reads them,
// and firewalls do. The zero value has read nothing.
type InitialReader struct {
	keys  *initialKeys
	tried int
	hello []byte
	have  []bool // which bytes of hello are known
}

// Bounds of an InitialReader: browsers' hellos take two datagrams, one lost
// doubles them, and a Retry doubles them again.
const (
	maxInitials  = 8
	maxQUICHello = 4096
)

var errInitial = errors.New("not an Initial packet of QUIC version 1 that can be read")

// initialSalt is that of version 1 (RFC 9001 section 5.2).
var initialSalt = []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}

type initialKeys struct {
	header cipher.Block
	aead   cipher.AEAD
	iv     []byte
}

// clientKeys are those of a client's Initial packets.
func clientKeys(id []byte) (*initialKeys, error) {
	secret, err := hkdf.Extract(sha256.New, id, initialSalt)
	if err != nil {
		return nil, err
	}
	if secret, err = expandLabel(secret, "client in", sha256.Size); err != nil {
		return nil, err
	}
	var parts [3][]byte
	for i, p := range []struct {
		label string
		size  int
	}{{"quic key", 16}, {"quic iv", 12}, {"quic hp", 16}} {
		if parts[i], err = expandLabel(secret, p.label, p.size); err != nil {
			return nil, err
		}
	}
	block, err := aes.NewCipher(parts[0])
	if err != nil {
		return nil, err
	}
	k := &initialKeys{iv: parts[1]}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	k.header, err = aes.NewCipher(parts[2])
	return k, err
}

// expandLabel is HKDF-Expand-Label without a context (RFC 8446 section 7.1).
func expandLabel(secret []byte, label string, size int) ([]byte, error) {
	info := binary.BigEndian.AppendUint16(nil, uint16(size))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "+label...)
	return hkdf.Expand(sha256.New, secret, string(append(info, 0)), size)
}

// Read takes what is in a datagram of the client. It gives up after some.
func (r *InitialReader) Read(datagram []byte) {
	for len(datagram) > 0 && r.tried < maxInitials && r.Record() == nil {
		p, rest, err := cutInitial(datagram)
		if err != nil {
			return
		}
		r.tried++
		r.packet(p)
		datagram = rest
	}
}

// Record is the ClientHello as one record of TLS, which QUIC does without; nil
// until all of it was read.
func (r *InitialReader) Record() []byte {
	const head = 4 // type and length (RFC 8446 section 4)
	if len(r.hello) < head || slices.Contains(r.have[:head], false) || r.hello[0] != 1 {
		return nil
	}
	n := head + int(r.hello[1])<<16 + int(binary.BigEndian.Uint16(r.hello[2:]))
	if n > len(r.hello) || slices.Contains(r.have[:n], false) {
		return nil
	}
	return append(binary.BigEndian.AppendUint16([]byte{0x16, 3, 1}, uint16(n)), r.hello[:n]...)
}

// An initialPacket is one whose header is still protected.
type initialPacket struct {
	id     []byte // destination connection id
	bytes  []byte // from the first byte to the last of the payload
	number int    // where the packet number begins
}

// cutInitial cuts the first packet off a datagram (RFC 9000 section 17.2.2).
func cutInitial(b []byte) (p initialPacket, rest []byte, err error) {
	if len(b) < 7 || b[0]&0xf0 != 0xc0 || binary.BigEndian.Uint32(b[1:]) != 1 {
		return p, nil, errInitial
	}
	id, after, ok := prefixed(b[5:], 1)
	if ok {
		_, after, ok = prefixed(after, 1) // the client's own
	}
	var n uint64
	if ok {
		n, after, ok = varint(after) // the token's
	}
	if !ok || n > uint64(len(after)) {
		return p, nil, errInitial
	}
	n, after, ok = varint(after[n:])
	if !ok || n > uint64(len(after)) || n < 4+aes.BlockSize || len(id) > 20 {
		return p, nil, errInitial
	}
	number := len(b) - len(after)
	end := number + int(n)
	return initialPacket{id, b[:end], number}, b[end:], nil
}

// varint reads a number of RFC 9000 section 16.
func varint(b []byte) (n uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	size := 1 << (b[0] >> 6)
	if len(b) < size {
		return 0, nil, false
	}
	n = uint64(b[0] & 0x3f)
	for _, c := range b[1:size] {
		n = n<<8 | uint64(c)
	}
	return n, b[size:], true
}

// packet opens a packet with the keys that held before or, of one that begins a
// connection or comes after a Retry, with those of its own connection id.
func (r *InitialReader) packet(p initialPacket) {
	if r.keys != nil {
		if payload, err := r.keys.open(p); err == nil {
			r.frames(payload)
			return
		}
	}
	keys, err := clientKeys(p.id)
	if err != nil {
		return
	}
	if payload, err := keys.open(p); err == nil {
		r.keys = keys
		r.frames(payload)
	}
}

// open takes the protection off a packet (RFC 9001 sections 5.3 and 5.4).
func (k *initialKeys) open(p initialPacket) ([]byte, error) {
	var mask [aes.BlockSize]byte
	k.header.Encrypt(mask[:], p.bytes[p.number+4:][:aes.BlockSize])
	b := bytes.Clone(p.bytes)
	b[0] ^= mask[0] & 0x0f
	body := p.number + 1 + int(b[0]&3)
	nonce := bytes.Clone(k.iv)
	for i := p.number; i < body; i++ {
		b[i] ^= mask[1+i-p.number]
		nonce[len(nonce)-body+i] ^= b[i] // a first flight has numbers that are written whole
	}
	return k.aead.Open(nil, nonce, b[body:], b[:body])
}

// frames takes the handshake's bytes out of a payload (RFC 9000 section 19).
func (r *InitialReader) frames(b []byte) {
	for len(b) > 0 {
		kind := b[0]
		b = b[1:]
		ok := true
		switch kind {
		case 0, 1: // PADDING, PING
		case 2, 3: // ACK
			b, ok = afterACK(b, kind == 3)
		case 6: // CRYPTO
			var at, n uint64
			if at, b, ok = varint(b); ok {
				n, b, ok = varint(b)
			}
			if ok = ok && n <= uint64(len(b)) && at+n <= maxQUICHello; ok {
				r.put(int(at), b[:n])
				b = b[n:]
			}
		default:
			return
		}
		if !ok {
			return
		}
	}
}

// afterACK skips an ACK frame (RFC 9000 section 19.3).
func afterACK(b []byte, ecn bool) (rest []byte, ok bool) {
	var n uint64
	more := uint64(4) // largest, delay, ranges, the first of them
	if ecn {
		more += 3
	}
	for i := uint64(0); i < more; i++ {
		if n, b, ok = varint(b); !ok {
			return nil, false
		}
		if i == 2 {
			more += 2 * min(n, uint64(len(b)))
		}
	}
	return b, true
}

func (r *InitialReader) put(at int, data []byte) {
	if end := at + len(data); end > len(r.hello) {
		r.hello = append(r.hello, make([]byte, end-len(r.hello))...)
		r.have = append(r.have, make([]bool, end-len(r.have))...)
	}
	copy(r.hello[at:], data)
	for i := range data {
		r.have[at+i] = true
	}
}
