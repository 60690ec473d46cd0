package reflector

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// FaultPanic is the fault of an arrival whose serving ended in a panic: an
// error in this program. It ends that connection alone.
const FaultPanic = "panic"

// maxStacks bounds the panics whose stack is logged, so that a peer which knows
// how to make one cannot fill the log.
const maxStacks = 16

// guard is deferred where something that strangers can send is served: a panic
// there ends no more than that, and is logged. So it is in what libraries call
// in goroutines of their own: package protocol and package relay hand on what
// panics there. What is left is an error in a library's own code, in a goroutine
// that it started (pion, quic-go, x/crypto/ssh): that ends the program, as Go
// has no way to bound it. The journal then has all but the last second of every
// ledger, and whoever started the reflector has to start it again; a program
// that watched over it here would keep no more, since sessions live in memory.
func (r *Reflector) guard(what string, from netip.AddrPort) {
	if v := recover(); v != nil {
		r.panicked(what, from, v)
	}
}

// guardErr is guard where a library waits for an error.
func (r *Reflector) guardErr(what string, from netip.AddrPort, err *error) {
	if v := recover(); v != nil {
		r.panicked(what, from, v)
		*err = errPanic
	}
}

var errPanic = errors.New("an error in wallprobe")

func (r *Reflector) panicked(what string, from netip.AddrPort, v any) {
	stack := debug.Stack()
	if p, ok := v.(*protocol.Panic); ok {
		v, stack = p.Value, p.Stack
	}
	args := []any{"in", what, "remote", from, "panic", v}
	if r.panics.Add(1) <= maxStacks {
		args = append(args, "stack", string(stack))
	}
	r.cfg.Log.Error("this is an error in wallprobe: what was served has ended, the reflector goes on", args...)
}

// guarded is stream with a panic as an event.
func (r *Reflector) guarded(ctx context.Context, c net.Conn) (events []wire.Event) {
	defer func() {
		if v := recover(); v != nil {
			e := protocol.Arrived(c, r.now())
			e.Stage, e.Fault = protocol.StageToken, FaultPanic
			r.panicked("connection", e.Remote, v)
			events = []wire.Event{e}
		}
	}()
	return r.stream(ctx, c, false)
}
