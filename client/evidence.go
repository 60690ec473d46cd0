package client

import (
	"slices"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A farView is a ledger made easy to ask about one port of one probe. A nil
// ledger is a view that knows nothing.
type farView struct {
	ledger *wire.Ledger
	syns   perPort
	probes map[uint32]*farProbe
	strays map[farPort][]wire.Event
	hellos map[string]bool // digests of every ClientHello that the near end sent
	said   map[string]bool // first lines of the dialogues that were comparisons
	spares map[uint16]int  // connections by port that were begun beside those of probes and came to nothing
}

type farPort struct {
	transport scenarios.Transport
	port      uint16
}

// perPort holds a number for every port: ranges are asked port by port.
type perPort [65536]uint8

func (p *perPort) add(port uint16, n int) { p[port] = uint8(min(int(p[port])+n, 255)) }

type farProbe struct {
	seen, answered perPort
	events         map[farPort][]wire.Event
}

func viewOf(l *wire.Ledger) *farView {
	v := &farView{ledger: l, probes: make(map[uint32]*farProbe), strays: make(map[farPort][]wire.Event)}
	if l == nil {
		return v
	}
	for _, c := range l.SYNs {
		for port := range c.Ports.All {
			v.syns.add(port, c.N)
		}
	}
	file(v.strays, l.Strays)
	for _, p := range l.Probes {
		fp := &farProbe{events: make(map[farPort][]wire.Event)}
		file(fp.events, p.Events)
		for _, c := range p.Counts {
			for port := range c.Ports.All {
				fp.seen.add(port, c.Seen)
				fp.answered.add(port, c.Answered)
			}
		}
		v.probes[p.Probe] = fp
	}
	return v
}

// portEvidence is what both ends have of one port of one probe.
type portEvidence struct {
	near      *Observation
	transport scenarios.Transport
	maxLoss   float64
	speak     string // the protocol's name
	ledger    bool
	witness   bool   // SYNs are seen below the sockets
	missed    uint64 // SYNs that the witness lost meanwhile
	bound     bool   // the reflector serves the port; meaningless without a ledger
	why       string // why it does not serve it
	seen      int
	answered  int
	syns      int
	events    []wire.Event // with a token that verified
	strays    []wire.Event // at that port, without one
	marked    []wire.Event // with marks in their headers
	flows     []wire.Flow  // that may be the probe's, where its protocol drops what was changed
}

// file sorts events by the port that they arrived at.
func file(into map[farPort][]wire.Event, events []wire.Event) {
	for _, e := range events {
		k := farPort{e.Transport, e.Local.Port()}
		into[k] = append(into[k], e)
	}
}

// at gathers the evidence of one port. For probes that vary their own port,
// port is that one, and what the reflector binds is judged by the aimed-at one.
func (v *farView) at(near *Observation, t scenarios.Transport, port uint16) portEvidence {
	e := portEvidence{near: near, transport: t}
	if v.ledger == nil {
		return e
	}
	aimed := port
	if near.ByLocal {
		aimed = near.Aimed
	}
	e.ledger, e.witness, e.missed = true, v.ledger.Witness != "", v.ledger.Missed
	e.bound, e.why = v.serves(t, aimed)
	if p := v.probes[near.Probe]; p != nil {
		e.seen, e.answered = int(p.seen[port]), int(p.answered[port])
		if !near.ByLocal { // else they would be those of all own ports
			e.events = p.events[farPort{t, aimed}]
		}
	}
	v.media(&e, aimed)
	if p := v.probes[near.Probe+markStage]; p != nil {
		e.marked = p.events[farPort{t, aimed}]
	}
	e.flows = v.flowsOf(near, aimed)
	if t == scenarios.TCP {
		e.syns = max(0, int(v.syns[aimed])-near.comparedAt(aimed))
	}
	if !near.ByLocal {
		e.strays = v.unowned(near, farPort{t, aimed})
	}
	if t == scenarios.TCP {
		e.strays = withoutSpares(e.strays, near.Sent-1+v.spares[aimed])
	}
	return e
}

// withoutSpares leaves out the connections that this end began because another was
// long in coming up, at most so many, and closed when one had: nothing was ever
// said on them. The far end may not have met their end yet. One connection is always
// left.
func withoutSpares(list []wire.Event, most int) []wire.Event {
	var kept []wire.Event
	for i := range list {
		e := &list[i]
		over := e.Fault == protocol.FaultEOF || e.Unfinished && e.Stage == protocol.StageConnect
		mute := over && e.BytesIn == 0 && e.Digest == "" && (e.TLS == nil || e.TLS.HelloDigest == "") && (e.Said == nil || len(e.Said.Heard) == 0)
		if mute && most > 0 && len(kept)+len(list)-i > 1 {
			most--
			continue
		}
		kept = append(kept, *e)
	}
	return kept
}

// unowned are the strays at a port that may belong to a probe: they name it, or
// name none that ever arrived whole, as one whose number was changed does. A
// handshake that arrived as another probe sent it is that one's, and so is a
// dialogue that began as a comparison's.
func (v *farView) unowned(near *Observation, at farPort) []wire.Event {
	own := ""
	if near.TLS != nil {
		own = near.TLS.HelloDigest
	}
	other := func(s wire.Event) bool {
		if s.TLS != nil && s.TLS.HelloDigest != own && v.hellos[s.TLS.HelloDigest] {
			return true
		}
		if v.comparedSaid(near, s.Said) {
			return true
		}
		return s.Probe != near.Probe && s.Probe != 0 && (v.probes[s.Probe] != nil || near.compares(s.Probe))
	}
	all := v.strays[at]
	if !slices.ContainsFunc(all, other) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), other)
}

func (v *farView) serves(t scenarios.Transport, port uint16) (bool, string) {
	set := v.ledger.TCP
	if t == scenarios.UDP {
		set = v.ledger.UDP
	}
	if set.Contains(port) {
		return true, ""
	}
	for _, u := range v.ledger.Unserved {
		if u.Transport == t && u.Ports.Contains(port) {
			return false, u.Reason
		}
	}
	return false, "it was not asked to serve it"
}

// arrived tells whether anything of a connection reached the reflector.
func (e *portEvidence) arrived() bool {
	return e.seen+e.syns+len(e.events)+len(e.strays) > 0
}

// count is how many attempts the reflector saw and answered.
func (e *portEvidence) count() (seen, answered int) {
	if e.near.Inward {
		return max(e.near.Arrived, e.near.SYNs), e.near.Answered
	}
	if e.seen > 0 {
		return e.seen, e.answered
	}
	if n := len(e.events); n > 0 {
		return min(n, max(e.near.Sent, 1)), min(n, max(e.near.Sent, 1))
	}
	if e.speak == protocol.QUIC && len(e.strays) > 0 {
		return min(len(e.strays), max(e.near.Sent, 1)), 0
	}
	if e.transport == scenarios.TCP && e.syns > 0 {
		return min(e.syns, max(e.near.Sent, 1)), 0
	}
	return 0, 0
}

// own are the events that tell of the probe's connection: those that name it
// or, when none does, whatever came without a name. Control may have tried the
// port as well.
func (e *portEvidence) own() []wire.Event {
	if len(e.events) > 0 {
		return e.events
	}
	return e.strays
}

// alteredThere finds an arrival that was the probe's once and did not verify,
// or nil. What names the probe is preferred to what can no longer be read.
func (e *portEvidence) alteredThere(probe uint32) *wire.Event {
	for i := range e.events {
		if e.events[i].Fault == protocol.FaultAltered && e.events[i].Probe == probe {
			return &e.events[i]
		}
	}
	var unread *wire.Event
	for i := range e.strays {
		switch s := &e.strays[i]; {
		case s.Fault != protocol.FaultAltered && s.Fault != protocol.FaultForeign:
		case s.Probe == probe:
			return s
		case e.seen+len(e.events) == 0 && !e.afterwards(s): // else the probe arrived
			unread = s
		}
	}
	return unread
}

// afterwards tells whether a stray connection came when the probe's own had
// failed already, for a comparison: one before it came earlier by most of the
// time that the probe took.
func (e *portEvidence) afterwards(s *wire.Event) bool {
	took := time.Duration(e.near.Seconds * float64(time.Second))
	return e.transport == scenarios.TCP && len(e.near.Controls) > 0 && slices.ContainsFunc(e.strays, func(o wire.Event) bool {
		return o.TLS == nil && o.Time.Before(s.Time.Add(-took/2))
	})
}
