package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Explain adds to findings of results, those with a verdict that which takes, the
// rules that decided them, and marks those that no rule can have made. For that it
// sends a few packets like those of each finding and follows them through the rules;
// counters count these as well, and rules that remember anything are loaded anew.
// Reflectors and clients must have ended.
func (w *World) Explain(ctx context.Context, results []*client.Result, which func(client.Verdict) bool) error {
	set, err := w.ruleset()
	if err != nil {
		return err
	}
	if set.deep() && len(w.loaded.Dumps)+len(w.loaded.Boxes) == 0 {
		// What the rules remember of the run, such as a quota that is used up,
		// would stop packets that they let pass at first.
		if err := w.load(ctx, w.loaded); err != nil {
			return err
		}
		if set, err = w.ruleset(); err != nil {
			return err
		}
	}
	all := questions(results, namedPorts(set.text), which)
	fates := make(map[flow]*fate)
	// A packet that was not seen to the end is sent once more and waited for longer: a
	// busy machine is late.
	for _, wait := range []time.Duration{quiet, 4 * quiet, 8 * quiet} {
		flows := unfollowed(all, fates)
		if len(flows) == 0 {
			break
		}
		for _, f := range flows {
			fates[f] = new(fate)
		}
		if err := w.replay(ctx, flows, fates, set, wait); err != nil {
			return fmt.Errorf("trace packets through the firewall: %w", err)
		}
	}
	rules := set.byRef()
	for i := range all {
		all[i].decide(fates, rules)
	}
	w.attribution(set, results).settle(all, fates)
	return nil
}

// attribution knows the rules, the interfaces, and what else stands in the way.
func (w *World) attribution(set *ruleset, results []*client.Result) *attribution {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := &attribution{set: set, results: results, inside: w.config.Inside.Name, outside: w.config.Outside.Name, boxes: w.loaded.Boxes, elsewhere: w.config.Far != nil}
	a.translated = slices.ContainsFunc(set.rules, func(r Rule) bool { return r.Verdict == "dnat" || r.Verdict == "redirect" })
	return a
}

const (
	batch     = 64                    // flows at a time, so that the kernel has room for what it tells of them
	quiet     = 15 * time.Millisecond // without news nothing more will come
	atMost    = 20                    // such times for all news of a batch
	traceRoom = 8 << 20               // bytes
)

// replay sends the packets of flows and follows them; wait is how long without news
// tells that nothing more will come.
func (w *World) replay(ctx context.Context, flows []flow, fates map[flow]*fate, set *ruleset, wait time.Duration) error {
	firewall := w.Host(firewallName)
	name := fmt.Sprintf("wallprobe_%08x", rand.Uint32())
	table := fmt.Sprintf(`table inet %s {
	chain prerouting {
		type filter hook prerouting priority -400; policy accept;
		meta l4proto { tcp, udp } meta nftrace set 1
	}
	chain %s {
		type filter hook postrouting priority 2147483647; policy accept;
	}
	chain %s {
		type filter hook input priority 2147483647; policy accept;
	}
}
`, name, forwarded, delivered)
	if _, err := firewall.NFT(ctx, []byte(table), "-f", "-"); err != nil {
		return err
	}
	defer firewall.NFT(context.WithoutCancel(ctx), nil, "delete", "table", "inet", name) // else it ends with the world
	p := player{world: w, table: name, fates: fates, chain: set.hooks(), trace: -1, wait: wait}
	err := firewall.Do(func() error {
		// What the firewall remembers of connections would let pass what it
		// dropped before.
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return fmt.Errorf("forget connections: %w", err)
		}
		return p.subscribe()
	})
	defer p.close()
	if err != nil {
		return err
	}
	for some := range slices.Chunk(flows, batch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.play(some); err != nil {
			return err
		}
	}
	return nil
}

// A player sends the packets of a few flows at a time and listens for what the
// firewall does with them.
type player struct {
	world *World
	table string // whose rule begins the traces
	fates map[flow]*fate
	chain func(chainID) Chain // as nft lists it
	trace int                 // a netlink socket
	wait  time.Duration       // see replay

	ends  []*ends
	far   map[farEnd]int     // sockets
	known map[uint32]*packet // under way
}

// A farEnd is called by one flow or by several.
type farEnd struct {
	transport scenarios.Transport
	inward    bool
	at        netip.AddrPort
}

// ends are the caller's socket and the far end of a flow.
type ends struct {
	flow     flow
	far      farEnd
	caller   int
	own      netip.AddrPort // the caller's
	requests int            // of its packets, how many were followed
	replies  int
}

// A packet is one that is being followed.
type packet struct {
	course *course
	fate   *fate
	late   bool
	back   bool
}

// subscribe asks the kernel for the events of traces.
func (p *player) subscribe() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	p.trace = fd
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, traceRoom) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, traceRoom) // as much as there may be
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTRACE)
}

func (p *player) close() {
	p.closeEnds()
	if p.trace >= 0 {
		unix.Close(p.trace)
	}
}

func (p *player) closeEnds() {
	for _, e := range p.ends {
		if e.caller >= 0 {
			unix.Close(e.caller)
		}
	}
	for _, fd := range p.far {
		unix.Close(fd)
	}
	p.ends, p.far = nil, nil
}

// play sends a request for each flow, then answers, then a little more over the
// connections that stand. A flow whose sockets are not to be had stays without a
// fate.
func (p *player) play(flows []flow) error {
	p.known, p.far = make(map[uint32]*packet), make(map[farEnd]int)
	for _, f := range flows {
		p.ends = append(p.ends, &ends{flow: f, far: f.farEnd(), caller: -1})
	}
	defer p.closeEnds()
	server, host := p.world.Host(serverName), p.world.Host(hostName)
	for _, do := range []func() error{
		func() error { return p.open(server, false, p.listen) },
		func() error { return p.open(host, true, p.listen) },
		func() error { return p.open(host, false, host.call) },
		func() error { return p.open(server, true, server.call) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	for _, then := range []func(){p.answer, p.carryOn, func() {}} {
		if err := p.follow(); err != nil {
			return err
		}
		then()
	}
	return nil
}

// open does something on a host for the flows that go one way.
func (p *player) open(h *Host, inward bool, do func(*ends) error) error {
	return h.Do(func() error {
		for _, e := range p.ends {
			if e.flow.inward == inward {
				_ = do(e) // taken, or no route: nothing will be said of it
			}
		}
		return nil
	})
}

// farEnd is where a flow leads. What is called from outside may be addressed to
// the firewall, so that end takes any address.
func (f flow) farEnd() farEnd {
	at := f.to
	switch {
	case f.inward && at.Addr().Is6():
		at = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
	case f.inward:
		at = netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())
	}
	return farEnd{f.transport, f.inward, at}
}

// listen opens the far end of a flow, unless it is open.
func (p *player) listen(e *ends) error {
	if _, ok := p.far[e.far]; ok {
		return nil
	}
	fd, err := bound(e.flow.transport, e.far.at)
	if err != nil {
		return err
	}
	p.far[e.far] = fd
	if e.flow.transport == scenarios.TCP {
		return unix.Listen(fd, batch)
	}
	return nil
}

// call opens the near end of a flow and sends the first packet.
func (h *Host) call(e *ends) (err error) {
	own, v6 := h.Addrs()
	if e.flow.to.Addr().Is6() {
		own = v6
	}
	port, tries := e.flow.own, 1
	if port == 0 && e.flow.transport == scenarios.UDP {
		tries = 20
	}
	for range tries {
		if tries > 1 {
			port = uint16(client.OwnFirst + rand.IntN(client.OwnLast-client.OwnFirst+1)) // as the client draws them
		}
		if e.caller, err = bound(e.flow.transport, netip.AddrPortFrom(own, port)); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	name, err := unix.Getsockname(e.caller)
	if err != nil {
		return err
	}
	e.own = addrPort(name)
	if err := unix.Connect(e.caller, sockaddr(e.flow.to)); err != nil && err != unix.EINPROGRESS {
		return err
	}
	if e.flow.transport == scenarios.UDP {
		_, err = unix.Write(e.caller, make([]byte, playBytes))
	}
	return err
}

// playBytes is what a datagram and a stream carry, each way.
const playBytes = 64

// answer sends back the datagrams that came. An answer that cannot be sent does
// not show, and nothing is said of it.
func (p *player) answer() {
	buf := make([]byte, playBytes)
	for far, fd := range p.far {
		for far.transport == scenarios.UDP {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil || from == nil {
				break
			}
			_ = unix.Sendto(fd, buf[:n], 0, from)
		}
	}
}

// carryOn sends something over the connections that stand, each way.
func (p *player) carryOn() {
	for _, e := range p.ends {
		if e.flow.transport == scenarios.TCP && e.caller >= 0 {
			_, _ = unix.Write(e.caller, make([]byte, playBytes))
		}
	}
	for far, fd := range p.far {
		for far.transport == scenarios.TCP {
			conn, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != nil {
				break
			}
			_, _ = unix.Write(conn, make([]byte, playBytes))
			unix.Close(conn)
		}
	}
}

// bound is a socket that waits for nothing.
func bound(t scenarios.Transport, at netip.AddrPort) (int, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	if t == scenarios.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if t == scenarios.TCP { // others at that port have just ended
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if err = errors.Join(err, unix.Bind(fd, sockaddr(at))); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// follow takes in what the kernel tells until it has nothing more to tell, and
// has told of every request.
func (p *player) follow() error {
	buf := make([]byte, 1<<16)
	end := time.Now().Add(atMost * p.wait)
	for time.Now().Before(end) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.trace), Events: unix.POLLIN}}, int(p.wait.Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0 && p.begun():
			return nil
		case n == 0:
			continue
		}
		size, _, err := unix.Recvfrom(p.trace, buf, 0)
		switch {
		case err == unix.ENOBUFS:
			p.lost()
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			return err
		default:
			p.take(buf[:size])
		}
	}
	return nil
}

// begun tells whether the first packet of every flow has come to the firewall.
func (p *player) begun() bool {
	return !slices.ContainsFunc(p.ends, func(e *ends) bool { return e.own.IsValid() && e.requests == 0 })
}

// lost forgets the flows under way: events of theirs are missing.
func (p *player) lost() {
	for _, e := range p.ends {
		*p.fates[e.flow] = fate{}
	}
	p.known = nil
}

// take takes in netlink messages (struct nlmsghdr, 16 bytes).
func (p *player) take(b []byte) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil || p.known == nil {
		return
	}
	for _, m := range messages {
		if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE {
			continue
		}
		e, err := parseTrace(m.Data)
		if err != nil {
			continue
		}
		k := p.known[e.packet]
		switch end := ending(e.chain[2]); {
		case e.chain[1] != p.table:
		case end == forwarded || end == delivered:
			if k != nil {
				k.course.end = end
			}
			continue
		default:
			if e.header != (packetHeader{}) { // the first event of a packet
				p.known[e.packet] = p.packetOf(e.header)
			}
			continue
		}
		if k != nil {
			k.course.step(e, p.chain)
			if k.late && k.course.dropped != (ruleRef{}) && k.fate.late.dropped == (ruleRef{}) {
				k.fate.late, k.fate.lateBack = *k.course, k.back
			}
		}
	}
}

// packetOf begins to follow a packet, nil if it belongs to no flow.
func (p *player) packetOf(h packetHeader) *packet {
	for _, e := range p.ends {
		if e.flow.transport == h.transport && e.own == h.from {
			e.requests++
			return e.packet(p.fates[e.flow], e.requests, false)
		}
	}
	var replies []*ends
	for _, e := range p.ends {
		if e.flow.transport == h.transport && answers(e, h.from) {
			replies = append(replies, e)
		}
	}
	if len(replies) > 1 { // of callers at ports of their own, which translators keep if they can
		replies = slices.DeleteFunc(replies, func(e *ends) bool { return e.own.Port() != h.to.Port() })
	}
	if len(replies) != 1 {
		return nil
	}
	e := replies[0]
	e.replies++
	return e.packet(p.fates[e.flow], e.replies, true)
}

// answers tells whether a packet may be an answer of the far end. The called
// host's address is not the one that was called where a translator stands between.
func answers(e *ends, from netip.AddrPort) bool {
	return from == e.flow.to || e.flow.inward && from.Port() == e.flow.to.Port()
}

// packet is the n-th of a flow, one way.
func (e *ends) packet(f *fate, n int, back bool) *packet {
	k := &packet{fate: f, back: back, late: n > 1, course: new(course)}
	switch {
	case n > 1:
	case back:
		k.course = &f.reply
	default:
		k.course = &f.request
	}
	k.course.begun = true
	return k
}
