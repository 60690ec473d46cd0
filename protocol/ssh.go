package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// Both ends say who they are before the key exchange (RFC 4253 section 4.2).
const (
	sshClient = "SSH-2.0-wallprobe_client"
	sshServer = "SSH-2.0-wallprobe_reflector"
)

// Requests of both ends to each other, outside any channel (RFC 4254 section 4).
// They are inside the encryption: nobody on the way sees them.
const (
	sshIdle = "idle@wallprobe.invalid" // the near end keeps silent from now on
	sshLate = "late@wallprobe.invalid" // the far end's late message
	sshDone = "done@wallprobe.invalid" // the near end had all that it wanted
)

// hostKey is made anew by every program that runs: who compares fingerprints
// finds out who ended the encryption in between.
var hostKey = sync.OnceValues(newHostKey)

func newHostKey() (ssh.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(key)
}

// An sshConn is what SSH runs over at either end. It keeps the beginning of
// both directions, the first error, and the longest pause; and once it is paced,
// every byte that comes moves the deadline on, up to a last one.
type sshConn struct {
	net.Conn
	said        wire.Transcript
	key, theirs string // of either end, said and heard once what comes in clear is; "" is none
	mu          sync.Mutex
	sent, heard sshOpening
	err         error
	stall       time.Duration // 0 is not paced
	all         *allowance
	last        time.Time
	pause       time.Duration
}

func (c *sshConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard.take(b[:n], c.said.Hear)
	c.hearKey()
	c.failed(err)
	if n > 0 && c.stall > 0 {
		now := time.Now()
		c.pause, c.last = max(c.pause, now.Sub(c.last)), now
		c.all.moved.Add(int64(n))
		c.move(now)
	}
	return n, err
}

func (c *sshConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.sent.take(b, c.said.Say)
	if c.key != "" && c.sent.whole {
		c.said.Say(c.key)
		c.key = ""
	}
	c.mu.Unlock()
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed(err)
	if c.all != nil {
		c.all.moved.Add(int64(n))
	}
	return n, err
}

// failed notes the first error that this end did not make by closing.
func (c *sshConn) failed(err error) {
	if c.err == nil && !errors.Is(err, net.ErrClosed) {
		c.err = err
	}
}

func (c *sshConn) move(now time.Time) {
	c.SetDeadline(sooner(now.Add(c.stall), c.all.until()))
}

// pace lets nothing take longer than stall from now on, and all no longer than is allowed.
func (c *sshConn) pace(stall time.Duration, all *allowance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.stall, c.all, c.last, c.pause = stall, all, now, 0
	c.move(now)
}

func (c *sshConn) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pause
}

// believe notes the key that the other end says it has, once all that came
// before it in clear was heard.
func (c *sshConn) believe(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.theirs = key
	c.hearKey()
}

func (c *sshConn) hearKey() {
	if c.theirs != "" && c.heard.whole {
		c.said.Hear(c.theirs)
		c.theirs = ""
	}
}

// record is what was said and heard, when no more is to come of it: a first line
// that has no end is in it too.
func (c *sshConn) record() *wire.Said {
	c.mu.Lock()
	defer c.mu.Unlock()
	said := c.said.Said()
	if line := c.heard.line(); len(line) > 0 && c.heard.told == 0 {
		said.Heard = append(said.Heard, string(line[:min(len(line), wire.MaxSaidLine)]))
	}
	return said
}

// began tells whether the other end said that it speaks SSH, and gives what it
// said instead.
func (c *sshConn) began() (bool, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line := c.heard.line()
	return bytes.HasSuffix(line, []byte("\n")) && isSSH(line), bytes.Clone(line)
}

func isSSH(b []byte) bool { return bytes.HasPrefix(b, []byte("SSH-")) }

// cause finds what ended the connection behind an error that only says that it
// has ended. Where SSH met bytes that the other end did not send, these were
// altered: both ends' whole conversation is signed or carries a MAC.
func (c *sshConn) cause(err error) error {
	c.mu.Lock()
	first := c.err
	c.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, errAltered) || errors.Is(err, ErrForeign):
		return err
	case brokenSSH(err):
		return fmt.Errorf("%w: %w", errAltered, err)
	case first != nil:
		return first
	}
	return err
}

// brokenSSH knows the errors of x/crypto/ssh that honest ends never cause. It is
// for what is encrypted: of what comes in clear both ends' records tell.
func brokenSSH(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	for _, sign := range []string{
		"MAC failure", "message authentication failed", "invalid packet length", "packet too large", "padding", "signature",
		"unexpected message", "unmarshal", "parse error", "invalid message", "curve", "max packet", "could not verify", "too small",
	} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// settled gives what an ended connection died of: that of SSH itself where it
// tells more than the network's.
func settled(c *sshConn, conn ssh.Conn, err error) error {
	if err == nil || brokenSSH(err) {
		return c.cause(err)
	}
	conn.Close()
	if end := conn.Wait(); brokenSSH(end) {
		err = end
	}
	return c.cause(err)
}

// strangersTime is how long the far end bears with a client for files, which may
// be another's and look around, beside the silence that its token asks for and
// what it moves at minRate.
const strangersTime = 5 * time.Minute
