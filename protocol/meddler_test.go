package protocol

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A meddler stands between both ends of a protocol in memory. What they say
// passes piece by piece, as it was written; inside TLS, which it ends in
// between, as it was written there. At one piece of one end it stops that end
// and makes trouble for the other one in its stead.
type meddler struct {
	near, far *side
	toFar     bool // the far end gets the trouble
	at        int  // pieces that come through before
	trouble   trouble

	downs          int           // pieces of the far end that came through
	parked, resume chan struct{} // the carrier from the far end, while TLS begins
	switched       bool          // TLS is ended here
	deaf           atomic.Bool   // nothing is taken any more
	gone           chan struct{} // closed once the end that has the trouble has gone

	onset  time.Time // of the trouble; zero when it did not come to that
	inside bool      // it was in TLS
}

// A side is the meddler's connection to one end.
type side struct {
	raw *memoryConn
	tls *tls.Conn // once there is one
	buf []byte
}

func newSide(raw *memoryConn) *side { return &side{raw: raw.inPieces(), buf: make([]byte, 64<<10)} }

func (s *side) read() ([]byte, error) {
	if s.tls != nil {
		n, err := s.tls.Read(s.buf)
		return bytes.Clone(s.buf[:n]), err
	}
	n, err := s.raw.Read(s.buf)
	return bytes.Clone(s.buf[:n]), err
}

func (s *side) Write(b []byte) (int, error) {
	if s.tls != nil {
		return s.tls.Write(b)
	}
	return s.raw.Write(b)
}

// closeWrite ends what this side says, in order.
func (s *side) closeWrite() {
	if s.tls != nil {
		s.tls.CloseWrite()
	}
	s.raw.out.close()
}

// isHello tells a whole ClientHello.
func isHello(p []byte) bool {
	return len(p) > 6 && isTLS(p) && p[5] == 1 && len(p) == 5+int(p[3])<<8+int(p[4])
}

// run meddles until both ends have gone.
func (m *meddler) run() {
	m.parked, m.resume = make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(m.up)
	wg.Go(m.down)
	wg.Wait()
}

// up carries what the near end says.
func (m *meddler) up() {
	defer m.near.raw.Close()
	defer m.far.closeWrite()
	for n := 0; ; n++ {
		p, err := m.near.read()
		switch {
		case err != nil && len(p) == 0:
			return
		case m.deaf.Load():
			<-m.gone
			return
		case m.toFar && n == m.at:
			m.begin(m.far, m.near, p)
			return
		case !m.switched && isHello(p):
			if !m.shake(p, &n) {
				return
			}
		default:
			m.far.Write(p)
		}
	}
}

// down carries what the far end says.
func (m *meddler) down() {
	for {
		p, err := m.far.read()
		switch {
		case err != nil && faultOf(err) == FaultTimeout:
			m.parked <- struct{}{}
			if _, ok := <-m.resume; !ok {
				io.Copy(io.Discard, m.far.raw)
				return
			}
		case err != nil && len(p) == 0:
			m.near.closeWrite()
			m.far.raw.Close()
			return
		case m.deaf.Load():
			<-m.gone
			return
		case !m.toFar && m.downs == m.at:
			m.begin(m.near, m.far, p)
			m.near.closeWrite()
			return
		default:
			m.downs++
			m.near.Write(p)
		}
	}
}

// begin makes the trouble in place of piece p and all that would follow.
func (m *meddler) begin(victim, peer *side, p []byte) {
	m.onset, m.inside = time.Now(), victim.tls != nil
	m.deaf.Store(m.trouble.deaf)
	peer.raw.Close()
	m.trouble.make(victim, p)
}

// halfway stands for what either end says in the midst of a handshake: a record
// with a handshake message (RFC 8446 sections 4 and 5.1).
var halfway = append([]byte{22, 3, 3, 0, 95, 2, 0, 0, 91}, noise(91)...)

// shake lets both ends have their handshakes, each with the meddler. The
// ClientHello counts as one piece and what ends the handshake as another.
func (m *meddler) shake(hello []byte, n *int) bool {
	m.far.raw.SetReadDeadline(past)
	<-m.parked
	m.far.raw.SetReadDeadline(time.Time{})
	m.switched = true
	if !m.toFar && m.downs == m.at {
		close(m.resume)
		m.begin(m.near, m.far, halfway)
		return false
	}
	m.downs++
	if *n++; m.toFar && *n == m.at {
		m.far.raw.Write(hello)
		close(m.resume)
		m.begin(m.far, m.near, halfway)
		return false
	}
	var out *tls.Conn
	in := tls.Server(&preread{m.near.raw, bytes.NewReader(hello)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		out = tls.Client(m.far.raw, &tls.Config{InsecureSkipVerify: true, ServerName: h.ServerName, NextProtos: h.SupportedProtos})
		if err := out.Handshake(); err != nil {
			return nil, err
		}
		config := &tls.Config{Certificates: []tls.Certificate{*certificate()}}
		if alpn := out.ConnectionState().NegotiatedProtocol; alpn != "" {
			config.NextProtos = []string{alpn}
		}
		return config, nil
	}})
	if in.Handshake() != nil {
		close(m.resume)
		return false
	}
	m.near.tls, m.far.tls = in, out
	m.resume <- struct{}{}
	return true
}

// preread is a connection whose first bytes were read before.
type preread struct {
	net.Conn
	first *bytes.Reader
}

func (p *preread) Read(b []byte) (int, error) {
	if p.first.Len() > 0 {
		return p.first.Read(b)
	}
	return p.Conn.Read(b)
}
