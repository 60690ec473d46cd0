package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/internal/plaintcp"
	"github.com/wallprobe/wallprobe/wire"
)

// An ftpNear is the near end of one control connection.
type ftpNear struct {
	*dialogue
	ctx context.Context
	x   Exchange
	r   *Result
}

// probeFTP is the near end.
func probeFTP(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	c, stop := bind(ctx, c)
	defer stop()
	n := &ftpNear{newDialogue(c, x.Stall), ctx, x, &r}
	defer func() { r.Said = n.said.Said() }()
	step := r.steps()
	switch {
	case !step(StageBanner, n.banner()):
	case !step(StageLogin, n.login()):
	case !step(StageData, n.data()):
	case x.Idle > 0 && !step(StageIdle, n.idle()):
	case !step(r.Stage, n.command("QUIT", "221")):
	default:
		r.Step = ""
		step(StageDone, nil)
	}
	return r
}

// answer hears one answer, which may have several lines (RFC 959 section 4.2),
// and demands its code.
func (n *ftpNear) answer(code string) (string, error) {
	line, err := n.hear()
	if err != nil {
		return line, err
	}
	for i := 0; strings.HasPrefix(line, code+"-") && i < maxAnswer; i++ {
		more, err := n.hear()
		if err != nil {
			return line, err
		}
		if strings.HasPrefix(more, line[:3]+" ") {
			line = more
		}
	}
	if !strings.HasPrefix(line, code+" ") {
		return line, foreign(code, line)
	}
	return line, nil
}

// maxAnswer is the most lines of one answer.
const maxAnswer = 20

func (n *ftpNear) banner() error {
	line, err := n.answer("220")
	if err != nil {
		n.r.Sample = []byte(line[:min(len(line), wire.MessageSize)])
	}
	return err
}

func (n *ftpNear) login() error {
	sent := time.Now()
	if err := n.say("USER %s", n.x.Token()); err != nil {
		return err
	}
	line, err := n.answer("230")
	n.r.RTT = time.Since(sent)
	if err != nil {
		return err
	}
	return n.x.CheckToken(line, n.r)
}

// command says a line after login and demands a code as its answer. Another
// one is what the far end says, not what somebody else does.
func (n *ftpNear) command(line, code string) error {
	_, err := n.ask(line, code)
	return err
}

func (n *ftpNear) ask(line, code string) (string, error) {
	n.r.Step = line
	if err := n.say("%s", line); err != nil {
		return "", err
	}
	return n.told(code)
}

// told hears the answer to what was asked before.
func (n *ftpNear) told(code string) (string, error) {
	got, err := n.answer(code)
	if errors.Is(err, ErrForeign) && len(got) > 3 && (got[0] == '4' || got[0] == '5') {
		err = fmt.Errorf("answered %q", got)
	}
	return got, err
}

// data carries the files, or a listing where there is nothing to carry.
func (n *ftpNear) data() error {
	if err := n.command("TYPE I", "200"); err != nil {
		return err
	}
	if n.x.Bytes == 0 {
		return n.transfer("NLST", 0, func(c net.Conn) error {
			want := listing()
			got := make([]byte, len(want))
			c.SetReadDeadline(time.Now().Add(n.x.Stall))
			if _, err := io.ReadFull(c, got); err != nil {
				return err
			}
			if string(got) != want {
				return fmt.Errorf("%q came instead of the listing: %w", got, errAltered)
			}
			return ended(c, n.x.Stall)
		})
	}
	x, file := n.x, fileName(n.x.Bytes)
	err := n.transfer("RETR "+file, x.Bytes, func(c net.Conn) (err error) {
		n.r.Down, err = checkStream(c, x.Keys.NewStream(wire.Reply, x.Probe, x.Attempt), x.Bytes, x.Stall)
		if err != nil {
			return err
		}
		return ended(c, x.Stall)
	})
	if err != nil {
		return err
	}
	return n.transfer("STOR "+file, x.Bytes, func(c net.Conn) (err error) {
		n.r.Up, err = sendStream(c, x.Keys.NewStream(wire.Request, x.Probe, x.Attempt), x.Bytes, x.Stall)
		return err
	})
}

// ended demands that nothing more comes.
func ended(c net.Conn, stall time.Duration) error {
	c.SetReadDeadline(time.Now().Add(stall))
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("more came than the file has: %w", errAltered)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// transfer opens a data connection in the variant's mode and moves one file.
func (n *ftpNear) transfer(command string, size uint32, move func(net.Conn) error) error {
	open := n.passive
	if n.x.Variant == ftpActive || n.x.Variant == ftpExtendedActive {
		open = n.active
	}
	data, err := open(command)
	if err != nil {
		return err
	}
	data = Patient(data, true)
	defer data.Close()
	c, stop := bind(n.ctx, data)
	defer stop()
	n.r.Step += ", " + command
	m := meter(c, n.x.Stall)
	if err := move(m); err != nil {
		return err
	}
	// The end of a file is the end of its connection. What was sent may still be
	// on its way.
	Part(n.ctx, data, n.x.Stall)
	stall := n.stall
	n.stall += drain(size)
	_, err = n.told("226")
	n.stall = stall
	if err == nil {
		n.r.measured(m, size)
	}
	return err
}

// passive asks where to connect and connects, before the command that needs it
// as clients do.
func (n *ftpNear) passive(command string) (net.Conn, error) {
	ask, code := "EPSV", "229"
	if n.x.Variant == ftpPassive {
		ask, code = "PASV", "227"
	}
	line, err := n.ask(ask, code)
	if err != nil {
		return nil, err
	}
	_, named, _, err := splitAddress(line)
	if err != nil {
		return nil, foreign("the address of a data connection", line)
	}
	// Never to anybody else than the far end, whatever a 227 names: clients that
	// follow it can be sent anywhere.
	to := netip.AddrPortFrom(AddrPort(n.RemoteAddr()).Addr(), named.Port())
	if named.Addr().IsValid() && named.Addr() != to.Addr() {
		n.r.Detail = fmt.Sprintf("%s named %s; connected to %s as control is", ask, named, to)
	}
	n.r.Step = fmt.Sprintf("%s, connecting to %s", ask, to)
	c, err := n.dial(to)
	if err != nil {
		return nil, err
	}
	n.r.Step = fmt.Sprintf("%s, connected to %s", ask, to)
	if err := n.say("%s", command); err != nil {
		c.Close()
		return nil, err
	}
	if _, err := n.told("150"); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (n *ftpNear) dial(to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.x.Stall)
	defer cancel()
	if n.x.Dial != nil {
		return n.x.Dial(ctx, to)
	}
	return plaintcp.Dialer().DialContext(ctx, "tcp", to.String())
}

// active says where to call and waits for the call.
func (n *ftpNear) active(command string) (net.Conn, error) {
	l, err := n.listen()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	at := AddrPort(l.Addr())
	ask := "EPRT " + formatExtended(at)
	if n.x.Variant == ftpActive {
		if !at.Addr().Is4() {
			return nil, fmt.Errorf("PORT cannot name %s: %w", at, errAddress)
		}
		ask = "PORT " + formatHostPort(at)
	}
	if err := n.command(ask, "200"); err != nil {
		return nil, err
	}
	if err := n.say("%s", command); err != nil {
		return nil, err
	}
	n.r.Step = ask + ", waiting for the call"
	if _, err := n.told("150"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.x.Stall)
	defer cancel()
	peer := AddrPort(n.RemoteAddr()).Addr()
	c, strangers, err := acceptFrom(ctx, l, peer)
	if err != nil {
		if len(strangers) > 0 {
			n.r.Step += fmt.Sprintf("; %s called, which is not %s", strangers[0], peer)
		}
		return nil, err
	}
	from := AddrPort(c.RemoteAddr())
	if n.r.Step = fmt.Sprintf("%s, called from %s", ask, from); from.Port() != dataPort {
		n.r.Detail = fmt.Sprintf("data came from port %d instead of %d", from.Port(), dataPort)
	}
	return c, nil
}

func (n *ftpNear) listen() (net.Listener, error) {
	at := AddrPort(n.LocalAddr()).Addr()
	if n.x.Listen != nil {
		return n.x.Listen(at)
	}
	return plaintcp.ListenConfig().Listen(n.ctx, "tcp", netip.AddrPortFrom(at, 0).String())
}

// maxStrangers is how many calls from elsewhere end the wait for one.
const maxStrangers = 16

// acceptFrom takes the next connection that comes from an address, and turns
// away others.
func acceptFrom(ctx context.Context, l net.Listener, from netip.Addr) (c net.Conn, strangers []netip.AddrPort, err error) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for len(strangers) < maxStrangers {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("wait for a data connection: %w", ctx.Err())
			}
			return nil, strangers, err
		}
		peer := AddrPort(c.RemoteAddr())
		if peer.Addr().WithZone("") == from.WithZone("") {
			return c, strangers, nil
		}
		c.Close()
		strangers = append(strangers, peer)
	}
	return nil, strangers, errors.New("too many data connections from elsewhere")
}

// idle waits for the late message.
func (n *ftpNear) idle() error {
	stall := n.stall
	n.stall += n.x.Idle
	line, err := n.answer("211")
	n.stall = stall
	if err != nil {
		return err
	}
	m, err := messageIn(line, func(p []byte) (wire.Message, error) { return wire.Parse(p, n.x.Keys) })
	if err == nil && (m.Kind != wire.Late || m.Probe != n.x.Probe) {
		err = ErrForeign
	}
	return err
}
