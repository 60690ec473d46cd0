package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// maxReadFailures is how many reads of a relay socket may fail in a row.
const maxReadFailures = 100

// maxEchoes bounds the answers of the echo peer that wait to be read, per
// allocation; more are dropped, as a network would.
const maxEchoes = 256

// relaySocket is the last gate: it judges every packet to and from a peer by
// address and port, where TURN's own permissions know only addresses.
type relaySocket struct {
	a      *allocation
	c      *net.UDPConn
	done   func() // closes c
	addr   netip.AddrPort
	closed sync.Once

	mu     sync.Mutex
	echoes [][]byte // answers of the echo peer
}

// ReadFrom gives pion the next packet from an allowed peer.
func (r *relaySocket) ReadFrom(p []byte) (_ int, _ net.Addr, err error) {
	defer func() {
		if err != nil {
			r.closed.Do(r.a.s.wg.Done)
		}
	}()
	defer r.a.guard(&err)
	for failures := 0; ; {
		n, from, err := r.next(p)
		select {
		case <-r.a.done:
			return 0, nil, net.ErrClosed
		default:
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // to look for echoes
		case err != nil:
			// An ICMP error, as Windows reports it, passes; a dead socket not.
			if failures++; failures > maxReadFailures {
				r.a.end()
			}
			continue
		}
		failures = 0
		if n == len(p) {
			r.a.s.cfg.Count("turn-oversize") // or one byte shorter than it was
			continue
		}
		if _, ok := r.a.peer(from); !ok {
			r.a.s.cfg.Count("turn-peer")
			continue
		}
		r.a.fromPeer.Add(int64(n))
		if r.a.heard.CompareAndSwap(false, true) {
			ev := r.a.event(KindData, "from peer")
			ev.Peer = from
			r.a.s.cfg.Event(ev)
		}
		return n, net.UDPAddrFromAddrPort(from), nil
	}
}

// next gives an answer of the echo peer, or else the next packet from the
// network. Whoever adds an answer ends the read; see echo. What is nobody's
// packet ends it as well.
func (r *relaySocket) next(p []byte) (int, netip.AddrPort, error) {
	if err := r.c.SetReadDeadline(time.Time{}); err != nil {
		return 0, netip.AddrPort{}, err
	}
	r.mu.Lock()
	if len(r.echoes) > 0 {
		b := r.echoes[0]
		r.echoes = r.echoes[1:]
		r.mu.Unlock()
		return copy(p, b), netip.AddrPortFrom(r.a.addr, r.a.s.cfg.EchoPort), nil
	}
	r.mu.Unlock()
	n, from, err := r.c.ReadFromUDPAddrPort(p)
	from = unmap(from)
	switch {
	case err != nil:
	case r.a.isEcho(from):
		r.a.s.cfg.Count("turn-peer") // the echo peer has no packets on the network
		return 0, from, os.ErrDeadlineExceeded
	case r.a.s.cfg.Shared(p[:n], r.addr, from):
		return 0, from, os.ErrDeadlineExceeded
	}
	return n, from, err
}

// WriteTo sends a packet to an allowed peer.
func (r *relaySocket) WriteTo(p []byte, to net.Addr) (_ int, err error) {
	defer r.a.guard(&err)
	peer := unmap(to.(*net.UDPAddr).AddrPort())
	if reason, ok := r.a.peer(peer); !ok {
		r.a.s.cfg.Count("turn-peer")
		return 0, fmt.Errorf("relay to %v: %s", peer, reason)
	}
	ev := r.a.event(KindData, "to peer") // before the peer can answer
	n, err := len(p), error(nil)
	if r.a.isEcho(peer) {
		r.echo(p)
	} else {
		n, err = r.c.WriteToUDPAddrPort(p, peer)
	}
	r.a.toPeer.Add(int64(n))
	if err == nil && r.a.spoke.CompareAndSwap(false, true) {
		ev.Peer = peer
		r.a.s.cfg.Event(ev)
	}
	return n, err
}

// echo lets the peer inside the service answer. It cannot cause a loop: its
// answer goes to the client, and the client's answer is no request.
func (r *relaySocket) echo(p []byte) {
	answer := r.a.s.cfg.Echo(r.a.session, p, r.addr)
	if answer == nil || len(answer) > len(p) {
		r.a.s.cfg.Count("turn-echo")
		return
	}
	r.mu.Lock()
	full := len(r.echoes) >= maxEchoes
	if !full {
		r.echoes = append(r.echoes, answer)
	}
	r.mu.Unlock()
	if full {
		r.a.s.cfg.Count("turn-overflow")
		return
	}
	// next clears the deadline before it looks for answers, so this one ends the
	// read or was seen before.
	_ = r.c.SetReadDeadline(time.Unix(1, 0)) // fails only when the socket is closed
}

// Close is how pion says that the allocation is over: its lifetime has run
// out, or the client has given it back.
func (r *relaySocket) Close() error { r.a.end(); return nil }

// LocalAddr returns the relayed address.
func (r *relaySocket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(r.addr) }

// SetDeadline and its like are part of net.PacketConn; pion never calls them.
func (r *relaySocket) SetDeadline(time.Time) error      { return nil }
func (r *relaySocket) SetReadDeadline(time.Time) error  { return nil }
func (r *relaySocket) SetWriteDeadline(time.Time) error { return nil }
