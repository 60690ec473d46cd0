package survey

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket makes a non-blocking socket for an address's family that queues ICMP
// errors. Plain TCP: multipath TCP would change what a firewall sees.
func socket(kind int, addr netip.Addr) (int, error) {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := receiveErrors(fd, addr, 1); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func receiveErrors(fd int, addr netip.Addr, on int) error {
	if addr.Is4() {
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, on)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, on)
}

func dontFragment(fd int, addr netip.Addr) error {
	if addr.Is4() {
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1))
}

// bind binds to an address and port; an invalid address means any of target's family.
func bind(fd int, local netip.AddrPort, target netip.Addr) error {
	if !local.Addr().IsValid() {
		local = netip.AddrPortFrom(netip.IPv6Unspecified(), local.Port())
		if target.Is4() {
			local = netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port())
		}
	}
	return unix.Bind(fd, sockaddr(local))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zoneID(a.Addr())}
}

func zoneID(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	if n, err := strconv.ParseUint(a.Zone(), 10, 32); err == nil {
		return uint32(n)
	}
	ifc, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return 0
	}
	return uint32(ifc.Index)
}

// localAddr is a socket's own address.
func localAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// source is the address that packets to target leave from.
func source(target netip.Addr) (netip.Addr, error) {
	fd, err := socket(unix.SOCK_DGRAM, target)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(target, 9))); err != nil {
		return netip.Addr{}, err
	}
	return localAddr(fd).Addr(), nil
}

// poll waits until fd has something to read, queued errors, or the time is
// over. It never waits long, so that its callers see their context end.
func poll(fd int, events int16, wait time.Duration) (int16, error) {
	wait = min(max(wait, 0), 20*time.Millisecond)
	ts := unix.NsecToTimespec(int64(wait))
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	_, err := unix.Ppoll(fds, &ts, nil)
	if err != nil && err != unix.EINTR {
		return 0, os.NewSyscallError("ppoll", err)
	}
	return fds[0].Revents, nil
}

// parseQueued reads the control data of a message from the error queue; a
// sock_extended_err is followed by the offender's address (ip(7), ipv6(7)).
func parseQueued(control []byte) (outcome, bool) {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return outcome{}, false
		}
		control = rest
		v4 := h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR
		v6 := h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
		if (v4 || v6) && len(data) >= int(unsafe.Sizeof(unix.SockExtendedErr{})) {
			return extendedError(data, v6)
		}
	}
	return outcome{}, false
}

func extendedError(data []byte, v6 bool) (outcome, bool) {
	e := (*unix.SockExtendedErr)(unsafe.Pointer(&data[0]))
	o := outcome{err: unix.Errno(e.Errno)}
	if e.Errno == uint32(unix.EMSGSIZE) {
		o.mtu = int(e.Info)
	}
	switch e.Origin {
	case unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6:
		o.fault = Unreachable
		o.icmp = ICMP{Type: e.Type, Code: e.Code, V6: v6, From: offender(data[unsafe.Sizeof(*e):])}
	default:
		o.fault = faultOf(o.err)
	}
	if e.Errno == uint32(unix.EMSGSIZE) {
		o.fault = TooBig
	}
	return o, true
}

func offender(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.Addr{}
}

// explain tells why an operation on a connected or connecting socket ended in
// errno: an ICMP error from the queue, or the errno itself.
func explain(fd int, errno error) outcome {
	var control [512]byte
	_, n, _, _, err := unix.Recvmsg(fd, nil, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err == nil {
		if o, ok := parseQueued(control[:n]); ok {
			return o
		}
	}
	return outcome{fault: faultOf(errno), err: errno}
}

// descriptors is how many descriptors the surveys of this process may hold
// together, so that something is left for everything else that it does.
func descriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 512
	}
	return max(1, int(min(limit.Cur, 1<<20))*3/4)
}

// leased are the sockets that all surveys of this process hold.
var leased atomic.Int64

// A lease counts one survey's open sockets. Together the leases keep within
// what descriptors allows: two surveys at once must not starve each other, or
// the run's other probes, of sockets.
type lease struct {
	held, limit int
	all         int64
}

func newLease(limit int) lease { return lease{limit: limit, all: int64(descriptors())} }

// take tells whether one more socket may be opened, and counts it.
func (l *lease) take() bool {
	if l.held >= l.limit {
		return false
	}
	if leased.Add(1) > l.all {
		leased.Add(-1)
		return false
	}
	l.held++
	return true
}

// give counts one that was closed.
func (l *lease) give() {
	leased.Add(-1)
	l.held--
}

// end gives back what is left.
func (l *lease) end() {
	leased.Add(-int64(l.held))
	l.held = 0
}

// exhausted tells whether an error means that too many sockets are open.
func exhausted(err error) bool {
	return err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOBUFS || err == unix.ENOMEM
}

// PathMTU is the MTU towards target that this host knows, in bytes: its
// interface's until a router has said otherwise. Linux only; elsewhere the
// error is errors.ErrUnsupported.
func PathMTU(target netip.Addr) (int, error) {
	target = target.Unmap()
	fd, err := socket(unix.SOCK_DGRAM, target)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(target, 9))); err != nil {
		return 0, os.NewSyscallError("connect", err)
	}
	level, option := unix.SOL_IPV6, unix.IPV6_MTU
	if target.Is4() {
		level, option = unix.SOL_IP, unix.IP_MTU
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	return mtu, os.NewSyscallError("getsockopt", err)
}

// signal makes an event descriptor readable.
func signal(event int) {
	one := make([]byte, 8)
	binary.NativeEndian.PutUint64(one, 1)
	unix.Write(event, one) // only fails when the counter is full, which also wakes
}
