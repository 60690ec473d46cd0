package protocol

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// Bounds on what a peer may say, and how long a proven one may say nothing.
const (
	maxUnproven  = 10   // commands before login
	maxCommands  = 1000 // altogether
	ftpPatience  = time.Minute
	ftpGreeting  = "220 wallprobe FTP, log in with a token as user name"
	ftpListStamp = "Jan  1  2026"
)

// An ftpFar is the far end of one control connection.
type ftpFar struct {
	*dialogue
	ctx     context.Context
	far     Far
	e       wire.Event
	m       wire.Message
	keys    *wire.Keys     // nil until the token was proven
	passive net.Listener   // set by PASV and EPSV
	active  netip.AddrPort // set by PORT and EPRT
	from    uint32         // set by REST
	carried bool           // all that the token asked for
	late    bool           // said after the silence
	trouble error          // of the last transfer
	all     *allowance     // no command is heard after it
	panics  panics
	tls     *tls.Conn // around the control connection, since AUTH TLS
	sized   bool      // by PBSZ, which comes before PROT
	private bool      // PROT P: TLS on data connections as well
}

// serveFTP is the far end. It returns one event.
func serveFTP(ctx context.Context, c net.Conn, far Far) []wire.Event {
	c, stop := bind(ctx, c)
	defer stop()
	f := &ftpFar{dialogue: newDialogue(c, farStall), ctx: ctx, far: far, e: Arrived(c, far.Now()), all: allow(unprovenTime)}
	f.e.Stage = StageBanner
	far.Tell(f.said)
	defer f.forget()
	defer f.closeTLS()
	err := f.say(ftpGreeting)
	for i := 0; err == nil; i++ {
		if i >= maxCommands || f.keys == nil && i >= maxUnproven {
			f.say("421 too many commands")
			err = fmt.Errorf("more than %d commands", i)
			break
		}
		err = f.next()
	}
	if errors.Is(err, errQuit) {
		err = f.trouble
		if f.keys == nil {
			err = ErrForeign
		} else if err == nil {
			f.e.Stage = StageDone
		}
	} else if f.trouble != nil {
		err = f.trouble
	}
	f.e.Fault, f.e.Said = FaultOf(err), f.said.Said()
	return []wire.Event{f.e}
}

var errQuit = errors.New("quit")

// next hears one command and answers it. An error ends the connection.
func (f *ftpFar) next() error {
	if f.carried && f.m.Idle > 0 && !f.late {
		return f.silence()
	}
	line, err := f.hearBy(sooner(time.Now().Add(f.stall), f.until()))
	if err != nil {
		return err
	}
	if f.e.Stage == StageBanner {
		f.e.Stage = StageLogin
	}
	verb, arg := ftpCommand(line)
	switch {
	case verb == "QUIT":
		if err := f.say("221 goodbye"); err != nil {
			return err
		}
		return errQuit
	case ftpSecurity[verb] != nil:
		return ftpSecurity[verb](f, arg)
	case verb == "FEAT":
		return f.features()
	case f.keys != nil:
		return f.proven(verb, arg)
	case verb == "USER":
		return f.login(arg)
	}
	return f.say("530 log in with a token as user name")
}

// until is the end of all: what files moved buys time.
func (f *ftpFar) until() time.Time {
	f.all.moved.Store(f.e.BytesIn + f.e.BytesOut)
	return f.all.until()
}

// ftpCommand splits a line. Clients send a telnet interrupt before ABOR (RFC
// 959 section 4.1.3), and are free to write verbs small.
func ftpCommand(line string) (verb, arg string) {
	for line != "" && line[0] >= 0xf0 {
		line = line[1:]
	}
	verb, arg, _ = strings.Cut(line, " ")
	return strings.ToUpper(verb), arg
}

func (f *ftpFar) login(name string) error {
	m, keys, err := ProveToken(name, f.RemoteAddr(), f.far)
	f.e.Session, f.e.Probe, f.e.Attempt = m.Session, m.Probe, m.Attempt
	if err == nil && m.Idle > MaxIdle {
		err = fmt.Errorf("asked for %v of idling; at most %v", m.Idle, MaxIdle)
	}
	if err != nil {
		f.say("530 not a token of this reflector")
		return err
	}
	f.m, f.keys, f.stall = replyTo(m, f.RemoteAddr(), f.far.Now()), keys, ftpPatience
	f.all = allow(strangersTime + m.Idle)
	f.e.Answered, f.e.Stage = true, StageData
	return f.say("230 logged in, %s", AnswerToken(m, keys, f.RemoteAddr(), f.far))
}

// ftpSays are the answers to commands that change nothing here.
var ftpSays = map[string]string{
	"PASS": "230 logged in already", "ACCT": "230 logged in already", "TYPE": "200 as it is", "MODE": "200 as a stream", "STRU": "200 as a file",
	"NOOP": "200 fine", "PWD": `257 "/" is where you are`, "XPWD": `257 "/" is where you are`, "CWD": "250 there is one directory", "CDUP": "250 there is one directory",
	"SYST": "215 UNIX Type: L8", "OPTS": "200 fine", "ALLO": "202 there is room", "ABOR": "226 nothing is under way",
}

// proven answers a command of a peer that has logged in.
func (f *ftpFar) proven(verb, arg string) error {
	if said := ftpSays[verb]; said != "" {
		return f.say("%s", said)
	}
	switch verb {
	case "PASV", "EPSV":
		return f.enterPassive(verb, arg)
	case "PORT", "EPRT":
		return f.enterActive(verb, arg)
	case "SIZE":
		if n, ok := fileSize(arg); ok {
			return f.say("213 %d", n)
		}
		return f.say("550 files are called N.bin and have N bytes")
	case "REST":
		n, err := number(arg, 32)
		if err != nil {
			return f.say("501 not a number of bytes")
		}
		f.from = uint32(n)
		return f.say("350 from there on")
	case "RETR":
		return f.retrieve(arg)
	case "STOR":
		return f.store(arg)
	case "NLST", "LIST":
		return f.list(verb)
	}
	return f.say("502 %s is not spoken here", printable(verb))
}

// printable bounds what of a peer's own is said back to it.
func printable(s string) string {
	s = s[:min(len(s), 8)]
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "that"
	}
	return s
}

// forget drops what the last command about data connections arranged.
func (f *ftpFar) forget() {
	if f.passive != nil {
		f.passive.Close()
	}
	f.passive, f.active = nil, netip.AddrPort{}
}

func (f *ftpFar) enterPassive(verb, arg string) error {
	f.forget()
	at := AddrPort(f.LocalAddr()).Addr()
	switch {
	case verb == "PASV" && !at.Is4():
		return f.say("425 PASV cannot name %s; use EPSV", at)
	case arg != "" && arg != family(at) && !strings.EqualFold(arg, "ALL"):
		return f.say("522 another network protocol is used here (%s)", family(at))
	case strings.EqualFold(arg, "ALL"):
		return f.say("200 EPSV it is")
	}
	l, err := f.far.Listen(at)
	if err != nil {
		f.trouble = fmt.Errorf("listen for data: %w", err)
		return f.say("425 no port for data: %v", err)
	}
	f.passive = l
	port := AddrPort(l.Addr()).Port()
	if verb == "PASV" {
		return f.say("227 Entering Passive Mode (%s)", formatHostPort(netip.AddrPortFrom(at, port)))
	}
	return f.say("229 Entering Extended Passive Mode (%s)", formatExtended(netip.AddrPortFrom(netip.Addr{}, port)))
}

// enterActive takes an address to call. It must be the peer's own: else this
// end could be made to connect to anybody (RFC 2577 section 3).
func (f *ftpFar) enterActive(verb, arg string) error {
	f.forget()
	parse := parseHostPort
	if verb == "EPRT" {
		parse = parseExtended
	}
	to, err := parse(arg)
	peer := AddrPort(f.RemoteAddr()).Addr().WithZone("")
	switch {
	case err != nil || !to.Addr().IsValid():
		return f.say("501 not an address: %s", quotable(arg))
	case to.Addr().Unmap() != peer:
		f.trouble = fmt.Errorf("%s named %s, but control came from %s", verb, to, peer)
		return f.say("500 %s is not your address: control came from %s", to, peer)
	case to.Port() < 1024:
		f.trouble = fmt.Errorf("%s named port %d, which no client has for data", verb, to.Port())
		return f.say("500 port %d is none that a client has for data", to.Port())
	}
	f.active = to
	return f.say("200 %s accepted", verb)
}

func quotable(s string) string { return fmt.Sprintf("%.60q", s) }

// connect makes the data connection that was arranged.
func (f *ftpFar) connect(ctx context.Context) (net.Conn, error) {
	defer f.forget()
	switch {
	case f.passive != nil:
		peer := AddrPort(f.RemoteAddr()).Addr()
		c, strangers, err := acceptFrom(ctx, f.passive, peer)
		if err != nil && len(strangers) > 0 {
			err = fmt.Errorf("a data connection came from %s, but control from %s", strangers[0], peer)
		}
		return c, err
	case f.active.IsValid():
		from := netip.AddrPortFrom(AddrPort(f.LocalAddr()).Addr(), dataPort)
		c, err := f.far.Dial(ctx, f.m, from, f.active)
		switch {
		case err == nil:
		case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
			err = fmt.Errorf("called %s from port %d; nothing came of it until control ended", f.active, dataPort)
		default:
			err = fmt.Errorf("call %s from port %d: %w", f.active, dataPort, err)
		}
		return c, err
	}
	return nil, errors.New("PASV, EPSV, PORT or EPRT comes first")
}

// transfer makes the data connection, moves a file over it and says how that
// went. The control connection is watched meanwhile.
func (f *ftpFar) transfer(move func(net.Conn) error) error {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	watched := f.watch(cancel)
	code, err := "425", error(nil)
	c, err := f.open(ctx)
	if err == nil {
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if code, err = "226", f.begin(); err == nil {
			m, before := meter(c, farStall), f.e.BytesIn
			if err = f.protect(ctx, m, move); err != nil {
				code = "451"
			}
			if f.e.BytesIn > before {
				f.e.Pause = m.stood(f.e.Pause, err != nil)
			}
			if errors.Is(err, errAltered) {
				code = "550" // as the same file would fare again
			}
		}
		c.Close()
	}
	if c == nil || ctx.Err() == nil {
		f.trouble = err // and not what became of a connection that this end closed
	}
	if lost := watched(); lost != nil {
		return lost
	}
	if err == nil {
		return f.say("226 done")
	}
	return f.say("%s %v", code, err)
}

func (f *ftpFar) begin() error {
	f.SetWriteDeadline(time.Now().Add(farStall))
	return f.say("150 here it comes")
}

func (f *ftpFar) open(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, farStall)
	defer cancel()
	c, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	return Patient(c, false), nil
}

// watch calls lost when the control connection ends or asks to abort. The
// function that it gives stops it, and tells of an end.
func (f *ftpFar) watch(abort func()) (stop func() error) {
	f.SetReadDeadline(time.Time{})
	ended := make(chan error, 1)
	go func() {
		err := error(net.ErrClosed)
		defer func() { ended <- err }()
		defer f.panics.keep(abort)
		_, err = f.r.Peek(1)
		if err == nil {
			b, _ := f.r.Peek(f.r.Buffered())
			if bytes.Contains(bytes.ToUpper(b), []byte("ABOR")) {
				abort()
			}
		} else if faultOf(err) != FaultTimeout {
			abort()
		}
	}()
	return func() error {
		f.SetReadDeadline(time.Unix(1, 0))
		err := <-ended
		f.panics.again()
		if faultOf(err) == FaultTimeout && f.ctx.Err() == nil {
			return nil
		}
		return err
	}
}

func (f *ftpFar) retrieve(name string) error {
	n, ok := fileSize(name)
	from := f.from
	f.from = 0
	if !ok || from > n {
		return f.say("550 files are called N.bin and have N bytes")
	}
	return f.transfer(func(c net.Conn) error {
		s := f.keys.NewStream(wire.Reply, f.m.Probe, f.m.Attempt)
		if _, err := io.CopyN(io.Discard, s, int64(from)); err != nil {
			return err
		}
		sent, err := sendStream(c, s, n-from, farStall)
		f.e.BytesOut += sent
		return err
	})
}

// store takes a file. N.bin must be the near end's stream; what has another
// name is counted alone.
func (f *ftpFar) store(name string) error {
	n, known := fileSize(name)
	if f.from != 0 {
		f.from = 0
		return f.say("504 files are stored from their beginning")
	}
	return f.transfer(func(c net.Conn) error {
		if !known {
			got, err := discard(c)
			f.e.BytesIn += got
			return err
		}
		got, err := checkStream(c, f.keys.NewStream(wire.Request, f.m.Probe, f.m.Attempt), n, farStall)
		f.e.BytesIn += got
		if err == nil {
			err = ended(c, farStall)
		}
		f.carried = err == nil
		return err
	})
}

// discard reads to the end, at most MaxBytes.
func discard(c net.Conn) (total int64, err error) {
	buf := make([]byte, chunk)
	for total < MaxBytes {
		c.SetReadDeadline(time.Now().Add(farStall))
		n, err := c.Read(buf)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, fmt.Errorf("more than %d bytes", int64(MaxBytes))
}

func (f *ftpFar) list(verb string) error {
	text := listing()
	if verb == "LIST" {
		var b strings.Builder
		for _, n := range listed {
			fmt.Fprintf(&b, "-rw-r--r-- 1 wallprobe wallprobe %12d %s %s\r\n", n, ftpListStamp, fileName(n))
		}
		text = b.String()
	}
	return f.transfer(func(c net.Conn) error {
		c.SetWriteDeadline(time.Now().Add(farStall))
		_, err := io.WriteString(c, text)
		f.carried = err == nil && f.m.Bytes == 0
		return err
	})
}

// silence is kept after the transfers, for as long as the token asks; then
// comes the late message. Whatever the near end says meanwhile is not its own.
func (f *ftpFar) silence() error {
	f.e.Stage = StageIdle
	until := time.Now().Add(f.m.Idle)
	f.SetReadDeadline(until)
	if _, err := f.r.Peek(1); faultOf(err) != FaultTimeout || time.Now().Before(until) {
		if err == nil {
			err = errAltered
		}
		return err
	}
	f.late = true
	f.m.Kind = wire.Late
	return f.say("211 still here, %s", textOf(&f.m, f.keys))
}
