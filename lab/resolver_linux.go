package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
)

// queryTimeout bounds a DNS connection over TCP.
const queryTimeout = 5 * time.Second

// resolvers answer DNS on the loopback of the hosts.
type resolvers struct {
	names   map[string][]netip.Addr
	servers sync.WaitGroup
	mu      sync.Mutex
	closed  bool
	open    map[io.Closer]bool
}

// start opens a resolver on every host that is to have one.
func (r *resolvers) start(hosts []*Host, names map[string][]netip.Addr) error {
	r.know(hosts, names)
	for _, h := range hosts {
		if !h.site.DNS {
			continue
		}
		if err := h.Do(r.listen); err != nil {
			return fmt.Errorf("resolver on %s: %w", h.Name(), err)
		}
	}
	return nil
}

// know takes in what there is to answer.
func (r *resolvers) know(hosts []*Host, names map[string][]netip.Addr) {
	r.names, r.open = map[string][]netip.Addr{}, map[io.Closer]bool{}
	for _, h := range hosts {
		v4, v6 := h.Addrs()
		r.names[h.Name()] = []netip.Addr{v4, v6}
	}
	for name, addrs := range names {
		r.names[strings.ToLower(name)] = addrs
	}
}

// listen opens a resolver in the present network namespace.
func (r *resolvers) listen() error {
	addr := netip.MustParseAddrPort(resolverAddr)
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	r.keep(udp)
	tcp, err := plaintcp.ListenConfig().Listen(context.Background(), "tcp4", resolverAddr)
	if err != nil {
		return err
	}
	r.keep(tcp)
	r.servers.Go(func() { r.serveUDP(udp) })
	r.servers.Go(func() { r.serveTCP(tcp) })
	return nil
}

// keep registers what stop has to close; it tells whether it is not too late.
func (r *resolvers) keep(c io.Closer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.open[c] = true
	return true
}

func (r *resolvers) forget(c io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
}

// stop closes all sockets and waits for the last answer to be given.
func (r *resolvers) stop() error {
	r.mu.Lock()
	r.closed = true
	var errs []error
	for c := range r.open {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	clear(r.open)
	r.mu.Unlock()
	r.servers.Wait()
	return errors.Join(errs...)
}

func (r *resolvers) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if reply, err := answer(r.names, buf[:n], 512); err == nil {
			// Who does not get an answer asks again.
			_, _ = c.WriteToUDPAddrPort(reply, from)
		}
	}
}

func (r *resolvers) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !r.keep(c) {
			c.Close()
			return
		}
		r.servers.Go(func() {
			defer r.forget(c)
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(queryTimeout))
			for r.answerTCP(c) == nil {
			}
		})
	}
}

// answerTCP answers one query; over TCP each message is preceded by its length
// in two bytes (RFC 1035 section 4.2.2).
func (r *resolvers) answerTCP(c net.Conn) error {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return err
	}
	query := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, query); err != nil {
		return err
	}
	reply, err := answer(r.names, query, 65535)
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	return err
}
