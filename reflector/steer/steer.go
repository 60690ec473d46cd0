// Package steer binds every TCP and UDP port that a reflector serves and hands
// over what arrives with exactly the address and port it was aimed at.
//
// A process may hold far fewer descriptors than there are ports. So wide
// ranges are steered to a few sockets, by the best mechanism that the machine
// allows:
//
//   - BPF: an sk_lookup program (Linux 5.9, CAP_BPF and CAP_NET_ADMIN outside
//     any user namespace). Ports that other programs had at the start are
//     theirs.
//   - TPROXY: an nftables table of its own (CAP_NET_ADMIN, also inside a user
//     namespace, and the nft program). Whatever another socket would get, now
//     or later, is left to it.
//   - Sockets: one socket for every port and address, as many as fit below the
//     descriptor limit; the rest is reported as not served.
//
// IPv4 and IPv6 have separate sockets, and none of them speaks Multipath TCP.
// Listen binds and starts nothing; Serve runs until its context ends.
package steer

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
)

// DefaultMaxConns is the number of TCP connections served at once unless
// Config.MaxConns says otherwise.
const DefaultMaxConns = 12_000

// A Config says what to listen on. The zero value listens on nothing; Addrs
// may stay empty.
type Config struct {
	// Addrs are the addresses to listen on; 0.0.0.0 and :: mean all of their
	// family. Empty means both, or only 0.0.0.0 on a machine without IPv6.
	Addrs []netip.Addr

	TCP, UDP scenarios.PortSet

	// First are bound before the others where not all can be.
	First Ports

	// Reserved are UDP ports that others will bind later, relays for
	// instance: they are neither steered nor served. Under BPF a socket bound
	// later to a steered port gets nothing unless it is connected or comes from
	// [Set.Borrow]; under TPROXY it gets what is its own.
	Reserved scenarios.PortSet

	Mode         Mode
	AllowUnbound bool // go on without the ports that cannot be bound
	MaxConns     int  // TCP connections at once; 0 is DefaultMaxConns, cut to what the descriptor limit leaves
}

// Ports are the ports of both transports.
type Ports struct{ TCP, UDP scenarios.PortSet }

// A Mode is a mechanism to listen on many ports.
type Mode int

// The modes. Auto uses Sockets where no range is wide, else the first of BPF,
// TPROXY and Sockets that works.
const (
	Auto Mode = iota
	BPF
	TPROXY
	Sockets
)

var modeNames = []string{Auto: "auto", BPF: "bpf", TPROXY: "tproxy", Sockets: "sockets"}

func (m Mode) String() string {
	if m < 0 || int(m) >= len(modeNames) {
		return "mode " + strconv.Itoa(int(m))
	}
	return modeNames[m]
}

// ParseMode reads the text form of a mode.
func ParseMode(s string) (Mode, error) {
	if i := slices.Index(modeNames, s); i >= 0 {
		return Mode(i), nil
	}
	return 0, &modeError{s}
}

type modeError struct{ given string }

func (e *modeError) Error() string {
	return "steering mode " + strconv.Quote(e.given) + " does not exist: choose one of " + strings.Join(modeNames, ", ")
}

// A Datagram is one UDP datagram. Local is the address and port that it was
// aimed at, Remote the other end; for an answer Local is what it leaves from.
// A link-local IPv6 Remote has the interface's number as its zone.
type Datagram struct {
	Local, Remote netip.AddrPort
	TTL           uint8 // as received: IPv4 TTL or IPv6 hop limit; 0 if the system does not tell. Of an answer: what it leaves with, where the system told; 0 is the usual
	TOS           uint8 // in the same way: IPv4 TOS or IPv6 traffic class, with the ECN bits
	Payload       []byte
	Time          time.Time // of arrival in the kernel, where it tells
}

// A Handler serves what arrives.
type Handler interface {
	// Conn serves one connection in a goroutine of its own. The connection is
	// closed when Conn returns, and also when the context of Serve ends.
	// LocalAddr is the address and port that the peer aimed at.
	Conn(c net.Conn)

	// Datagrams is called from a read loop with up to 64 datagrams. Neither
	// batch nor payloads nor reply may be used after it has returned. Reply
	// sends each datagram from exactly its Local to its Remote.
	Datagrams(batch []Datagram, reply func([]Datagram))
}

// Stats counts what happened since Listen.
type Stats struct {
	Conns    uint64 // TCP connections accepted and given to the handler
	Refused  uint64 // TCP connections closed at once because MaxConns was reached
	Accepts  uint64 // temporary failures to accept, descriptors exhausted for instance
	Received uint64 // datagrams given to the handler
	Dropped  uint64 // datagrams that the kernel dropped because a receive buffer was full
	Sent     uint64 // datagrams given to the kernel
	Unsent   uint64 // datagrams that the kernel did not take
}

// Mechanism says in one sentence how the ports are served, and why not in a
// better way.
func (s *Set) Mechanism() string { return s.mechanism }

// Served returns the ports that are served on every address.
func (s *Set) Served() (tcp, udp scenarios.PortSet) { return s.tcp, s.udp }

// Unserved returns the ports of the Config that are not served, and why.
func (s *Set) Unserved() []Unbound { return s.unserved }

// Stats returns the counts so far.
func (s *Set) Stats() Stats {
	return Stats{
		Conns:    s.count.conns.Load(),
		Refused:  s.count.refused.Load(),
		Accepts:  s.count.accepts.Load(),
		Received: s.count.received.Load(),
		Dropped:  s.count.dropped.Load(),
		Sent:     s.count.sent.Load(),
		Unsent:   s.count.unsent.Load(),
	}
}

// group writes n with a comma between thousands.
func group(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
