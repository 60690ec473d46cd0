package reflector

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

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
	met := make(map[uint16]string)
	var wg sync.WaitGroup
	slots := make(chan struct{}, inwardParallel)
	for port := range q.Ports.All {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer r.guard("call", netip.AddrPortFrom(to, port))
			fault := r.callPort(s, netip.AddrPortFrom(to, port), q)
			mu.Lock()
			met[port] = fault
			mu.Unlock()
		})
	}
	wg.Wait()
	reply := wire.InwardReply{Sent: q.Attempts}
	faults := make(map[string]scenarios.PortSet)
	for port := range q.Ports.All {
		if met[port] == "" {
			reply.Open = appendPort(reply.Open, port)
			continue
		}
		faults[met[port]] = appendPort(faults[met[port]], port)
	}
	for fault, ports := range faults {
		reply.Fault = append(reply.Fault, wire.InwardFault{Ports: ports, Fault: fault})
	}
	return reply
}

// callPort makes spaced attempts, of which the first that is answered counts.
// Without one it gives the first attempt's fault; "" means answered.
func (r *Reflector) callPort(s *session, to netip.AddrPort, q wire.InwardRequest) string {
	ctx, cancel := context.WithTimeout(r.ctx, inwardTimeout)
	defer cancel()
	faults := make([]string, q.Attempts)
	var open atomic.Bool
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
			if faults[i] = callOnce(ctx, q.Transport, to, m, &s.keys); faults[i] == "" {
				open.Store(true)
				cancel()
			}
		})
	}
	wg.Wait()
	if open.Load() {
		return ""
	}
	return cmp.Or(faults[0], protocol.FaultTimeout)
}

func callOnce(ctx context.Context, t scenarios.Transport, to netip.AddrPort, m wire.Message, k *wire.Keys) string {
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, string(t), to.String())
	if err != nil {
		return protocol.FaultOf(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write(m.Append(nil, k)); err != nil {
		return protocol.FaultOf(err)
	}
	buf := make([]byte, wire.MessageSize)
	if _, err := io.ReadFull(c, buf); err != nil {
		return protocol.FaultOf(err)
	}
	answer, err := wire.Parse(buf, k)
	if err != nil || answer.Kind != wire.Request || answer.Probe != m.Probe || answer.Port != m.Port {
		return protocol.FaultForeign
	}
	return ""
}
