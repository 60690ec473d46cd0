package protocol

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// probeTLS is the near end: a handshake for the path's name, then the plain
// exchange inside. The certificate is not verified but kept: whether it is the
// reflector's is a finding, not a reason to stop.
func probeTLS(ctx context.Context, c net.Conn, x Exchange) Result {
	began := time.Now()
	rec := &recorder{Conn: c}
	seen := &wire.TLSSeen{ServerName: x.ServerName}
	tc := tls.Client(rec, &tls.Config{
		ServerName:         x.ServerName,
		InsecureSkipVerify: true, // #nosec: every byte inside carries the session's MAC
		MinVersion:         tls.VersionTLS12,
	})
	hctx, cancel := context.WithTimeout(ctx, x.Stall)
	defer cancel()
	err := tc.HandshakeContext(hctx)
	seen.HelloDigest = digest(firstRecord(rec.sent.Bytes()))
	if err != nil {
		if hctx.Err() != nil && ctx.Err() == nil {
			return Result{Stage: StageTLS, Fault: FaultTimeout, Err: err, TLS: seen, Took: time.Since(began)}
		}
		r := Result{Stage: StageTLS, Fault: faultOf(err), Err: err, TLS: seen, Took: time.Since(began)}
		if no, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			r.Fault, r.Sample = FaultForeign, no.RecordHeader[:] // who does not speak TLS is not the reflector
		}
		return r
	}
	describe(seen, tc.ConnectionState())
	r := probePlain(ctx, tc, x)
	r.TLS, r.Took = seen, time.Since(began)
	return r
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
	}
}

// serveTLS is the far end. Its own event tells of the handshake; what is spoken
// inside adds its own.
func serveTLS(ctx context.Context, c net.Conn, far Far) []wire.Event {
	e := Arrived(c, far.Now())
	e.Stage, e.TLS = StageTLS, &wire.TLSSeen{}
	rec := &recorder{Conn: c}
	tc := tls.Server(rec, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			e.TLS.ServerName, e.TLS.Offered = h.ServerName, h.SupportedProtos
			cert, err := far.Certificate(h)
			if err == nil {
				e.TLS.Certificate = digest(cert.Certificate[0])
			}
			return cert, err
		},
	})
	hctx, cancel := context.WithTimeout(ctx, farStall)
	defer cancel()
	err := tc.HandshakeContext(hctx)
	e.TLS.HelloDigest = digest(firstRecord(rec.received.Bytes()))
	if err != nil {
		return failed(e, err)
	}
	st := tc.ConnectionState()
	e.TLS.Version, e.TLS.ALPN = tls.VersionName(st.Version), st.NegotiatedProtocol
	inner := far.Inner(ctx, tc)
	for i := range inner {
		inner[i].TLS = e.TLS
	}
	tc.SetDeadline(time.Now().Add(time.Second))
	tc.Close() // close-notify, so that an orderly end is told from a cut
	if len(inner) == 0 {
		return []wire.Event{e}
	}
	return inner
}

// A recorder keeps the first bytes of both directions.
type recorder struct {
	net.Conn
	sent, received bytes.Buffer
}

// maxRecord is a TLS record with its header (RFC 8446 section 5.1).
const maxRecord = 5 + 1<<14

func (r *recorder) Write(b []byte) (int, error) {
	if room := maxRecord - r.sent.Len(); room > 0 {
		r.sent.Write(b[:min(room, len(b))])
	}
	return r.Conn.Write(b)
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
