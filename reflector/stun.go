package reflector

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector/relay"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// relayConfig ties the STUN and TURN service to sessions: credentials are a
// session's own and live as long as it does, and a session may relay only to
// addresses that it came from itself.
func (r *Reflector) relayConfig() relay.Config {
	return relay.Config{
		Credentials: r.turnCredentials,
		Now:         r.cfg.Now,
		PeerAllowed: r.peerAllowed,
		ListenRelay: func(a netip.Addr) (*net.UDPConn, func(), error) {
			return r.set.Borrow(netip.AddrPortFrom(a, 0))
		},
		Echo:              r.echo,
		EchoPort:          protocol.EchoPort,
		Shared:            r.shared,
		AllowPrivatePeers: r.cfg.PrivatePeers,
		PlainSTUN:         r.cfg.PlainSTUN,
		Event:             r.relayEvent,
		Panicked:          func(remote netip.AddrPort, v any) { r.panicked("TURN allocation", remote, v) },
		Unproven: func(b []byte, local, remote netip.AddrPort) {
			r.strayDatagram(&steer.Datagram{Local: local, Remote: remote, Payload: b}, wire.SessionID{}, protocol.FaultForeign)
		},
		Send: func(b []byte, local, remote netip.AddrPort) error {
			return r.set.WriteTo(b, local, remote)
		},
	}
}

// turnCredentials accepts what the key made within the time that two clocks may
// differ. The session need not be known yet: whoever proves the password makes it.
func (r *Reflector) turnCredentials(username string, now time.Time) (password, session string, ok bool) {
	id, made, ok := wire.ParseTURN(username)
	if d := now.Sub(made); !ok || d > clockSkew || d < -clockSkew {
		return "", "", false
	}
	_, password = wire.TURN(r.cfg.Key, id, made)
	return password, id.String(), true
}

func (r *Reflector) sessionNamed(text string) *session {
	var id wire.SessionID
	if id.UnmarshalText([]byte(text)) != nil {
		return nil
	}
	return r.sessions.find(id)
}

// ownAddrs are the addresses of this host.
func ownAddrs() map[netip.Addr]bool {
	own := make(map[netip.Addr]bool)
	addrs, _ := net.InterfaceAddrs() // without them only loopback is known, which is denied anyway
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own
}

// peerAllowed lets a session relay to where it came from itself, and to its own
// ICE agents here.
func (r *Reflector) peerAllowed(session string, peer netip.AddrPort) bool {
	s := r.sessionNamed(session)
	switch {
	case s == nil:
		return false
	case r.agents.owner(unmap(peer)) == s:
		return true
	case r.own[peer.Addr().Unmap()]:
		return false // its own ports carry control and TURN
	}
	return slices.Contains(s.allSources(), peer.Addr().Unmap())
}

// echo is the peer of a session's relays inside the reflector.
func (r *Reflector) echo(session string, p []byte, relay netip.AddrPort) []byte {
	m, s, err := r.sessions.prove(p)
	if err != nil || s.id.String() != session {
		return nil
	}
	return protocol.Echo(p, s.keysFor(m), relay, r.now())
}

// shared takes what reaches a socket that stands on a port that may be served:
// a sweep must find the port as it finds the others.
func (r *Reflector) shared(b []byte, local, remote netip.AddrPort) bool {
	if !wire.IsMessage(b) {
		return false
	}
	r.Datagrams([]steer.Datagram{{Local: local, Remote: remote, Payload: b}}, func(out []steer.Datagram) {
		for _, d := range out {
			_ = r.set.WriteTo(d.Payload, d.Local, d.Remote) // the near end misses it; the Set counts it
		}
	})
	return true
}

// relayEvent puts what a session did into its ledger. A Binding's label names
// the probe; what follows on the same 5-tuple belongs to it too.
func (r *Reflector) relayEvent(e relay.Event) {
	s := r.sessionNamed(e.Session)
	if s == nil {
		var id wire.SessionID
		if id.UnmarshalText([]byte(e.Session)) != nil {
			return
		}
		var err error
		if s, err = r.sessions.open(id, e.Time); err != nil {
			return
		}
	}
	if e.Label != "" {
		if n, err := strconv.ParseUint(e.Label, 10, 32); err == nil {
			s.label(e.Remote, uint32(n))
		}
	}
	t := scenarios.UDP
	var seen *wire.TLSSeen
	if e.TCP {
		t = scenarios.TCP
		if v, ok := r.inside.Load(e.Remote); ok {
			seen = v.(*wire.TLSSeen)
		}
	}
	ev := wire.Event{
		Time: e.Time, Transport: t, Remote: e.Remote, Local: e.Local, Session: s.id, Probe: s.labelled(e.Remote),
		Stage: protocol.StageToken, Answered: true, TLS: seen,
	}
	if e.Kind != relay.KindBinding {
		ev.Stage = fmt.Sprintf("turn %s", e.Kind)
	}
	if e.Result != "ok" && e.Kind != relay.KindData {
		ev.Fault = e.Result
	}
	if e.Kind == relay.KindUnproven {
		ev.Answered, ev.Fault, ev.Length, ev.Digest = false, protocol.FaultAltered, len(e.Request), digest(e.Request)
	}
	if e.Request != nil {
		ev.Said = protocol.STUNSaid([][]byte{e.Answer}, [][]byte{e.Request})
	}
	if e.Kind == relay.KindEnd {
		ev.Fault, ev.BytesIn, ev.BytesOut = "", e.ToPeer, e.FromPeer
	}
	r.sessions.touch(s, e.Remote.Addr())
	s.event(ev)
}

// maxLabels bounds the 5-tuples whose probe is remembered.
const maxLabels = 1024

func (r *record) label(from netip.AddrPort, probe uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.labels == nil {
		r.labels = make(map[netip.AddrPort]uint32)
	}
	if len(r.labels) < maxLabels {
		r.labels[from] = probe
	}
}

func (r *record) labelled(from netip.AddrPort) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.labels[from]
}
