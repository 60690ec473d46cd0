package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// doors are the ports on which this end awaits the reflector's calls. Several
// probes may await them at one port, and share its door: a call says whose it is.
type doors struct {
	mu    sync.Mutex
	open  map[doorway]*door
	calls map[call]int // that arrived
}

type doorway struct {
	transport scenarios.Transport
	port      uint16
	v6        bool
}

type door struct {
	io.Closer
	users   int
	serving sync.WaitGroup
}

type call struct {
	probe uint32
	port  uint16
}

// enter opens a door, if it is not open yet. It is followed by leave.
func (d *doors) enter(at doorway, k *wire.Keys) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.open[at]
	if o == nil {
		o = new(door)
		if err := d.listen(at, k, o); err != nil {
			return err
		}
		if d.open == nil {
			d.open = make(map[doorway]*door)
		}
		d.open[at] = o
	}
	o.users++
	return nil
}

// leave closes a door behind the last one.
func (d *doors) leave(at doorway) {
	d.mu.Lock()
	o := d.open[at]
	if o.users--; o.users > 0 {
		d.mu.Unlock()
		return
	}
	delete(d.open, at)
	o.Close()
	d.mu.Unlock()
	o.serving.Wait()
}

// arrived is how many calls for a probe came to a port.
func (d *doors) arrived(probe uint32, port uint16) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[call{probe, port}]
}

func (d *doors) listen(at doorway, k *wire.Keys, o *door) error {
	address := fmt.Sprintf("0.0.0.0:%d", at.port)
	if at.v6 {
		address = fmt.Sprintf("[::]:%d", at.port)
	}
	lc := plaintcp.ListenConfig()
	if at.transport == scenarios.UDP {
		c, err := lc.ListenPacket(context.Background(), "udp", address)
		if err != nil {
			return err
		}
		o.Closer = c
		o.serving.Go(func() { d.answerDatagrams(c, at.port, k) })
		return nil
	}
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	o.Closer = l
	o.serving.Go(func() { d.answerConns(l, at.port, k) })
	return nil
}

// answer makes the Request that answers a proven Call.
func (d *doors) answer(b []byte, port uint16, k *wire.Keys) []byte {
	m, err := wire.Parse(b, k)
	if err != nil || m.Kind != wire.Call {
		return nil
	}
	d.mu.Lock()
	if d.calls == nil {
		d.calls = make(map[call]int)
	}
	d.calls[call{m.Probe, port}]++
	d.mu.Unlock()
	m.Kind, m.Time = wire.Request, time.Now()
	return m.Append(nil, k)
}

func (d *doors) answerDatagrams(c net.PacketConn, port uint16, k *wire.Keys) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if b := d.answer(buf[:n], port, k); b != nil {
			c.WriteTo(b, from)
		}
	}
}

// maxAnswering is how many connections to one port are answered at one time.
const maxAnswering = 64

// answerConns answers connections side by side, since one in which nothing
// arrives must not hold up the next, until the listener is closed.
func (d *doors) answerConns(l net.Listener, port uint16, k *wire.Keys) {
	ctx, over := context.WithCancel(context.Background())
	slots := make(chan struct{}, maxAnswering)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer over()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		answering.Go(func() {
			defer func() { <-slots }()
			d.answerConn(ctx, c, port, k)
		})
	}
}

func (d *doors) answerConn(ctx context.Context, c net.Conn, port uint16, k *wire.Keys) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, wire.MessageSize)
	if _, err := io.ReadFull(c, buf); err != nil {
		return
	}
	if b := d.answer(buf, port, k); b != nil {
		c.Write(b)
	}
}
