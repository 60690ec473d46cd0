package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// Bounds of one HTTP connection at the far end.
const (
	maxRequests  = 64 // then it is closed
	maxExchanges = 8  // tokens told apart: a proxy may send several probes over one connection
	httpQuiet    = 2 * time.Minute
	httpTime     = maxRequests * httpQuiet
	bodyTime     = 30 * time.Second // for the whole body of who proved nothing
	unsent       = time.Second      // for which an answer may be under way inside this end
)

// serveHTTP is the far end of everything that begins as HTTP, in TLS or not,
// HTTP/1.1 or HTTP/2. Control calls go to the reflector; a request with a token
// runs its part of the exchange; everybody else gets the page. It returns one
// event for each token, or one for a connection that had none, and none for
// control.
func serveHTTP(ctx context.Context, c net.Conn, far Far) []wire.Event {
	return serveHTTPOn(ctx, newHTTPConn(ctx, c), far)
}

func serveHTTPOn(ctx context.Context, h *httpConn, far Far) []wire.Event {
	defer context.AfterFunc(ctx, func() { h.SetDeadline(past) })()
	s := &httpServer{ctx: ctx, far: far, conn: h, arrived: Arrived(h, far.Now()), outside: len(h.record().Heard)}
	h.begins = s.tell
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // inside TLS too, which is not this server's concern
	server := http.Server{
		Handler: s, Protocols: protocols, MaxHeaderBytes: maxHead,
		// Of a frame nothing is had until all of it is there: large ones would hide
		// the byte at which a path is cut.
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxExchanges, MaxReadFrameSize: 2 * chunk},
		ReadHeaderTimeout: farStall, ReadTimeout: bodyTime, WriteTimeout: farStall, IdleTimeout: httpQuiet,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(io.Discard, "", 0),
	}
	defer time.AfterFunc(farStall, s.unasked).Stop()
	s.clock = time.AfterFunc(unprovenTime, s.unproven)
	defer s.clock.Stop()
	server.Serve(&oneConn{conn: h})
	s.end()
	h.takeBack()
	s.panics.again()
	return s.events()
}

// A oneConn listens for a connection that is there already, and is closed when
// that is.
type oneConn struct {
	conn  *httpConn
	given bool
}

// Accept is net.Listener; the server calls it one at a time.
func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

// Close is net.Listener.
func (l *oneConn) Close() error { return nil }

// Addr is net.Listener.
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// An httpServer serves the requests of one connection.
type httpServer struct {
	ctx     context.Context
	far     Far
	conn    *httpConn
	arrived wire.Event

	clock *time.Timer // of unproven
	step  sync.Mutex  // held by the one exchange under way

	mu         sync.Mutex
	wg         sync.WaitGroup
	over       bool // no request begins any more
	requests   int
	answering  int       // of the requests
	answeredAt time.Time // the last of them
	control    bool      // some were control calls
	known      bool      // a token, or a control call, proved a session
	late       bool      // nothing had in time: whatever is answered is the last
	told       bool      // ledgers tell of the connection
	outside    int       // lines of the record that were heard before it, outside a tunnel
	exchanges  []*httpExchange
	panics     panics
	unread     error // what kept the token in a body from being read
}

// An httpExchange is what one token asks for.
type httpExchange struct {
	token string
	keys  *wire.Keys
	reply wire.Message
	done  map[string]bool // parts by path
	event wire.Event
}

// unasked ends a connection on which no request was made in time. In HTTP/2
// there is none although there is a beginning.
func (s *httpServer) unasked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests == 0 {
		s.conn.giveUp()
	}
}

// unproven ends a connection on which nobody has proved anything in time, however
// often the page is asked for: who wants it once more connects anew. What is being
// answered then comes to its end.
func (s *httpServer) unproven() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.known || s.over:
	case s.answering > 0 || time.Since(s.answeredAt) < unsent: // the library sends it after the handler has returned
		s.late = true
		s.clock.Reset(unsent)
	default:
		s.conn.giveUp()
	}
}

// end waits for all requests after the connection was closed.
func (s *httpServer) end() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.wg.Wait()
}

// begin counts a request in; last tells that it is the last.
func (s *httpServer) begin(control bool) (last, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false, false
	}
	s.wg.Add(1)
	s.requests++
	s.answering++
	s.control = s.control || control
	return s.requests >= maxRequests || s.late, true
}

// answered counts a request out.
func (s *httpServer) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answering--
	s.answeredAt = time.Now()
	s.wg.Done()
}

// tell lets ledgers tell of the connection before it says anything, unless it is
// for control, of which they do not tell.
func (s *httpServer) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.told && !s.control {
		s.told = true
		s.far.Tell(s.conn.said)
	}
}

// ServeHTTP is http.Handler.
func (s *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := strings.HasPrefix(r.URL.Path, wire.ControlPath)
	last, ok := s.begin(control)
	if !ok {
		return
	}
	defer s.answered()
	defer s.panics.keep(func() { s.conn.Close() })
	s.tell()
	a := &answer{ResponseWriter: w, r: r, s: s}
	if r.ProtoMajor == 2 {
		s.conn.note((*wire.Transcript).Hear, requestLine(r), fieldsOf(r.Header, 0))
	}
	if last {
		w.Header().Set("Connection", "close")
	}
	path, framed := strings.CutPrefix(r.URL.Path, framedPath)
	switch {
	case control:
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(httpQuiet)) // ledgers are long
		s.far.Control().ServeHTTP(w, r)
		s.mu.Lock()
		s.known = s.known || w.Header().Get(wire.MACHeader) != ""
		s.mu.Unlock()
	case framed && r.Method == http.MethodPost && (path == "" || path == pathData || path == pathLate):
		s.framed(a, "/"+strings.TrimPrefix(path, "/"))
	case r.Method == http.MethodConnect:
		s.connect(a)
	case strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "):
		s.proven(a, r.Header.Get("Authorization"), r.URL.Path)
	default:
		a.stranger()
	}
}

// An answer is one request and its answer, which has no fields but those that
// were set here: in HTTP/2 it is recorded from them.
type answer struct {
	http.ResponseWriter
	r     *http.Request
	s     *httpServer
	front []byte // before the body
}

// head sends the head; length is that of the body.
func (a *answer) head(status int, kind string, length int64) {
	h := a.Header()
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.FormatInt(length+int64(len(a.front)), 10))
	h.Set("Cache-Control", "no-store")
	if a.r.ProtoMajor == 2 {
		a.s.conn.note((*wire.Transcript).Say, statusLine(status), fieldsOf(h, 0))
	}
	a.WriteHeader(status)
	a.Write(a.front)
}

// page sends the page.
func (a *answer) page(status int, text string) error {
	a.head(status, "text/html; charset=utf-8", int64(len(text)))
	if a.r.Method == http.MethodHead {
		return nil
	}
	_, err := io.WriteString(a.ResponseWriter, text)
	return err
}

// stranger answers who has no token, without reading a body.
func (a *answer) stranger() {
	if a.r.ContentLength != 0 {
		a.Header().Set("Connection", "close")
	}
	switch {
	case a.r.Method != http.MethodGet && a.r.Method != http.MethodHead:
		a.Header().Set("Allow", "GET, HEAD")
		a.page(http.StatusMethodNotAllowed, page)
	case a.r.URL.Path == pathToken:
		a.page(http.StatusOK, page)
	default:
		a.page(http.StatusNotFound, page)
	}
}

// framed runs a part whose token is in front of the body.
func (s *httpServer) framed(a *answer, path string) {
	http.NewResponseController(a.ResponseWriter).SetReadDeadline(time.Now().Add(farStall))
	p, err := readFrame(a.r.Body)
	if err != nil {
		s.mu.Lock()
		s.unread = err
		s.mu.Unlock()
		a.stranger()
		return
	}
	a.front = appendFrame(nil, make([]byte, wire.MessageSize)) // to be filled in
	s.proven(a, framedText(p), path)
}

// proven runs the part of an exchange that a request with a token asks for.
func (s *httpServer) proven(a *answer, text, path string) {
	s.step.Lock()
	defer s.step.Unlock()
	x, err := s.exchange(text)
	if x == nil {
		a.front = nil
		a.Header().Set("WWW-Authenticate", "Bearer")
		a.Header().Set("Connection", "close")
		a.page(http.StatusUnauthorized, page)
		return
	}
	if x.done[path] || err != nil {
		a.front = nil
		a.page(http.StatusConflict, page)
		return
	}
	x.done[path] = true
	switch path {
	case pathToken:
		err = s.serveToken(a, x)
	case pathData:
		err = s.serveData(a, x)
	case pathLate:
		err = s.serveLate(a, x)
	case pathSocket:
		err = s.serveSocket(a, x)
	default:
		a.front = nil
		a.page(http.StatusNotFound, page)
	}
	s.ended(x, err)
}

// ended notes how a part of an exchange ended. An exchange that fails takes the
// connection with it.
func (s *httpServer) ended(x *httpExchange, err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	if x.event.Fault == "" {
		x.event.Fault = faultOf(s.conn.cause(err))
	}
	s.mu.Unlock()
	s.conn.Close()
}

// exchange finds or begins the exchange of a token. It is nil for a token that
// does not prove anything, which is kept too.
func (s *httpServer) exchange(text string) (*httpExchange, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.exchanges {
		if x.token == text {
			if x.keys == nil {
				return nil, nil
			}
			return x, nil
		}
	}
	if len(s.exchanges) >= maxExchanges {
		return nil, nil
	}
	x := &httpExchange{token: text, event: s.arrived, done: make(map[string]bool)}
	m, keys, err := ProveToken(text, s.conn.RemoteAddr(), s.far)
	e := &x.event
	e.Session, e.Probe, e.Attempt, e.Stage = m.Session, m.Probe, m.Attempt, StageToken
	s.exchanges = append(s.exchanges, x)
	if err != nil {
		e.Fault = faultOf(err)
		return nil, nil
	}
	s.known = true
	x.keys, x.reply = keys, replyTo(m, s.conn.RemoteAddr(), s.far.Now())
	if m.Idle > MaxIdle {
		err = fmt.Errorf("asked for %v of idling; at most %v", m.Idle, MaxIdle)
		e.Answered, e.Fault = true, faultOf(err)
	}
	return x, err
}

// prove puts the far end's token into an answer. When all that was asked for
// will be done with it, the connection need not be kept.
func (x *httpExchange) prove(a *answer, kind wire.Kind, last bool) {
	m := x.reply
	m.Kind = kind
	if a.front != nil {
		a.front = appendFrame(nil, m.Append(nil, x.keys))
	} else {
		a.Header().Set(answerHeader, "rspauth="+textOf(&m, x.keys))
	}
	if last {
		a.Header().Set("Connection", "close")
	}
}

// reached notes the stage that an exchange is in.
func (s *httpServer) reached(x *httpExchange, stage string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.event.Answered, x.event.Stage = true, stage
}

// serveToken answers the token.
func (s *httpServer) serveToken(a *answer, x *httpExchange) error {
	last := x.reply.Bytes == 0 && x.reply.Idle == 0
	x.prove(a, wire.Reply, last)
	if err := a.page(http.StatusOK, page); err != nil {
		return err
	}
	s.reached(x, StageToken)
	if last {
		s.reached(x, StageDone)
	}
	return nil
}

// serveData reads the near end's stream, then sends this end's. The answer
// begins when all has come unaltered.
func (s *httpServer) serveData(a *answer, x *httpExchange) error {
	s.reached(x, StageData)
	m, rc := x.reply, http.NewResponseController(a.ResponseWriter)
	if !slices.Contains([]int64{-1, int64(m.Bytes) + int64(len(a.front))}, a.r.ContentLength) {
		return fmt.Errorf("a body of %d bytes: %w", a.r.ContentLength, errAltered)
	}
	rc.SetWriteDeadline(atLatest(m.Bytes, 2*farStall)) // HTTP/2 would break off a longer request
	body := pacedReader{a.r.Body, newPace(), rc.SetReadDeadline}
	n, err := checkStream(body, x.keys.NewStream(wire.Request, m.Probe, m.Attempt), m.Bytes, farStall)
	s.stood(x, body.pace, err != nil)
	s.moved(x, n, 0)
	if err == nil {
		err = atEnd(body)
	}
	if err != nil {
		return err
	}
	x.prove(a, wire.Reply, m.Idle == 0)
	rc.SetWriteDeadline(time.Now().Add(farStall))
	a.head(http.StatusOK, "application/octet-stream", int64(m.Bytes))
	n, err = sendStream(answerBody{a, rc}, x.keys.NewStream(wire.Reply, m.Probe, m.Attempt), m.Bytes, farStall)
	s.moved(x, 0, n)
	if err == nil {
		err = rc.Flush()
	}
	if err == nil && m.Idle == 0 {
		s.reached(x, StageDone)
	}
	return err
}

// moved counts bytes of the data phase.
func (s *httpServer) moved(x *httpExchange, in, out int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.event.BytesIn += in
	x.event.BytesOut += out
}

// stood notes the pauses of what came in the data phase.
func (s *httpServer) stood(x *httpExchange, p *pace, awaited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.event.Pause = p.stood(x.event.Pause, awaited)
}

// An answerBody is the body of an answer.
type answerBody struct {
	io.Writer
	rc *http.ResponseController
}

func (b answerBody) SetWriteDeadline(t time.Time) error { return b.rc.SetWriteDeadline(t) }

// serveLate keeps silent for as long as was asked, then answers.
func (s *httpServer) serveLate(a *answer, x *httpExchange) error {
	s.reached(x, StageIdle)
	until := time.Now().Add(x.reply.Idle)
	rc := http.NewResponseController(a.ResponseWriter)
	rc.SetReadDeadline(until.Add(farStall))
	rc.SetWriteDeadline(until.Add(farStall))
	wait := time.NewTimer(time.Until(until))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-a.r.Context().Done():
		if _, err := s.conn.met(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}
	x.prove(a, wire.Late, true)
	if err := a.page(http.StatusOK, page); err != nil {
		return err
	}
	err := rc.Flush()
	if err == nil {
		s.reached(x, StageDone)
	}
	return err
}

// events are what the connection leaves.
func (s *httpServer) events() []wire.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	said := s.conn.record()
	if len(s.exchanges) == 0 {
		return s.strange(said)
	}
	var list []wire.Event
	for _, x := range s.exchanges {
		e := x.event
		if e.Stage != StageDone && e.Fault == "" {
			e.Fault = faultOf(s.conn.end()) // before all was asked for
		}
		if e.Stage != StageDone && s.ctx.Err() != nil {
			e.Fault = FaultTimeout // this end is told to stop
		}
		e.Said = said
		list = append(list, e)
	}
	return list
}

// strange is the event of a connection without any token.
func (s *httpServer) strange(said *wire.Said) []wire.Event {
	if s.control {
		return nil
	}
	in, _ := s.conn.met()
	e := s.arrived
	e.Stage, e.Fault, e.BytesIn = StageToken, FaultForeign, in
	e.Said = &wire.Said{Sent: firstHead(said.Sent), Heard: firstHead(said.Heard)}
	if s.unread != nil {
		e.Fault = faultOf(s.conn.cause(s.unread))
	}
	if s.requests == 0 {
		e.Digest = digest(s.conn.first())
		whole := len(said.Heard) > s.outside && !s.conn.isHTTP2()
		if end := s.conn.end(); !whole && !errors.Is(end, errLongHead) {
			e.Fault = faultOf(end)
		}
	}
	return []wire.Event{e}
}

// firstHead is all that is kept of what strangers say.
func firstHead(lines []string) []string {
	if i := slices.Index(lines, ""); i >= 0 {
		lines = lines[:i+1]
	}
	return lines[:min(len(lines), 16)]
}
