package middlebox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/lab"
)

// defaultTimeout bounds a connection through a proxy, and an idle flow of datagrams.
const defaultTimeout = time.Minute

// dialTimeout bounds how long a proxy tries to reach the server.
const dialTimeout = 10 * time.Second

// TCP is a transparent proxy: it takes the connections that clients make to a
// server and makes its own to there.
type TCP struct {
	Ports    string        // which server ports, as nft has it: "443", "8000-8100" or "{ 80, 443 }"
	From     string        // the interface by which clients come in; empty is lan0
	Rewrites []Rewrite     // changes to what is forwarded
	Cut      *Cut          // where forwarding ends; nil never
	Timeout  time.Duration // of a connection; 0 is a minute
	AsClient bool          // connect from the client's own address, not from the host's

	// To tells where a connection that was aimed at an address goes on to; nil
	// is there.
	To func(aimed netip.AddrPort) netip.AddrPort

	// Filter, if set, looks at the ClientHello that a connection begins with;
	// what begins with something else passes.
	Filter Filter
	// Later lets all pass until the client begins TLS, as behind STARTTLS, and
	// only then Filter looks.
	Later bool
	// Between, if set, stands between the two connections in place of
	// forwarding, which ends when it returns.
	Between func(client, server net.Conn)

	// Answer, if set, plays the server, which then sees nothing at all. The
	// connection is closed when it returns, and at the timeout at the latest.
	Answer func(net.Conn)
}

// A Cut ends all forwarding, in both directions, once so many bytes of one
// side have been forwarded. Both connections stay open, silent.
type Cut struct {
	From  Side
	After int64 // bytes; 0 forwards nothing of this side
}

// A TCPProxy is a TCP box put into the way.
type TCPProxy struct {
	box       TCP
	host      *lab.Host
	listeners []net.Listener
	diversion *diversion
	returns   *diversion // of what servers answer to clients' addresses
}

// Open puts the box into the way on a host.
func (t TCP) Open(h *lab.Host) (*TCPProxy, error) {
	if t.Timeout == 0 {
		t.Timeout = defaultTimeout
	}
	p := &TCPProxy{box: t, host: h}
	if err := h.Do(p.listen); err != nil {
		return nil, errors.Join(fmt.Errorf("tcp proxy on %s: %w", h.Name(), err), p.Close())
	}
	port := p.listeners[0].Addr().(*net.TCPAddr).Port
	var err error
	if p.diversion, err = divert(h, "tcp", t.From, t.Ports, port); err != nil {
		return nil, errors.Join(fmt.Errorf("tcp proxy on %s: %w", h.Name(), err), p.Close())
	}
	if t.AsClient {
		if p.returns, err = divertReturns(h, port); err != nil {
			return nil, errors.Join(fmt.Errorf("tcp proxy on %s: %w", h.Name(), err), p.Close())
		}
	}
	return p, nil
}

// listen opens the same port for both families.
func (p *TCPProxy) listen() error {
	config := plaintcp.ListenConfig()
	config.Control = transparent
	v4, err := config.Listen(context.Background(), "tcp4", "0.0.0.0:0")
	if err != nil {
		return err
	}
	p.listeners = append(p.listeners, v4)
	v6, err := config.Listen(context.Background(), "tcp6", fmt.Sprintf("[::]:%d", v4.Addr().(*net.TCPAddr).Port))
	if err != nil {
		return err
	}
	p.listeners = append(p.listeners, v6)
	return nil
}

// Close lifts the box out of the way without Serve. It may be called again.
func (p *TCPProxy) Close() error {
	var errs []error
	for _, l := range p.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, d := range []**diversion{&p.diversion, &p.returns} {
		if *d != nil {
			errs = append(errs, (*d).end())
			*d = nil
		}
	}
	return errors.Join(errs...)
}

// Serve works until ctx ends and returns nil then, after every connection has
// been closed and the box lifted out of the way.
func (p *TCPProxy) Serve(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, l := range p.listeners {
		wg.Go(func() { p.accept(ctx, l, &wg) })
	}
	<-ctx.Done()
	err := p.Close()
	wg.Wait()
	return err
}

func (p *TCPProxy) accept(ctx context.Context, l net.Listener, wg *sync.WaitGroup) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer client.Close()
			ctx, cancel := context.WithTimeout(ctx, p.box.Timeout)
			defer cancel()
			defer context.AfterFunc(ctx, func() { client.Close() })()
			if p.box.Answer != nil {
				p.box.Answer(client)
				return
			}
			p.forward(ctx, client.(*net.TCPConn))
		})
	}
}

// forward joins a client to the server it aimed at.
func (p *TCPProxy) forward(ctx context.Context, client *net.TCPConn) {
	aimed := client.LocalAddr().(*net.TCPAddr).AddrPort()
	aimed = netip.AddrPortFrom(aimed.Addr().Unmap(), aimed.Port())
	if p.box.To != nil {
		aimed = p.box.To(aimed)
	}
	dialer := plaintcp.Dialer()
	dialer.Timeout = dialTimeout
	if p.box.AsClient {
		dialer.Control, dialer.LocalAddr = transparent, &net.TCPAddr{IP: client.RemoteAddr().(*net.TCPAddr).IP}
	}
	var conn net.Conn
	err := p.host.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", aimed.String())
		return err
	})
	if err != nil {
		return // the client sees its connection closed, as with real proxies
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if p.box.Between != nil {
		p.box.Between(client, conn)
		return
	}
	if p.box.Filter != nil && !p.box.look(ctx, client, conn.(*net.TCPConn)) {
		return
	}
	f := &forwarding{cut: p.box.Cut, stop: make(chan struct{})}
	server := conn.(*net.TCPConn)
	var wg sync.WaitGroup
	wg.Go(func() { f.copy(server, client, newEditor(p.box.Rewrites, Client), Client) })
	wg.Go(func() { f.copy(client, server, newEditor(p.box.Rewrites, Server), Server) })
	wg.Wait()
	if f.stopped() {
		<-ctx.Done()
	}
}

// look lets the filter decide and tells whether the connection goes on.
func (t TCP) look(ctx context.Context, client, server *net.TCPConn) bool {
	if !t.Later {
		return t.Filter.let(ctx, client, client, server)
	}
	near := &peeked{Conn: client, in: bufio.NewReader(client)}
	if !near.passUntilTLS(server) || !t.Filter.let(ctx, near, client, server) {
		return false
	}
	rest, _ := near.in.Peek(near.in.Buffered()) // of what was read together with the hello
	_, err := server.Write(rest)
	return err == nil
}

// forwarding is what the two directions of a connection share.
type forwarding struct {
	cut  *Cut
	stop chan struct{} // closed by the direction that is cut
}

func (f *forwarding) stopped() bool {
	select {
	case <-f.stop:
		return true
	default:
		return false
	}
}

// copy forwards one direction until it ends or is cut.
func (f *forwarding) copy(to, from *net.TCPConn, e *editor, side Side) {
	left := int64(-1)
	if f.cut != nil && f.cut.From == side {
		left = f.cut.After
	}
	buf := make([]byte, 32<<10)
	for left != 0 {
		data, err := e.read(from, buf)
		if left > 0 {
			data = data[:min(int64(len(data)), left)]
			left -= int64(len(data))
		}
		if f.stopped() {
			return
		}
		if _, writeErr := to.Write(data); writeErr != nil {
			_ = from.CloseRead()
			return
		}
		if errors.Is(err, io.EOF) {
			_ = to.CloseWrite()
			return
		}
		if err != nil { // a reset, which the other side is to see as such
			_ = to.SetLinger(0)
			_ = to.Close()
			return
		}
	}
	close(f.stop)
}
