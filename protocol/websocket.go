package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
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

// socketMeans says what it means that the upgrade was taken away or refused on
// the way (RFC 9110 section 7.8: it is for the next hop, which may drop it).
func socketMeans(sent, heard string) string {
	asked := strings.EqualFold(sent, "Upgrade: websocket")
	agreed := strings.HasPrefix(sent, "HTTP/1.1 101 ")
	if (asked || agreed) && heard != sent {
		return "WebSocket does not come up, whatever requests do"
	}
	return ""
}

// A messageConn is a WebSocket as a connection of bytes. Unlike the library's
// own, a read that waited long enough can be tried again.
type messageConn struct {
	*httpConn // for addresses and what is written
	ws        *websocket.Conn
	read      net.Conn
	line      *patient   // under it; nil where there is none
	wait      term       // of read
	ended     chan error // of who reads messages
	err       error
	panics    panics // of theirs
}

// overMessages makes a WebSocket a connection of bytes; masked tells that what
// is read is (RFC 6455 section 5.3).
func overMessages(ws *websocket.Conn, h *httpConn, masked bool) *messageConn {
	ws.SetReadLimit(maxMessage)
	h.SetReadDeadline(time.Time{}) // from now on those of the pipe count
	read, write := net.Pipe()
	c := &messageConn{httpConn: h, ws: ws, read: read, line: patientUnder(h), ended: make(chan error, 1)}
	go func() {
		err := error(net.ErrClosed)
		defer func() { c.ended <- err; write.Close() }()
		defer c.panics.keep(func() {})
		err = receive(ws, write, masked)
	}()
	return c
}

// maxMessage is the longest message; the ends send less.
const maxMessage = 64 << 10

// receive hands on what binary messages hold.
func receive(ws *websocket.Conn, to io.Writer, masked bool) error {
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
			r = unbroken{r}
		}
		if _, err := io.CopyBuffer(to, r, buf); err != nil {
			return err
		}
	}
}

// An unbroken reader leaves out what came with an error: the library unmasks
// only what it reads without one, and the rest would pass for altered.
type unbroken struct{ io.Reader }

func (u unbroken) Read(b []byte) (int, error) {
	n, err := u.Reader.Read(b)
	if err != nil && err != io.EOF {
		n = 0
	}
	return n, err
}

func (c *messageConn) Read(b []byte) (int, error) {
	n, err := c.read.Read(b)
	for n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && c.line != nil && c.line.putOff(&c.wait, c.read.SetReadDeadline) {
		n, err = c.read.Read(b)
	}
	if err == io.EOF {
		if c.err == nil {
			c.err = c.cause(<-c.ended)
			c.panics.again()
		}
		err = c.err
	}
	return n, err
}

func (c *messageConn) Write(b []byte) (int, error) {
	if err := c.ws.Write(context.Background(), websocket.MessageBinary, b); err != nil {
		if _, met := c.met(); met != nil {
			err = c.cause(err) // the library says only that it could not write
		}
		return 0, err
	}
	return len(b), nil
}

func (c *messageConn) SetReadDeadline(t time.Time) error {
	if c.ctx.Err() != nil {
		t = past
	}
	if c.line != nil {
		return c.line.set(&c.wait, t, c.read.SetReadDeadline)
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
