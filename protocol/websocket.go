package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"

	"github.com/wallprobe/wallprobe/wire"
)

// overWebSocket is the near end of WebSocket (RFC 6455): the token is in the
// request for the upgrade, data and silence are binary messages.
func (x Exchange) overWebSocket(ctx context.Context, tc net.Conn, base url.URL) (r Result) {
	h := newHTTPConn(ctx, tc)
	defer context.AfterFunc(ctx, func() { h.SetDeadline(past) })()
	defer func() { r.Said = h.record() }()
	step := r.steps()
	q := requests{x: x, r: &r, conn: h, base: base, token: x.Token()}
	ws, err := q.upgrade(ctx)
	if !step(StageToken, err) {
		return r
	}
	c := overMessages(ws, h, false)
	defer c.Close()
	x.carry(c, &r, step)
	if r.Stage == StageDone {
		c.farewell(x.Stall)
	}
	return r
}

// upgrade asks for the WebSocket.
func (q *requests) upgrade(ctx context.Context) (*websocket.Conn, error) {
	q.conn.extend(q.x.Stall)
	sent := time.Now()
	u := q.base
	u.Path = pathSocket
	client := &http.Client{Transport: newHTTP1(q.conn, q.x.Stall),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ws, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{HTTPClient: client,
		HTTPHeader: http.Header{"User-Agent": {userAgent}, "Authorization": {"Bearer " + q.token}}})
	q.r.RTT = time.Since(sent)
	if resp == nil {
		return nil, q.ended(err)
	}
	m, wrong := messageIn(resp.Header.Get(answerHeader), func(p []byte) (wire.Message, error) { return wire.Parse(p, q.x.Keys) })
	switch {
	case errors.Is(wrong, ErrForeign), wrong == nil && (m.Kind != wire.Reply || m.Probe != q.x.Probe):
		err = foreign("the reflector's answer", resp.Proto+" "+resp.Status+" "+resp.Header.Get("Location"))
	case wrong != nil, err != nil:
		err = errAltered // the reflector's token came, but not the upgrade
	default:
		q.r.Seen = m
		return ws, nil
	}
	if ws != nil {
		ws.CloseNow()
	}
	return nil, q.ended(err)
}

// A messageConn is a WebSocket as a connection of bytes. Unlike the library's
// own, a read that waited long enough can be tried again.
type messageConn struct {
	*httpConn // for addresses and what is written
	ws        *websocket.Conn
	read      net.Conn
	ended     chan error // of who reads messages
	err       error
}

// masked tells that what comes is masked: it comes from a near end (RFC 6455
// section 5.3).
func overMessages(ws *websocket.Conn, h *httpConn, masked bool) *messageConn {
	ws.SetReadLimit(maxMessage)
	h.SetReadDeadline(time.Time{}) // from now on those of the pipe count
	read, write := net.Pipe()
	c := &messageConn{httpConn: h, ws: ws, read: read, ended: make(chan error, 1)}
	go func() {
		err := receive(ws, write, masked)
		c.ended <- err
		write.Close()
	}()
	return c
}

// maxMessage is the longest message; the ends send less.
const maxMessage = 64 << 10

// receive hands on what binary messages hold.
func receive(ws *websocket.Conn, to io.Writer, masked bool) (err error) {
	defer contained(&err)
	buf := make([]byte, chunk)
	for {
		kind, r, err := ws.Reader(context.Background()) // the connection's end ends it
		if err != nil {
			if websocket.CloseStatus(err) >= 0 {
				return io.EOF
			}
			return err
		}
		if kind != websocket.MessageBinary {
			return ErrForeign
		}
		if masked {
			r = unmasked{r}
		}
		if _, err := io.CopyBuffer(to, r, buf); err != nil {
			return err
		}
	}
}

// unmasked is a message that came masked: what the library gives together with
// an error still is, and would be taken for altered where a path was cut.
type unmasked struct{ io.Reader }

func (u unmasked) Read(b []byte) (int, error) {
	n, err := u.Reader.Read(b)
	if err != nil && err != io.EOF {
		n = 0
	}
	return n, err
}

func (c *messageConn) Read(b []byte) (int, error) {
	n, err := c.read.Read(b)
	if err == io.EOF {
		if c.err == nil {
			c.err = c.cause(<-c.ended)
		}
		err = c.err
	}
	return n, err
}

func (c *messageConn) Write(b []byte) (int, error) {
	if err := c.ws.Write(context.Background(), websocket.MessageBinary, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *messageConn) SetReadDeadline(t time.Time) error {
	if c.ctx.Err() != nil {
		t = past
	}
	return c.read.SetReadDeadline(t)
}

func (c *messageConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// farewell ends the WebSocket in order (RFC 6455 section 7.1.2).
func (c *messageConn) farewell(stall time.Duration) {
	c.httpConn.extend(min(stall, time.Second))
	c.ws.Close(websocket.StatusNormalClosure, "")
}

// Close ends it as it is and waits for what was started.
func (c *messageConn) Close() error {
	c.read.Close()
	err := c.ws.CloseNow()
	c.httpConn.SetDeadline(past)
	return err
}
