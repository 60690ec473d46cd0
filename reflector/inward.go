package reflector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Bounds on inward probes: they go only to the address that the session's own
// control call came from, and only where the operator allowed it.
const (
	maxInward      = 32  // calls under way at one time
	maxInwardPorts = 256 // ports a call
	maxInwardTries = 5
	inwardTimeout  = 1500 * time.Millisecond // for all attempts at a port
	inwardSpacing  = 200 * time.Millisecond
	inwardParallel = 64
)

// inward probes ports of the caller's address: each gets a Call message, which
// the client answers with a Request that carries the same probe and port.
func (r *Reflector) inward(from netip.AddrPort, body []byte) (any, error) {
	q, err := read[wire.InwardRequest](body)
	if err != nil {
		return nil, err
	}
	if !r.cfg.Inward {
		return nil, &wire.ControlError{Code: "forbidden", Message: "the reflector's operator did not allow calls back; start it with --inward"}
	}
	s := r.sessions.find(q.Session)
	if s == nil {
		return nil, &wire.ControlError{Code: "session", Message: "the reflector has no such session"}
	}
	if n := q.Ports.Len(); n > maxInwardPorts || q.Attempts < 1 || q.Attempts > maxInwardTries {
		return nil, &wire.ControlError{Code: "limit", Message: fmt.Sprintf("an inward call has at most %d ports and %d attempts", maxInwardPorts, maxInwardTries)}
	}
	select {
	case r.calls <- struct{}{}:
		defer func() { <-r.calls }()
	default:
		return nil, &wire.ControlError{Code: "limit", Message: "too many inward calls at one time; try again in a second"}
	}
	return r.callPorts(s, from.Addr(), q), nil
}

// callPorts tries every port, some at a time, and groups what it met.
func (r *Reflector) callPorts(s *session, to netip.Addr, q wire.InwardRequest) wire.InwardReply {
	var mu sync.Mutex
	met := make(map[uint16]called)
	var wg sync.WaitGroup
	slots := make(chan struct{}, inwardParallel)
	for port := range q.Ports.All {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer r.guard("call", netip.AddrPortFrom(to, port))
			c := r.callPort(s, netip.AddrPortFrom(to, port), q)
			mu.Lock()
			met[port] = c
			mu.Unlock()
		})
	}
	wg.Wait()
	reply := wire.InwardReply{Sent: q.Attempts}
	faults := make(map[string]scenarios.PortSet)
	made := make(map[uint16]int)
	for port := range q.Ports.All {
		c := met[port]
		made[port] = c.made
		if c.fault == "" {
			reply.Open = appendPort(reply.Open, port)
			continue
		}
		if c.up {
			reply.Up = appendPort(reply.Up, port)
		}
		faults[c.fault] = appendPort(faults[c.fault], port)
	}
	reply.Made = caught(made)
	for _, fault := range slices.Sorted(maps.Keys(faults)) {
		reply.Fault = append(reply.Fault, wire.InwardFault{Ports: faults[fault], Fault: fault})
	}
	return reply
}

// called is what came of a call, or of all calls at a port.
type called struct {
	made  int    // calls
	up    bool   // a TCP connection came up
	fault string // "" means answered
}

// callPort makes spaced attempts, of which the first that is answered counts.
// Without one it gives the first attempt's fault.
func (r *Reflector) callPort(s *session, to netip.AddrPort, q wire.InwardRequest) called {
	ctx, cancel := context.WithTimeout(r.ctx, inwardTimeout)
	defer cancel()
	calls := make([]called, q.Attempts)
	var wg sync.WaitGroup
	for i := range q.Attempts {
		m := wire.Message{
			Kind: wire.Call, Port: to.Port(), Session: s.id, Probe: q.Probe, Attempt: uint16(i),
			Size: wire.MessageSize, Time: r.now(), Seen: to,
		}
		wg.Go(func() {
			defer r.guard("call", to)
			select {
			case <-time.After(time.Duration(i) * inwardSpacing):
			case <-ctx.Done():
				return
			}
			if calls[i] = callOnce(ctx, q.Transport, to, m, &s.keys); calls[i].fault == "" {
				cancel()
			}
		})
	}
	wg.Wait()
	all := called{fault: cmp.Or(calls[0].fault, protocol.FaultTimeout)}
	for _, c := range calls {
		all.made += c.made
		all.up = all.up || c.up
		if c.made > 0 && c.fault == "" {
			all.fault = ""
		}
	}
	return all
}

func callOnce(ctx context.Context, t scenarios.Transport, to netip.AddrPort, m wire.Message, k *wire.Keys) called {
	out := called{made: 1}
	c, err := plaintcp.Dialer().DialContext(ctx, string(t), to.String())
	if err != nil {
		out.fault = met(err)
		return out
	}
	defer c.Close()
	out.up = t == scenarios.TCP
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	out.fault = ask(c, m, k)
	return out
}

// ask sends a Call and gives what is wrong with the answer.
func ask(c net.Conn, m wire.Message, k *wire.Keys) string {
	if _, err := c.Write(m.Append(nil, k)); err != nil {
		return met(err)
	}
	buf := make([]byte, wire.MessageSize)
	if _, err := io.ReadFull(c, buf); err != nil {
		return met(err)
	}
	answer, err := wire.Parse(buf, k)
	if err != nil || answer.Kind != wire.Request || answer.Probe != m.Probe || answer.Port != m.Port {
		return protocol.FaultForeign
	}
	return ""
}

// met names what ended a call: a fault, or else the system's word alone, such as
// "no route to host" for some of the ICMP errors.
func met(err error) string {
	fault := protocol.FaultOf(err)
	if errno, ok := errors.AsType[syscall.Errno](err); ok && fault == err.Error() {
		return errno.Error()
	}
	return fault
}
