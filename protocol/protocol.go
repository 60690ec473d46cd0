// Package protocol holds the application protocols that wallprobe speaks, one
// file for each with both its ends: what the near end does to probe, what the
// far end does to serve. The map below names them all; there is no second list.
//
// An end never trusts what it reads: every stage has a deadline, and every
// buffer a limit.
package protocol

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// The stages of an exchange, in order. A finding names the last one reached.
const (
	StageConnect = "connect" // the TCP handshake
	StageTLS     = "tls"     // the TLS handshake
	StageToken   = "token"   // the request with its token, and the answer
	StageData    = "data"    // bulk data both ways
	StageIdle    = "idle"    // silence, then a late packet from the far end
	StageDone    = "done"
)

// The faults that end a stage early. Any other text is an error nobody classified.
const (
	FaultReset   = "reset"   // a TCP reset
	FaultRefused = "refused" // a connection attempt was answered with a reset
	FaultEOF     = "eof"     // the connection was closed
	FaultTimeout = "timeout" // nothing more came
	FaultAltered = "altered" // our own bytes arrived changed
	FaultForeign = "foreign" // somebody answered who does not know the key
)

// A Protocol has both its ends.
type Protocol struct {
	Doc       string // one line: what goes over the wire
	Transport scenarios.Transport
	Probe     func(ctx context.Context, c net.Conn, x Exchange) Result // near end; c is connected
	Serve     func(ctx context.Context, c net.Conn, far Far) []wire.Event
}

// protocols is the one list. A new protocol is one file and one line here.
var protocols = map[string]*Protocol{
	"plain": {Doc: "wallprobe's own message and data phase over TCP", Transport: scenarios.TCP, Probe: probePlain, Serve: servePlain},
	"tls":   {Doc: "TLS handshake for the path's name, then wallprobe's own message inside", Transport: scenarios.TCP, Probe: probeTLS, Serve: serveTLS},
}

// UDP probes are datagrams, STUN and TURN belong to package relay: they have
// no stream, so the client names them itself.
const (
	Datagram = "datagram" // wallprobe's own message over UDP
	STUN     = "stun"     // Binding with a session's short-lived credentials
	TURN     = "turn"     // Allocate over UDP or TCP
	TURNS    = "turns"    // Allocate over TLS
)

// standIns names what is spoken for protocols that have no implementation of
// their own yet, where the plain exchange would look wrong on the wire.
var standIns = map[string]string{"https": "tls", "mcs": "tls", "smtps": "tls", "imaps": "tls", "pop3s": "tls", "4d-tls": "tls"}

// For finds what to speak for a scenario's protocol name. own tells that it is
// the protocol itself and not a stand-in for it.
func For(name string, t scenarios.Transport) (spoken string, own bool) {
	switch name {
	case STUN, TURN, TURNS:
		return name, true
	}
	if p := protocols[name]; p != nil && p.Transport == t {
		return name, true
	}
	if t == scenarios.UDP {
		return Datagram, name == ""
	}
	if s := standIns[name]; s != "" {
		return s, false
	}
	return "plain", name == ""
}

// Stream gives a TCP protocol by its name, nil when there is none.
func Stream(name string) *Protocol { return protocols[name] }

// An Exchange is what the near end is to do on a connection.
type Exchange struct {
	Keys       *wire.Keys
	Offline    bool
	Probe      uint32
	Attempt    uint16
	Port       uint16 // aimed at
	ServerName string // TLS server name; may be empty
	Bytes      uint32 // each way
	Idle       time.Duration
	Stall      time.Duration // how long a stage may stand still
	Now        func() time.Time
}

// A Result is how far an exchange came, as the near end saw it.
type Result struct {
	Stage  string        // last stage begun; StageDone when all is well
	Fault  string        // what ended it; empty with StageDone
	Err    error         // the error behind Fault, if there was one
	Up     int64         // bytes of the data phase sent
	Down   int64         // bytes of the data phase received and unaltered
	RTT    time.Duration // from the token's sending to its answer
	TLS    *wire.TLSSeen
	Sample []byte        // first bytes of an answer that is not ours
	Seen   wire.Message  // the far end's answer, if it verified
	Took   time.Duration // until the fault or the end
}

// Far is what a serving end needs from the reflector.
type Far interface {
	// Prove reads a whole message and checks it against the session that it
	// claims. The errors are those of wire.Parse, or say why the session cannot
	// be had; the message's fields are filled as far as they could be read.
	Prove(p []byte, from net.Addr) (wire.Message, *wire.Keys, error)
	// Certificate mints a leaf for the name in hello.
	Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// Inner serves what is spoken inside TLS.
	Inner(ctx context.Context, c net.Conn) []wire.Event
	Now() time.Time
}
