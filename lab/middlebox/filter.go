package middlebox

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"

	"github.com/wallprobe/wallprobe/protocol"
)

// An Action is what becomes of a connection.
type Action int

// The actions.
const (
	Pass       Action = iota
	ResetBoth         // a TCP reset to either side
	DropSilent        // nothing more passes; both connections stay open
	Alert             // a fatal TLS alert to the client (access_denied, RFC 8446 section 6.2), then the end
)

// A Filter decides about a TLS connection by its ClientHello, given as it
// came and as it reads. What it returns is sent on in its place.
type Filter func(record []byte, h protocol.Hello) ([]byte, Action)

// ByName acts on hellos for one of the server names.
func ByName(do Action, names ...string) Filter {
	return func(record []byte, h protocol.Hello) ([]byte, Action) {
		if slices.Contains(names, h.ServerName) {
			return record, do
		}
		return record, Pass
	}
}

// ByALPN acts on hellos that offer one of the names; none is any.
func ByALPN(do Action, names ...string) Filter {
	return func(record []byte, h protocol.Hello) ([]byte, Action) {
		offers := func(name string) bool { return len(names) == 0 || slices.Contains(names, name) }
		if slices.ContainsFunc(h.ALPN, offers) {
			return record, do
		}
		return record, Pass
	}
}

// AnyHello acts on TLS itself.
func AnyHello(do Action) Filter {
	return func(record []byte, _ protocol.Hello) ([]byte, Action) { return record, do }
}

// StripALPN takes the ALPN extension out of hellos. TLS notices: the ends no
// longer agree on what was said.
func StripALPN(record []byte, _ protocol.Hello) ([]byte, Action) {
	return stripped(record, protocol.ExtALPN)
}

// StripVersions takes supported_versions out of hellos, so that the server
// takes them for those of TLS 1.2.
func StripVersions(record []byte, _ protocol.Hello) ([]byte, Action) {
	return stripped(record, protocol.ExtVersions)
}

func stripped(record []byte, extension uint16) ([]byte, Action) {
	out, err := protocol.Without(record, extension)
	if err != nil {
		return record, Pass
	}
	return out, Pass
}

// let reads the next record of a client, of which in is what is left to read,
// and tells whether the connection goes on; when not, the action was carried out.
func (f Filter) let(ctx context.Context, in io.Reader, client, server *net.TCPConn) bool {
	record, err := readRecord(in)
	action := Pass
	if h, bad := protocol.ParseHello(record); err == nil && bad == nil {
		record, action = f(record, h)
	}
	switch action {
	case ResetBoth:
		_ = client.SetLinger(0)
		_ = server.SetLinger(0)
		return false
	case DropSilent:
		<-ctx.Done()
		return false
	case Alert:
		const fatal, accessDenied = 2, 49
		_, _ = client.Write([]byte{21, 3, 3, 0, 2, fatal, accessDenied})
		return false
	}
	if len(record) > 0 {
		if _, err := server.Write(record); err != nil {
			return false
		}
	}
	return true // the end that may have been met is met again
}

// readRecord reads one TLS record, or the first bytes of what is none.
func readRecord(c io.Reader) ([]byte, error) {
	b := make([]byte, 5)
	n, err := io.ReadFull(c, b[:3])
	if err != nil || b[0] != 22 || b[1] != 3 {
		return b[:n], err
	}
	if n, err = io.ReadFull(c, b[3:]); err != nil {
		return b[:3+n], err
	}
	b = append(b, make([]byte, binary.BigEndian.Uint16(b[3:]))...)
	n, err = io.ReadFull(c, b[5:])
	return b[:5+n], err
}
