// Package survey is the client's network edge: sockets that try very many
// ports fast, need no privilege on any system, and report exactly what came
// back. It knows no verdicts; it only says what happened.
//
// A [UDP] survey sends datagrams to many remote ports, or from many local ports
// to one remote port. A [TCP] survey connects, and hands each connection to an
// exchange. [Dial] makes one connection and explains its failure.
//
// On Linux an ICMP or ICMPv6 error is reported with type, code and sender, from
// the socket's error queue (ip(7), IP_RECVERR). Elsewhere the operating system
// keeps these to itself: a refused datagram has Fault Unreachable and no ICMP.
//
// Silence is ambiguous here on purpose. Whether a request or its reply was lost
// is told by the far end's ledger, not by this package.
package survey

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// An ICMP is an ICMP (RFC 792) or ICMPv6 (RFC 4443) error, as in the packet.
// The zero value means that none came or that the system does not tell.
type ICMP struct {
	Type, Code uint8
	From       netip.Addr // who sent it; this host itself when neighbour discovery failed
	V6         bool
}

// IsValid tells whether an error came.
func (m ICMP) IsValid() bool { return m.From.IsValid() }

// String names the error in nft's words: "icmp admin-prohibited", "icmpv6
// port-unreachable"; without the sender. What nft has no word for reads "icmp
// type 3 code 99". It is empty for the zero value.
func (m ICMP) String() string {
	if m == (ICMP{}) {
		return ""
	}
	family, unreachable, codes, types := "icmp", uint8(3), icmp4Codes, icmp4Types
	if m.V6 {
		family, unreachable, codes, types = "icmpv6", 1, icmp6Codes, icmp6Types
	}
	name := types[m.Type]
	if m.Type == unreachable {
		name = codes[m.Code]
	}
	if name == "" {
		return fmt.Sprintf("%s type %d code %d", family, m.Type, m.Code)
	}
	return family + " " + name
}

// Codes of "destination unreachable" and names of the other error types, in
// the words of nft(8).
var (
	icmp4Codes = map[uint8]string{
		0: "net-unreachable", 1: "host-unreachable", 2: "prot-unreachable", 3: "port-unreachable",
		4: "frag-needed", 9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited",
	}
	icmp4Types = map[uint8]string{4: "source-quench", 5: "redirect", 11: "time-exceeded", 12: "parameter-problem"}
	icmp6Codes = map[uint8]string{
		0: "no-route", 1: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable",
		5: "policy-fail", 6: "reject-route",
	}
	icmp6Types = map[uint8]string{2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem"}
)

// A Fault says what went wrong at a port.
type Fault uint8

// The faults.
const (
	None        Fault = iota // nothing
	Timeout                  // nothing came back in time
	Reset                    // a TCP reset, and no ICMP error with it
	Unreachable              // an ICMP error; Answer.ICMP has it where the system tells
	Unroutable               // this host has no route or no address of the family
	TooBig                   // larger than the path's MTU and not to be fragmented; Answer.MTU
	Unfinished               // the survey was cancelled before this port was decided, or before its exchange ended
	Other                    // any other error of this host; Answer.Err
)

var faultNames = [...]string{"none", "timeout", "reset", "unreachable", "unroutable", "too-big", "unfinished", "other"}

func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return fmt.Sprintf("fault %d", uint8(f))
}

// MarshalText is the fault's name.
func (f Fault) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// An Answer is what happened at one surveyed port.
type Answer struct {
	Port      uint16 // the surveyed one: remote, or local in a survey of local ports
	Sent      uint16 // datagrams that left this host, or connections begun
	Answered  uint16 // datagrams answered by a valid reply, or connections established
	Duplicate uint16 // further valid replies to a datagram already answered
	Invalid   uint16 // replies that did not verify

	RTT    time.Duration  // of the first valid reply, or of the TCP handshake
	Fault  Fault          // first thing that went wrong; may stand beside valid replies
	ICMP   ICMP           // with Fault Unreachable or TooBig
	MTU    int            // bytes, with Fault TooBig: largest packet, as the router or this host said
	Err    error          // this host's error for the fault, if it gave one
	Local  netip.AddrPort // TCP on Linux: without a port that the system chose
	Sample []byte         // the first invalid reply, 256 bytes at most

	Exchanged   time.Duration // TCP: how long the exchange took
	ExchangeErr error         // TCP: what the exchange returned
}

// outcome is how one attempt ended at a socket.
type outcome struct {
	fault Fault
	icmp  ICMP
	mtu   int
	err   error
}

// note keeps the first fault of a port.
func (a *Answer) note(o outcome) {
	if a.Fault == None {
		a.Fault, a.ICMP, a.MTU, a.Err = o.fault, o.icmp, o.mtu, o.err
	}
}

// ended is how an attempt ends with its context.
func ended(ctx context.Context) outcome {
	o := outcome{fault: Unfinished, err: context.Cause(ctx)}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		o.fault = Timeout
	}
	return o
}
