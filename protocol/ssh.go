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

// sshHostKey is how both ends record the key, as a line of their dialogue.
func sshHostKey(k ssh.PublicKey) string { return "host key " + ssh.FingerprintSHA256(k) }

// An sshConn is what SSH runs over at either end. It keeps the first line of
// both directions, the first error, and the longest pause; and once it is paced,
// every byte that comes moves the deadline on, up to a last one.
type sshConn struct {
	net.Conn
	mu          sync.Mutex
	sent, heard []byte // up to the end of the first line
	err         error
	stall       time.Duration // 0 is not paced
	until       time.Time
	last        time.Time
	pause       time.Duration
}

func firstLine(line, b []byte) []byte {
	if bytes.IndexByte(line, '\n') >= 0 || len(line) > wire.MaxSaidLine {
		return line
	}
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i+1]
	}
	return append(line, b[:min(len(b), wire.MaxSaidLine)]...)
}

func (c *sshConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = firstLine(c.heard, b[:n])
	c.failed(err)
	if n > 0 && c.stall > 0 {
		now := time.Now()
		c.pause, c.last = max(c.pause, now.Sub(c.last)), now
		c.move(now)
	}
	return n, err
}

func (c *sshConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = firstLine(c.sent, b[:n])
	c.failed(err)
	return n, err
}

// failed notes the first error that this end did not make by closing.
func (c *sshConn) failed(err error) {
	if c.err == nil && !errors.Is(err, net.ErrClosed) {
		c.err = err
	}
}

func (c *sshConn) move(now time.Time) {
	at := now.Add(c.stall)
	if at.After(c.until) {
		at = c.until
	}
	c.SetDeadline(at)
}

// pace lets nothing take longer than stall from now on, and all no longer than until.
func (c *sshConn) pace(stall time.Duration, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.stall, c.until, c.last, c.pause = stall, until, now, 0
	c.move(now)
}

func (c *sshConn) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pause
}

// record notes the first lines of both directions.
func (c *sshConn) record(said *wire.Said) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sent) > 0 {
		said.Say(strings.TrimRight(string(c.sent), "\r\n"))
	}
	if len(c.heard) > 0 {
		said.Hear(asHeard(string(c.heard)))
	}
}

// began tells whether the other end said that it speaks SSH, and gives what it
// said instead.
func (c *sshConn) began() (bool, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	whole := bytes.IndexByte(c.heard, '\n') >= 0
	return whole && isSSH(c.heard), bytes.Clone(c.heard)
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

// brokenSSH knows the errors of x/crypto/ssh that honest ends never cause.
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

// overallBound is how long a whole connection may be used whose token asks for
// so many bytes.
func overallBound(n uint32, idle time.Duration) time.Time {
	return time.Now().Add(time.Hour + idle + 2*time.Duration(n/minRate)*time.Second)
}
