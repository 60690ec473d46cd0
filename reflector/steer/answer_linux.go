package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxPayload is the largest UDP payload in bytes: IPv4 counts its header in.
func maxPayload(v4 bool) int {
	if v4 {
		return 1<<16 - 1 - 20 - udpHeader
	}
	return 1<<16 - 1 - udpHeader
}

// rawSocket makes a socket that sends packets with headers of our own. Protocol
// 255 receives nothing. It needs CAP_NET_RAW.
func rawSocket(v4 bool) (int, error) {
	a := netip.IPv6Unspecified()
	header := sockOpt{unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1}
	if v4 {
		a, header = netip.IPv4Unspecified(), sockOpt{unix.IPPROTO_IP, unix.IP_HDRINCL, 1}
	}
	fd, err := newSocket(a, unix.SOCK_RAW, unix.IPPROTO_RAW, []sockOpt{header, freebind(v4)})
	if err == nil {
		setSendTimeout(fd)
	}
	return fd, err
}

// An answerer sends datagrams from ports that were aimed at: through the
// socket that is bound to the port, else through a raw socket, else through a
// socket bound for this one datagram. Not safe for concurrent use.
type answerer struct {
	set   *Set
	batch writeBatch
}

// writers are batches for single datagrams.
var writers = sync.Pool{New: func() any { return new(writeBatch) }}

// send is the reply function of a Handler.
func (a *answerer) send(ds []Datagram) {
	for _, d := range ds {
		d = plain(d)
		if err := sendable(d); err != nil {
			a.set.count.unsent.Add(1)
			continue
		}
		fd, raw := a.set.exit(d.Local)
		if fd < 0 {
			a.flush()
			a.bound(d)
			continue
		}
		if a.batch.n == batchSize || a.batch.fd != fd {
			a.flush()
		}
		a.batch.fd = fd
		a.batch.add(d, raw)
	}
	a.flush()
}

func (a *answerer) flush() {
	if a.batch.n == 0 {
		return
	}
	sent := a.batch.flush(func(d Datagram, err error) {
		// Larger than the path takes: a UDP socket makes fragments, a raw one does not.
		if errors.Is(err, unix.EMSGSIZE) {
			a.bound(d)
			return
		}
		a.set.count.unsent.Add(1)
	})
	a.set.count.sent.Add(uint64(sent))
}

func (a *answerer) bound(d Datagram) {
	if err := sendBound(d); err != nil {
		a.set.count.unsent.Add(1)
		return
	}
	a.set.count.sent.Add(1)
}

// plain returns d with IPv4 addresses unmapped.
func plain(d Datagram) Datagram {
	d.Local = netip.AddrPortFrom(d.Local.Addr().Unmap(), d.Local.Port())
	d.Remote = netip.AddrPortFrom(d.Remote.Addr().Unmap(), d.Remote.Port())
	return d
}

// sendable tells why a datagram cannot be sent at all.
func sendable(d Datagram) error {
	from, to := d.Local.Addr(), d.Remote.Addr()
	switch {
	case !from.IsValid() || from.IsUnspecified() || from.IsMulticast() || !to.IsValid() || from.Is4() != to.Is4():
		return fmt.Errorf("from %s to %s: %w", d.Local, d.Remote, unix.EAFNOSUPPORT)
	case len(d.Payload) > maxPayload(from.Is4()):
		return fmt.Errorf("%d bytes: %w", len(d.Payload), unix.EMSGSIZE)
	}
	return nil
}

// exit finds the socket to send from an address and port; -1 is none.
func (s *Set) exit(from netip.AddrPort) (fd int, raw bool) {
	if fd, ok := s.own[from]; ok {
		return fd, false
	}
	all, family := netip.IPv6Unspecified(), 1
	if from.Addr().Is4() {
		all, family = netip.IPv4Unspecified(), 0
	}
	if fd, ok := s.own[netip.AddrPortFrom(all, from.Port())]; ok {
		return fd, false
	}
	return s.raw[family], true
}

// sendBound sends one datagram through a socket made for it.
func sendBound(d Datagram) error {
	v4 := d.Local.Addr().Is4()
	fd, err := newSocket(d.Local.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP, []sockOpt{
		freebind(v4),
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, 0},
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Under TPROXY a socket that is not transparent would take arrivals for itself.
	t := transparent(v4)
	_ = unix.SetsockoptInt(fd, t.level, t.name, t.value)
	setSendTimeout(fd)
	for _, o := range marks(d) {
		_ = unix.SetsockoptInt(fd, o.level, o.name, o.value)
	}
	from := d.Local
	if d.Remote.Addr().Zone() != "" {
		from = netip.AddrPortFrom(from.Addr().WithZone(d.Remote.Addr().Zone()), from.Port())
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("sendto", unix.Sendto(fd, d.Payload, 0, sockaddr(d.Remote)))
}

// marks are the options that give what a socket sends the header fields of d,
// where these are not the usual ones.
func marks(d Datagram) (opts []sockOpt) {
	level, ttl, tos := unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS
	if d.Local.Addr().Is4() {
		level, ttl, tos = unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
	}
	if d.TTL != 0 {
		opts = append(opts, sockOpt{level, ttl, int(d.TTL)})
	}
	if d.TOS != 0 {
		opts = append(opts, sockOpt{level, tos, int(d.TOS)})
	}
	return opts
}

// WriteTo sends one datagram from an address and port that is served. Safe for
// concurrent use; it never waits for longer than a tenth of a second.
func (s *Set) WriteTo(b []byte, from, to netip.AddrPort) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("send from %s: %w", from, net.ErrClosed)
	}
	d := plain(Datagram{Local: from, Remote: to, Payload: b})
	err := sendable(d)
	if err == nil && !s.udp.Contains(d.Local.Port()) {
		err = unix.EADDRNOTAVAIL
	}
	if err == nil {
		err = s.sendOne(d)
	}
	if err != nil {
		s.count.unsent.Add(1)
		return fmt.Errorf("send from %s to %s: %w", from, to, err)
	}
	s.count.sent.Add(1)
	return nil
}

func (s *Set) sendOne(d Datagram) error {
	fd, raw := s.exit(d.Local)
	if fd < 0 {
		return sendBound(d)
	}
	w := writers.Get().(*writeBatch)
	defer writers.Put(w)
	w.fd = fd
	w.add(d, raw)
	var failed error
	w.flush(func(_ Datagram, err error) { failed = err })
	if errors.Is(failed, unix.EMSGSIZE) && raw {
		return sendBound(d)
	}
	return failed
}
