//go:build !linux

package survey

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

func (u UDP) run(ctx context.Context) ([]Answer, error) { return u.portable(ctx) }

func (t TCP) run(ctx context.Context) ([]Answer, error) { return t.portable(ctx) }

// Dial connects over plain TCP, from local unless that is zero, until ctx ends.
// The answer, for the remote port, says how it went; the connection is nil
// unless Answered is 1. Fault is Timeout when ctx's deadline passed, and
// Unfinished when it was cancelled.
func Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, Answer) {
	return portableDial(ctx, local, remote)
}

// PathMTU is the MTU towards target that this host knows, in bytes: its
// interface's until a router has said otherwise. Linux only; elsewhere the
// error is errors.ErrUnsupported.
func PathMTU(netip.Addr) (int, error) { return 0, errors.ErrUnsupported }
