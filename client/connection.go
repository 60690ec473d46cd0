package client

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// judgeConnect: the TCP handshake did not complete.
func (e *portEvidence) judgeConnect() (Verdict, string) {
	o := e.near
	switch o.Fault {
	case protocol.FaultTimeout:
		if !e.ledger {
			return Silent, "nothing came back, and the reflector's ledger could not be had"
		}
		return e.judgeSilence()
	case protocol.FaultRefused, protocol.FaultReset:
		switch {
		case !e.ledger:
			return Unmeasured, "a reset came back; without the reflector's ledger it cannot be told who sent it"
		case !e.bound:
			return Refused, "the reflector's host reset the connection: nothing listens there, " + e.why
		case e.syns > 0:
			return Rejected, "tcp reset that the reflector never sent; it saw the SYN and accepted it"
		}
		return Rejected, "tcp reset that the reflector never sent"
	}
	return Unmeasured, "unclassified error: " + cmp.Or(o.Detail, o.Fault)
}

// judgeBroken: the connection came up, then something went wrong.
func (e *portEvidence) judgeBroken() (Verdict, string) {
	o := e.near
	changed, helped := e.rewritten()
	if _, why := e.certificate(); why != "" {
		return Altered, also(why, changed)
	}
	if why := cmp.Or(e.helloChanged(), changed); why != "" {
		return Altered, why
	}
	reached := e.arrived()
	switch {
	case isTURN(o.Stage) && o.Fault != protocol.FaultAltered && o.Fault != protocol.FaultForeign && e.brokenTLS() == "" && e.alteredThere(o.Probe) == nil:
		return e.judgeTURN()
	case e.ledger && !reached:
		return Impostor, "the connection was accepted, but not by the reflector: its ledger is empty" + e.gave() + e.compared()
	case o.Fault == protocol.FaultAltered && o.Stage == protocol.StageData:
		return Altered, fmt.Sprintf("byte %d on the way back arrived changed", o.Down)
	case o.Fault == protocol.FaultAltered && o.Stage == protocol.StageTLS:
		return Altered, o.Detail
	case o.Fault == protocol.FaultAltered:
		return Altered, "the reflector's answer arrived changed"
	case o.Fault == protocol.FaultForeign && reached:
		return Altered, "the answer arrived changed" + e.gave() + e.compared()
	case o.Fault == protocol.FaultForeign:
		return Impostor, "the answer is not the reflector's" + e.gave() + e.compared()
	}
	if s := e.alteredThere(o.Probe); s != nil {
		return Altered, "the request arrived changed" + changedAt(s)
	}
	if why := e.brokenTLS(); why != "" && reached {
		return Altered, why
	}
	if !e.ledger && o.Stage != protocol.StageData && o.Stage != protocol.StageIdle {
		return Silent, "the connection came up, then " + ended(o.Fault) + "; the reflector's ledger could not be had" + e.compared()
	}
	if helped != "" {
		helped = rewrittenWhy + helped // which may be why
	}
	return Cut, also(e.cutWhy(), helped)
}

func changedAt(s *wire.Event) string {
	if s.Stage == protocol.StageData {
		return fmt.Sprintf(" (byte %d)", s.BytesIn)
	}
	if s.Digest == "" {
		return ""
	}
	return fmt.Sprintf(" (digest %.12s)", s.Digest)
}

// gave shows the beginning of an answer that is not ours.
func (e *portEvidence) gave() string {
	if e.near.Sample == "" {
		return ""
	}
	b, _ := hex.DecodeString(e.near.Sample)
	return ": it begins " + preview(b)
}

// cutWhy names stage, bytes and seconds, and what the far end met.
func (e *portEvidence) cutWhy() string {
	o := e.near
	why := fmt.Sprintf("stage %s: %s", o.Stage, ended(o.Fault)) + e.lastWords()
	switch o.Stage {
	case protocol.StageData:
		why = fmt.Sprintf("after %d bytes received and %d sent: %s", o.Down, o.Up, ended(o.Fault))
		if o.Down == 0 && o.Up == 0 && o.Step != "" {
			why = "before the first byte of data: " + ended(o.Fault)
		}
	case protocol.StageIdle:
		why = fmt.Sprintf("after %.3g s of silence: %s", o.Seconds, ended(o.Fault))
	}
	if o.Step != "" {
		why += " (" + o.Step + ")"
	}
	if e.ledger && strings.HasPrefix(o.Fault, remoteAlert) {
		why += ", which the reflector never sent"
	}
	return why + e.farWhy() + e.compared()
}

// farWhy says what the reflector met meanwhile.
func (e *portEvidence) farWhy() string {
	underWay := false
	for _, ev := range e.own() {
		if ev.Fault != "" {
			return fmt.Sprintf("; at the reflector, stage %s: %s", ev.Stage, ended(ev.Fault))
		}
		underWay = underWay || ev.Unfinished
	}
	switch {
	case underWay && e.near.Fault == protocol.FaultReset:
		return "; the reflector never sent a reset: it knows the connection as open"
	case underWay:
		return "; the reflector knows the connection as open"
	case len(e.events) == 0 && e.syns > 0:
		return "; the reflector saw the SYN and had no connection"
	}
	return ""
}

// ended says a fault in words.
func ended(fault string) string {
	switch fault {
	case protocol.FaultTimeout:
		return "nothing more came"
	case protocol.FaultReset:
		return "a reset came"
	case protocol.FaultEOF:
		return "the connection was closed"
	}
	if alert, ok := strings.CutPrefix(fault, remoteAlert); ok {
		return fmt.Sprintf("the TLS alert %q came", alert)
	}
	return fault
}
