package steer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// SYNs sees every TCP SYN that arrives at this machine, below its sockets and
// its firewall. The same SYN is seen twice where it passes two interfaces, a
// bridge and its port for instance, and what a router forwards is seen too.
type SYNs struct {
	fd    int
	waker waker
	addrs []netip.Addr

	mu      sync.Mutex
	lost    uint64
	closed  bool
	running sync.WaitGroup
}

// Witness opens a packet socket (packet(7)) that sees SYNs aimed at the given
// addresses; none, or an unspecified one, means all of this machine. It needs
// CAP_NET_RAW and starts nothing.
func Witness(addrs ...netip.Addr) (*SYNs, error) {
	if len(addrs) > 0 {
		var err error
		if addrs, err = listenAddrs(addrs); err != nil {
			return nil, fmt.Errorf("witness: %w", err)
		}
	}
	// Protocol 0 receives nothing yet: first the filter, then the start.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("witness: packet socket: %w", err)
	}
	w := &SYNs{fd: fd, waker: -1, addrs: addrs}
	if err := w.open(); err != nil {
		w.Close()
		return nil, fmt.Errorf("witness: %w", err)
	}
	return w, nil
}

func (w *SYNs) open() error {
	filter, err := bpf.Assemble(synFilter)
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	prog := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		prog[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	if err := unix.SetsockoptSockFprog(w.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w", err)
	}
	if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("time stamps: %w", err)
	}
	receiveBuffer(w.fd, steeredBuffer)
	if w.waker, err = newWaker(); err != nil {
		return err
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// synBytes is as much of a packet as is kept.
const synBytes = 128

// synFilter passes TCP segments with SYN and without ACK; offsets count from
// the IP header. IPv6 extension headers hide a segment from it.
var synFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtProto},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 7, SkipFalse: 13},
	bpf.LoadAbsolute{Off: 9, Size: 1}, // IPv4
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipFalse: 11},
	bpf.LoadAbsolute{Off: 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 9}, // a later fragment
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: 13, Size: 1},
	bpf.Jump{Skip: 3},
	bpf.LoadAbsolute{Off: 6, Size: 1}, // IPv6
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipFalse: 4},
	bpf.LoadAbsolute{Off: 40 + 13, Size: 1},
	bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x12}, // flags: ACK and SYN
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x02, SkipFalse: 1},
	bpf.RetConstant{Val: synBytes},
	bpf.RetConstant{Val: 0},
}

// Run calls see with batches of SYNs until ctx ends or the SYNs are closed.
// The batch may not be kept. It is for one call.
func (w *SYNs) Run(ctx context.Context, see func([]SYN)) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return fmt.Errorf("witness: %w", unix.EBADF)
	}
	w.running.Add(1)
	w.mu.Unlock()
	defer w.running.Done()
	defer w.waker.whenDone(ctx)()
	in := newReadBatch()
	syns := make([]SYN, 0, batchSize)
	for {
		fds := []unix.PollFd{{Fd: int32(w.waker), Events: unix.POLLIN}, {Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("witness: poll: %w", err)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		n, err := in.recv(w.fd)
		if err != nil {
			continue // nothing there, or an interface that went down
		}
		syns = syns[:0]
		for i := range n {
			if s, ok := parseSYN(in.payload(i)); ok && in.toHost(i) && w.mine(s.Dest.Addr()) {
				s.Time = in.time(i)
				syns = append(syns, s)
			}
		}
		if len(syns) > 0 {
			see(syns)
		}
	}
}

// mine tells whether a SYN is aimed at an address asked for.
func (w *SYNs) mine(to netip.Addr) bool {
	for _, a := range w.addrs {
		if a.WithZone("") == to || a.IsUnspecified() && a.Is4() == to.Is4() {
			return true
		}
	}
	return len(w.addrs) == 0
}

// parseSYN reads an IP packet that the filter passed.
func parseSYN(b []byte) (SYN, bool) {
	var s SYN
	var src, dst netip.Addr
	switch {
	case len(b) >= 40 && b[0]>>4 == 4 && b[0]&0xf >= 5:
		s.TOS, s.TTL = b[1], b[8]
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[min(len(b), int(b[0]&0xf)*4):]
	case len(b) >= 60 && b[0]>>4 == 6:
		s.TOS, s.TTL = b[0]<<4|b[1]>>4, b[7]
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[40:]
	}
	if !src.IsValid() || len(b) < 4 {
		return SYN{}, false
	}
	s.Source = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	s.Dest = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	return s, true
}

// time is when place i arrived.
func (b *readBatch) time(i int) time.Time {
	h, data, _, err := unix.ParseOneSocketControlMessage(b.controls[i][:b.hdrs[i].hdr.Controllen])
	if err != nil || h.Type != unix.SO_TIMESTAMPNS || len(data) < 16 {
		return time.Time{}
	}
	return time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
}

// toHost tells whether place i, from a packet socket, was sent to this host: a
// promiscuous interface gets the packets of others as well.
func (b *readBatch) toHost(i int) bool {
	return (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b.names[i])).Pkttype == unix.PACKET_HOST
}

// Lost is the number of SYNs that arrived faster than they were read.
func (w *SYNs) Lost() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		// The kernel starts anew after each reading.
		if st, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			w.lost += uint64(st.Drops)
		}
	}
	return w.lost
}

// Close ends Run, waits for it and closes the socket. It may be called again.
func (w *SYNs) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()
	w.waker.wake()
	w.running.Wait()
	if w.waker >= 0 {
		unix.Close(int(w.waker))
	}
	return unix.Close(w.fd)
}
