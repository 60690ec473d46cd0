package protocol

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/wallprobe/wallprobe/wire"
)

// datagramLink is a connected socket as quic-go wants it. That it has the
// methods for buffer sizes, which do nothing, keeps the library from writing to
// standard error about buffers that one connection does not need.
type datagramLink struct {
	net.Conn
	mu          sync.Mutex
	sent, heard wire.Prints
	first       InitialReader // of what was sent
	err         error         // that the system told of an earlier datagram
}

func (l *datagramLink) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := l.Read(b)
	l.note(&l.heard, b[:n], err)
	return n, l.RemoteAddr(), err
}

// WriteTo notes a datagram before it leaves, so that no answer to it comes first.
func (l *datagramLink) WriteTo(b []byte, _ net.Addr) (int, error) {
	l.note(&l.sent, b, nil)
	n, err := l.Write(b)
	l.note(nil, nil, err)
	return n, err
}

// hello is the ClientHello that was sent, as a record of TLS.
func (l *datagramLink) hello() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first.Record()
}

func (l *datagramLink) note(of *wire.Prints, b []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(b) > 0 {
		of.Add(b)
	}
	if of == &l.sent {
		l.first.Read(b)
	}
	if err != nil && l.err == nil && !isTimeout(err) && !errors.Is(err, net.ErrClosed) {
		l.err = err
	}
}

// met gives how many datagrams went and came, and what the system said of them.
func (l *datagramLink) met() (sent, heard int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent.N, l.heard.N, l.err
}

// flow gives the prints of what went and came.
func (l *datagramLink) flow() *wire.Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &wire.Flow{Sent: l.sent, Heard: l.heard}
	f.Sent.First, f.Heard.First = slices.Clone(f.Sent.First), slices.Clone(f.Heard.First)
	return f
}

func (*datagramLink) SetReadBuffer(int) error  { return nil }
func (*datagramLink) SetWriteBuffer(int) error { return nil }

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// quicErr says in the words of faultOf what ended a connection or a stream.
func quicErr(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var (
		closed   *quic.ApplicationError
		stream   *quic.StreamError
		reset    *quic.StatelessResetError
		version  *quic.VersionNegotiationError
		violated *quic.TransportError
	)
	switch {
	case errors.As(err, &version):
		return fmt.Errorf("somebody says that the far end does not speak QUIC version 1, which it does: %w", ErrForeign)
	case errors.As(err, &reset):
		return fmt.Errorf("a stateless reset, which the far end never sends: %w", ErrForeign)
	case isTimeout(err), errors.As(err, &closed) && !closed.Remote: // this end gave up
		return context.DeadlineExceeded
	case errors.As(err, &closed), errors.As(err, &stream):
		return fmt.Errorf("%s: %w", err, io.EOF)
	case errors.As(err, &violated):
		return errors.New(err.Error()) // the library's errors all are net.ErrClosed too
	}
	return err
}

// besideQUIC is the failure of a handshake that nothing was heard of, with what
// else passes on the port.
type besideQUIC struct{ passes string }

func (e besideQUIC) Error() string { return e.passes }
func (besideQUIC) Unwrap() error   { return context.DeadlineExceeded }

// beside asks what passes on the port where QUIC does not: plain datagrams,
// small and as large as QUIC's, and QUIC of a version that nobody speaks, which
// every server answers in clear (RFC 9000 section 6).
func (x Exchange) beside(ctx context.Context, c *datagramLink, limit time.Duration) string {
	const tries = 2
	asked := []struct {
		name   string
		size   int
		passes bool
	}{{"datagrams of 84 bytes", wire.MessageSize, false}, {"datagrams of 1200 bytes", quicPacket, false}, {"QUIC of an unknown version", 0, false}}
	x.Probe += partBeside
	x.Bytes, x.Idle = 0, 0
	unknown, ids := unknownVersion()
	began := time.Now()
	buf := make([]byte, 2*quicPacket)
	for try := range tries {
		for i, a := range asked {
			m := x.message(wire.Request)
			m.Attempt, m.Size = uint16(i*tries+try), a.size
			b := unknown
			if a.size > 0 {
				b = m.Append(nil, x.Keys)
			}
			c.WriteTo(b, nil) // what does not leave is not answered
		}
		c.SetReadDeadline(began.Add(limit * time.Duration(try+1) / tries))
		for ctx.Err() == nil && !(asked[0].passes && asked[1].passes && asked[2].passes) {
			n, _, err := c.ReadFrom(buf)
			if isTimeout(err) {
				break
			}
			if err != nil && time.Since(began) > limit {
				break
			}
			m, err := wire.Parse(buf[:n], x.Keys)
			own := err == nil && m.Kind == wire.Reply && m.Probe == x.Probe
			asked[0].passes = asked[0].passes || own && n == wire.MessageSize
			asked[1].passes = asked[1].passes || own && n == quicPacket
			asked[2].passes = asked[2].passes || isVersionNegotiation(buf[:n], ids)
		}
	}
	var pass, lost []string
	for _, a := range asked {
		if a.passes {
			pass = append(pass, a.name)
		} else {
			lost = append(lost, a.name)
		}
	}
	switch {
	case len(pass) == 0:
		return "nothing else passes on the port either"
	case len(lost) == 0:
		return strings.Join(pass, ", ") + " pass on the same port"
	}
	return strings.Join(pass, ", ") + " pass on the same port, " + strings.Join(lost, ", ") + " do not"
}

// unknownVersion makes a packet of a version that is reserved to be unknown
// (RFC 9000 section 15), with random connection ids: those of its header from
// its sixth byte on.
func unknownVersion() (packet, ids []byte) {
	ids = make([]byte, 18)
	rand.Read(ids)
	ids[0], ids[9] = 8, 8 // their lengths
	packet = binary.BigEndian.AppendUint32([]byte{0xc0}, 0x1a2a3a4a)
	packet = append(packet, ids...)
	return append(packet, make([]byte, quicPacket-len(packet))...), ids
}

// isVersionNegotiation tells an answer to such a packet: version 0 and the
// connection ids the other way round (RFC 8999 section 6).
func isVersionNegotiation(b, ids []byte) bool {
	if len(b) < 5+len(ids)+4 || b[0]&0x80 == 0 || binary.BigEndian.Uint32(b[1:]) != 0 {
		return false
	}
	b = b[5 : 5+len(ids)]
	return bytes.Equal(b[:9], ids[9:]) && bytes.Equal(b[9:], ids[:9])
}
