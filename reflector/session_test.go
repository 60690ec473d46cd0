package reflector

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// table is an empty table of sessions and the list of those that ended.
func table() (*sessions, *clock, *[]wire.SessionID) {
	c, over := newClock(), new([]wire.SessionID)
	return &sessions{key: testKey, now: c.now, ends: func(s *session) { *over = append(*over, s.id) },
		byID: make(map[wire.SessionID]*session), from: make(map[netip.Addr][]*session)}, c, over
}

func numbered(n int) (id wire.SessionID) {
	binary.BigEndian.PutUint32(id[:], uint32(n)+1)
	return id
}

func TestClocksMayDifferByADay(t *testing.T) {
	tab, c, _ := table()
	for off, want := range map[time.Duration]error{
		0: nil, clockSkew: nil, -clockSkew: nil, clockSkew + 1: errClock, -clockSkew - 1: errClock, 1 << 62: errClock, -1 << 62: errClock,
	} {
		if _, err := tab.open(numbered(int(off/time.Second)), c.now().Add(off)); !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", off, err, want)
		}
	}
	if _, err := tab.open(testID, time.Time{}); !errors.Is(err, errClock) {
		t.Errorf("the year 1: %v", err)
	}
}

func TestSessionsAreLimitedAndMakeRoom(t *testing.T) {
	tab, c, over := table()
	for i := range maxSessions {
		if _, err := tab.open(numbered(i), c.now()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tab.open(testID, c.now()); !errors.Is(err, errSessionLimit) {
		t.Errorf("one more: %v", err)
	}
	if _, err := tab.open(numbered(5), c.now()); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	tab.end(numbered(5))
	tab.end(numbered(5)) // twice is once
	if _, err := tab.open(testID, c.now()); err != nil {
		t.Errorf("after one ended: %v", err)
	}
	if diff := cmp.Diff([]wire.SessionID{numbered(5)}, *over); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSessionWithSomethingUnderWayDoesNotExpire(t *testing.T) {
	tab, c, over := table()
	var all []*session
	for n := range 3 {
		s, err := tab.open(numbered(n+1), c.now())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	under := wire.Event{Transport: "tcp", Remote: near, Local: near, Probe: 1}
	all[0].begin(open{event: under})
	all[1].waits(1)
	c.pass(sessionIdle + time.Second)
	tab.expire(false)
	if diff := cmp.Diff([]wire.SessionID{numbered(3)}, *over); diff != "" {
		t.Errorf("silent for long (-want +got):\n%s", diff)
	}
	all[0].event(under)
	all[1].waits(-1)
	tab.expire(false)
	if len(tab.byID) != 0 {
		t.Errorf("%d sessions stay when nothing is under way", len(tab.byID))
	}
}

func TestSessionsWithoutASignOfLifeExpire(t *testing.T) {
	tab, c, over := table()
	open := func(n int) *session {
		s, err := tab.open(numbered(n), c.now())
		if err != nil {
			t.Fatal(err)
		}
		c.pass(time.Second)
		return s
	}
	open(1)
	s2 := open(2)
	open(3)
	c.pass(sessionIdle - 2*time.Second)
	tab.touch(s2, near.Addr())
	tab.expire(false)
	if diff := cmp.Diff([]wire.SessionID{numbered(1)}, *over); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.pass(sessionIdle)
	tab.expire(false)
	if diff := cmp.Diff([]wire.SessionID{numbered(1), numbered(3)}, *over); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	open(4)
	tab.expire(true)
	if diff := cmp.Diff([]wire.SessionID{numbered(1), numbered(3), numbered(2), numbered(4)}, *over); diff != "" {
		t.Errorf("all, oldest first (-want +got):\n%s", diff)
	}
	if len(tab.byID)+len(tab.from) > 0 {
		t.Errorf("left behind: %v, %v", tab.byID, tab.from)
	}
}

func TestSessionsThatEndedDoNotBeginAnewAndAreForgottenInTheEnd(t *testing.T) {
	tab, c, _ := table()
	for i := range maxOver + 1 {
		tab.drop(&session{id: numbered(i)})
	}
	if _, err := tab.open(numbered(maxOver), c.now()); !errors.Is(err, errOver) {
		t.Errorf("the last: %v", err)
	}
	if _, err := tab.open(numbered(0), c.now()); err != nil {
		t.Errorf("the first: %v", err)
	}
	if len(tab.over) > maxOver || len(tab.ended) > maxOver {
		t.Errorf("%d and %d are remembered", len(tab.over), len(tab.ended))
	}
}

func TestOnlyAProvenMessageMakesASession(t *testing.T) {
	b := newBench(t, Config{})
	forged := b.request(testID, nil)
	forged[70] ^= 1
	other := wire.Derive(wire.Key{9}, testID, wire.Nonce{})
	m := wire.Message{Kind: wire.Request, Offline: true, Session: testID, Time: b.clock.now()}
	for name, p := range map[string][]byte{
		"forged":            forged,
		"of another key":    m.Append(nil, &other),
		"with unknown keys": b.request(testID, func(m *wire.Message) { m.Offline = false }),
		"of last week":      b.request(testID, func(m *wire.Message) { m.Time = m.Time.Add(-7 * 24 * time.Hour) }),
		"of next week":      b.request(testID, func(m *wire.Message) { m.Time = m.Time.Add(7 * 24 * time.Hour) }),
		"cut":               b.request(testID, nil)[:60],
	} {
		if _, s, err := b.sessions.prove(p); err == nil || s != nil || b.sessions.find(testID) != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, s, err := b.sessions.prove(b.request(testID, nil)); err != nil || s != b.sessions.find(testID) || s == nil {
		t.Errorf("proven: %v, %v", s, err)
	}
}

func TestKeysOfASessionHangOnWhetherControlWasThere(t *testing.T) {
	tab, c, _ := table()
	s, err := tab.open(testID, c.now())
	if err != nil {
		t.Fatal(err)
	}
	for offline, nonce := range map[bool]wire.Nonce{true: {}, false: s.nonce} {
		k := wire.Derive(testKey, testID, nonce)
		m := wire.Message{Kind: wire.Request, Offline: offline, Session: testID}
		if _, _, err := tab.prove(m.Append(nil, &k)); err != nil {
			t.Errorf("offline %v: %v", offline, err)
		}
		m.Offline = !offline
		if _, _, err := tab.prove(m.Append(nil, &k)); !errors.Is(err, wire.ErrAltered) {
			t.Errorf("offline %v with the other keys: %v", offline, err)
		}
	}
}

// After any history the index by address says what the sessions say.
func TestIndexByAddressAgreesWithTheSessions(t *testing.T) {
	tab, c, _ := table()
	r := rand.New(rand.NewPCG(1, 2))
	next := 0
	for range 3000 {
		id := numbered(next - r.IntN(min(next, 20)+1))
		switch s := tab.find(id); r.IntN(8) {
		case 0:
			next++
			if _, err := tab.open(numbered(next), c.now()); err != nil {
				t.Fatal(err)
			}
		case 1:
			tab.end(id)
			if s != nil {
				tab.touch(s, near.Addr()) // an arrival that was under way
			}
		case 2:
			c.pass(time.Minute)
			tab.expire(false)
		default:
			if s != nil {
				tab.touch(s, netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(80))}))
			}
		}
	}
	want := make(map[netip.Addr][]string)
	for id, s := range tab.byID {
		for _, a := range s.allSources() {
			want[a] = append(want[a], id.String())
		}
	}
	got := make(map[netip.Addr][]string)
	for a := range tab.from {
		for _, s := range tab.of(a) {
			got[a] = append(got[a], s.id.String())
		}
	}
	for _, m := range []map[netip.Addr][]string{want, got} {
		for _, list := range m {
			slices.Sort(list)
		}
	}
	if diff := cmp.Diff(want, got, same); diff != "" || len(want) == 0 {
		t.Errorf("%d addresses (-want +got):\n%s", len(want), diff)
	}
}

func TestSessionComesFromALimitedNumberOfAddresses(t *testing.T) {
	tab, c, _ := table()
	s, _ := tab.open(testID, c.now())
	for i := range 2 * maxSources {
		tab.touch(s, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		tab.touch(s, netip.MustParseAddr("::ffff:192.0.2.0")) // the same as the first
	}
	if len(s.allSources()) != maxSources || len(tab.from) != maxSources || len(tab.of(netip.MustParseAddr("192.0.2.0"))) != 1 {
		t.Errorf("%d sources, %d in the index", len(s.allSources()), len(tab.from))
	}
}
