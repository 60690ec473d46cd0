package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/logging"
	"github.com/pion/stun"
	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
)

// The stages of an ICE session.
const (
	StageSignal = "ice signalling" // the two agents' credentials, over control
	StageChecks = "ice checks"     // until a pair of candidates is selected
)

// NewICEAgent makes an agent for one address family whose waits are parts of
// stall, the longest one. Its own waits would let a session over a relay take
// two seconds; pion says nothing, and asks no multicast DNS.
func NewICEAgent(n *ICENet, urls []*stun.URI, stall time.Duration) (*ice.Agent, error) {
	quiet := logging.NewDefaultLoggerFactory()
	quiet.Writer, quiet.DefaultLogLevel = io.Discard, logging.LogLevelDisabled
	network := ice.NetworkTypeUDP6
	if n.Addr.Is4() {
		network = ice.NetworkTypeUDP4
	}
	types := []ice.CandidateType{ice.CandidateTypeHost}
	if len(urls) > 0 {
		types = append(types, ice.CandidateTypeServerReflexive, ice.CandidateTypeRelay)
	}
	part := func(n time.Duration) *time.Duration { d := stall / n; return &d }
	keep, lost := 2*time.Second, 4*stall
	checks := uint16(1000) // the caller's context ends them
	return ice.NewAgent(&ice.AgentConfig{
		Urls: urls, Net: n, NetworkTypes: []ice.NetworkType{network}, CandidateTypes: types,
		MulticastDNSMode: ice.MulticastDNSModeDisabled, LoggerFactory: quiet, IncludeLoopback: true,
		InsecureSkipVerify: true, // #nosec: STUN inside carries MACs
		CheckInterval:      part(60), KeepaliveInterval: &keep, DisconnectedTimeout: &lost, FailedTimeout: &lost, MaxBindingRequests: &checks,
		HostAcceptanceMinWait: part(1 << 20), SrflxAcceptanceMinWait: part(24), PrflxAcceptanceMinWait: part(24), RelayAcceptanceMinWait: part(3),
	})
}

// An ICENet is the network as one agent sees it: one address of its own, and
// connections that Shut ends. It is for one session.
type ICENet struct {
	*stdnet.Net
	Addr   netip.Addr                                      // for host candidates
	Listen func(netip.AddrPort) (transport.UDPConn, error) // opens its UDP sockets; nil uses the network
	// Binding makes an authenticated Binding with a transaction id, for servers
	// that answer no bare one, and to pay for a relay's challenge. Nil leaves
	// messages as they are.
	Binding func(id [stun.TransactionIDSize]byte) ([]byte, error)
	Asked   []netip.AddrPort // the servers that are asked over UDP; pion would ask those of TCP as well
	Dialing time.Duration    // how long TCP may take; 0 is without limit
	Hellos  Hellos           // of relays over TLS

	mu    sync.Mutex
	shut  bool
	conns []interface{ end() }
}

var errShut = errors.New("the ICE session is over")

// Interfaces gives one, with the one address.
func (n *ICENet) Interfaces() ([]*transport.Interface, error) {
	i := transport.NewInterface(net.Interface{Index: 1, Name: "ice", Flags: net.FlagUp})
	i.AddAddress(&net.IPNet{IP: n.Addr.AsSlice(), Mask: net.CIDRMask(n.Addr.BitLen(), n.Addr.BitLen())})
	return []*transport.Interface{i}, nil
}

// ListenUDP is for host and server-reflexive candidates.
func (n *ICENet) ListenUDP(string, *net.UDPAddr) (transport.UDPConn, error) {
	return n.listen()
}

// ListenPacket is for relays over UDP.
func (n *ICENet) ListenPacket(string, string) (net.PacketConn, error) { return n.listen() }

func (n *ICENet) listen() (transport.UDPConn, error) {
	listen := n.Listen
	if listen == nil {
		listen = func(at netip.AddrPort) (transport.UDPConn, error) {
			return net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		}
	}
	c, err := listen(netip.AddrPortFrom(n.Addr, 0))
	if err != nil || n.Binding == nil {
		return c, err
	}
	p := &icePackets{UDPConn: c, binding: n.Binding, asked: n.Asked}
	return p, n.keep(p)
}

// DialTCP is for relays over TCP and TLS.
func (n *ICENet) DialTCP(_ string, _, to *net.TCPAddr) (transport.TCPConn, error) {
	d := plaintcp.Dialer()
	d.Timeout = n.Dialing
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := n.keep(endFunc(cancel)); err != nil {
		return nil, err
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	s := &iceStream{TCPConn: c.(*net.TCPConn), hellos: &n.Hellos}
	return s, n.keep(s)
}

type endFunc func()

func (f endFunc) end() { f() }

// keep remembers what Shut has to end.
func (n *ICENet) keep(c interface{ end() }) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shut {
		c.end()
		return errShut
	}
	n.conns = append(n.conns, c)
	return nil
}

// Shut ends every wait for a server, so that the agent can be closed at once.
func (n *ICENet) Shut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shut = true
	for _, c := range n.conns {
		c.end()
	}
	n.conns = nil
}

// ResolveUDPAddr and ResolveTCPAddr take addresses alone, of any family and, as
// pion writes IPv6 ones, without brackets.
func (n *ICENet) ResolveUDPAddr(_, address string) (*net.UDPAddr, error) {
	a, err := looseAddrPort(address)
	return net.UDPAddrFromAddrPort(a), err
}

// ResolveTCPAddr is ResolveUDPAddr for TCP.
func (n *ICENet) ResolveTCPAddr(_, address string) (*net.TCPAddr, error) {
	a, err := looseAddrPort(address)
	return net.TCPAddrFromAddrPort(a), err
}

func looseAddrPort(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q has no port", s)
	}
	a, err := netip.ParseAddr(strings.Trim(s[:i], "[]"))
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	return netip.AddrPortFrom(a, uint16(port)), err
}

// icePackets is a UDP socket whose bare requests to STUN and TURN servers are
// authenticated or paid for.
type icePackets struct {
	transport.UDPConn
	binding func(id [stun.TransactionIDSize]byte) ([]byte, error)
	asked   []netip.AddrPort
	waits   waits
}

var errNotAsked = errors.New("no server that is asked over UDP")

// WriteTo sends an authenticated Binding in a bare one's stead, and one ahead
// of a bare Allocate.
func (c *icePackets) WriteTo(b []byte, to net.Addr) (int, error) {
	c.waits.note(b)
	if len(b) < 20 || !stun.IsMessage(b) {
		return c.UDPConn.WriteTo(b, to)
	}
	var typ stun.MessageType
	typ.ReadValue(uint16(b[0])<<8 | uint16(b[1]))
	id := [stun.TransactionIDSize]byte(b[8:20])
	switch {
	case typ == stun.BindingRequest && len(b) == 20:
		if u, ok := to.(*net.UDPAddr); !ok || !slices.Contains(c.asked, netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())) {
			return 0, fmt.Errorf("binding to %s: %w", to, errNotAsked)
		}
		m, err := c.binding(id)
		if err != nil {
			return 0, err
		}
		if _, err = c.UDPConn.WriteTo(m, to); err != nil {
			return 0, err
		}
		return len(b), nil
	case typ == stun.NewType(stun.MethodAllocate, stun.ClassRequest) && !signed(b):
		m, err := c.binding(stun.NewTransactionID())
		if err != nil {
			return 0, err
		}
		if _, err = c.UDPConn.WriteTo(m, to); err != nil {
			return 0, err
		}
	}
	return c.UDPConn.WriteTo(b, to)
}

func signed(b []byte) bool {
	m := new(stun.Message)
	return stun.Decode(b, m) == nil && m.Contains(stun.AttrMessageIntegrity)
}

// ReadFrom gives, once the session is over, a refusal of the request that waits.
func (c *icePackets) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(p)
	if err != nil {
		if b := c.waits.refusal(); b != nil {
			return copy(p, b), c.LocalAddr(), nil
		}
	}
	return n, from, err
}

func (c *icePackets) end() { c.waits.end(); _ = c.UDPConn.SetReadDeadline(time.Unix(1, 0)) }

// iceStream is a TCP connection to a relay.
type iceStream struct {
	*net.TCPConn
	waits  waits
	hellos *Hellos
	first  sync.Once // of Write
}

func (c *iceStream) Write(b []byte) (int, error) {
	c.first.Do(func() { c.hellos.Note(b) })
	c.waits.note(b)
	return c.TCPConn.Write(b)
}

func (c *iceStream) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if err != nil && n == 0 && len(p) >= 20 {
		if b := c.waits.refusal(); b != nil {
			return copy(p, b), nil
		}
	}
	return n, err
}

func (c *iceStream) end() { c.waits.end(); _ = c.TCPConn.SetReadDeadline(time.Unix(1, 0)) }

// waits knows the Allocate request whose answer is waited for. pion's client
// cannot be told to stop waiting but by an answer.
type waits struct {
	mu   sync.Mutex
	id   *[stun.TransactionIDSize]byte
	over bool
}

func (w *waits) note(b []byte) {
	if len(b) < 20 || !stun.IsMessage(b) || b[0] != 0 || b[1] != 3 { // Allocate request, RFC 8656 section 17
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	id := [stun.TransactionIDSize]byte(b[8:20])
	w.id = &id
}

func (w *waits) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}

// refusal is given once.
func (w *waits) refusal() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over || w.id == nil {
		return nil
	}
	m := stun.New()
	m.Type, m.TransactionID = stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse), *w.id
	m.WriteHeader()
	w.id = nil
	return m.Raw
}
