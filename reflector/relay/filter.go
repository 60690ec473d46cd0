package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/stun"
)

// verdict is what a message showed about its sender.
type verdict int

const (
	malformed verdict = iota // not STUN as RFC 8489 has it
	unproven                 // claims a session and does not verify, or is nothing that is served
	stranger                 // well-formed, no valid credentials
	authentic                // valid credentials, or an allocation's own data
)

// workspace is what one message is taken apart and answered with.
type workspace struct {
	req, rep stun.Message
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// message handles one STUN message, from a datagram or a stream.
func (s *Server) message(o origin, b []byte) verdict {
	if check(b) != nil {
		s.cfg.Count("stun-malformed")
		return malformed
	}
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	if stun.Decode(b, &w.req) != nil {
		s.cfg.Count("stun-malformed")
		return malformed
	}
	if w.req.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(&w.req) != nil {
		s.cfg.Count("stun-fingerprint")
		return malformed
	}
	switch typ := w.req.Type; {
	case typ == stun.BindingRequest:
		return s.binding(o, w)
	case typ.Class == stun.ClassRequest && turnKinds[typ.Method] != "":
		return s.turn(o, w)
	case typ == sendIndication:
		return s.sendIndication(o, &w.req)
	case typ == stun.NewType(stun.MethodBinding, stun.ClassIndication):
		return stranger // a keepalive, RFC 8445 section 11
	}
	s.cfg.Count("stun-unexpected")
	return unproven
}

var sendIndication = stun.NewType(stun.MethodSend, stun.ClassIndication)

// binding answers a STUN Binding request.
func (s *Server) binding(o origin, w *workspace) verdict {
	if !w.req.Contains(stun.AttrMessageIntegrity) {
		if unknown := unknownAttributes(&w.req); unknown != nil {
			s.cfg.Count("stun-unknown-attribute")
			return stranger
		}
		s.mapped(&w.rep, &w.req, o)
		s.answerStranger(o, w, nil)
		return stranger
	}
	name, err := w.req.Get(stun.AttrUsername)
	if err != nil {
		s.cfg.Count("stun-auth")
		return unproven
	}
	now := s.cfg.Now()
	username, label, _ := strings.Cut(string(name), ":")
	password, session, ok := s.cfg.Credentials(username, now)
	key := stun.NewShortTermIntegrity(password)
	if !ok || password == "" || key.Check(&w.req) != nil {
		s.cfg.Count("stun-auth")
		return unproven
	}
	s.mu.Lock()
	first := s.seen.first(w.req.TransactionID, o.remote.Addr())
	s.mu.Unlock()
	if !first {
		s.cfg.Count("stun-replay")
		return unproven
	}
	result := "ok"
	if unknown := unknownAttributes(&w.req); unknown != nil {
		unknownReply(&w.rep, &w.req, unknown)
		result = "420 unknown attribute"
	} else {
		s.mapped(&w.rep, &w.req, o)
	}
	if err := seal(&w.rep, key); err != nil {
		result = "not answered: " + err.Error()
	} else if saved := len(w.req.Raw) - len(w.rep.Raw); saved < 0 && !o.tcp {
		s.cfg.Count("stun-short")
		result = "not answered: shorter than its answer"
	} else {
		s.earn(o, session, saved, now)
		if err := s.send(o, w.rep.Raw); err != nil {
			result = "not answered: " + err.Error()
		}
	}
	s.cfg.Event(Event{Time: now, Session: session, Label: label, ID: w.req.TransactionID,
		TCP: o.tcp, Local: o.local, Remote: o.remote, Kind: KindBinding, Result: result})
	return authentic
}

func (s *Server) mapped(rep, req *stun.Message, o origin) {
	begin(rep, stun.BindingSuccess, req.TransactionID)
	var buf [20]byte
	rep.Add(stun.AttrXORMappedAddress, xorAddress(&buf, o.remote, req.TransactionID))
}

// earn keeps whose an authenticated Binding was and, over UDP, the bytes by which
// it was longer than its answer.
func (s *Server) earn(o origin, session string, bytes int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.conn != nil {
		o.conn.told.session = session
		return
	}
	s.proofs.update(o.tuple, now, func(p *proof) {
		p.credit = min(p.credit+bytes, maxCredit)
		p.told.session = session
	})
}

// tell tells the session whose Binding came from this 5-tuple of a message that
// nobody has signed for, and says whether it did.
func (s *Server) tell(o origin, k Kind, request, answer []byte) bool {
	now := s.cfg.Now()
	s.mu.Lock()
	var session string
	var ok bool
	if o.conn != nil {
		session, ok = o.conn.told.next()
	} else if p, known := s.proofs.known[o.tuple]; known && !now.After(p.expires) {
		session, ok = p.told.next()
		s.proofs.known[o.tuple] = p
	}
	s.mu.Unlock()
	if ok {
		s.cfg.Event(Event{Time: now, Session: session, TCP: o.tcp, Local: o.local, Remote: o.remote, Kind: k, Result: "ok",
			Request: request, Answer: answer})
	}
	return ok
}

// answerStranger sends w.rep unless it would give a spoofed source more
// bytes than were sent in its name. Before it does, it calls first, unless that
// is nil: whatever the other end heard has been told of.
func (s *Server) answerStranger(o origin, w *workspace, first func()) {
	if !s.mayAnswer(o, len(w.rep.Raw)-len(w.req.Raw)) {
		s.cfg.Count("stun-short")
		return
	}
	if first != nil {
		first()
	}
	if s.send(o, w.rep.Raw) != nil {
		s.cfg.Count("stun-send")
	}
}

func (s *Server) mayAnswer(o origin, extra int) bool {
	if o.tcp || extra <= 0 {
		return true // TCP's handshake has shown where the sender is
	}
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proofs.spend(o.tuple, extra, now) ||
		s.cfg.PlainSTUN && s.plain.allow(source(o.remote.Addr()), now) && s.plainAll.allow(netip.Addr{}, now)
}

// turnKinds names the TURN requests that are served.
var turnKinds = map[stun.Method]Kind{
	stun.MethodAllocate:         KindAllocate,
	stun.MethodRefresh:          KindRefresh,
	stun.MethodCreatePermission: KindPermission,
	stun.MethodChannelBind:      KindChannel,
}

// understood are the comprehension-required attributes that are served or may
// be passed over. DONT-FRAGMENT, CHANGE-REQUEST and RESPONSE-PORT are not
// among them: 420 says so (RFC 8489 section 6.3.1).
var understood = []stun.AttrType{
	stun.AttrUsername, stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256, stun.AttrRealm,
	stun.AttrNonce, stun.AttrChannelNumber, stun.AttrLifetime, stun.AttrXORPeerAddress,
	stun.AttrData, stun.AttrEvenPort, stun.AttrReservationToken, stun.AttrRequestedTransport,
	stun.AttrRequestedAddressFamily, stun.AttrPadding, stun.AttrPriority, stun.AttrUseCandidate,
}

func unknownAttributes(m *stun.Message) []stun.AttrType {
	var unknown []stun.AttrType
	for _, a := range m.Attributes {
		if a.Type.Required() && !slices.Contains(understood, a.Type) && !slices.Contains(unknown, a.Type) {
			unknown = append(unknown, a.Type)
		}
	}
	return unknown
}

func unknownReply(rep, req *stun.Message, unknown []stun.AttrType) {
	errorReply(rep, req, stun.CodeUnknownAttribute)
	var b []byte
	for _, t := range unknown {
		b = binary.BigEndian.AppendUint16(b, t.Value())
	}
	rep.Add(stun.AttrUnknownAttributes, b)
}

// user is who an authenticated request came from.
type user struct {
	name, session string
	key           stun.MessageIntegrity // long-term, RFC 8489 section 9.2.2
}

// turn authenticates a TURN request and serves it.
func (s *Server) turn(o origin, w *workspace) verdict {
	if s.isRelay(o.remote) {
		s.cfg.Count("turn-loop") // an allocation asked for through an allocation
		return stranger
	}
	u, code := s.authenticate(o, &w.req)
	if code != 0 {
		s.challenge(o, w, code)
		return stranger
	}
	if unknown := unknownAttributes(&w.req); unknown != nil {
		unknownReply(&w.rep, &w.req, unknown)
		s.refuse(o, w, u, "420 unknown attribute")
		return authentic
	}
	if code, reason := s.serve(o, &w.req, u); code != 0 {
		errorReply(&w.rep, &w.req, code)
		s.refuse(o, w, u, fmt.Sprintf("%d %s", code, reason))
	}
	return authentic
}

// authenticate follows RFC 8489 section 9.2.4, but looks at the nonce before
// it spends a MAC or a lookup on the rest.
func (s *Server) authenticate(o origin, req *stun.Message) (user, stun.ErrorCode) {
	if !req.Contains(stun.AttrMessageIntegrity) {
		return user{}, stun.CodeUnauthorized
	}
	name, err1 := req.Get(stun.AttrUsername)
	realm, err2 := req.Get(stun.AttrRealm)
	nonce, err3 := req.Get(stun.AttrNonce)
	if err1 != nil || err2 != nil || err3 != nil {
		return user{}, stun.CodeBadRequest
	}
	now := s.cfg.Now()
	if !s.nonceGood(o.tuple, nonce, now) {
		return user{}, stun.CodeStaleNonce
	}
	u := user{name: string(name)}
	var password string
	var ok bool
	password, u.session, ok = s.cfg.Credentials(u.name, now)
	u.key = stun.NewLongTermIntegrity(u.name, s.cfg.Realm, password)
	if !ok || password == "" || string(realm) != s.cfg.Realm || u.key.Check(req) != nil {
		return user{}, stun.CodeUnauthorized
	}
	return u, 0
}

// challenge answers a request that nobody has signed for.
func (s *Server) challenge(o origin, w *workspace, code stun.ErrorCode) {
	now := s.cfg.Now()
	s.mu.Lock()
	ok := s.challenges.allow(source(o.remote.Addr()), now)
	s.mu.Unlock()
	if !ok {
		s.cfg.Count("turn-rate")
		return
	}
	errorReply(&w.rep, &w.req, code)
	switch code {
	case stun.CodeUnauthorized:
		s.cfg.Count("turn-unauthorized")
	case stun.CodeStaleNonce:
		s.cfg.Count("turn-stale-nonce")
	default:
		s.cfg.Count("turn-bad-request")
	}
	if code != stun.CodeBadRequest {
		w.rep.Add(stun.AttrRealm, []byte(s.cfg.Realm))
		w.rep.Add(stun.AttrNonce, s.nonce(o.tuple, now))
	}
	s.answerStranger(o, w, func() { s.tell(o, KindChallenge, w.req.Raw, w.rep.Raw) })
}

// refuse signs and sends w.rep, an error, to an authenticated user. Its
// length needs no check: the nonce has been to that 5-tuple and back.
func (s *Server) refuse(o origin, w *workspace, u user, result string) {
	err := u.key.AddTo(&w.rep)
	s.cfg.Event(Event{Time: s.cfg.Now(), Session: u.session, ID: w.req.TransactionID, TCP: o.tcp,
		Local: o.local, Remote: o.remote, Kind: turnKinds[w.req.Type.Method], Result: result,
		Request: w.req.Raw, Answer: w.rep.Raw})
	if err != nil || s.send(o, w.rep.Raw) != nil {
		s.cfg.Count("stun-send")
	}
}
