package survey

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
)

// Dial connects over plain TCP, from local unless that is zero, until ctx ends.
// The answer, for the remote port, says how it went; the connection is nil
// unless Answered is 1. Fault is Timeout when ctx's deadline passed, and
// Unfinished when it was cancelled.
func Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, Answer) {
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	a := Answer{Port: remote.Port()}
	fd, err := tcpSocket(local, remote)
	if err != nil {
		a.note(outcome{fault: faultOf(err), err: err})
		return nil, a
	}
	start := time.Now()
	a.Sent = 1
	if err := unix.Connect(fd, sockaddr(remote)); err != nil && err != unix.EINPROGRESS {
		a.note(explain(fd, err))
		unix.Close(fd)
		return nil, a
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if o := await(ctx, f); o.fault != None {
		a.note(o)
		return nil, a
	}
	a.Answered, a.RTT, a.Local = 1, time.Since(start), localAddr(fd)
	receiveErrors(fd, remote.Addr(), 0) // see fileConn
	c, err := plaintcp.FileConn(f)
	if err != nil {
		a.note(outcome{fault: Other, err: err})
		return nil, a
	}
	return c, a
}

// await waits in Go's own poller until the connecting socket is decided.
func await(ctx context.Context, f *os.File) outcome {
	raw, err := f.SyscallConn()
	if err != nil {
		return outcome{fault: Other, err: err}
	}
	defer context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })()
	var o outcome
	err = raw.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if err != nil {
			o = explain(int(fd), err)
			return true
		}
		// Neither failed nor connected: woken too early.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	switch {
	case err == nil:
		return o
	case ctx.Err() != nil:
		return ended(ctx)
	}
	return outcome{fault: faultOf(err), err: err}
}
