package client

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A Passage is a header field as it was sent and as it arrived. None of them
// stops a path; what is Changed shows that somebody in between rewrites.
type Passage struct {
	Field   string `json:"field"`          // "TTL", "DSCP", "ECN", "MSS", "source" or "connection"
	Back    bool   `json:"back,omitempty"` // of the reflector's packets
	Sent    string `json:"sent"`
	Arrived string `json:"arrived"`
	Changed bool   `json:"changed,omitempty"`
	Note    string `json:"note,omitempty"`
}

func (p Passage) String() string {
	of := ""
	if p.Back {
		of = " of the reflector"
	}
	text := fmt.Sprintf("%s %s%s arrived as %s", p.Field, p.Sent, of, p.Arrived)
	if p.Note != "" {
		text += ": " + p.Note
	}
	return text
}

// addPassages adds those that are not there yet.
func addPassages(list, more []Passage) []Passage {
	for _, p := range more {
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// passages compares the headers that both ends saw.
func (e *portEvidence) passages() []Passage {
	if e.transport == scenarios.UDP {
		return e.markPassages()
	}
	list := e.synPassages()
	if len(list) > 0 && list[0].Field == "connection" {
		return list // what was made anew has no marks of ours
	}
	return append(list, e.markedSYN()...)
}

// markedSYN: how the marked SYN arrived. Only its DSCP was set.
func (e *portEvidence) markedSYN() []Passage {
	m := e.near.Mark
	if m == nil || !e.ledger {
		return nil
	}
	for _, ev := range e.marked {
		if ev.TCP != nil && ev.TCP.TTL != 0 {
			return tosPassages(m.TOS, ev.TCP.TOS)[:1]
		}
	}
	if m.Answered || len(e.marked) > 0 {
		return nil
	}
	return []Passage{lostMarks(m, "connections")}
}

// lostMarks: what is not marked arrives.
func lostMarks(m *Mark, what string) Passage {
	return Passage{Field: "DSCP", Sent: strconv.Itoa(int(m.TOS >> 2)), Arrived: "nothing", Changed: true, Note: "marked " + what + " are lost, others are not"}
}

// markPassages: how the marked datagrams arrived.
func (e *portEvidence) markPassages() []Passage {
	m := e.near.Mark
	if m == nil {
		return nil
	}
	ttl, tos := m.SeenTTL, m.SeenTOS
	if !m.Answered {
		if len(e.marked) == 0 && e.ledger && !m.Plain {
			return []Passage{lostMarks(m, "datagrams")}
		}
		if len(e.marked) == 0 {
			return nil
		}
		ttl, tos = e.marked[0].TTL, e.marked[0].TOS
	}
	var list []Passage
	if ttl != 0 { // else the reflector's system does not tell
		list = append(ttlPassage(m.TTL, ttl, e.near.Routed), tosPassages(m.TOS, tos)...)
	}
	if m.Back && m.BackTTL != 0 {
		back := append(ttlPassage(wire.MarkTTL, m.BackTTL, e.near.Routed), tosPassages(wire.MarkTOS, m.BackTOS)...)
		for i := range back {
			back[i].Back = true
		}
		list = append(list, back...)
	}
	return list
}

// ttlPassage: each router takes one (RFC 1812 section 5.3.1).
func ttlPassage(sent, arrived uint8, routed bool) []Passage {
	p := Passage{Field: "TTL", Sent: strconv.Itoa(int(sent)), Arrived: strconv.Itoa(int(arrived))}
	switch hops := int(sent) - int(arrived); {
	case sent == 0 || arrived == 0:
		return nil
	case hops < 0:
		p.Changed, p.Note = true, "rewritten"
	case hops == 0 && routed:
		p.Changed, p.Note = true, "rewritten, for a router lies between"
	case hops == 1:
		p.Note = "1 hop"
	case hops > 1:
		p.Note = fmt.Sprintf("%d hops", hops)
	}
	return []Passage{p}
}

// tosPassages: the traffic class is DSCP (RFC 2474) and ECN (RFC 3168).
func tosPassages(sent, arrived uint8) []Passage {
	dscp := Passage{Field: "DSCP", Sent: strconv.Itoa(int(sent >> 2)), Arrived: strconv.Itoa(int(arrived >> 2)), Changed: sent>>2 != arrived>>2}
	names := [4]string{"Not-ECT", "ECT(1)", "ECT(0)", "CE"}
	ecn := Passage{Field: "ECN", Sent: names[sent&3], Arrived: names[arrived&3], Changed: sent&3 != arrived&3}
	switch {
	case !ecn.Changed:
	case arrived&3 == 0:
		ecn.Note = "bleached"
	case arrived&3 == 3 && sent&3 != 0:
		ecn.Note = "marked as congested"
	default:
		ecn.Note = "rewritten"
	}
	return []Passage{dscp, ecn}
}

// connected is the far end's event of this very connection: one that proved to
// be the probe's, or that heard its ClientHello.
func (e *portEvidence) connected() *wire.Event {
	for i := range e.events {
		if e.events[i].TCP != nil {
			return &e.events[i]
		}
	}
	for i := range e.strays {
		s := &e.strays[i]
		if s.TCP != nil && s.TLS != nil && e.near.TLS != nil && s.TLS.HelloDigest == e.near.TLS.HelloDigest {
			return s
		}
	}
	return nil
}

// synPassages: how the connection's first packets arrived on either side.
func (e *portEvidence) synPassages() []Passage {
	near, ev := e.near.TCP, e.connected()
	if near == nil || ev == nil {
		return nil
	}
	far := ev.TCP
	list := e.connection(near, far, ev)
	if anew := len(list) > 0 && list[0].Changed; !anew {
		list = append(list, ttlPassage(near.TTL, far.TTL, e.near.Routed)...)
	}
	if near.TTL != 0 && far.TTL != 0 {
		list = append(list, tosPassages(near.TOS, far.TOS)...)
	}
	if near.MSS != 0 && far.MSS != 0 {
		list = append(list, Passage{Field: "MSS", Sent: strconv.Itoa(near.MSS), Arrived: strconv.Itoa(far.MSS), Changed: near.MSS != far.MSS})
	}
	if near.Back != 0 && far.Back != 0 && !near.AtLeast {
		list = append(list, Passage{Field: "MSS", Back: true, Sent: strconv.Itoa(far.Back), Arrived: strconv.Itoa(near.Back), Changed: near.Back != far.Back})
	}
	return list
}

// clockSlack is how far the timestamps of one connection's SYN may be apart at
// both ends, in their unit of milliseconds: the near end reads its clock a
// little later.
const clockSlack = 10_000

// connection tells whether the SYN that arrived is the one that was sent: its
// timestamp comes from a clock that begins anywhere for each connection (RFC
// 7323 section 5.4), and translators leave it alone.
func (e *portEvidence) connection(near, far *wire.TCPSeen, ev *wire.Event) []Passage {
	from := e.near.From
	if !from.IsValid() {
		return nil
	}
	other := false
	if near.Timestamp != 0 {
		late := int32(near.Timestamp - far.Timestamp)
		other = far.Timestamp == 0 || late < -clockSlack || late > clockSlack
	}
	p := Passage{Field: "source", Sent: from.Addr().String(), Arrived: ev.Remote.Addr().String()}
	moved := p.Sent != p.Arrived
	if !moved && from != ev.Remote {
		p.Sent, p.Arrived, moved = from.String(), ev.Remote.String(), true
	}
	switch {
	case other && e.near.Routed && far.TTL >= near.TTL:
		p.Field, p.Changed, p.Note = "connection", true, "a proxy in between made it anew: neither its timestamp nor its TTL are those that were sent"
	case other && moved:
		p.Field, p.Changed, p.Note = "connection", true, "a proxy in between made it anew, or a translator rewrites timestamps"
	case other:
		p.Field, p.Changed, p.Note = "connection", true, "its timestamp is not the one that was sent: a proxy made it anew, or timestamps are rewritten"
	case !moved:
		return nil
	case near.Timestamp != 0:
		p.Note = "translated; the SYN itself arrived"
	default:
		p.Note = "a translator or a proxy in between"
	}
	return []Passage{p}
}
