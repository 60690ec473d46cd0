package protocol

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"github.com/wallprobe/wallprobe/wire"
)

// What SMTP, IMAP, POP3 and XMPP have in common: a dialogue in text, TLS around
// it from the start or asked for inside it, and a login whose name is the token.
//
// The dialogues are spoken by hand and not with the field's libraries, because
// what matters here is what those hide: the lines as they were sent and heard,
// which stage ended, one deadline for all of a stage, STARTTLS asked for where
// it is not offered, and a login that fails for want of a token while
// everything else goes its way. Tests let the libraries and well-known programs
// speak with both ends.
//
// A login that asks for a data phase or for silence can only be our own near
// end's: from there on both ends carry it over the TLS stream, where nobody can
// tell it from mail. Every other client goes on with ordinary commands. Nothing
// is relayed or kept.
type mailDialect struct {
	// The near end: hears the greeting, agrees on TLS, logs in, says goodbye.
	greeting, starttls, login, leave func(n *nearMail) error
	// The far end: greets, hears a command, obeys it, and says why it hangs up.
	greet func(f *farMail) error
	next  func(f *farMail) (string, error)
	obey  func(f *farMail, command string) error
	bye   func(f *farMail, reason string) error
}

// Limits of the far end. Before a login there is little to say; after it a mail
// program may look around.
const (
	mailCommands    = 64
	mailTime        = unprovenTime
	mailCommandsIn  = 256
	mailTimeIn      = 5 * time.Minute
	mailFailures    = 3
	maxReplyLines   = 64       // of one answer, at the near end
	maxMail         = 64 << 10 // bytes of a message, which is thrown away
	mailDomain      = "wallprobe.invalid"
	mailPassword    = "wallprobe" // beside the token as the name; nobody looks at it
	errBye          = mailError("the peer said goodbye")
	errCarry        = mailError("the data phase begins")
	errManyCommands = mailError("more commands than a client needs")
	errManyLogins   = mailError("more than 2 logins failed")
	errManyLines    = mailError("more than 64 lines in one answer")
	errTooLarge     = mailError("a message of more than 64 KiB")
)

type mailError string

func (e mailError) Error() string { return string(e) }

// probe gives the near end; inside tells that TLS comes first.
func (d *mailDialect) probe(inside bool) func(context.Context, net.Conn, Exchange) Result {
	return func(ctx context.Context, c net.Conn, x Exchange) (r Result) {
		c, stop := bind(ctx, c)
		defer stop()
		n := &nearMail{dialogue: newDialogue(c, x.Stall), x: x, r: &r, steps: r.steps(), inside: inside}
		defer func() { r.Said = n.said.Said() }()
		if inside && !n.secure(ctx) {
			return r
		}
		if !n.step(StageBanner, d.greeting) {
			return r
		}
		if !inside && (!n.step(StageSTARTTLS, d.starttls) || !n.secure(ctx)) {
			return r
		}
		if !n.step(StageLogin, d.login) {
			return r
		}
		// Where data follows, its closing messages are the goodbye.
		if x.Bytes > 0 || x.Idle > 0 || n.step(StageLogin, d.leave) {
			x.carry(n, &r, n.steps)
		}
		return r
	}
}

// nearMail is the near end under way.
type nearMail struct {
	*dialogue
	x      Exchange
	r      *Result
	steps  func(string, error) bool
	until  time.Time // the end of the stage, however slowly its lines come
	inside bool      // TLS came first
	tag    int       // of IMAP
}

// step runs one stage. An answer that is not the far end's is shown.
func (n *nearMail) step(stage string, do func(*nearMail) error) bool {
	n.until = time.Now().Add(n.x.Stall)
	err := do(n)
	if heard := n.said.Said().Heard; len(heard) > 0 && errors.Is(err, ErrForeign) {
		n.r.Sample = []byte(heard[len(heard)-1])
	}
	return n.steps(stage, err)
}

// secure goes on in TLS.
func (n *nearMail) secure(ctx context.Context) bool {
	if err := n.early(); err != nil {
		return n.steps(StageSTARTTLS, err)
	}
	tc, seen, failed := n.x.overTLS(ctx, n.Conn)
	n.r.TLS = seen
	if tc != nil {
		return n.steps(StageTLS, n.over(tc))
	}
	n.steps(StageTLS, failed.Err)
	n.r.Fault, n.r.Sample = failed.Fault, failed.Sample
	return false
}

func (n *nearMail) say(lines ...string) error {
	return n.sayWith("\r\n", time.Until(n.until), lines...)
}

func (n *nearMail) hear() (string, error) {
	n.stall = time.Until(n.until)
	return n.dialogue.hear()
}

// wants hears a line that has to begin with what is wanted.
func (n *nearMail) wants(prefix string) (string, error) {
	line, err := n.hear()
	if err == nil && !strings.HasPrefix(line, prefix) {
		err = foreign(fmt.Sprintf("%q", prefix), line)
	}
	return line, err
}

// ask sends the login and finds the token's answer in what hear gives.
func (n *nearMail) ask(login string, hear func() (string, error)) error {
	sent := time.Now()
	if err := n.say(login); err != nil {
		return err
	}
	line, err := hear()
	if err != nil {
		return err
	}
	n.r.RTT = time.Since(sent)
	return n.x.CheckToken(line, n.r)
}

// plainLogin is the token as the name of SASL's PLAIN (RFC 4616), in base64.
func (n *nearMail) plainLogin() string {
	_, b, _ := sasl.NewPlainClient("", n.x.Token(), mailPassword).Start()
	return base64.StdEncoding.EncodeToString(b)
}

// notOffered is the error of a near end that did not find STARTTLS in what the
// far end can. It asks for it all the same, as no mail program would: the
// answer shows whether the offer alone was taken away or the command is
// stopped as well, and the far end's record what became of it on the way.
func notOffered(command, answer string, err error) error {
	if err != nil && !errors.Is(err, ErrForeign) {
		answer = err.Error()
	}
	return fmt.Errorf("%s is not offered; asked for all the same, the answer is %q: %w", command, answer, ErrForeign)
}

// serve gives the far end; inside tells that this is within TLS already.
func (d *mailDialect) serve(inside bool) func(context.Context, net.Conn, Far) []wire.Event {
	return func(ctx context.Context, c net.Conn, far Far) []wire.Event {
		c, stop := bind(ctx, c)
		defer stop()
		f := &farMail{dialogue: newDialogue(c, farStall), ctx: ctx, far: far, e: Arrived(c, far.Now()),
			inTLS: inside, left: mailCommands, until: time.Now().Add(mailTime)}
		f.e.Stage = StageBanner
		far.Tell(f.said)
		f.ended(d, d.converse(f))
		f.e.Said = f.said.Said()
		if f.tls != nil {
			f.tls.SetDeadline(time.Now().Add(time.Second))
			f.tls.Close() // close-notify, so that an orderly end is told from a cut
		}
		return []wire.Event{f.e}
	}
}

// farMail is the far end under way.
type farMail struct {
	*dialogue
	ctx      context.Context
	far      Far
	e        wire.Event
	tls      *tls.Conn // that this end began
	inTLS    bool
	until    time.Time // the end of all
	left     int       // commands
	failures int
	refused  error  // why the first login was
	proven   bool   // a login was not
	user     string // of POP3
	selected bool   // IMAP's mailbox
	keys     *wire.Keys
	reply    wire.Message
}

func (d *mailDialect) converse(f *farMail) error {
	if err := d.greet(f); err != nil {
		return err
	}
	for {
		if f.left--; f.left < 0 {
			return errManyCommands
		}
		command, err := d.next(f)
		if err != nil {
			return err
		}
		if !f.proven && f.e.Stage == StageBanner {
			f.e.Stage = StageSTARTTLS
			if f.inTLS {
				f.e.Stage = StageLogin
			}
		}
		if err := d.obey(f, command); err != nil {
			return err
		}
	}
}

// ended notes how the conversation did. One that has proven its token and had
// nothing to carry is done, however it ends.
func (f *farMail) ended(d *mailDialect, err error) {
	if _, ours := errors.AsType[mailError](err); ours && err != errBye && err != errCarry || err == errLongLine || err == errRubbish || err == errXMPP || err == errXML {
		d.bye(f, err.Error())
	}
	switch {
	case err == errCarry:
		serveCarry(f, f.keys, f.reply, &f.e)
	case f.proven:
		f.e.Stage = StageDone
	case f.refused != nil && faultOf(err) != FaultReset:
		f.e.Fault = faultOf(f.refused)
	case err == errBye:
		f.e.Fault = FaultEOF
	default:
		f.e.Fault = faultOf(err)
	}
}

// line hears one command.
func (f *farMail) line() (string, error) {
	f.stall = min(farStall, time.Until(f.until))
	line, err := f.hear()
	if err == nil && strings.ContainsFunc(line, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f || c == '\uFFFD' }) {
		err = errRubbish
	}
	return line, err
}

// errRubbish ends a dialogue with a peer that does not speak in text.
var errRubbish = fmt.Errorf("bytes that are no text: %w", ErrForeign)

func (f *farMail) say(lines ...string) error {
	return f.sayWith("\r\n", min(farStall, time.Until(f.until)), lines...)
}

// secure goes on in TLS once say has agreed to it.
func (f *farMail) secure(say func(...string) error, ready string) error {
	if err := f.early(); err != nil {
		return err
	}
	if err := say(ready); err != nil {
		return err
	}
	f.e.Stage = StageTLS
	tc, seen, err := acceptTLS(f.ctx, f.Conn, f.far, nil)
	f.e.TLS = seen
	if err != nil {
		return err
	}
	f.tls, f.inTLS, f.e.Stage = tc, true, StageLogin
	return f.over(tc)
}

// login looks for a token among what a client gave as its name and password.
// answer is for the line that says that the login succeeded; ok is false when
// it did not. After the answer, welcome tells how to go on.
func (f *farMail) login(credentials string) (answer string, ok bool) {
	m, keys, err := ProveToken(credentials, f.RemoteAddr(), f.far)
	if err == nil && f.proven {
		err = ErrForeign
	}
	if err != nil {
		if !f.proven {
			f.e.Session, f.e.Probe, f.e.Attempt = m.Session, m.Probe, m.Attempt
		}
		if f.failures++; f.refused == nil {
			f.refused = err
		}
		return "", false
	}
	f.e.Session, f.e.Probe, f.e.Attempt, f.e.Answered = m.Session, m.Probe, m.Attempt, true
	f.keys, f.reply, f.proven = keys, replyTo(m, f.RemoteAddr(), f.far.Now()), true
	f.left, f.until = mailCommandsIn, time.Now().Add(mailTimeIn)
	return textOf(&f.reply, keys), true
}

// welcome tells how to go on once a login is answered: a message that asks for
// a data phase or silence is our own near end's.
func (f *farMail) welcome(err error) error {
	if err == nil && (f.reply.Bytes > 0 || f.reply.Idle > 0) {
		return errCarry
	}
	return err
}

// unwelcome tells how to go on once a login was refused.
func (f *farMail) unwelcome(err error) error {
	if err == nil && f.failures >= mailFailures {
		return errManyLogins
	}
	return err
}

// plainCredentials reads SASL's PLAIN (RFC 4616) from base64 as text with the
// name and the password in it; empty when it is none.
func plainCredentials(b64 string) string {
	b, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		return ""
	}
	var said string
	server := sasl.NewPlainServer(func(_, user, password string) error {
		said = user + " " + password
		return nil
	})
	if _, _, err := server.Next(b); err != nil {
		return ""
	}
	return said
}

// onlyMail is the message that every mailbox here holds.
const onlyMail = "From: wallprobe <postmaster@" + mailDomain + ">\r\nTo: you <you@" + mailDomain + ">\r\n" +
	"Subject: This mailbox is a test\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <1@" + mailDomain + ">\r\n\r\n" +
	"A firewall between you and this server lets you read your mail.\r\n"
