package protocol

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// tlsPlain is wallprobe's own protocol inside TLS.
var tlsPlain = &Protocol{
	Doc:    "TLS handshake for the path's name, then wallprobe's own message inside",
	Bulk:   true,
	Secure: true,
	Claims: func(peek Peek, inTLS bool) bool { return !inTLS && isTLS(peek(2)) },
	TCP:    &Ends{Probe: probeTLS, Serve: serveTLS},
}

// isTLS tells a handshake record (RFC 8446 section 5.1).
func isTLS(b []byte) bool { return len(b) >= 2 && b[0] == 0x16 && b[1] == 3 }

// probeTLS is the near end: a handshake for the path's name, then the plain
// exchange inside.
func probeTLS(ctx context.Context, c net.Conn, x Exchange) Result {
	return insideTLS(probePlain)(ctx, c, x)
}

// insideTLS makes the near end of what is spoken inside TLS.
func insideTLS(probe func(context.Context, net.Conn, Exchange) Result) func(context.Context, net.Conn, Exchange) Result {
	return func(ctx context.Context, c net.Conn, x Exchange) Result {
		began := time.Now()
		tc, seen, r := x.overTLS(ctx, c)
		if tc != nil {
			r = probe(ctx, tc, x)
		}
		r.TLS, r.Took = seen, time.Since(began)
		return r
	}
}

// overTLS shakes hands for the path's name, offering the ALPN names. When that
// fails, the connection is nil and r says how. The certificate is not verified
// but kept: whether it is the reflector's is a finding, not a reason to stop.
func (x Exchange) overTLS(ctx context.Context, c net.Conn, offer ...string) (tc *tls.Conn, seen *wire.TLSSeen, r Result) {
	if x.Offer != nil {
		offer = x.Offer
	}
	rec := &recorder{Conn: c}
	seen = &wire.TLSSeen{ServerName: x.ServerName, Offered: offer}
	tc = tls.Client(rec, &tls.Config{
		ServerName:         x.ServerName,
		NextProtos:         offer,
		InsecureSkipVerify: true, // #nosec: every byte inside carries the session's MAC
		MinVersion:         tls.VersionTLS12,
	})
	began := time.Now()
	hctx, cancel := context.WithTimeout(ctx, x.Stall)
	defer cancel()
	err := tc.HandshakeContext(hctx)
	Hear(seen, rec.sent.Bytes())
	if err == nil {
		describe(seen, tc.ConnectionState())
		return tc, seen, Result{Stage: StageTLS, TLS: seen}
	}
	r = Result{Stage: StageTLS, Fault: faultOf(err), Err: err, TLS: seen, Took: time.Since(began)}
	if hctx.Err() != nil && ctx.Err() == nil {
		r.Fault = FaultTimeout
	}
	if no, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		r.Fault, r.Sample = FaultForeign, no.RecordHeader[:] // who does not speak TLS is not the reflector
	}
	return nil, seen, r
}

// OverTLS is the handshake alone, for what is spoken inside by others. The
// connection is nil when it fails; the result tells of it either way.
func (x Exchange) OverTLS(ctx context.Context, c net.Conn) (*tls.Conn, Result) {
	tc, _, r := x.overTLS(ctx, c)
	return tc, r
}

// describe fills in what a finished handshake shows.
func describe(s *wire.TLSSeen, st tls.ConnectionState) {
	s.Version, s.ALPN = tls.VersionName(st.Version), st.NegotiatedProtocol
	if st.ServerName != "" {
		s.ServerName = st.ServerName
	}
	if len(st.PeerCertificates) > 0 {
		leaf := st.PeerCertificates[0]
		s.Certificate, s.Issuer = digest(leaf.Raw), leaf.Issuer.String()
		s.Chain = chain(st.PeerCertificates)
	}
}

// chain keeps what tells the certificates of a chain apart.
func chain(list []*x509.Certificate) []wire.Certificate {
	var out []wire.Certificate
	for _, c := range list[:min(len(list), wire.MaxChain)] {
		out = append(out, wire.Certificate{Digest: digest(c.Raw), Subject: c.Subject.String(), Issuer: c.Issuer.String()})
	}
	return out
}

// Served notes the chain that the far end sends.
func Served(s *wire.TLSSeen, cert *tls.Certificate) {
	s.Certificate = digest(cert.Certificate[0])
	var list []*x509.Certificate
	for _, der := range cert.Certificate {
		if c, err := x509.ParseCertificate(der); err == nil {
			list = append(list, c)
		}
	}
	s.Chain = chain(list)
}

// Hear notes the ClientHello that a stream begins with, as it left or as it
// arrived.
func Hear(s *wire.TLSSeen, stream []byte) {
	record := firstRecord(stream)
	s.HelloDigest = digest(record)
	if h, err := ParseHello(record); err == nil {
		s.HelloName, s.Offered, s.Versions = h.ServerName, h.ALPN, versionNames(h.Versions)
	}
}

// Hellos are the digests of the ClientHellos that some connections began with. The
// zero value has none.
type Hellos struct {
	mu   sync.Mutex
	list []string
}

// Note keeps the digest of the first that a connection writes, if that is one
// (RFC 8446 section 5.1).
func (h *Hellos) Note(first []byte) {
	const handshake = 22
	if len(first) == 0 || first[0] != handshake {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, digest(firstRecord(first)))
}

// All lists them.
func (h *Hellos) All() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

// serveTLS is the far end. Its own event tells of the handshake; what is spoken
// inside adds its own.
func serveTLS(ctx context.Context, c net.Conn, far Far) []wire.Event {
	e := Arrived(c, far.Now())
	e.Stage = StageTLS
	tc, seen, err := acceptTLS(ctx, c, far, far.Shake)
	e.TLS = seen
	if err != nil {
		return failed(e, err)
	}
	inner := far.Inner(context.WithValue(ctx, insideKey{}, seen), tc)
	for i := range inner {
		if inner[i].TLS = seen; inner[i].Stage == StageConnect {
			inner[i].Stage = StageTLS // of one who shook hands and said nothing more
		}
	}
	tc.SetDeadline(time.Now().Add(time.Second))
	tc.CloseWrite() // close-notify, so that an orderly end is told from a cut; the connection ends once its events are kept
	if len(inner) == 0 {
		return []wire.Event{e}
	}
	return inner
}

type insideKey struct{}

// Inside is the handshake of the TLS connection that ctx belongs to, nil outside
// of TLS. It is for what keeps events of its own, such as a relay.
func Inside(ctx context.Context) *wire.TLSSeen {
	seen, _ := ctx.Value(insideKey{}).(*wire.TLSSeen)
	return seen
}

// acceptTLS is the far end's handshake, with a leaf for the name that is asked
// for. Of the ALPN names it takes the first offered one that it knows, and goes
// on without where it knows none. began is told of the ClientHello; it may be nil.
func acceptTLS(ctx context.Context, c net.Conn, far Far, began func(wire.TLSSeen)) (*tls.Conn, *wire.TLSSeen, error) {
	seen := &wire.TLSSeen{}
	rec := &recorder{Conn: c}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := far.Certificate(h)
			if err == nil {
				Served(seen, cert)
			}
			return cert, err
		},
	}
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		seen.ServerName, seen.Offered = h.ServerName, h.SupportedProtos
		if began != nil {
			heard := *seen
			Hear(&heard, rec.received.Bytes())
			began(heard)
		}
		own := config.Clone()
		for _, name := range h.SupportedProtos {
			if slices.Contains(alpn, name) {
				own.NextProtos = []string{name}
				break
			}
		}
		return own, nil
	}
	tc := tls.Server(rec, config)
	hctx, cancel := context.WithTimeout(ctx, farStall)
	defer cancel()
	err := tc.HandshakeContext(hctx)
	Hear(seen, rec.received.Bytes())
	if err != nil {
		return nil, seen, err
	}
	st := tc.ConnectionState()
	seen.Version, seen.ALPN = tls.VersionName(st.Version), st.NegotiatedProtocol
	return tc, seen, nil
}

// alpn are the names of protocols that the far end speaks inside TLS.
var alpn = []string{"h2", "http/1.1", "xmpp-client"}

// A recorder keeps the first bytes of both directions. After a write that failed
// it writes nothing more.
type recorder struct {
	net.Conn
	sent, received bytes.Buffer
	broken         error // of a write: what followed a lost record would not decrypt
}

// NetConn is what it records, as that of tls.Conn.
func (r *recorder) NetConn() net.Conn { return r.Conn }

// maxRecord is a TLS record with its header (RFC 8446 section 5.1).
const maxRecord = 5 + 1<<14

func (r *recorder) Write(b []byte) (int, error) {
	if room := maxRecord - r.sent.Len(); room > 0 {
		r.sent.Write(b[:min(room, len(b))])
	}
	if r.broken != nil {
		return 0, r.broken
	}
	n, err := r.Conn.Write(b)
	r.broken = err
	return n, err
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	if room := maxRecord - r.received.Len(); room > 0 {
		r.received.Write(b[:min(room, n)])
	}
	return n, err
}

// firstRecord cuts the first TLS record out of b.
func firstRecord(b []byte) []byte {
	if len(b) < 5 {
		return b
	}
	return b[:min(len(b), 5+int(binary.BigEndian.Uint16(b[3:])))]
}
