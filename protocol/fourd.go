package protocol

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// The ports of 4D: 19812 is the SQL server, whose text protocol published
// drivers show; of 19813, the application, and 19814, its data, nothing is
// known. What is spoken depends on the port alone, so that one path may name
// all three.
const fourDSQLPort = 19812

const fourDImitation = "on 19812 the login is real as far as published drivers show, and its answer has a line of its own; of 19813 and 19814 nothing is documented: a frame of our own"

var (
	fourD = &Protocol{
		Doc:       "4D in clear: on 19812 the SQL server's text, LOGIN with the token in base64 as user name; on other ports a frame with wallprobe's own message and data",
		Imitation: fourDImitation,
		Claims:    func(peek Peek, inTLS bool) bool { return !inTLS && claims4D(peek) },
		TCP:       &Ends{Probe: probe4D, Serve: serve4D},
	}
	fourDTLS = &Protocol{
		Secure:    true,
		Doc:       "4D inside TLS: on 19812 the SQL server's text, LOGIN with the token in base64 as user name; on other ports a frame with wallprobe's own message and data",
		Imitation: fourDImitation,
		Claims:    func(peek Peek, inTLS bool) bool { return inTLS && claims4D(peek) },
		TCP:       &Ends{Probe: insideTLS(probe4D), Serve: serve4D},
	}
)

// fourDFrame begins a frame of the opaque ports: mark, kind, length of what follows.
var fourDFrame = prelude{
	stage: StageBanner,
	up:    []byte{'4', 'D', 0, 1, 0, 0, 0, wire.MessageSize},
	down:  []byte{'4', 'D', 0, 2, 0, 0, 0, wire.MessageSize},
}

func claims4D(peek Peek) bool { return fourDFrame.claims(peek) || isLogin4D(peek(4)) }

// isLogin4D tells a command of the SQL server: "001 LOGIN".
func isLogin4D(b []byte) bool { return string(b) == "001 " }

func probe4D(ctx context.Context, c net.Conn, x Exchange) Result {
	if x.Port != fourDSQLPort {
		return fourDFrame.probe(ctx, c, x)
	}
	return probe4DSQL(ctx, c, x)
}

// serve4D is the far end; the first byte tells which of both it is.
func serve4D(ctx context.Context, c net.Conn, far Far) []wire.Event {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	d := newDialogue(c, farStall)
	d.SetReadDeadline(time.Now().Add(farStall))
	b, err := d.r.Peek(4)
	switch {
	case err != nil:
		return failed(Arrived(c, far.Now()), err)
	case isLogin4D(b):
		return serve4DSQL(d, far)
	}
	return fourDFrame.serve(ctx, d, far)
}

// probe4DSQL logs in.
func probe4DSQL(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	d := newDialogue(c, x.Stall)
	defer func() { r.Said = d.said.Said() }()
	if step(StageLogin, x.login4D(d, &r)) {
		x.carry(d, &r, step)
	}
	return r
}

func (x Exchange) login4D(d *dialogue, r *Result) error {
	sent := time.Now()
	user := base64.StdEncoding.EncodeToString([]byte(x.Token()))
	if err := d.sayAll("001 LOGIN", "USER-NAME-BASE64:"+user, "USER-PASSWORD-BASE64:", "REPLY-WITH-BASE64-TEXT:Y", "PROTOCOL-VERSION:0.1a", ""); err != nil {
		return err
	}
	status, headers, err := d.hear4D()
	if err != nil {
		return err
	}
	r.RTT = time.Since(sent)
	if status != "001 OK" {
		return foreign("001 OK", strings.TrimSpace(status+" "+headers["ERROR-DESCRIPTION"]))
	}
	return x.CheckToken(headers["SESSION"], r)
}

// most4D bounds the lines of one command or answer.
const most4D = 16

var errTooMany4D = errors.New("more than 16 lines in one command")

// hear4D reads a command or an answer: a first line, then headers until a blank one.
func (d *dialogue) hear4D() (first string, headers map[string]string, err error) {
	if first, err = d.hear(); err != nil {
		return first, nil, err
	}
	headers = make(map[string]string)
	for range most4D {
		line, err := d.hear()
		if err != nil {
			return first, headers, err
		}
		if line == "" {
			return strings.TrimSpace(first), headers, nil
		}
		name, value, ok := header4D(line)
		if !ok {
			return first, headers, foreign("a header", line)
		}
		headers[name] = value
	}
	return first, headers, errTooMany4D
}

// header4D reads a header; drivers differ in case and in spaces around the colon.
func header4D(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	name = strings.ToUpper(strings.TrimSpace(name))
	return name, strings.TrimSpace(value), ok && name != ""
}

// serve4DSQL is the far end of a login.
func serve4DSQL(d *dialogue, far Far) (events []wire.Event) {
	e := Arrived(d, far.Now())
	e.Stage = StageLogin
	far.Tell(d.said)
	defer func() { saying(events, d.said.Said()) }()
	command, headers, err := d.hear4D()
	if err != nil {
		return failed(e, err)
	}
	if command != "001 LOGIN" {
		return failed(e, foreign("001 LOGIN", command))
	}
	user, err := base64.StdEncoding.DecodeString(headers["USER-NAME-BASE64"])
	if err != nil {
		err = fmt.Errorf("user name: %w", errAltered)
	}
	var m wire.Message
	var keys *wire.Keys
	if err == nil {
		m, keys, err = ProveToken(string(user), d.RemoteAddr(), far)
		e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	}
	if err != nil {
		d.sayAll("001 ERROR", "Error-Code:1108", "Error-Component-Code:SQLS", "Error-Description:access denied", "")
		return failed(e, err)
	}
	reply := replyTo(m, d.RemoteAddr(), far.Now())
	if err := d.sayAll("001 OK", "Session:"+textOf(&reply, keys), ""); err != nil {
		return failed(e, err)
	}
	serveCarry(d, keys, reply, &e)
	return []wire.Event{e}
}

func (d *dialogue) sayAll(lines ...string) error {
	for _, line := range lines {
		if err := d.say("%s", line); err != nil {
			return err
		}
	}
	return nil
}
