package protocol

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"slices"
)

// A Hello is what of a ClientHello middleboxes look at (RFC 8446 section 4.1.2).
type Hello struct {
	ServerName string   // RFC 6066 section 3
	ALPN       []string // RFC 7301
	Versions   []uint16 // supported_versions (RFC 8446 section 4.2.1), else the legacy one alone; GREASE left out
}

// The extensions that are read (RFC 8446 section 4.2).
const (
	extServerName = 0
	ExtALPN       = 16
	ExtVersions   = 43
)

var errHello = errors.New("not a whole ClientHello")

// ParseHello reads the first record of a TLS stream. It takes a hello that fits
// into one record, as all that browsers and this program send do.
func ParseHello(record []byte) (Hello, error) {
	var h Hello
	body, err := helloBody(record)
	if err != nil {
		return h, err
	}
	h.Versions = []uint16{binary.BigEndian.Uint16(body)}
	extensions, ok := extensionsOf(body)
	if !ok {
		return h, errHello
	}
	for len(extensions) > 0 {
		kind, data, rest, ok := nextExtension(extensions)
		if !ok {
			return h, errHello
		}
		switch kind {
		case extServerName:
			h.ServerName = serverName(data)
		case ExtALPN:
			h.ALPN = alpnNames(data)
		case ExtVersions:
			h.Versions = versions(data)
		}
		extensions = rest
	}
	return h, nil
}

// helloBody is the message in the record, after its own head.
func helloBody(record []byte) ([]byte, error) {
	if len(record) < 9 || !isTLS(record) || record[5] != 1 {
		return nil, errHello
	}
	n := int(binary.BigEndian.Uint16(record[3:]))
	length := int(record[6])<<16 | int(binary.BigEndian.Uint16(record[7:]))
	if n+5 > len(record) || length+4 > n || length < 34 {
		return nil, errHello
	}
	return record[9 : 9+length], nil
}

// extensionsOf skips version, random, session id, cipher suites and compression.
func extensionsOf(body []byte) (list []byte, ok bool) {
	rest := body[34:]
	for _, width := range []int{1, 2, 1} {
		if _, rest, ok = prefixed(rest, width); !ok {
			return nil, false
		}
	}
	if len(rest) == 0 {
		return nil, true // none, before TLS 1.2
	}
	list, rest, ok = prefixed(rest, 2)
	return list, ok && len(rest) == 0
}

// prefixed cuts off what a length of so many bytes stands before.
func prefixed(b []byte, width int) (data, rest []byte, ok bool) {
	if len(b) < width {
		return nil, nil, false
	}
	n := int(b[0])
	if width == 2 {
		n = int(binary.BigEndian.Uint16(b))
	}
	if b = b[width:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

func nextExtension(b []byte) (kind uint16, data, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, nil, false
	}
	data, rest, ok = prefixed(b[2:], 2)
	return binary.BigEndian.Uint16(b), data, rest, ok
}

func serverName(b []byte) string {
	list, _, ok := prefixed(b, 2)
	if !ok || len(list) < 3 || list[0] != 0 {
		return ""
	}
	name, _, _ := prefixed(list[1:], 2)
	return string(name)
}

func alpnNames(b []byte) []string {
	list, _, ok := prefixed(b, 2)
	var names []string
	for ok && len(list) > 0 {
		var name []byte
		if name, list, ok = prefixed(list, 1); ok {
			names = append(names, string(name))
		}
	}
	return names
}

func versions(b []byte) []uint16 {
	list, _, ok := prefixed(b, 1)
	var out []uint16
	for ; ok && len(list) >= 2; list = list[2:] {
		v := binary.BigEndian.Uint16(list)
		if grease := v&0x0f0f == 0x0a0a && v>>8 == v&0xff; !grease { // RFC 8701
			out = append(out, v)
		}
	}
	return out
}

// Without gives the record with a hello that lacks an extension, as a middlebox
// that filters it would send it on; the record itself where it has none.
func Without(record []byte, extension uint16) ([]byte, error) {
	body, err := helloBody(record)
	if err != nil {
		return nil, err
	}
	list, ok := extensionsOf(body)
	if !ok {
		return nil, errHello
	}
	var kept []byte
	for rest := list; len(rest) > 0; {
		kind, _, next, ok := nextExtension(rest)
		if !ok {
			return nil, errHello
		}
		if kind != extension {
			kept = append(kept, rest[:len(rest)-len(next)]...)
		}
		rest = next
	}
	if len(kept) == len(list) {
		return record, nil
	}
	before := body[:len(body)-len(list)-2]
	length := len(before) + 2 + len(kept)
	out := slices.Clone(record[:3])
	out = binary.BigEndian.AppendUint16(out, uint16(length+4))
	out = append(out, 1, byte(length>>16), byte(length>>8), byte(length))
	out = append(out, before...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(kept)))
	return append(out, kept...), nil
}

// versionNames are the versions that a hello offers, best first.
func versionNames(list []uint16) []string {
	var names []string
	for _, v := range slices.Backward(slices.Sorted(slices.Values(list))) {
		names = append(names, tls.VersionName(v))
	}
	return names
}
