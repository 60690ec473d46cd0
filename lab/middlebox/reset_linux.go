package middlebox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/wallprobe/wallprobe/lab"
	"golang.org/x/sys/unix"
)

// maxResetFlows bounds the flows an injector remembers.
const maxResetFlows = 65536

// packetRoom is for packets that were not looked at yet, in bytes.
const packetRoom = 16 << 20

// Reset forges TCP resets towards one side of the flows it sees passing. The
// flow itself passes unhindered; but a host that was told of a reset may send
// one of its own when the other side goes on.
type Reset struct {
	Port uint16 // of the servers
	To   Side   // who gets the reset

	// After is how many payload bytes of both sides pass before. With 0 the
	// reset follows the SYN and races with the server's answer, as on real
	// networks: the client is refused, or connected for a moment only.
	After int
}

// An Injector is a Reset that watches a host's interfaces.
type Injector struct {
	reset Reset
	file  *os.File
	seen  map[flow]int // payload bytes so far
	sent  atomic.Int64
}

// Open begins to watch a host that forwards the flows. Nothing is injected
// before Serve.
func (r Reset) Open(h *lab.Host) (*Injector, error) {
	i := &Injector{reset: r, seen: map[flow]int{}}
	err := h.Do(func() error {
		// The protocol is in network byte order (packet(7)).
		const everything = unix.ETH_P_ALL << 8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, everything)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		i.file = os.NewFile(uintptr(fd), "packets")
		// On a busy machine it comes late to what waits there, and may lose none.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetRoom); err != nil {
			i.file.Close()
			return fmt.Errorf("room for %d bytes of packets: %w", packetRoom, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reset injector on %s: %w", h.Name(), err)
	}
	return i, nil
}

// Close ends the watch without Serve. It may be called again.
func (i *Injector) Close() error {
	if err := i.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Sent is the number of resets injected so far.
func (i *Injector) Sent() int64 { return i.sent.Load() }

// Serve works until ctx ends and returns nil then.
func (i *Injector) Serve(ctx context.Context) error {
	defer i.Close()
	defer context.AfterFunc(ctx, func() { i.Close() })()
	raw, err := i.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("reset injector: %w", err)
	}
	buf := make([]byte, 65536+etherLen)
	for {
		var n int
		var from unix.Sockaddr
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, recvErr = unix.Recvfrom(int(fd), buf, 0)
			return recvErr != unix.EAGAIN
		})
		if ctx.Err() != nil {
			return nil
		}
		if err = errors.Join(err, recvErr); err != nil {
			return fmt.Errorf("reset injector: %w", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if s, isTCP := parseSegment(buf[:n]); ok && isTCP {
			i.see(raw, s, link)
		}
	}
}

// see looks at a segment on its way in or out and injects what is due. The
// client is reset over the link its segments come in by, the server over the
// link by which they leave, once they have left.
func (i *Injector) see(raw rawWriter, s segment, link *unix.SockaddrLinklayer) {
	leaving := link.Pkttype == unix.PACKET_OUTGOING
	fromClient := s.dst.Port() == i.reset.Port
	if s.flags&flagRST != 0 || !fromClient && s.src.Port() != i.reset.Port {
		return
	}
	f := flow{client: s.src, server: s.dst}
	if !fromClient {
		f = flow{client: s.dst, server: s.src}
	}
	if _, known := i.seen[f]; !known && len(i.seen) >= maxResetFlows {
		return
	}
	if !leaving {
		i.seen[f] += s.payload
	}
	if !fromClient || i.seen[f] < i.reset.After || leaving != (i.reset.To == Server) {
		return
	}
	if err := inject(raw, i.answer(s), link.Ifindex); err == nil {
		i.sent.Add(1)
	}
}

// answer makes the reset for a segment of the client. A host believes only a
// reset with exactly the sequence number it expects next (RFC 5961 section 3),
// or, while it is connecting, one that acknowledges its SYN.
func (i *Injector) answer(s segment) segment {
	if i.reset.To == Server {
		return segment{
			srcMAC: s.srcMAC, dstMAC: s.dstMAC, src: s.src, dst: s.dst,
			seq: s.seq + s.length(), flags: flagRST,
		}
	}
	r := segment{
		srcMAC: s.dstMAC, dstMAC: s.srcMAC, src: s.dst, dst: s.src,
		seq: s.ack, ack: s.seq + s.length(), flags: flagRST | flagACK,
	}
	if s.flags&flagACK == 0 {
		r.seq = 0
	}
	return r
}

type rawWriter interface {
	Write(func(uintptr) bool) error
}

func inject(raw rawWriter, s segment, ifindex int) error {
	to := &unix.SockaddrLinklayer{Ifindex: ifindex}
	var sendErr error
	err := raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), s.frame(), 0, to)
		return sendErr != unix.EAGAIN
	})
	return errors.Join(err, sendErr)
}
