package reflector

import (
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// talkative is the event of a connection whose peer said all that can be said,
// with a handshake as long as one can be.
func talkative(from netip.AddrPort) wire.Event {
	e := wire.Event{Transport: scenarios.TCP, Remote: from, Local: local, Stage: protocol.StageLogin, Fault: strings.Repeat("f", 5000),
		TLS: &wire.TLSSeen{HelloName: strings.Repeat("h", 6000), ServerName: strings.Repeat("s", 6000)}}
	e.Said = muchSaid().Said()
	for i := range 100 {
		e.TLS.Offered = append(e.TLS.Offered, strings.Repeat("o", i))
	}
	for range 2 * wire.MaxChain {
		e.TLS.Chain = append(e.TLS.Chain, wire.Certificate{Subject: strings.Repeat("c", 2000)})
	}
	return e
}

// muchSaid is more than is kept of a dialogue.
func muchSaid() *wire.Transcript {
	said := new(wire.Transcript)
	for range wire.MaxSaid + 1 {
		said.Hear(strings.Clone(longLine))
		said.Say(strings.Clone(longLine))
	}
	return said
}

var longLine = strings.Repeat("x", 1000)

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Ten thousand connections of strangers that say all they can leave a bounded
// memory behind, whether they come from addresses of sessions or from others.
func TestTenThousandTalkativeStrangersLeaveABoundedMemory(t *testing.T) {
	b := newBench(t, Config{Journal: new(buffer)})
	for i := range 20 {
		s, err := b.sessions.open(numbered(i), b.clock.now())
		if err != nil {
			t.Fatal(err)
		}
		b.sessions.touch(s, spoofed(i).Addr())
	}
	before := heap()
	for i := range 10_000 {
		e := talkative(spoofed(i % 1000))
		e.Time = b.clock.now()
		b.note(e)
	}
	grown := heap() - before
	const limit = maxRecentBytes + maxUnclaimedBytes + 20*maxRich + 8<<20 // what is bare as well
	if grown > limit {
		t.Errorf("%d bytes are held, at most %d may be", grown, limit)
	}
	if grown < 1<<20 {
		t.Errorf("%d bytes are held: nothing was tested", grown)
	}
	runtime.KeepAlive(b)
}

// A session's own connections have a bound too, and what they took is given
// back when it ends.
func TestSessionsHoldABoundedMemoryAndGiveItBack(t *testing.T) {
	b := newBench(t, Config{})
	s, err := b.sessions.open(testID, b.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	said := talkative(near)
	for i := range 100_000 {
		e := said
		e.Answered, e.Session, e.Probe, e.Remote = true, testID, uint32(i/maxEvents), netip.AddrPortFrom(near.Addr(), uint16(i))
		b.note(e)
	}
	for i := range 200 {
		for port := range uint16(narrowPorts + 1) {
			s.arrival(uint32(5000+i), port, 0)
		}
	}
	rich, bare := 0, 0
	for _, p := range b.ledger(s).Probes {
		for _, e := range p.Events {
			if e.Said != nil {
				rich++
			} else {
				bare++
			}
		}
	}
	if rich < 100 || rich > maxRich/(16<<10) || bare < 1000 {
		t.Errorf("%d events with what was said, %d without", rich, bare)
	}
	held := b.sessions.memory.used.Load()
	if held > maxHeld || held < maxRich {
		t.Errorf("the session holds %d bytes", held)
	}
	if b.sessions.end(testID); b.sessions.memory.used.Load() != 0 {
		t.Errorf("%d bytes are held when it has ended", b.sessions.memory.used.Load())
	}
}

func TestAllSessionsTogetherHoldABoundedMemory(t *testing.T) {
	b := newBench(t, Config{})
	b.sessions.memory.used.Store(maxMemory - 100)
	if out := b.deliver(near, b.request(testID, nil)); len(out) > 0 {
		t.Error("what cannot be noted is answered: it could be replayed")
	}
	b.sessions.memory.used.Store(0)
	if out := b.deliver(near, b.request(testID, nil)); len(out) != 1 {
		t.Error("what can be noted is not answered")
	}
}

// What was said last is what a session that begins now may want to see.
func TestRememberedArrivalsKeepWhatTheLastOnesSaid(t *testing.T) {
	var r recent
	for i := range 2*maxRecent + 7 {
		e := talkative(spoofed(i))
		e.Bound()
		r.add(e)
		if i%500 != 0 {
			continue
		}
		rich := 0
		for _, e := range r.list {
			if e.Said != nil {
				rich++
			}
		}
		if e := r.list[(r.next+len(r.list)-1)%len(r.list)]; e.Said == nil || e.Remote != spoofed(i) {
			t.Fatalf("after %d the last one's dialogue is lost", i)
		}
		if rich != r.full || r.held > maxRecentBytes || i > 1000 && rich < 100 {
			t.Fatalf("after %d: %d rich of %d, %d bytes", i, rich, r.full, r.held)
		}
	}
}

// A connection that proves itself and then ends without an event of its session
// leaves nothing under way: the session could never expire.
func TestConnectionThatEndsIsNotUnderWay(t *testing.T) {
	b := newBench(t, Config{})
	s, err := b.sessions.open(testID, b.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	p := new(told)
	p.add(s)
	p.add(s)
	s.unproven(open{event: wire.Event{Remote: near, Local: local}})
	s.begin(open{event: wire.Event{Remote: near, Local: local, Probe: 3}})
	s.begin(open{event: wire.Event{Remote: near, Local: local, Probe: 4}})
	if !s.busy() {
		t.Fatal("nothing is under way")
	}
	if p.left(tuple{near, local}); s.busy() || len(p.list) != 1 {
		t.Error("it is still under way")
	}
}

// What is said on connections under way is told of only as far as the session
// has room for it.
func TestLedgerTellsNoMoreOfDialoguesUnderWayThanASessionMayHold(t *testing.T) {
	var r record
	said := muchSaid()
	const connections = 2 * maxRich / (2 * wire.MaxSaid * wire.MaxSaidLine)
	for i := range connections {
		e := wire.Event{Transport: scenarios.TCP, Remote: netip.AddrPortFrom(loopback, uint16(i)), Local: local, Probe: 1}
		r.begin(open{e, said})
	}
	told := func() (rich, size int) {
		var l wire.Ledger
		r.fill(&l)
		if n := len(l.Probes[0].Events); n != connections {
			t.Errorf("%d connections", n)
		}
		for _, e := range l.Probes[0].Events {
			if size += e.Size(); e.Said != nil {
				rich++
			}
		}
		return rich, size
	}
	if rich, size := told(); rich < connections/3 || size > maxRich+connections*1000 {
		t.Errorf("%d of %d dialogues, %d bytes", rich, connections, size)
	}
	r.held = maxRich
	if rich, _ := told(); rich > 0 {
		t.Errorf("%d dialogues of a session that has no room", rich)
	}
}
