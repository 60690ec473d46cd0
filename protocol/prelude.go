package protocol

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// A prelude is a fixed request and a fixed answer in front of the plain
// exchange. Both ends know both, so that a changed byte shows at one of them.
type prelude struct {
	up, down []byte
	stage    string
}

// claims knows a stream by the prelude's first four bytes.
func (p prelude) claims(peek Peek) bool { return bytes.Equal(peek(4), p.up[:4]) }

// probe is the near end.
func (p prelude) probe(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	began := time.Now()
	step := r.steps()
	if !step(p.stage, p.ask(c, x.Stall, &r)) {
		return r
	}
	r = probePlain(ctx, c, x)
	r.Took = time.Since(began)
	return r
}

func (p prelude) ask(c net.Conn, stall time.Duration, r *Result) error {
	c.SetDeadline(time.Now().Add(stall))
	if _, err := c.Write(p.up); err != nil {
		return err
	}
	got := make([]byte, len(p.down))
	n, err := io.ReadFull(c, got)
	if !bytes.HasPrefix(p.down, got[:n]) {
		err = ErrForeign
	}
	if err != nil {
		r.Sample = got[:n]
	}
	return err
}

// serve is the far end.
func (p prelude) serve(ctx context.Context, c net.Conn, far Far) []wire.Event {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := Arrived(c, far.Now())
	e.Stage = p.stage
	c.SetDeadline(time.Now().Add(farStall))
	got := make([]byte, len(p.up))
	n, err := io.ReadFull(c, got)
	if err == nil && !bytes.Equal(got, p.up) {
		err = fmt.Errorf("%s: %w", p.stage, errAltered)
	}
	if err == nil {
		_, err = c.Write(p.down)
	}
	if err != nil {
		e.BytesIn, e.Digest = int64(n), digest(got[:n])
		return failed(e, err)
	}
	return servePlain(ctx, c, far)
}
