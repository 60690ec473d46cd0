package witness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Packets sees every TCP SYN that arrives at this machine, below its sockets
// and its firewall. The same SYN is seen twice where it passes two interfaces,
// a bridge and its port for instance, and what a router forwards is seen too.
type Packets struct {
	f     *os.File // a packet socket
	addrs []netip.Addr

	mu   sync.Mutex
	lost uint64
}

// Open opens a packet socket (packet(7)) that sees SYNs aimed at the given
// addresses; an unspecified one means all of its family, none means all of this
// machine. It needs CAP_NET_RAW and starts nothing.
func Open(addrs ...netip.Addr) (*Packets, error) {
	// Protocol 0 receives nothing yet: first the filter, then the start.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("witness: packet socket: %w", err)
	}
	if err := prepare(fd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("witness: %w", err)
	}
	return &Packets{f: os.NewFile(uintptr(fd), "packets"), addrs: addrs}, nil
}

// receiveBuffer holds the SYNs of a sweep of all ports while the reader is away.
const receiveBuffer = 32 << 20

func prepare(fd int) error {
	filter, err := bpf.Assemble(synFilter)
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	prog := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		prog[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("time stamps: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // a smaller one works too
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
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

// batch is how many SYNs are told at once.
const batch = 64

// Run calls see with batches of SYNs until ctx ends, and then with those that
// came before, or until the Packets are closed. The batch may not be kept. It is
// for one call.
func (p *Packets) Run(ctx context.Context, see func([]SYN)) error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	defer context.AfterFunc(ctx, func() { p.f.SetReadDeadline(time.Unix(1, 0)) })()
	syns := make([]SYN, 0, batch)
	for {
		err := raw.Read(func(fd uintptr) bool {
			var more bool
			syns, more = p.read(int(fd), syns[:0])
			return more || len(syns) > 0
		})
		if len(syns) > 0 {
			see(syns)
		}
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case ctx.Err() != nil:
			p.rest(raw, see)
			return nil
		case err != nil:
			return fmt.Errorf("witness: %w", err)
		}
	}
}

// rest tells of what came before the end and was not read by then: a SYN that
// arrived must not be called lost.
func (p *Packets) rest(raw syscall.RawConn, see func([]SYN)) {
	_ = raw.Control(func(fd uintptr) { // closed meanwhile: nothing to read
		for more := true; more; {
			var syns []SYN
			if syns, more = p.read(int(fd), nil); len(syns) > 0 {
				see(syns)
			}
		}
	})
}

// read appends what is there, a batch at most, and tells whether there is more.
func (p *Packets) read(fd int, syns []SYN) ([]SYN, bool) {
	var packet, control [synBytes]byte
	more := false
	for range batch {
		n, told, _, from, err := unix.Recvmsg(fd, packet[:], control[:], unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return syns, false
		case err != nil:
			continue // interrupted, or an interface that went down
		}
		more = true
		// A promiscuous interface gets the packets of others as well.
		if to, ok := from.(*unix.SockaddrLinklayer); !ok || to.Pkttype != unix.PACKET_HOST {
			continue
		}
		if s, ok := parseSYN(packet[:n]); ok && p.mine(s.Dest.Addr()) {
			s.Time = arrival(control[:told])
			syns = append(syns, s)
		}
	}
	return syns, more
}

// mine tells whether a SYN is aimed at an address asked for.
func (p *Packets) mine(to netip.Addr) bool {
	for _, a := range p.addrs {
		if a = a.Unmap(); a.WithZone("") == to || a.IsUnspecified() && a.Is4() == to.Is4() {
			return true
		}
	}
	return len(p.addrs) == 0
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

// arrival is when a packet came, as its control message tells.
func arrival(control []byte) time.Time {
	h, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil || h.Type != unix.SO_TIMESTAMPNS || len(data) < 16 {
		return time.Time{}
	}
	return time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
}

// Lost is the number of SYNs that arrived faster than they were read.
func (p *Packets) Lost() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, err := p.f.SyscallConn()
	if err != nil {
		return p.lost
	}
	raw.Control(func(fd uintptr) {
		// The kernel starts anew after each reading.
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			p.lost += uint64(st.Drops)
		}
	})
	return p.lost
}

// Close ends Run and closes the socket. It may be called again.
func (p *Packets) Close() error {
	if err := p.f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
