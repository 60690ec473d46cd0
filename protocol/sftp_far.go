package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// Bounds on what a proven peer may hold.
const (
	maxChannels = 8 // of one connection, all told
	maxOpen     = 4 // files at one time
)

// An sftpFar is the far end of one connection.
type sftpFar struct {
	conn *sshConn
	ssh  *ssh.ServerConn
	m    wire.Message
	keys *wire.Keys
	all  *allowance // since the login

	mu    sync.Mutex
	e     wire.Event
	open  int   // files
	fault error // of a file
	idles sync.WaitGroup

	panics panics
}

// serveSFTP is the far end. It returns one event.
func serveSFTP(ctx context.Context, c net.Conn, far Far) (events []wire.Event) {
	c, stop := bind(ctx, c)
	defer stop()
	f := &sftpFar{conn: &sshConn{Conn: c}, e: Arrived(c, far.Now())}
	f.e.Stage = StageBanner
	defer func() { saying(events, f.conn.record()) }()
	chans, reqs, err := f.shake(far)
	if err != nil {
		return failed(f.e, err)
	}
	f.all = allow(strangersTime + f.m.Idle)
	f.conn.pace(ftpPatience, f.all)
	var wg sync.WaitGroup
	wg.Go(func() { defer f.panics.keep(f.end); f.asked(reqs) })
	n := 0
	for nc := range chans { // until the connection ends
		if n++; nc.ChannelType() != "session" || n > maxChannels {
			nc.Reject(ssh.Prohibited, "files alone are served here")
			continue
		}
		ch, asks, err := nc.Accept()
		if err != nil {
			continue
		}
		wg.Go(func() { defer f.panics.keep(f.end); f.session(ch, asks) })
	}
	err = f.ssh.Wait()
	f.ssh.Close()
	wg.Wait()
	f.idles.Wait()
	f.panics.again()
	return f.conclude(err)
}

// end ends the connection as it is.
func (f *sftpFar) end() { f.conn.Close() }

// conclude is the event of a connection that has ended.
func (f *sftpFar) conclude(err error) []wire.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.e.Stage == StageDone:
		return []wire.Event{f.e}
	case f.fault != nil:
		return failed(f.e, f.fault)
	case f.m.Bytes == 0 && f.m.Idle == 0 && f.open == 0 && !brokenSSH(err) && faultOf(f.conn.cause(err)) == FaultEOF:
		f.e.Stage = StageDone // somebody else's client, which has no more to say than goodbye
		return []wire.Event{f.e}
	}
	return failed(f.e, f.conn.cause(err))
}

// shake does all that comes before the first channel. Whatever the way of
// logging in, what counts is the token in the user name.
func (f *sftpFar) shake(far Far) (<-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	key, err := hostKey()
	if err != nil {
		return nil, nil, err
	}
	var pre ssh.ServerPreAuthConn
	prove := func(c ssh.ConnMetadata) (*ssh.Permissions, error) {
		m, keys, err := ProveToken(c.User(), f.conn.RemoteAddr(), far)
		f.e.Session, f.e.Probe, f.e.Attempt = m.Session, m.Probe, m.Attempt
		if err == nil && m.Idle > MaxIdle {
			err = errors.New("asked for too long a silence")
		}
		if err != nil {
			f.fault = err
			return nil, err
		}
		f.m, f.keys, f.fault = replyTo(m, f.conn.RemoteAddr(), far.Now()), keys, nil
		return nil, pre.SendAuthBanner(AnswerToken(m, keys, f.conn.RemoteAddr(), far) + "\r\n")
	}
	config := &ssh.ServerConfig{
		ServerVersion: sshServer,
		NoClientAuth:  true, NoClientAuthCallback: prove,
		PasswordCallback: func(c ssh.ConnMetadata, _ []byte) (*ssh.Permissions, error) { return prove(c) },
		KeyboardInteractiveCallback: func(c ssh.ConnMetadata, _ ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			return prove(c)
		},
		PreAuthConnCallback: func(c ssh.ServerPreAuthConn) {
			pre = c
			f.e.Stage = StageLogin
			f.conn.SetDeadline(time.Now().Add(farStall))
		},
	}
	config.AddHostKey(key)
	f.conn.key = sshHostKey(key.PublicKey())
	far.Tell(&f.conn.said)
	f.conn.SetDeadline(time.Now().Add(farStall))
	conn, chans, reqs, err := ssh.NewServerConn(f.conn, config)
	if err == nil {
		f.ssh, f.e.Stage, f.e.Answered = conn, StageData, true
		return chans, reqs, nil
	}
	spoke, heard := f.conn.began()
	switch {
	case f.fault != nil:
		err = f.fault
	case spoke && f.e.Stage == StageBanner:
		f.e.Stage = StageKex
		err = f.conn.cause(err)
	case f.e.Stage == StageBanner && len(heard) >= 4 && !isSSH(heard):
		f.e.Digest, err = digest(heard), ErrForeign
	default:
		err = f.conn.cause(err)
	}
	return nil, nil, err
}

// asked answers what the near end asks outside channels.
func (f *sftpFar) asked(reqs <-chan *ssh.Request) {
	idled := false
	for q := range reqs {
		ok := false
		switch {
		case q.Type == sshDone:
			ok = f.done()
		case q.Type == sshIdle && !idled && f.m.Idle > 0:
			idled = true
			f.idles.Go(func() { defer f.panics.keep(f.end); f.idle() })
			continue
		}
		if q.WantReply {
			q.Reply(ok, nil)
		}
	}
}

func (f *sftpFar) done() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil || f.open > 0 {
		return false
	}
	f.e.Stage = StageDone
	return true
}

// idle keeps silent, then says the late message and waits for its confirmation.
func (f *sftpFar) idle() {
	f.mu.Lock()
	f.e.Stage = StageIdle
	f.mu.Unlock()
	f.conn.pace(f.m.Idle+farStall, f.all)
	gone := make(chan struct{})
	f.idles.Go(func() { f.ssh.Wait(); close(gone) })
	select {
	case <-gone:
		return
	case <-time.After(f.m.Idle):
	}
	late := f.m
	late.Kind = wire.Late
	f.conn.pace(farStall, f.all)
	if ok, _, err := f.ssh.SendRequest(sshLate, true, late.Append(nil, f.keys)); err == nil && !ok {
		f.fail(ErrForeign)
	}
}

func (f *sftpFar) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault == nil {
		f.fault = err
	}
}

// session serves one channel: the SFTP subsystem and nothing else, no shell, no
// commands.
func (f *sftpFar) session(ch ssh.Channel, asks <-chan *ssh.Request) {
	defer ch.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	started := false
	for q := range asks {
		ok := q.Type == "subsystem" && !started && string(q.Payload) == "\x00\x00\x00\x04sftp"
		if q.WantReply {
			q.Reply(ok, nil)
		}
		if !ok {
			continue
		}
		started = true
		wg.Go(func() {
			defer f.panics.keep(f.end)
			files := &sftpFiles{far: f}
			s := pkgsftp.NewRequestServer(ch, pkgsftp.Handlers{FileGet: files, FilePut: files, FileCmd: files, FileList: files})
			status := byte(0)
			if err := s.Serve(); err != nil && !errors.Is(err, io.EOF) {
				status = 1
			}
			ch.SendRequest("exit-status", false, []byte{0, 0, 0, status})
			s.Close()
			ch.Close()
		})
	}
}
