package survey

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// happened looks at port i, whose socket has something to tell. An edge is told
// once: what a far end said before it was asked is read at once.
func (c *connector) happened(i int, events uint32) {
	asked := c.ports[i].asked
	if !asked {
		c.settle(i, events)
	}
	if c.ports[i].asked && (asked || events&unix.EPOLLIN != 0) {
		c.hear(i)
	}
}

// ask sends the question over a connection that has just been established. It
// is far smaller than the send buffer, so it leaves at once or not at all.
func (c *connector) ask(i int) {
	p := &c.ports[i]
	p.asked, p.began = true, c.now()
	c.asking++
	c.out = c.Ask(c.out[:0], c.answers[i].Port)
	// From here on an ICMP error is only a hint, as in fileConn.
	if err := receiveErrors(p.fd, c.Target, 0); err != nil {
		c.told(i, os.NewSyscallError("setsockopt", err))
		return
	}
	switch n, err := retried(unix.Write, p.fd, c.out); {
	case err != nil:
		c.told(i, os.NewSyscallError("write", err))
	case n < len(c.out):
		c.told(i, io.ErrShortWrite)
	default:
		c.replies.push(timer{i: i, at: p.began + c.Limit})
	}
}

// hear reads what has come of an answer.
func (c *connector) hear(i int) {
	p := &c.ports[i]
	for {
		// What came in pieces is kept: nearly always it is all there.
		n := copy(c.in, p.got)
		k, err := retried(unix.Read, p.fd, c.in[n:])
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			c.told(i, os.NewSyscallError("read", err))
			return
		case k == 0 && n == 0:
			c.told(i, io.EOF)
			return
		case k == 0:
			c.told(i, io.ErrUnexpectedEOF)
			return
		}
		p.got = c.in[:n+k]
		if len(p.got) == c.Reply {
			c.told(i, nil)
			return
		}
		p.got = append([]byte(nil), p.got...)
	}
}

// told ends a question: with its answer, or the error that ended the wait for it.
func (c *connector) told(i int, err error) {
	p, a := &c.ports[i], &c.answers[i]
	c.heard = c.now()
	a.Exchanged = c.heard - p.began
	a.ExchangeErr = c.Answered(a.Port, p.got, err, a.Exchanged)
	p.asked, p.got = false, nil
	c.asking--
	c.decided++
	c.close(i)
}

// retried is a system call again until no signal interrupts it.
func retried(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
