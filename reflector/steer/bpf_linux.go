package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// Offsets in struct bpf_sk_lookup (include/uapi/linux/bpf.h).
const (
	ctxFamily    = 8
	ctxProtocol  = 12
	ctxLocalIP4  = 40
	ctxLocalIP6  = 44
	ctxLocalPort = 60
)

// Places on the program's stack.
const (
	stackAddr = -16 // 16 bytes: key of the addresses, IPv4 as IPv4-mapped
	stackKey  = -20 // 4 bytes: key of the ports, then of the sockets
)

// A bpfSteer is an sk_lookup program on this network namespace. It runs before
// the kernel looks for listeners, so its port map must leave out the ports of
// other programs; connected sockets of both transports go first.
type bpfSteer struct {
	ports, socks, addrs *ebpf.Map
	prog                *ebpf.Program
	link                *link.NetNsLink
}

// slot is the socket map's key for a transport and family.
func slot(t scenarios.Transport, v4 bool) uint32 {
	n := uint32(0)
	if t == scenarios.UDP {
		n++
	}
	if !v4 {
		n += 2
	}
	return n
}

// bpfDescriptors are those of the link, the program and the three maps.
const bpfDescriptors = 5

// loadBPF loads the program that steers ports at addrs to socks.
func loadBPF(addrs []netip.Addr, tcp, udp *portMap, socks []*socket) (_ *bpfSteer, err error) {
	// Kernels before 5.11 charge maps to this limit; newer ones need nothing.
	_ = rlimit.RemoveMemlock()
	b := &bpfSteer{}
	defer func() {
		if err != nil {
			b.close()
		}
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("needs CAP_BPF and CAP_NET_ADMIN, outside user namespaces: %w", unix.EPERM)
		}
	}()
	if err := b.maps(addrs, tcp, udp, socks); err != nil {
		return nil, err
	}
	b.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "wallprobe", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup,
		License: "Dual MIT/GPL", Instructions: b.program(addrs),
	})
	if err != nil {
		return nil, fmt.Errorf("load program: %w", err)
	}
	return b, nil
}

// attach starts steering. The calling goroutine must be locked to its thread,
// whose network namespace it is.
func (b *bpfSteer) attach() error {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	if b.link, err = link.AttachNetNs(int(ns.Fd()), b.prog); err != nil {
		return fmt.Errorf("attach program: %w", err)
	}
	return nil
}

func (b *bpfSteer) maps(addrs []netip.Addr, tcp, udp *portMap, socks []*socket) (err error) {
	b.ports, err = ebpf.NewMap(&ebpf.MapSpec{Name: "wp_ports", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(tcp) + len(udp)), MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("map of ports: %w", err)
	}
	if err = b.write(tcp, udp); err != nil {
		return err
	}
	b.socks, err = ebpf.NewMap(&ebpf.MapSpec{Name: "wp_socks", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	if err != nil {
		return fmt.Errorf("map of sockets: %w", err)
	}
	for _, s := range socks {
		if err = b.socks.Put(slot(s.transport, s.local.Addr().Is4()), uint64(s.fd)); err != nil {
			return fmt.Errorf("map of sockets: %w", err)
		}
	}
	b.addrs, err = ebpf.NewMap(&ebpf.MapSpec{Name: "wp_addrs", Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: uint32(len(addrs))})
	if err != nil {
		return fmt.Errorf("map of addresses: %w", err)
	}
	for _, a := range addrs {
		if err = b.addrs.Put(a.As16(), uint8(1)); err != nil {
			return fmt.Errorf("map of addresses: %w", err)
		}
	}
	return nil
}

// write says anew which ports are steered.
func (b *bpfSteer) write(tcp, udp *portMap) error {
	if err := b.ports.Put(uint32(0), slices.Concat(tcp[:], udp[:])); err != nil {
		return fmt.Errorf("map of ports: %w", err)
	}
	return nil
}

// program keeps the context in R6, the protocol in R7, the port in R8 and the
// slot in R9.
func (b *bpfSteer) program(addrs []netip.Addr) asm.Instructions {
	return slices.Concat(
		asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R7, asm.R6, ctxProtocol, asm.Word),
			asm.LoadMem(asm.R8, asm.R6, ctxLocalPort, asm.Word), // host order
			asm.Mov.Imm(asm.R9, 0),
			asm.JEq.Imm(asm.R7, unix.IPPROTO_TCP, "family"),
			asm.JNE.Imm(asm.R7, unix.IPPROTO_UDP, "pass"),
			asm.Mov.Imm(asm.R9, 1),
			asm.LoadMem(asm.R1, asm.R6, ctxFamily, asm.Word).WithSymbol("family"),
			asm.JEq.Imm(asm.R1, unix.AF_INET, "v4"),
			asm.Add.Imm(asm.R9, 2),
		},
		b.matchAddr(addrs, false),
		asm.Instructions{
			asm.Ja.Label("ports"),
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("v4"),
		},
		b.matchAddr(addrs, true),
		b.matchPort(),
		b.assign(),
		asm.Instructions{
			asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"), // SK_PASS: go on as without the program
			asm.Return(),
		},
	)
}

// matchAddr passes what is aimed at an address not listened on.
func (b *bpfSteer) matchAddr(addrs []netip.Addr, v4 bool) asm.Instructions {
	var mine []netip.Addr
	for _, a := range addrs {
		if a.Is4() == v4 {
			mine = append(mine, a)
		}
	}
	if len(mine) == 0 {
		// Always taken (slots are 0 to 3), but the verifier may not know: it
		// refuses programs with instructions that nothing leads to.
		return asm.Instructions{asm.JNE.Imm(asm.R9, 255, "pass")}
	}
	if mine[0].IsUnspecified() {
		return nil
	}
	var in asm.Instructions
	if v4 {
		in = asm.Instructions{
			asm.StoreImm(asm.RFP, stackAddr, 0, asm.Word),
			asm.StoreImm(asm.RFP, stackAddr+4, 0, asm.Word),
			asm.Mov.Imm(asm.R1, int32(binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))),
			asm.StoreMem(asm.RFP, stackAddr+8, asm.R1, asm.Word),
			asm.LoadMem(asm.R1, asm.R6, ctxLocalIP4, asm.Word),
			asm.StoreMem(asm.RFP, stackAddr+12, asm.R1, asm.Word),
		}
	} else {
		for i := int16(0); i < 16; i += 4 {
			in = append(in,
				asm.LoadMem(asm.R1, asm.R6, ctxLocalIP6+i, asm.Word),
				asm.StoreMem(asm.RFP, stackAddr+i, asm.R1, asm.Word))
		}
	}
	return append(in,
		asm.LoadMapPtr(asm.R1, b.addrs.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackAddr),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"))
}

// matchPort passes what is aimed at a port not served.
func (b *bpfSteer) matchPort() asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, stackKey, 0, asm.Word).WithSymbol("ports"),
		asm.LoadMapPtr(asm.R1, b.ports.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		// byte = (protocol & 1) * 8192 + port / 8; the masks bound it for the verifier.
		// TCP is 6, UDP 17, loaded anew: what the verifier knows of R7 and R9 differs
		// from way to way, and then it refuses the sum without CAP_PERFMON.
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.RSh.Imm(asm.R1, 3),
		asm.And.Imm(asm.R1, 8191),
		asm.LoadMem(asm.R2, asm.R6, ctxProtocol, asm.Word),
		asm.And.Imm(asm.R2, 1),
		asm.LSh.Imm(asm.R2, 13),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.Add.Reg(asm.R0, asm.R1),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Byte),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.And.Imm(asm.R2, 7),
		asm.RSh.Reg(asm.R0, asm.R2),
		asm.And.Imm(asm.R0, 1),
		asm.JEq.Imm(asm.R0, 0, "pass"),
	}
}

// assign gives the packet to the socket of its slot.
func (b *bpfSteer) assign() asm.Instructions {
	return asm.Instructions{
		asm.StoreMem(asm.RFP, stackKey, asm.R9, asm.Word),
		asm.LoadMapPtr(asm.R1, b.socks.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
	}
}

// close detaches the program: closing the last descriptor of a link does so.
func (b *bpfSteer) close() error {
	var errs []error
	if b.link != nil {
		errs = append(errs, b.link.Close())
	}
	if b.prog != nil {
		errs = append(errs, b.prog.Close())
	}
	for _, m := range []*ebpf.Map{b.ports, b.socks, b.addrs} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
