package reflector

import (
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/wallprobe/wallprobe/wire"
	"github.com/wallprobe/wallprobe/witness"
)

// calls is the one list of control calls.
var calls = map[string]func(r *Reflector, from netip.AddrPort, body []byte) (any, error){
	wire.CallHello:  (*Reflector).hello,
	wire.CallLedger: (*Reflector).ledgerCall,
	wire.CallInward: (*Reflector).inward,
	wire.CallICE:    (*Reflector).ice,
	wire.CallBye:    (*Reflector).bye,
}

// Control is protocol.Far.
func (r *Reflector) Control() http.Handler { return r }

// ServeHTTP answers control calls; everything else gets a bare 404.
func (r *Reflector) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name, ok := strings.CutPrefix(req.URL.Path, wire.ControlPath)
	call := calls[name]
	if !ok || call == nil || req.Method != http.MethodPost {
		http.NotFound(w, req)
		return
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, wire.MaxControlBody+1))
	if err != nil || len(body) > wire.MaxControlBody {
		refuse(w, http.StatusRequestEntityTooLarge, &wire.ControlError{Code: "request", Message: fmt.Sprintf("a control call has at most %d bytes", wire.MaxControlBody)})
		return
	}
	mac := req.Header.Get(wire.MACHeader)
	if !hmac.Equal([]byte(mac), []byte(wire.RequestMAC(r.cfg.Key, name, body))) {
		refuse(w, http.StatusForbidden, &wire.ControlError{Code: "key", Message: "the reflector does not accept this key"})
		return
	}
	from, _ := netip.ParseAddrPort(req.RemoteAddr)
	answer, err := call(r, unmap(from), body)
	if err != nil {
		refuse(w, http.StatusConflict, asControlError(err))
		return
	}
	b, err := json.Marshal(answer)
	if err != nil {
		refuse(w, http.StatusInternalServerError, asControlError(err))
		return
	}
	w.Header().Set(wire.MACHeader, wire.ReplyMAC(r.cfg.Key, name, mac, b))
	w.Header().Set("Content-Type", "application/json")
	w.Write(b)
}

func refuse(w http.ResponseWriter, status int, e *wire.ControlError) {
	e.Wallprobe = 1
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(e)
}

func asControlError(err error) *wire.ControlError {
	if e, ok := errors.AsType[*wire.ControlError](err); ok {
		return e
	}
	return &wire.ControlError{Code: "session", Message: err.Error()}
}

// read decodes a call's body strictly enough to notice a newer client's request.
func read[T any](body []byte) (T, error) {
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		return v, &wire.ControlError{Code: "request", Message: "the request cannot be read: " + err.Error()}
	}
	return v, nil
}

func (r *Reflector) hello(from netip.AddrPort, body []byte) (any, error) {
	q, err := read[wire.HelloRequest](body)
	if err != nil {
		return nil, err
	}
	s, err := r.sessions.open(q.Session, q.Time)
	if err != nil {
		return nil, err
	}
	r.sessions.touch(s, from.Addr())
	s.began(r.now().Add(-min(max(q.Age, 0), synKept)))
	tcp, udp := r.set.Served()
	return wire.HelloReply{
		Nonce: s.nonce, Program: r.cfg.Program, Source: from, TCP: tcp, UDP: udp, Unserved: r.unserved,
		Witness: r.witnessKind(), Inward: r.cfg.Inward, Issuer: r.ca.digest(),
	}, nil
}

func (r *Reflector) ledgerCall(from netip.AddrPort, body []byte) (any, error) {
	q, err := read[wire.LedgerRequest](body)
	if err != nil {
		return nil, err
	}
	s := r.sessions.find(q.Session)
	if s == nil {
		return nil, noSession()
	}
	r.sessions.touch(s, from.Addr())
	return r.ledger(s), nil
}

// noSession refuses a call for a session that is not there.
func noSession() error {
	return &wire.ControlError{Code: "session", Message: "the reflector has no such session; it was restarted, or the session expired"}
}

// bye lets the session end soon. Who says it holds the key and names the session;
// that a call was recorded and is sent again ends only what has ended.
func (r *Reflector) bye(_ netip.AddrPort, body []byte) (any, error) {
	q, err := read[wire.ByeRequest](body)
	if err != nil {
		return nil, err
	}
	if !r.sessions.leave(q.Session) {
		return nil, noSession()
	}
	return wire.ByeReply{}, nil
}

// ledger is a session's record together with what the reflector as a whole knows.
func (r *Reflector) ledger(s *session) *wire.Ledger {
	r.lookHalfOpen() // a run may be over before the next look
	l := &wire.Ledger{Session: s.id, Taken: r.now(), Witness: r.witnessKind(), Unserved: r.unserved}
	l.TCP, l.UDP = r.set.Served()
	s.fill(l)
	r.tie(l)
	l.Flows = r.quic.flows.of(l.Sources)
	l.SYNs = r.syns.since(l.Sources, l.Started.Add(-synBefore))
	l.Missed = r.missed() - s.missed
	return l
}

// missed is the number of SYNs that came and are not known.
func (r *Reflector) missed() uint64 {
	n := r.syns.lost()
	switch {
	case r.witness != nil:
		n += r.witness.Lost()
	case r.half.Load():
		hidden, _ := witness.Hidden()
		n += hidden
	}
	return n
}
