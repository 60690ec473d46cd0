package client

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// What the near end calls faults beyond those of package protocol.
const (
	faultICMP       = "icmp"
	faultUnroutable = "unroutable"
	// What this end broke off, because the run was interrupted: it proves nothing.
	faultInterrupted = "interrupted"
)

// whyInterrupted is the reason of what an interrupted run did not come to.
const whyInterrupted = "interrupted before it was measured"

// Loss is judged from this many datagrams, and a path may lose this share of
// them unless its scenario says otherwise: WebRTC audio conceals about a fifth.
const (
	lossFrom    = 10
	defaultLoss = 0.20
)

// Judge gives every finding its verdict from both ends' evidence. Where a far
// end's ledger is missing, silence is silence. Judging again with better
// ledgers is allowed; that is what merge does. The connections with which control
// was tried are no probe's.
func Judge(findings []Finding, ledgers map[Where]*wire.Ledger, control Control) {
	views := make(map[Where]*farView)
	wheres := []Where{WhereFar, WhereLAN, WhereLoop}
	for i := range findings {
		if w := findings[i].Where(); !slices.Contains(wheres, w) {
			wheres = append(wheres, w)
		}
	}
	hellos, said, spares := hellosOf(findings), saidOf(findings), sparesOf(findings)
	for _, digest := range control.Hellos {
		hellos[digest] = true
	}
	for _, port := range control.Spares {
		spares[port]++
	}
	for _, where := range wheres {
		views[where] = viewOf(ledgers[where])
		views[where].hellos, views[where].said, views[where].spares = hellos, said, spares
	}
	for i := range findings {
		judgeFinding(&findings[i], views[findings[i].Where()])
	}
}

// whereOf tells which far end holds the evidence of a path.
func whereOf(d scenarios.Direction) Where {
	switch d {
	case scenarios.LAN:
		return WhereLAN
	case scenarios.Loop:
		return WhereLoop
	}
	return WhereFar
}

// Where is the place of the far end's evidence of a finding in Result.Ledgers:
// that of its far end, "far", or of the same in a later round, "far-2".
func (f *Finding) Where() Where {
	w := whereOf(f.Direction)
	if f.Round > 0 {
		w = Where(fmt.Sprintf("%s-%d", w, f.Round+1))
	}
	return w
}

// Replace puts a finding of a later round, of the result again, in the place of
// the one at index i, with its evidence from both ends. Outcomes are not worked
// out anew.
func (r *Result) Replace(i int, f Finding, again *Result, round int) {
	l := again.Ledgers[whereOf(f.Direction)]
	f.Round = round
	r.Findings[i] = f
	if l != nil {
		r.Attach(f.Where(), l)
	}
}

// judgeFinding judges every port, groups those that fared alike and sums up.
func judgeFinding(f *Finding, v *farView) {
	if len(f.Evidence.Near) == 0 {
		f.Verdict = Unmeasured // Why is the planner's reason
		return
	}
	var parts []Part
	total := Attempts{}
	f.RTT, f.Passage = 0, nil
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		for _, p := range judgeRun(o, f, v) {
			total.Sent += p.Attempts.Sent
			total.Seen += p.Attempts.Seen
			total.Answered += p.Attempts.Answered
			parts = addPart(parts, p)
		}
		if o.RTT > 0 && (f.RTT == 0 || o.RTT < f.RTT) {
			f.RTT = o.RTT
		}
	}
	parts = weighLoss(parts, f, cmp.Or(f.MaxLoss, defaultLoss))
	slices.SortStableFunc(parts, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), int(a.Ports[0].First)-int(b.Ports[0].First))
	})
	f.Attempts, f.Parts, f.Share = &total, nil, nil
	if why, same := alike(parts); same {
		f.Verdict, f.Why = parts[0].Verdict, why
		return
	}
	f.Parts = parts
	f.Verdict, f.Why = sumUp(parts)
	share := passing(parts)
	f.Share = &share
}

// rewrittenWhy begins the reason of what is open although it did not arrive as sent.
const rewrittenWhy = "rewritten by a helper on the way: "

// alike tells whether there is nothing to tell apart. Of parts that pass, what
// their evidence says beside does not count, unless it is telling.
func alike(parts []Part) (why string, same bool) {
	why = parts[0].Why
	for _, p := range parts[1:] {
		if p.Verdict != parts[0].Verdict || p.Why != parts[0].Why && !p.Verdict.Passes() {
			return "", false
		}
		if p.Why != why && (telling(p.Why) || telling(why)) {
			return "", false
		}
		if p.Why != why {
			why = ""
		}
	}
	return why, true
}

// telling tells whether the reason of what is open says what may differ: a
// helper's hand, or how a transfer went.
func telling(why string) bool {
	return strings.HasPrefix(why, rewrittenWhy) || strings.Contains(why, eachWay)
}

// sumUp is the verdict over parts that differ.
func sumUp(parts []Part) (Verdict, string) {
	first := parts[0]
	same := func(p Part) bool { return p.Verdict == first.Verdict }
	if !slices.ContainsFunc(parts, func(p Part) bool { return !same(p) }) {
		if strings.Contains(first.Why, eachWay) {
			return first.Verdict, ""
		}
		return first.Verdict, first.Why // alike but for the reasons, which the parts tell
	}
	if slices.ContainsFunc(parts, func(p Part) bool { return p.Verdict.Passes() }) {
		return Partial, ""
	}
	// Nothing passes: the verdict of most ports stands for all, the parts tell the rest.
	most := slices.MaxFunc(parts, func(a, b Part) int { return a.Ports.Len() - b.Ports.Len() })
	return most.Verdict, most.Why
}

// passing is the share of ports (or targets) that pass.
func passing(parts []Part) float64 {
	var open, all int
	for _, p := range parts {
		all += p.Ports.Len()
		if p.Verdict.Passes() {
			open += p.Ports.Len()
		}
	}
	return math.Round(float64(open)/float64(all)*1e6) / 1e6
}

func addPart(parts []Part, p Part) []Part {
	for i := range parts {
		q := &parts[i]
		if q.Target == p.Target && q.Verdict == p.Verdict && q.Why == p.Why {
			q.Ports = scenarios.Union(q.Ports, p.Ports)
			q.Attempts.Sent += p.Attempts.Sent
			q.Attempts.Seen += p.Attempts.Seen
			q.Attempts.Answered += p.Attempts.Answered
			return parts
		}
	}
	return append(parts, p)
}

func severalTargets(near []Observation) bool {
	return slices.ContainsFunc(near, func(o Observation) bool { return o.Target != near[0].Target })
}

// judgeRun judges the ports of one observation.
func judgeRun(o *Observation, f *Finding, v *farView) []Part {
	target := ""
	if severalTargets(f.Evidence.Near) {
		target = o.Target
	}
	index := make(map[conclusion]int)
	known := make(map[likeness]conclusion)
	var parts []Part
	var c conclusion
	judge := func(port uint16) (seen int) {
		e := v.at(o, f.Transport, port)
		e.maxLoss, e.speak = cmp.Or(f.MaxLoss, defaultLoss), cmp.Or(f.Spoken, f.Protocol)
		e.sift()
		c = e.conclude(known)
		seen, _ = e.count()
		return seen
	}
	judge(o.tried(o.Ports[0].First))
	if o.TCP != nil || o.Mark != nil { // of a single port
		e := v.at(o, f.Transport, o.Ports[0].First)
		f.Passage = addPassages(f.Passage, e.passages())
	}
	for port := range o.Ports.All {
		var sent, seen, answered int
		if len(o.Probed) == 0 || o.Probed.Contains(port) {
			seen, sent, answered = judge(port), o.Sent, o.Answered
		} // else as the port before: the run was bisected to its edges
		i, ok := index[c]
		if !ok {
			i = len(parts)
			index[c] = i
			parts = append(parts, Part{Target: target, Verdict: c.verdict, Why: c.why, Attempts: &Attempts{}})
		}
		p := &parts[i]
		p.Ports = appendPort(p.Ports, port)
		p.Attempts.Sent += sent
		p.Attempts.Seen += seen
		p.Attempts.Answered += answered
	}
	return parts
}

// tried gives the port that stands for another one: itself or, in a bisected
// run, the next one below it that was tried, else the lowest one.
func (o *Observation) tried(port uint16) uint16 {
	if len(o.Probed) == 0 {
		return port
	}
	stands := o.Probed[0].First
	for _, r := range o.Probed {
		if r.First <= port {
			stands = min(r.Last, port)
		}
	}
	return stands
}

// A conclusion is a verdict with its proof in a few words.
type conclusion struct {
	verdict Verdict
	why     string
}

// likeness is all that can tell two ports of one observation apart when the
// far end has no events of them; tens of thousands of ports share a few.
type likeness struct {
	bound                bool
	why                  string
	seen, answered, syns int
}

func (e *portEvidence) conclude(known map[likeness]conclusion) conclusion {
	k := likeness{e.bound, e.why, e.seen, e.answered, e.syns}
	plain := len(e.events)+len(e.strays) == 0
	if c, ok := known[k]; ok && plain {
		return c
	}
	var c conclusion
	c.verdict, c.why = e.judge()
	if plain {
		known[k] = c
	}
	return c
}

// appendPort adds a port that is higher than all in the set.
func appendPort(s scenarios.PortSet, port uint16) scenarios.PortSet {
	if n := len(s); n > 0 && int(s[n-1].Last)+1 == int(port) {
		s[n-1].Last = port
		return s
	}
	return append(s, scenarios.PortRange{First: port, Last: port})
}

// judge is the verdict on one port and its proof in a few words.
func (e *portEvidence) judge() (Verdict, string) {
	o := e.near
	switch {
	case o.Fault == faultInterrupted:
		return Unmeasured, whyInterrupted
	case o.Fault == faultUnroutable:
		return Unmeasured, "this machine has no route there: " + o.Detail
	case o.Inward:
		return e.judgeInward()
	case o.ICE != nil && o.Stage != protocol.StageDone:
		return e.judgeICE()
	case o.Stage == protocol.StageDone:
		return e.judgeDone()
	case o.Fault == faultICMP && o.Answered == 0:
		return e.judgeICMP()
	case e.transport == scenarios.UDP && e.speak == protocol.QUIC:
		return e.judgeQUIC()
	case e.transport == scenarios.UDP:
		return e.judgeUDP()
	case o.Stage == protocol.StageConnect:
		return e.judgeConnect()
	}
	return e.judgeBroken()
}

// judgeDone: every stage completed and verified.
func (e *portEvidence) judgeDone() (Verdict, string) {
	o := e.near
	same, why := e.certificate()
	changed, helped := e.rewritten()
	if why = cmp.Or(why, e.helloChanged(), e.negotiated()); why != "" {
		return Altered, also(why, changed)
	}
	switch {
	case changed != "":
		return Altered, changed
	case helped != "":
		return Open, rewrittenWhy + helped
	}
	if why := e.tooLossy(); why != "" {
		return Degraded, why
	}
	said := o.Detail
	switch {
	case o.TLS != nil && same:
		said = o.TLS.Version + ", certificate as sent"
	case o.TLS != nil:
		said = o.TLS.Version
	}
	return Open, also(said, e.carried(), o.silence())
}

// also joins what there is to tell.
func also(said ...string) string {
	return strings.Join(slices.DeleteFunc(said, func(s string) bool { return s == "" }), "; ")
}

// eachWay stands between the size and the rate of a large transfer.
const eachWay = " each way at "

// carried tells of a large transfer. Each end knows the pauses of what came to it.
func (e *portEvidence) carried() string {
	o := e.near
	if o.Rate == 0 || o.Up < 1<<20 {
		return ""
	}
	text := size(float64(o.Up)) + eachWay + size(o.Rate) + "/s"
	out := 0.0
	for _, ev := range e.events {
		if ev.BytesIn > 0 {
			out = max(out, ev.Pause)
		}
	}
	if still := also(stillFor(out, "out"), stillFor(o.Pause, "back")); still != "" {
		text += ", once standing still " + strings.ReplaceAll(still, "; ", " and ")
	}
	return text
}

// stillFor tells of a pause that is worth it.
func stillFor(seconds float64, way string) string {
	if seconds < 1 {
		return ""
	}
	return fmt.Sprintf("for %.1f s on the way %s", seconds, way)
}

// silence tells how much of it the flow survives, where that was tried.
func (o *Observation) silence() string {
	if o.Silence == nil {
		return ""
	}
	return o.Silence.String()
}

// size writes a number of bytes with three digits.
func size(bytes float64) string {
	for _, unit := range []string{"bytes", "KiB", "MiB"} {
		if bytes < 1000 {
			return fmt.Sprintf("%.3g %s", bytes, unit)
		}
		bytes /= 1024
	}
	return fmt.Sprintf("%.3g GiB", bytes)
}

// judgeICMP: an ICMP error came and nothing else.
func (e *portEvidence) judgeICMP() (Verdict, string) {
	o := e.near
	name := "an ICMP error"
	if o.ICMP != nil {
		name = fmt.Sprintf("%s from %s", o.ICMP.Name, o.ICMP.From)
	}
	own := o.ICMP == nil || o.ICMP.From == o.Addr
	switch {
	case own && e.ledger && !e.bound:
		return Refused, name + ": the reflector does not listen there, " + e.why
	case own && !e.ledger:
		return Unmeasured, name + ": without the reflector's ledger it cannot be told who sent it"
	case own:
		return Rejected, name + ", which the reflector listens on and never sent"
	}
	return Rejected, name
}

// judgeUDP: datagrams that were not all fine.
func (e *portEvidence) judgeUDP() (Verdict, string) {
	o := e.near
	switch {
	case o.Answered > 0 && o.Stage == protocol.StageData && (o.Invalid > 0 || e.alteredThere(o.Probe+sizeStage) != nil || e.mediaAltered()):
		return Altered, fmt.Sprintf("datagrams of %d bytes arrive changed, of %d bytes they do not", o.Up, o.Down)
	case o.Answered > 0 && o.Stage == protocol.StageData:
		return Cut, fmt.Sprintf("datagrams of %d bytes vanish, of %d bytes they pass", o.Up, o.Down)
	case o.Answered > 0 && o.Stage == protocol.StageIdle:
		return Cut, fmt.Sprintf("after %.3g s of silence the reflector's packet no longer came through", o.Seconds)
	case o.Answered > 0 && isTURN(o.Stage):
		return e.judgeTURN()
	case o.Invalid > 0:
		return e.judgeInvalid()
	case o.Fault == protocol.FaultForeign || o.Fault == protocol.FaultAltered:
		return e.judgeWrong()
	case o.Fault != "" && o.Fault != protocol.FaultTimeout:
		return Unmeasured, "this machine could not send: " + cmp.Or(o.Detail, o.Fault)
	}
	if !e.ledger {
		return Silent, "nothing came back, and the reflector's ledger could not be had" + o.strayed()
	}
	if s := e.alteredThere(o.Probe); s != nil && e.seen+len(e.events) == 0 {
		return Altered, fmt.Sprintf("the request arrived changed (%d bytes, digest %.12s)", s.Length, s.Digest)
	}
	v, why := e.judgeSilence()
	return v, why + o.strayed() + e.compared()
}

// strayed tells of datagrams that answer nothing. They decide nothing: whoever
// guesses a port can send them.
func (o *Observation) strayed() string {
	if o.Strays == 0 {
		return ""
	}
	return fmt.Sprintf("; %d datagrams that answer none of the requests came", o.Strays)
}

// judgeInvalid: something came back that does not verify.
func (e *portEvidence) judgeInvalid() (Verdict, string) {
	b, _ := hex.DecodeString(e.near.Sample)
	echo := len(b) > 4 && wire.IsMessage(b) && wire.Kind(b[4]) == wire.Request
	switch {
	case e.ledger && e.arrived():
		return Altered, "the reflector's answer arrived changed"
	case echo:
		return Impostor, "somebody throws back what is sent"
	case e.ledger:
		return Impostor, "the answer is not the reflector's, which saw nothing: it begins " + preview(b)
	case wire.IsMessage(b):
		return Altered, "the answer is a wallprobe message that does not verify"
	}
	return Impostor, "the answer is not the reflector's: it begins " + preview(b)
}

func preview(b []byte) string {
	if len(b) == 0 {
		return "with nothing"
	}
	return fmt.Sprintf("%q", b[:min(len(b), 24)])
}

// judgeSilence: nothing came back, and there is a ledger.
func (e *portEvidence) judgeSilence() (Verdict, string) {
	switch {
	case e.arrived() && e.transport == scenarios.TCP:
		return ReplyLost, "the reflector saw the SYN and answered; the answer did not arrive"
	case e.arrived():
		return ReplyLost, "the reflector saw it and answered; the answer did not arrive"
	case !e.bound:
		return Unmeasured, "the reflector does not serve the port: " + e.why
	case e.transport == scenarios.TCP && e.missed > 0:
		return Silent, fmt.Sprintf("no connection came up, and the reflector lost sight of %d SYNs, of which this may be one", e.missed)
	case e.transport == scenarios.TCP && !e.witness:
		return Silent, "no connection came up, and the reflector cannot see SYNs on its system"
	}
	return RequestLost, "the reflector saw nothing"
}

// judgeInward: the reflector called, this end answered.
func (e *portEvidence) judgeInward() (Verdict, string) {
	o := e.near
	switch {
	case o.Answered > 0:
		return Open, "the reflector called and was answered"
	case o.Detail != "":
		return Unmeasured, o.Detail
	case o.Arrived > 0 && o.Fault == protocol.FaultForeign:
		return Altered, "the answer to the reflector's call arrived changed"
	case o.Fault == protocol.FaultForeign:
		return Impostor, "the reflector's call was answered by somebody else"
	case o.Arrived > 0:
		return ReplyLost, "the reflector's call arrived here; the answer did not get back"
	case o.Stage == protocol.StageToken && e.transport == scenarios.TCP:
		return o.judgeCallUp()
	case o.SYNs > 0:
		return o.judgeCallSeen()
	case o.Fault == protocol.FaultTimeout && o.Blind != "":
		return Silent, "the reflector called and no connection came up; " + o.Blind
	case o.Fault == protocol.FaultTimeout:
		return RequestLost, "the reflector called; nothing arrived here"
	case o.Fault == protocol.FaultRefused && o.Blind != "":
		return Rejected, "the reflector's call was refused; " + o.Blind
	case o.Fault == protocol.FaultRefused:
		return Rejected, "the reflector's call was refused on the way; it never arrived here"
	}
	return Rejected, "the reflector's call met: " + o.Fault
}

// judgeCallUp: for the reflector the connection came up, and that was all.
func (o *Observation) judgeCallUp() (Verdict, string) {
	if o.SYNs == 0 && o.Blind == "" {
		return Impostor, "the reflector's call was taken by somebody else; it never arrived here"
	}
	if o.Fault == protocol.FaultTimeout {
		return Cut, "the reflector's connection came up; nothing that was said in it arrived here"
	}
	return Cut, "the reflector's connection came up, and nothing that was said in it arrived here; then it met: " + o.Fault
}

// judgeCallSeen: a SYN arrived here, and no connection came up.
func (o *Observation) judgeCallSeen() (Verdict, string) {
	if o.Fault == protocol.FaultTimeout {
		return ReplyLost, "the reflector's SYN arrived here; the answer did not get back"
	}
	return Rejected, "the reflector's SYN arrived here; yet its call met: " + o.Fault
}
