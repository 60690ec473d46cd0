package protocol

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// mysql is the login of MySQL and MariaDB, with TLS, and enough of the rest
// that their own clients get through SELECT 1.
var mysql = &Protocol{
	Doc:    "MySQL's greeting, a request for TLS, and inside it a login with the token as user name, SELECT 1, then wallprobe's data",
	Greets: true,
	// MySQL's own clients say a server name only where they are told to: --tls-sni-servername.
	Nameless: true,

	TCP: &Ends{Probe: probeMySQL, Serve: serveMySQL},
}

const mysqlSelect = "SELECT 1"

// probeMySQL is the near end.
func probeMySQL(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	began := time.Now()
	step := r.steps()
	m := &mysqlConn{Conn: c, stall: x.Stall}
	defer func() { r.Said = m.said.Said() }()
	caps, err := x.greetedMySQL(m, &r)
	switch {
	case !step(StageBanner, err):
		return r
	case caps&mysqlSSL == 0:
		step(StageSTARTTLS, x.withoutTLS(m, &r))
		return r
	case !step(StageSTARTTLS, x.wantTLS(m)):
		return r
	}
	tc, seen, r := x.overTLS(ctx, c)
	if tc == nil {
		return r
	}
	step = r.steps()
	m.Conn = tc
	if step(StageLogin, x.loginMySQL(m, &r)) {
		x.carryMySQL(m, &r, step)
	}
	r.TLS, r.Took = seen, time.Since(began)
	return r
}

// greetedMySQL hears the greeting and gives the capabilities that it offers.
func (x Exchange) greetedMySQL(m *mysqlConn, r *Result) (uint32, error) {
	p, err := m.readPacket()
	if err != nil {
		return 0, err
	}
	g, err := parseMySQLGreeting(p)
	if err != nil {
		r.Sample = p[:min(len(p), 64)]
		m.said.Hear(mysqlRefused(p))
		return 0, fmt.Errorf("greeting: %w: %w", err, ErrForeign)
	}
	m.said.Hear(g.String())
	return g.Caps, nil
}

// withoutTLS logs in without, as clients do where the greeting does not offer
// it, so that both ends know whose connection it was. That is all: the
// reflector offers TLS, so the offer was taken away.
func (x Exchange) withoutTLS(m *mysqlConn, r *Result) error {
	if err := x.loginMySQL(m, r); err != nil {
		return fmt.Errorf("no TLS offered: %w", err)
	}
	return fmt.Errorf("no TLS offered by the reflector's greeting, as it arrived: %w", errAltered)
}

// wantTLS asks for it.
func (x Exchange) wantTLS(m *mysqlConn) error {
	p := mysqlLogin{Caps: mysqlOffered &^ mysqlWithDB, MaxPacket: mysqlMaxPacket, Charset: mysqlCharset}.request(nil)
	m.said.Say(mysqlRequest(p))
	return m.writePacket(p)
}

func (x Exchange) loginMySQL(m *mysqlConn, r *Result) error {
	sent := time.Now()
	l := mysqlLogin{Caps: mysqlOffered &^ mysqlWithDB, MaxPacket: mysqlMaxPacket, Charset: mysqlCharset, User: x.Token(), Plugin: mysqlNative}
	if err := m.writePacket(l.Append(nil)); err != nil {
		return err
	}
	p, err := m.readPacket()
	if err != nil {
		return err
	}
	if p[0] != mysqlOK {
		return fmt.Errorf("login: %s", mysqlRefused(p))
	}
	r.RTT = time.Since(sent)
	return x.CheckToken(mysqlInfo(p), r)
}

// carryMySQL asks SELECT 1, then carries the data, or quits where there is none.
func (x Exchange) carryMySQL(m *mysqlConn, r *Result, step func(string, error) bool) {
	if !step(StageToken, x.selectMySQL(m)) {
		return
	}
	if x.Bytes == 0 && x.Idle == 0 {
		m.seq = 0
		step(StageDone, nil)
		m.writePacket([]byte{mysqlQuit}) // who has gone already misses nothing
		return
	}
	m.SetDeadline(time.Time{})
	x.carry(m.Conn, r, step)
}

func (x Exchange) selectMySQL(m *mysqlConn) error {
	m.seq = 0
	if err := m.writePacket(append([]byte{mysqlQuery}, mysqlSelect...)); err != nil {
		return err
	}
	for _, want := range mysqlResult("1", "1") {
		p, err := m.readPacket()
		if err != nil {
			return err
		}
		if !bytes.Equal(p, want) {
			return fmt.Errorf("%s: %s: %w", mysqlSelect, mysqlRefused(p), ErrForeign)
		}
	}
	return nil
}

// serveMySQL is the far end.
func serveMySQL(ctx context.Context, c net.Conn, far Far) (events []wire.Event) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := Arrived(c, far.Now())
	m := &mysqlConn{Conn: c, stall: farStall}
	far.Tell(&m.said)
	defer func() { saying(events, m.said.Said()) }()
	login, err := greetMySQL(ctx, m, far, &e)
	if err != nil {
		return failed(e, err)
	}
	e.Stage = StageLogin
	reply, keys, err := admitMySQL(m, login, far, &e)
	if err != nil {
		return failed(e, err)
	}
	e.Answered = true
	again, err := answerMySQL(m, reply.Bytes == 0 && reply.Idle == 0)
	if err != nil {
		e.Stage = StageToken
		return failed(e, err)
	}
	if again {
		m.SetDeadline(time.Time{})
		serveCarry(m.Conn, keys, reply, &e)
	} else {
		e.Stage = StageDone
	}
	if m.Conn != c {
		m.SetDeadline(time.Now().Add(time.Second))
		m.Close() // close-notify
	}
	return []wire.Event{e}
}

// greetMySQL greets, goes over to TLS where it is asked for, and hears the login.
func greetMySQL(ctx context.Context, m *mysqlConn, far Far, e *wire.Event) (l mysqlLogin, err error) {
	e.Stage = StageBanner
	g := mysqlGreeting{Version: mysqlVersion, Caps: mysqlOffered, Charset: mysqlCharset, Status: mysqlAuto, Plugin: mysqlNative}
	var random [4 + mysqlSaltSize]byte
	rand.Read(random[:])
	g.Thread = binary.LittleEndian.Uint32(random[:]) >> 8
	for i, b := range random[4:] {
		g.Salt[i] = 1 + b&0x7f%0x7e // neither NUL nor beyond ASCII, as servers do
	}
	m.said.Say(g.String())
	if err := m.writePacket(g.Append(nil)); err != nil {
		return l, err
	}
	p, err := m.readPacket()
	if err != nil {
		return l, err
	}
	l, wantsTLS, err := parseMySQLLogin(p)
	if err != nil {
		e.Digest, e.BytesIn = digest(p), int64(len(p))
		return l, fmt.Errorf("%w: %w", err, errAltered)
	}
	if !wantsTLS {
		return l, nil
	}
	m.said.Hear(mysqlRequest(p))
	e.Stage = StageTLS
	tc, seen, err := acceptTLS(ctx, m.Conn, far, nil)
	e.TLS = seen
	if err != nil {
		return l, err
	}
	m.Conn = tc
	if p, err = m.readPacket(); err != nil {
		return l, err
	}
	l, _, err = parseMySQLLogin(p)
	return l, err
}

// admitMySQL proves the token, in whatever place a client has for it: user name,
// database or, inside TLS, password. Clients cut long names (MySQL's at 96
// bytes), and passwords they send as they are only when asked for it.
func admitMySQL(m *mysqlConn, l mysqlLogin, far Far, e *wire.Event) (reply wire.Message, keys *wire.Keys, err error) {
	text := l.User + " " + l.Database
	if max(len(l.User), len(l.Database)) < tokenText && l.Caps&mysqlPluginAuth != 0 && e.TLS != nil {
		if err := m.writePacket(append([]byte{mysqlEOF}, mysqlClear+"\x00"...)); err != nil {
			return reply, nil, err
		}
		p, err := m.readPacket()
		if err != nil {
			return reply, nil, err
		}
		text = string(p)
	}
	got, keys, err := ProveToken(text, m.RemoteAddr(), far)
	e.Session, e.Probe, e.Attempt = got.Session, got.Probe, got.Attempt
	if err != nil {
		m.writePacket(mysqlRefusal(1045, "28000", "Access denied: no token of this reflector's as user name, database or password"))
		return reply, nil, err
	}
	reply = replyTo(got, m.RemoteAddr(), far.Now())
	return reply, keys, m.writePacket(mysqlFine(textOf(&reply, keys)))
}

// maxPackets bounds what a client may ask.
const maxPackets = 64

// answerMySQL answers commands: the first query alone, where data follows it, or
// all until the client quits. again tells that something follows.
func answerMySQL(m *mysqlConn, all bool) (again bool, err error) {
	for range maxPackets {
		m.seq = 0
		p, err := m.readPacket()
		if all && faultOf(err) == FaultEOF {
			return false, nil // as good as quitting
		}
		if err != nil {
			return false, err
		}
		answers := [][]byte{mysqlFine("")}
		switch {
		case p[0] == mysqlQuit:
			return false, nil
		case p[0] == mysqlPing, p[0] == mysqlInitDB:
		case p[0] == mysqlQuery && strings.EqualFold(strings.TrimSpace(string(p[1:])), mysqlSelect):
			answers = mysqlResult("1", "1")
		case p[0] == mysqlQuery && strings.Contains(strings.ToLower(string(p[1:])), "@@version_comment"):
			answers = mysqlResult("@@version_comment", "wallprobe")
		default:
			answers = [][]byte{mysqlRefusal(1064, "42000", "this server answers "+mysqlSelect+" alone")}
		}
		for _, a := range answers {
			if err := m.writePacket(a); err != nil {
				return false, err
			}
		}
		if p[0] == mysqlQuery && !all {
			return true, nil
		}
	}
	return false, fmt.Errorf("more than %d commands", maxPackets)
}
