package client

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// isErrno tells an error that the system gave of a socket.
func isErrno(err error) bool {
	_, ok := errors.AsType[syscall.Errno](err)
	return ok
}

// sift takes from the evidence what is of others that share the port: QUIC's
// handshakes are told by their stage, which no other datagram has.
func (e *portEvidence) sift() {
	if e.transport != scenarios.UDP || len(e.strays) == 0 {
		return
	}
	foreign := func(s wire.Event) bool {
		handshake := s.Stage == protocol.StageTLS
		return handshake != (e.speak == protocol.QUIC) || s.Fault == protocol.FaultVersion
	}
	if slices.ContainsFunc(e.strays, foreign) {
		e.strays = slices.DeleteFunc(slices.Clone(e.strays), foreign)
	}
}

// judgeWrong: somebody's answer came over UDP to a protocol of its own, and it
// is not what the reflector says.
func (e *portEvidence) judgeWrong() (Verdict, string) {
	o := e.near
	if changed, _ := e.rewritten(); changed != "" {
		return Altered, changed
	}
	switch {
	case e.ledger && e.arrived() && o.Detail != "":
		return Altered, "the reflector saw it and answered; what came is another answer: " + o.Detail
	case e.ledger && e.arrived():
		return Altered, "the reflector's answer arrived changed"
	case e.ledger:
		return Impostor, "the answer is not the reflector's, which saw nothing: " + o.Detail + e.compared()
	case o.Fault == protocol.FaultAltered:
		return Altered, o.Detail
	}
	return Impostor, "the answer is not the reflector's: " + o.Detail
}

// judgeQUIC: a connection that did not last, or never came about.
func (e *portEvidence) judgeQUIC() (Verdict, string) {
	o := e.near
	_, differs := e.certificate()
	changed := cmp.Or(e.changedOnTheWay(), e.helloChanged())
	switch {
	case differs != "":
		return Altered, differs
	case changed != "":
		return Altered, changed
	case o.Fault == protocol.FaultForeign || o.Fault == protocol.FaultAltered && o.Stage != protocol.StageData:
		return e.judgeWrong()
	case o.Stage != protocol.StageTLS:
		return e.judgeBroken()
	case o.Fault != protocol.FaultTimeout:
		return Cut, "stage tls: " + o.Fault + e.farWhy() + e.compared()
	}
	return e.judgeHandshake()
}

// judgeHandshake: no QUIC handshake came about, and nobody said why. What else
// passes on the port is in the observation's detail.
func (e *portEvidence) judgeHandshake() (Verdict, string) {
	o := e.near
	beside := ""
	if o.Detail != "" {
		beside = "; " + o.Detail
	}
	switch {
	case o.Answered > 0:
		return Cut, "stage tls: the handshake began and " + ended(o.Fault) + e.farWhy() + beside + e.compared()
	case !e.ledger:
		return Silent, "nothing came back, and the reflector's ledger could not be had" + beside
	}
	v, why := e.judgeSilence()
	if v == RequestLost {
		why = "the reflector saw no QUIC"
	}
	if n := len(e.strays); v == ReplyLost {
		why = fmt.Sprintf("the reflector saw %d first packets and answered; no answer arrived", n)
	}
	return v, why + beside + e.compared()
}

// flowsOf are the far end's flows at a port that may be a probe's: one of which
// a datagram arrived as it was sent or, where none is, any.
func (v *farView) flowsOf(near *Observation, port uint16) []wire.Flow {
	if near.Flow == nil {
		return nil
	}
	var any, own []wire.Flow
	for _, f := range v.ledger.Flows {
		if f.Local.Port() != port {
			continue
		}
		if any = append(any, f); near.Flow.Sent.Shares(f.Heard) || f.Sent.Shares(near.Flow.Heard) {
			own = append(own, f)
		}
	}
	if len(own) > 0 {
		return own
	}
	return any
}

// changedOnTheWay says which datagram of a flow arrived as another: its protocol
// drops that without a word.
func (e *portEvidence) changedOnTheWay() string {
	at := func(p wire.Print, at int) string {
		if at < 0 {
			return fmt.Sprintf("%d bytes arrived changed, after the first %d", p.Length, len(p.Head()))
		}
		return fmt.Sprintf("%d bytes arrived changed at byte %d", p.Length, at)
	}
	for _, f := range e.flows {
		if p, n, ok := e.near.Flow.Sent.Changed(f.Heard); ok {
			return "a datagram of " + at(p, n)
		}
		if p, n, ok := f.Sent.Changed(e.near.Flow.Heard); ok {
			return "the reflector's datagram of " + at(p, n)
		}
	}
	return ""
}
