package protocol

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// QUIC is the name of quicProtocol in scenarios.
const QUIC = "quic"

// FaultVersion is that of a packet of a QUIC version that the far end does not
// know: it arrived, and says nothing about version 1.
const FaultVersion = "unknown QUIC version"

// quicProtocol is HTTP/3 (RFC 9114) over QUIC version 1 (RFC 9000). One request
// has the token in its header, the response the answering token; their bodies
// carry the data phase and the silence.
var quicProtocol = &Protocol{
	Doc: "QUIC handshake for the path's name and an HTTP/3 request with the token in its header; the data is in the bodies",
	UDP: &Ends{Probe: probeQUIC, Stream: true},
}

// The headers of a request and of its response that hold the token.
const (
	quicTokenHeader  = "Wallprobe-Token"
	quicAnswerHeader = "Wallprobe-Answer"
)

// quicPacket is the size of the first packets: what RFC 9000 section 14.1 demands
// and every path has to carry.
const quicPacket = 1200

// nearQUIC bounds the near end's connection.
func nearQUIC(x Exchange, handshake time.Duration) *quic.Config {
	return &quic.Config{
		Versions:                []quic.Version{quic.Version1},
		HandshakeIdleTimeout:    handshake,
		MaxIdleTimeout:          x.Idle + 2*x.Stall,
		InitialPacketSize:       quicPacket,
		DisablePathMTUDiscovery: true,
		MaxIncomingStreams:      -1,
		MaxIncomingUniStreams:   8, // HTTP/3 has three
	}
}

// FarQUIC bounds the far end's connections: what waits in memory for one is at
// most a MiB and a half, and without a token ServeQUIC ends it.
func FarQUIC() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           farStall / 2,
		MaxIdleTimeout:                 MaxIdle + 2*farStall,
		InitialStreamReceiveWindow:     64 << 10,
		MaxStreamReceiveWindow:         1 << 20,
		InitialConnectionReceiveWindow: 128 << 10,
		MaxConnectionReceiveWindow:     3 << 19,
		MaxIncomingStreams:             4,
		MaxIncomingUniStreams:          8,
		InitialPacketSize:              quicPacket,
		DisablePathMTUDiscovery:        true,
	}
}

// probeQUIC is the near end. When no handshake comes about it asks on the same
// port what else passes, within the same time.
func probeQUIC(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	link := &datagramLink{Conn: c}
	defer func() {
		if r.Stage != StageDone {
			r.Flow = link.flow()
		}
	}()
	tr := &quic.Transport{Conn: link}
	handshake := x.Stall * 3 / 4
	conn, err := x.shakeHands(ctx, tr, c.RemoteAddr(), handshake, &r)
	Hear(r.TLS, link.hello())
	r.Sent, r.Heard = 1, 1
	if err != nil {
		tr.Close()
		sent, heard, met := link.met()
		r.Sent, r.Heard = max(1, sent), min(1, heard)
		switch {
		case met != nil && heard == 0:
			err = met
		case faultOf(err) == FaultTimeout && ctx.Err() == nil && !x.Alone:
			err = besideQUIC{x.beside(ctx, link, x.Stall-handshake)}
		}
		step(StageTLS, err)
		return r
	}
	defer tr.Close()
	defer conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	defer context.AfterFunc(ctx, func() { conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeRequestCanceled), "") })()
	s, err := x.askQUIC(ctx, conn, &r)
	if !step(StageToken, err) {
		return r
	}
	x.carry(s, &r, step)
	if r.Stage == StageDone {
		s.finish(x.Stall)
	}
	return r
}

// shakeHands makes the connection. As over TCP, the certificate is kept and not
// verified.
func (x Exchange) shakeHands(ctx context.Context, tr *quic.Transport, to net.Addr, limit time.Duration, r *Result) (*quic.Conn, error) {
	hctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conf := &tls.Config{
		ServerName:         x.ServerName,
		NextProtos:         []string{http3.NextProtoH3},
		InsecureSkipVerify: true, // #nosec: every byte inside carries the session's MAC
		MinVersion:         tls.VersionTLS13,
	}
	r.TLS = &wire.TLSSeen{ServerName: x.ServerName, Offered: conf.NextProtos}
	conn, err := tr.Dial(hctx, to, conf, nearQUIC(x, limit))
	if err != nil {
		if hctx.Err() != nil && ctx.Err() == nil {
			return nil, context.DeadlineExceeded
		}
		return nil, quicErr(err)
	}
	describe(r.TLS, conn.ConnectionState().TLS)
	return conn, nil
}

// askQUIC sends the request and checks its response.
func (x Exchange) askQUIC(ctx context.Context, conn *quic.Conn, r *Result) (*quicStream, error) {
	tctx, cancel := context.WithTimeout(ctx, x.Stall)
	defer cancel()
	name := x.ServerName
	if name == "" {
		name = conn.RemoteAddr().String()
	}
	sent := time.Now()
	s, err := (&http3.Transport{MaxResponseHeaderBytes: 4096, DisableCompression: true}).NewClientConn(conn).OpenRequestStream(tctx)
	if err != nil {
		return nil, quicErr(err)
	}
	s.SetDeadline(sent.Add(x.Stall))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+name+"/", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(quicTokenHeader, x.Token())
	if err := s.SendRequestHeader(req); err != nil {
		return nil, quicErr(err)
	}
	resp, err := s.ReadResponse()
	r.RTT = time.Since(sent)
	if err != nil {
		return nil, quicErr(err)
	}
	if err := x.CheckToken(resp.Header.Get(quicAnswerHeader), r); err != nil {
		r.Sample = []byte(resp.Proto + " " + resp.Status)
		return nil, fmt.Errorf("%q without the answering token: %w", resp.Status, err)
	}
	return &quicStream{h3Stream: s, local: conn.LocalAddr(), remote: conn.RemoteAddr()}, nil
}

// h3Stream is what both ends of a request have.
type h3Stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// A quicStream is the bodies of a request and its response as one connection.
type quicStream struct {
	h3Stream
	local, remote net.Addr
}

func (s *quicStream) LocalAddr() net.Addr  { return s.local }
func (s *quicStream) RemoteAddr() net.Addr { return s.remote }

func (s *quicStream) Read(b []byte) (int, error) {
	n, err := s.h3Stream.Read(b)
	return n, quicErr(err)
}

func (s *quicStream) Write(b []byte) (int, error) {
	n, err := s.h3Stream.Write(b)
	return n, quicErr(err)
}

// finish ends the near end's half and waits until the far end has ended its own,
// for what is under way is lost with the connection.
func (s *quicStream) finish(stall time.Duration) {
	s.Close()
	s.SetReadDeadline(time.Now().Add(min(stall, time.Second)))
	io.Copy(io.Discard, io.LimitReader(s, 1))
}

// An ArrivedQUIC is a connection at the far end.
type ArrivedQUIC struct {
	Conn          *quic.Conn
	Remote, Local netip.AddrPort
	TLS           *wire.TLSSeen
	Hello         []byte           // the ClientHello as a record of TLS, where it is known
	Note          func(wire.Event) // takes the connection's one event, before the near end learns that it is over
}

// ServeQUIC is the far end of a connection. It returns when the connection is
// over, at the latest when nothing proved a token for a while.
func ServeQUIC(ctx context.Context, a ArrivedQUIC, far Far) {
	closed := func() { a.Conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "") }
	defer context.AfterFunc(ctx, closed)()
	Hear(a.TLS, a.Hello)
	describe(a.TLS, a.Conn.ConnectionState().TLS)
	s := &quicServed{a: a, far: far, turn: make(chan struct{}, 1), giveUp: time.AfterFunc(farStall, closed)}
	s.e = wire.Event{Time: far.Now(), Transport: scenarios.UDP, Remote: a.Remote, Local: a.Local, Stage: StageToken, TLS: a.TLS}
	defer s.giveUp.Stop()
	s.turn <- struct{}{}
	began := time.Now()
	(&http3.Server{MaxHeaderBytes: 4096, Handler: s}).ServeQUICConn(a.Conn)
	<-s.turn
	s.panics.again()
	if s.proven {
		return
	}
	switch {
	case s.e.Fault != "":
	case time.Since(began) >= farStall || ctx.Err() != nil:
		s.e.Fault = FaultTimeout
	default:
		s.e.Fault = FaultEOF
	}
	a.Note(s.e)
}

// quicServed is a connection being served.
type quicServed struct {
	a      ArrivedQUIC
	far    Far
	turn   chan struct{} // holds one while no request is served
	giveUp *time.Timer   // ends the connection
	e      wire.Event
	proven bool
	panics panics
}

// ServeHTTP serves one request at a time, and none after the proven one.
func (s *quicServed) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	select {
	case <-s.turn:
	default:
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	defer func() { s.turn <- struct{}{} }()
	defer s.panics.keep(func() { s.a.Conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeInternalError), "") })
	if s.proven {
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	m, keys, err := ProveToken(req.Header.Get(quicTokenHeader), net.UDPAddrFromAddrPort(s.a.Remote), s.far)
	s.e.Session, s.e.Probe, s.e.Attempt, s.e.Fault = m.Session, m.Probe, m.Attempt, faultOf(err)
	if err != nil {
		w.Header().Set("Content-Type", "text/plain")
		w.Write([]byte("wallprobe\n"))
		return
	}
	s.proven = true
	s.giveUp.Stop()
	str, err := s.answer(w, m, keys)
	if err != nil {
		s.e.Fault = faultOf(quicErr(err))
	}
	s.a.Note(s.e)
	if str != nil {
		str.Close()
	}
	s.giveUp.Reset(time.Second) // for the near end to close first
}

// answer answers a proven request and goes on with the bodies.
func (s *quicServed) answer(w http.ResponseWriter, m wire.Message, keys *wire.Keys) (io.Closer, error) {
	reply := m
	reply.Kind, reply.Seen, reply.Time = wire.Reply, s.a.Remote, s.far.Now()
	w.Header().Set(quicAnswerHeader, textOf(&reply, keys))
	w.WriteHeader(http.StatusOK)
	streamer, ok := w.(http3.HTTPStreamer)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	str, err := streamer.HTTPStream()
	if err != nil {
		return nil, err
	}
	serveCarry(&quicStream{h3Stream: str, local: s.a.Conn.LocalAddr(), remote: s.a.Conn.RemoteAddr()}, keys, reply, &s.e)
	return str, nil
}
