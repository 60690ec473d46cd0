package survey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A TCP survey connects to each of Target's Ports, or from each of LocalPorts
// to Target's RemotePort, and hands every connection to Exchange. Exactly one
// of Ports and LocalPorts must be set. Multipath TCP is off.
type TCP struct {
	Target     netip.Addr
	Ports      scenarios.PortSet // remote ports
	LocalPorts scenarios.PortSet // own ports; needs RemotePort
	RemotePort uint16
	Local      netip.Addr // where to connect from; zero leaves it to the system

	Timeout  time.Duration // of one handshake; 0 is 1 s
	Attempts int           // tries per port, each on a new socket; 0 is 3; only a silent port is tried again
	Spacing  time.Duration // between the end of one try and the next; 0 is none
	Rate     int           // connections begun per second; 0 adapts as in UDP
	RTT      time.Duration // round-trip time if known beforehand; 0 learns it, and is polite until then
	InFlight int           // connections at once, exchanges included; 0 is 12,000; no more than the descriptor limit leaves to all surveys

	// Exchange talks over an established connection, which is closed after it
	// (in the ordinary way: a reset would be evidence of something else). It
	// is called from many goroutines. Its error is kept in the answer. Nil
	// only connects.
	Exchange func(ctx context.Context, c net.Conn, port uint16) error

	// Ask and Answered, in place of Exchange, are one message each way. On Linux
	// they cost neither a goroutine nor a net.Conn per port. Ask appends what to
	// send to a port. Answered judges what came back, Reply bytes, or fewer with
	// the error that ended the reading: io.EOF, io.ErrUnexpectedEOF,
	// os.ErrDeadlineExceeded after Limit or the end of the context, or the
	// system's; its error is kept in the answer. It must not keep b. Both are
	// called from one place on Linux, from many elsewhere.
	Ask      func(dst []byte, port uint16) []byte
	Reply    int // bytes, at least 1 with Ask
	Answered func(port uint16, b []byte, err error, took time.Duration) error
	// Limit is the time for one exchange: the end of its context, its deadline,
	// and when its connection is closed. 0 is 5 s.
	Limit time.Duration
	// Workers is how many exchanges run at once; 0 is 1,024.
	Workers int
	// Progress, if set, is told a few times a second how many ports are decided.
	Progress func(done, total int)
}

// Run surveys and returns one answer per port, ascending. It ends soon after
// ctx does, with what is known by then and the cause; every exchange has
// returned. Any other error means that the survey could not be tried at all.
func (t TCP) Run(ctx context.Context) ([]Answer, error) {
	t, err := t.complete()
	if err != nil {
		return nil, fmt.Errorf("tcp survey of %s: %w", t.Target, err)
	}
	answers, err := t.run(ctx)
	if err != nil {
		return answers, fmt.Errorf("tcp survey of %s: %w", t.Target, err)
	}
	return answers, nil
}

func (t TCP) complete() (TCP, error) {
	ports := t.ports()
	switch {
	case !t.Target.IsValid():
		return t, errors.New("no target")
	case len(t.Ports) > 0 && len(t.LocalPorts) > 0:
		return t, errors.New("both remote and local ports given")
	case len(ports) == 0:
		return t, errors.New("no ports")
	case len(t.LocalPorts) > 0 && t.RemotePort == 0:
		return t, errors.New("local ports given without a remote port")
	case t.Ask != nil && (t.Answered == nil || t.Reply < 1 || t.Exchange != nil):
		return t, errors.New("an ask needs a reply's length and what judges it, and no exchange besides")
	}
	t.Target, t.Local = t.Target.Unmap(), t.Local.Unmap()
	t.Attempts = defaulted(t.Attempts, 3)
	if t.Attempts > 255 {
		return t, fmt.Errorf("%d attempts: at most 255", t.Attempts)
	}
	t.Timeout = defaulted(t.Timeout, time.Second)
	t.Limit = defaulted(t.Limit, 5*time.Second)
	t.Workers = defaulted(t.Workers, 1024)
	t.InFlight = defaulted(t.InFlight, 12000)
	if t.Target.IsLoopback() {
		t.RTT = defaulted(t.RTT, 50*time.Microsecond)
	}
	return t, nil
}

func (t *TCP) ports() scenarios.PortSet {
	if len(t.LocalPorts) > 0 {
		return t.LocalPorts
	}
	return t.Ports
}

// ends are the local and remote end for a surveyed port.
func (t *TCP) ends(port uint16) (local, remote netip.AddrPort) {
	if len(t.LocalPorts) > 0 {
		return netip.AddrPortFrom(t.Local, port), netip.AddrPortFrom(t.Target, t.RemotePort)
	}
	return netip.AddrPortFrom(t.Local, 0), netip.AddrPortFrom(t.Target, port)
}

// exchange runs Exchange on a connection and closes it.
func (t *TCP) exchange(ctx context.Context, c net.Conn, port uint16) (time.Duration, error) {
	defer c.Close()
	do := t.Exchange
	if t.Ask != nil {
		do = t.ask
	}
	if do == nil {
		return 0, nil
	}
	// The exchange ends by its deadline; one that moved the deadline loses its
	// connection a little later.
	hard, cancel := context.WithTimeout(ctx, t.Limit+200*time.Millisecond)
	defer cancel()
	defer context.AfterFunc(hard, func() { c.Close() })()
	soft, cancel := context.WithTimeout(ctx, t.Limit)
	defer cancel()
	start := time.Now()
	c.SetDeadline(start.Add(t.Limit))
	err := do(soft, c, port)
	return time.Since(start), err
}

// ask is Ask and Answered as an Exchange.
func (t *TCP) ask(ctx context.Context, c net.Conn, port uint16) error {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	began := time.Now()
	b := make([]byte, t.Reply)
	n := 0
	_, err := c.Write(t.Ask(nil, port))
	if err == nil {
		n, err = io.ReadFull(c, b)
	}
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		err = os.ErrDeadlineExceeded // its end closes the connection as well, whichever comes first
	}
	return t.Answered(port, b[:n], err, time.Since(began))
}
