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
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// The stages of an exchange, in order. A finding names the last one reached.
const (
	StageConnect  = "connect"  // the TCP handshake
	StageBanner   = "banner"   // the far end's greeting
	StageSTARTTLS = "starttls" // the agreement to go on in TLS
	StageTLS      = "tls"      // the TLS handshake
	StageKex      = "kex"      // SSH's key exchange
	StageLogin    = "login"    // the token in place of a name and password
	StageToken    = "token"    // the request with its token, and the answer
	StageData     = "data"     // bulk data both ways
	StageIdle     = "idle"     // silence, then a late packet from the far end
	StageDone     = "done"
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

// A Protocol has both its ends, over TCP or UDP or both.
type Protocol struct {
	Doc       string   // one line: what goes over the wire, and where the token is
	Imitation string   // what of it is not the real thing, and why; empty when all is
	Variants  []string // ways in which applications use it, each probed by itself; nil is one
	Bulk      bool     // carries large transfers
	Secure    bool     // the near end begins with TLS, over TCP

	Names bool   // what the near end begins with says the path's name in clear, outside of TLS
	Says  string // a name that it says whatever the path's is
	// Nameless: where the path has no name, its clients say one of their own or
	// none, and not that of the host they were told.
	Nameless bool
	// Rhythm is how far apart applications send over UDP. An exchange that may
	// idle keeps it; without silence to be measured it would take too long.
	Rhythm time.Duration

	// The reflector knows a stream by its first bytes, or by its port when the
	// far end speaks first.
	Claims func(peek Peek, inTLS bool) bool
	Greets bool
	Inside bool // Greets inside TLS: TCP.Serve gets what is spoken inside

	// Patience is how long the far end bears with a peer in all, beside what its
	// exchange asks for, where that is longer than unprovenTime: with other
	// people's programs, which look around before they leave.
	Patience time.Duration

	// Needs tells what a variant cannot do without; nil is nothing.
	Needs func(variant string) Need

	// Harmless tells whether a line that arrived other than it was sent is what
	// a helper in between is there to do; nil is never.
	Harmless func(sent, heard string) bool
	// Means says what it does to those who use the protocol that a line arrived
	// as another, taken away or put in when one is empty; nil or "" says nothing.
	Means func(sent, heard string) string

	TCP, UDP *Ends // nil where it is not spoken
}

// A Need is what a variant cannot do without.
type Need struct {
	IPv4   bool // it has words for addresses of IPv4 alone
	Inward bool // the far end calls back
}

// Ends are the two ends of a protocol over one transport.
type Ends struct {
	// Probe is the near end; c is connected, over UDP too.
	Probe func(ctx context.Context, c net.Conn, x Exchange) Result
	// Serve is the far end of a TCP connection.
	Serve func(ctx context.Context, c net.Conn, far Far) []wire.Event
	// Answer is the far end over UDP: the answer to one datagram, which has to be
	// no longer than it unless its token proved good; nil is none.
	Answer func(p []byte, from, to netip.AddrPort, far Far) (reply []byte, e wire.Event)
	// Stream: over UDP too there is a server name and a data phase.
	Stream bool
}

// A Peek looks at the first n bytes of a stream, waiting for them for a while.
// It gives fewer when no more come.
type Peek func(n int) []byte

// protocols is the one list. A new protocol is one file and one line here. It is
// filled in by init because some of its functions look things up in it.
var protocols map[string]*Protocol

func init() {
	protocols = map[string]*Protocol{
		"4d":                      fourD,
		"4d-tls":                  fourDTLS,
		"automate-control-center": controlCenter,
		"automate-heartbeat":      automateHeartbeat,
		"automate-mediator":       automateMediator,
		"automate-redirector":     automateRedirector,
		"automate-relay":          automateRelay,
		"automate-tray":           automateTray,
		"automate-tunnel":         automateTunnel,
		"automate-wakeup":         automateWakeup,
		"dns":                     dnsProtocol,
		"ftp":                     ftp,
		"ftp-data":                ftpData,
		"goto-media":              gotoMedia,
		"http":                    plainHTTP,
		"http-connect":            throughProxy,
		"https":                   secureHTTP,
		"imap":                    imap,
		"imaps":                   imaps,
		"mcs":                     mcs,
		"mysql":                   mysql,
		Plain:                     plain,
		"pop3":                    pop3,
		"pop3s":                   pop3s,
		QUIC:                      quicProtocol,
		"screenconnect-relay":     screenConnect,
		"sftp":                    sftp,
		"smtp":                    submission,
		"smtps":                   smtps,
		"ssltcp":                  sslTCP,
		"submission":              submission,
		"tls":                     tlsPlain,
		"xmpp":                    xmpp,
		"xmpps":                   xmppInTLS,
	}
}

// UDP probes are datagrams, STUN and TURN belong to package relay: they have
// no stream, so the client names them itself.
const (
	Datagram = "datagram"    // wallprobe's own message over UDP
	STUN     = "stun"        // Binding with a session's short-lived credentials
	TURN     = "turn"        // Allocate over UDP or TCP
	TURNS    = "turns"       // Allocate over TLS
	ICE      = "ice-session" // a whole ICE session; its path's ports are those of the far agent
)

// For finds what to speak for a scenario's protocol name. own tells that it is
// the protocol itself and not a stand-in for it.
func For(name string, t scenarios.Transport) (spoken string, own bool) {
	switch name {
	case STUN, TURN, TURNS, ICE:
		return name, true
	}
	if On(name, t) != nil {
		return name, true
	}
	if t == scenarios.UDP {
		return Datagram, name == "" || name == Datagram
	}
	return Plain, name == ""
}

// Named gives a protocol by its name, nil when there is none.
func Named(name string) *Protocol { return protocols[name] }

// Secure tells whether a near end that speaks name over TCP begins with TLS.
func Secure(name string) bool {
	p := protocols[name]
	return name == TURNS || p != nil && (p.Secure || p.Inside)
}

// Names lists the protocols.
func Names() []string { return slices.Sorted(maps.Keys(protocols)) }

// On gives both ends of a protocol over a transport, nil when there are none.
func On(name string, t scenarios.Transport) *Ends {
	p := protocols[name]
	switch {
	case p == nil:
		return nil
	case t == scenarios.UDP:
		return p.UDP
	}
	return p.TCP
}

// Claim finds the protocol whose stream begins with what peek shows, nil when
// it is none.
func Claim(peek Peek, inTLS bool) *Protocol {
	for _, p := range claimants {
		if p.Claims(peek, inTLS) {
			return p
		}
	}
	return nil
}

// claimants are the protocols that Claim asks, the plain one first: sweeps ask
// tens of thousands of ports in it.
var claimants []*Protocol

func init() {
	for _, name := range append([]string{Plain}, Names()...) {
		if p := protocols[name]; p.Claims != nil && p.TCP != nil && !slices.Contains(claimants, p) {
			claimants = append(claimants, p)
		}
	}
}

// A Port is where the far end must know beforehand what is spoken.
type Port struct {
	Transport scenarios.Transport
	Number    uint16
	Inside    bool // of TLS
}

// ByPort tells for the ports of scenarios what the far end says or answers there
// without being told by the first bytes. Where two differ, the first holds.
func ByPort(list ...*scenarios.Scenario) map[Port]string {
	m := make(map[Port]string)
	for _, s := range list {
		for _, path := range s.Paths {
			p := protocols[path.Protocol]
			if p == nil {
				continue
			}
			for _, t := range path.Transport {
				if t == scenarios.TCP && !p.Greets || t == scenarios.UDP && (p.UDP == nil || p.UDP.Answer == nil) {
					continue
				}
				for n := range path.Ports.All {
					at := Port{t, n, p.Inside}
					if _, taken := m[at]; !taken {
						m[at] = path.Protocol
					}
				}
			}
		}
	}
	return m
}

// An Exchange is what the near end is to do on a connection.
type Exchange struct {
	Keys       *wire.Keys
	Offline    bool
	Probe      uint32
	Attempt    uint16
	Port       uint16   // aimed at
	ServerName string   // TLS server name; may be empty
	Offer      []string // ALPN names in place of the protocol's own; nil leaves these, empty is none
	Says       string   // in place of the name that the protocol says; empty leaves it
	Alone      bool     // what else passes on the port is not asked
	Bytes      uint32   // each way
	Idle       time.Duration
	Stall      time.Duration // how long a stage may stand still
	Variant    string        // one of the protocol's, where it has some
	Now        func() time.Time

	// Dial and Listen make the further connections of protocols that have some,
	// such as FTP's for data; nil uses the network. Listen is for calls from the
	// far end.
	Dial   func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	Listen func(at netip.Addr) (net.Listener, error)
}

// A Result is how far an exchange came, as the near end saw it.
type Result struct {
	Stage  string        // last stage begun; StageDone when all is well
	Fault  string        // what ended it; empty with StageDone
	Err    error         // the error behind Fault, if there was one
	Step   string        // what was being done in the stage, where it has several steps
	Up     int64         // bytes of the data phase sent
	Down   int64         // bytes of the data phase received and unaltered
	Sent   int           // over UDP: requests sent
	Heard  int           // over UDP: of which so many were answered and verified
	Strays int           // over UDP: datagrams that answer none of them, which anybody can send who guesses the port
	RTT    time.Duration // from the token's sending to its answer
	TLS    *wire.TLSSeen
	Said   *wire.Said    // the dialogue, where there is one in text
	Detail string        // what is worth telling beside a good result
	Rate   float64       // of the data phase, bytes per second in the slower direction; 0 is unknown
	Pause  time.Duration // the longest in which no byte of the data phase came
	Media  []wire.Media  // of media over UDP, each flow
	Flow   *wire.Flow    // over UDP, of an exchange that failed and whose protocol drops what was changed
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
	// Tell lets ledgers tell of the connection and of what is said on it while it
	// is under way. It comes before the first line is sent.
	Tell(said *wire.Transcript)
	// Shake is Tell for a TLS handshake, of which no more is known than what began it.
	Shake(seen wire.TLSSeen)
	// Certificate mints a leaf for the name in hello.
	Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// Inner serves what is spoken inside TLS.
	Inner(ctx context.Context, c net.Conn) []wire.Event
	// Control answers HTTP requests below wire.ControlPath.
	Control() http.Handler
	// Listen opens a port of its own on the address that a proven peer came to,
	// for one further connection.
	Listen(at netip.Addr) (net.Listener, error)
	// Dial calls a proven session's own address, from a port if it is not 0. It
	// fails where the operator does not allow that.
	Dial(ctx context.Context, m wire.Message, from, to netip.AddrPort) (net.Conn, error)
	Now() time.Time
}
