package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// SFTP inside SSH (RFC 4253, draft-ietf-secsh-filexfer-02) with the token as
// user name:
//
//	near                              far
//	SSH-2.0-…                    <->  SSH-2.0-…
//	key exchange                 <->  host key
//	user name: token, no password ->
//	                              <-  answer, as what a server tells before login
//	read n.bin, then write n.bin <->
//	                 idle of silence
//	                              <-  late message                    if idle > 0
//	done                          ->
var sftp = &Protocol{
	Doc:      "SSH version lines, key exchange, the token as user name without a password, then SFTP of a file each way",
	Claims:   func(peek Peek, inTLS bool) bool { return !inTLS && isSSH(peek(4)) },
	Greets:   true,
	Bulk:     true,
	Means:    sshMeans,
	Patience: strangersTime,
	TCP:      &Ends{Probe: probeSFTP, Serve: serveSFTP},
}

// An sftpNear is the near end of one connection.
type sftpNear struct {
	conn     *sshConn
	ssh      ssh.Conn
	x        Exchange
	r        *Result
	late     chan *ssh.Request
	stage    string // of the handshake
	keyed    time.Time
	answered error
}

// probeSFTP is the near end.
func probeSFTP(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	c, stop := bind(ctx, c)
	defer stop()
	n := &sftpNear{conn: &sshConn{Conn: c}, x: x, r: &r, late: make(chan *ssh.Request, 1), answered: ErrForeign}
	defer func() { r.Said = n.conn.record() }()
	step := r.steps()
	chans, reqs, err := n.shake()
	if !step(n.stage, err) {
		return r
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer n.ssh.Close()
	wg.Go(func() { n.asked(reqs) })
	n.conn.pace(x.Stall, allow(3*x.Stall+x.Idle))
	switch {
	case !step(StageData, settled(n.conn, n.ssh, n.data(chans))):
	case x.Idle > 0 && !step(StageIdle, settled(n.conn, n.ssh, n.idle())):
	case !step(r.Stage, settled(n.conn, n.ssh, n.done())):
	default:
		r.Step = ""
		step(StageDone, nil)
	}
	return r
}

// shake does all that comes before the first channel.
func (n *sftpNear) shake() (<-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	began := time.Now()
	n.conn.SetDeadline(began.Add(n.x.Stall))
	key := ""
	conn, chans, reqs, err := ssh.NewClientConn(n.conn, n.conn.RemoteAddr().String(), &ssh.ClientConfig{
		User:          n.x.Token(),
		ClientVersion: sshClient,
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
			// Whether it is the reflector's is a finding, not a reason to stop.
			key, n.keyed = sshHostKey(k), time.Now()
			n.conn.believe(key)
			n.conn.SetDeadline(n.keyed.Add(n.x.Stall))
			return nil
		},
		BannerCallback: func(text string) error {
			n.r.RTT = time.Since(n.keyed)
			n.answered = n.x.CheckToken(text, n.r)
			return n.answered
		},
	})
	spoke, heard := n.conn.began()
	switch n.stage = StageLogin; {
	case key != "":
	case spoke:
		n.stage = StageKex
	default:
		n.stage = StageBanner
	}
	if err == nil {
		n.ssh = conn
		return chans, reqs, n.answered
	}
	if n.stage == StageBanner && len(heard) >= 4 && !isSSH(heard) {
		n.r.Sample = heard[:min(len(heard), wire.MessageSize)]
		return nil, nil, fmt.Errorf("%q: %w", n.r.Sample, ErrForeign)
	}
	if err = n.conn.cause(err); n.stage == StageLogin && errors.Is(n.answered, ErrForeign) && n.conn.err == nil {
		err = fmt.Errorf("%w: %w", ErrForeign, err) // a server that does not know the token
	}
	return nil, nil, err
}

// asked answers what the far end asks outside channels.
func (n *sftpNear) asked(reqs <-chan *ssh.Request) {
	for q := range reqs {
		if q.Type == sshLate {
			select {
			case n.late <- q:
				continue
			default:
			}
		}
		if q.WantReply {
			q.Reply(false, nil)
		}
	}
	close(n.late)
}

// data reads a file and writes one, or lists where there is nothing to carry.
func (n *sftpNear) data(chans <-chan ssh.NewChannel) error {
	none := make(chan *ssh.Request)
	close(none) // asked has them
	n.r.Step = "opening the SFTP subsystem"
	c, err := pkgsftp.NewClient(ssh.NewClient(n.ssh, chans, none), pkgsftp.UseConcurrentWrites(true))
	if err != nil {
		return err
	}
	if n.x.Bytes == 0 {
		n.r.Step = "listing"
		list, err := c.ReadDir("/")
		if err == nil && len(list) != len(listed) {
			err = fmt.Errorf("%d files instead of %d", len(list), len(listed))
		}
		return err
	}
	name := "/" + fileName(n.x.Bytes)
	began := time.Now()
	err = n.read(c, name)
	if n.r.Pause = n.conn.longest(); err != nil { // of the other direction the far end knows
		return err
	}
	half := time.Now()
	if err := n.write(c, name); err != nil {
		return err
	}
	slower := max(half.Sub(began), time.Since(half))
	n.r.Rate = rate(int64(n.x.Bytes), slower)
	return nil
}

func (n *sftpNear) read(c *pkgsftp.Client, name string) error {
	n.r.Step = "reading " + name
	f, err := c.Open(name)
	if err != nil {
		return err
	}
	w := &compared{want: n.x.Keys.NewStream(wire.Reply, n.x.Probe, n.x.Attempt)}
	_, err = f.WriteTo(w)
	if n.r.Down = w.n; err != nil {
		return err
	}
	if w.n != int64(n.x.Bytes) {
		return fmt.Errorf("%d of %d bytes: %w", w.n, n.x.Bytes, errAltered)
	}
	return f.Close()
}

func (n *sftpNear) write(c *pkgsftp.Client, name string) error {
	n.r.Step = "writing " + name
	f, err := c.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	s := n.x.Keys.NewStream(wire.Request, n.x.Probe, n.x.Attempt)
	n.r.Up, err = f.ReadFrom(io.LimitReader(s, int64(n.x.Bytes)))
	if err != nil {
		return err
	}
	return f.Close()
}

// idle keeps silent and waits for the late message.
func (n *sftpNear) idle() error {
	n.r.Step = ""
	if _, _, err := n.ssh.SendRequest(sshIdle, false, nil); err != nil {
		return err
	}
	n.conn.pace(n.x.Idle+n.x.Stall, allow(n.x.Idle+n.x.Stall))
	q, ok := <-n.late
	if !ok {
		return io.EOF
	}
	m, err := wire.Parse(q.Payload, n.x.Keys)
	if err == nil && (m.Kind != wire.Late || m.Probe != n.x.Probe) {
		err = ErrForeign
	}
	if err != nil {
		return err
	}
	n.conn.pace(n.x.Stall, allow(n.x.Stall))
	return q.Reply(true, nil)
}

// done lets the far end know that all was well.
func (n *sftpNear) done() error {
	n.r.Step = "saying that all is done"
	ok, _, err := n.ssh.SendRequest(sshDone, true, nil)
	if err == nil && !ok {
		err = errors.New("the far end says that it is not done")
	}
	return err
}
