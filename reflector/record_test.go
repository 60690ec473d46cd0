package reflector

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

func filled(r *record) *wire.Ledger {
	l := new(wire.Ledger)
	r.fill(l)
	return l
}

func TestArrivalIsNewOnce(t *testing.T) {
	var r record
	for _, c := range []struct {
		port, attempt uint16
		want          bool
	}{
		{80, 0, true}, {80, 0, false}, {80, 1, true}, {81, 0, true}, {80, 0, false}, {80, 63, true}, {80, 63, false},
		{80, maxAttempts, false}, {80, 65535, false},
	} {
		if got := r.arrival(1, c.port, c.attempt); got != c.want {
			t.Errorf("port %d, attempt %d: %v", c.port, c.attempt, got)
		}
	}
	r.answered(1, 80, 0)
	r.answered(1, 80, 0)
	r.answered(9, 80, 0) // unknown
	want := []wire.ProbeRecord{{Probe: 1, Counts: []wire.Count{{Ports: ports(t, "80"), Seen: 3, Answered: 1}, {Ports: ports(t, "81"), Seen: 1}}}}
	if diff := cmp.Diff(want, filled(&r).Probes, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCountsAreKeptWhenAProbeGetsWide(t *testing.T) {
	var r record
	for port := range uint16(narrowPorts) {
		for attempt := range uint16(3) {
			r.arrival(1, 1000+port, attempt)
			if port < 10 {
				r.answered(1, 1000+port, attempt)
			}
		}
	}
	want := []wire.Count{{Ports: ports(t, "1000-1009"), Seen: 3, Answered: 3}, {Ports: ports(t, "1010-1063"), Seen: 3}}
	if diff := cmp.Diff(want, filled(&r).Probes[0].Counts, same); diff != "" {
		t.Errorf("narrow (-want +got):\n%s", diff)
	}
	if !r.arrival(1, 65535, 0) || r.probes[1].wide == nil || r.arrival(1, 1000, 2) || !r.arrival(1, 1000, 3) || r.arrival(1, 1000, wideAttempt) {
		t.Error("new and old are taken for each other")
	}
	r.answered(1, 65535, 0)
	want = []wire.Count{{Ports: ports(t, "1000"), Seen: 4, Answered: 3}, {Ports: ports(t, "1001-1009"), Seen: 3, Answered: 3},
		{Ports: ports(t, "1010-1063"), Seen: 3}, {Ports: ports(t, "65535"), Seen: 1, Answered: 1}}
	if diff := cmp.Diff(want, filled(&r).Probes[0].Counts, same); diff != "" {
		t.Errorf("wide (-want +got):\n%s", diff)
	}
}

func TestRecordIsBounded(t *testing.T) {
	var r record
	for probe := range uint32(maxProbes + 10) {
		fresh := r.arrival(probe, 80, 0)
		if fresh != (probe < maxProbes) {
			t.Fatalf("probe %d: %v", probe, fresh)
		}
		r.event(wire.Event{Probe: probe})
	}
	for i := range maxEvents + 10 {
		r.event(wire.Event{Probe: 5, Attempt: uint16(i)})
	}
	for i := range maxStrays + 10 {
		r.stray(wire.Event{Attempt: uint16(i)})
	}
	for i := range maxLabels + 10 {
		r.label(netip.AddrPortFrom(near.Addr(), uint16(i+1)), uint32(i))
	}
	l := filled(&r)
	got := []int{len(l.Probes), len(l.Probes[5].Events), l.Probes[5].More, len(l.Strays), len(r.labels)}
	if diff := cmp.Diff([]int{maxProbes, maxEvents, 11, maxStrays, maxLabels}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOnlySomeProbesMayBeWide(t *testing.T) {
	var r record
	for probe := range uint32(maxWide + 1) {
		for port := range uint16(narrowPorts) {
			r.arrival(probe, port+1, 0)
		}
		if got := r.arrival(probe, 60000, 0); got != (probe < maxWide) {
			t.Errorf("probe %d: %v", probe, got)
		}
	}
	if n := len(r.probes[maxWide].narrow); r.wide != maxWide || n != narrowPorts {
		t.Errorf("%d wide, %d ports in the narrow one", r.wide, n)
	}
}

func TestChangeIsToldOnce(t *testing.T) {
	for name, change := range map[string]func(*record){
		"arrival": func(r *record) { r.arrival(1, 80, 0) },
		"event":   func(r *record) { r.event(wire.Event{Probe: 1}) },
		"stray":   func(r *record) { r.stray(wire.Event{}) },
		"source":  func(r *record) { r.addSource(near.Addr()) },
	} {
		var r record
		before := r.changed()
		change(&r)
		if got := []bool{before, r.changed(), r.changed()}; !cmp.Equal(got, []bool{false, true, false}) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSYNsAreCountedBySourceAndTime(t *testing.T) {
	var s synStore
	at := newClock().now()
	a, b := near.Addr(), netip.MustParseAddr("2001:db8::7")
	for i, port := range []uint16{443, 443, 80, 81, 444} {
		s.add(a, port, at.Add(time.Duration(i)*time.Second))
	}
	s.add(b, 443, at)
	for name, c := range map[string]struct {
		got  []wire.Caught
		want string
	}{
		"all of one":      {s.since([]netip.Addr{a}, at), "80-81,444 x1 443 x2 "},
		"the later ones":  {s.since([]netip.Addr{a}, at.Add(time.Second)), "80-81,443-444 x1 "},
		"of both":         {s.since([]netip.Addr{a, b}, at), "80-81,444 x1 443 x3 "},
		"of nobody known": {s.since([]netip.Addr{loopback}, at), ""},
		"of nobody":       {s.since(nil, at), ""},
	} {
		got := ""
		for _, x := range c.got {
			got += fmt.Sprintf("%s x%d ", x.Ports, x.N)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	want := []wire.SourceSYNs{
		{Source: a, First: at, Last: at.Add(4 * time.Second), SYNs: s.since([]netip.Addr{a}, at)},
		{Source: b, First: at, Last: at, SYNs: []wire.Caught{{Ports: ports(t, "443"), N: 1}}},
	}
	if diff := cmp.Diff(want, s.bySource(), same); diff != "" {
		t.Errorf("for the journal (-want +got):\n%s", diff)
	}
}

func source(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func TestSYNsAreBoundedAndTheLossIsCounted(t *testing.T) {
	at := newClock().now()
	t.Run("of one source", func(t *testing.T) {
		var s synStore
		for i := range synPerSource + 1000 {
			s.add(near.Addr(), uint16(i), at)
		}
		if got := []int{s.total, len(s.from[near.Addr()]), int(s.lost())}; !cmp.Equal(got, []int{synPerSource, synPerSource, 1000}) {
			t.Errorf("total, kept, lost: %v", got)
		}
		s.add(loopback, 443, at)
		if len(s.since([]netip.Addr{loopback}, at)) != 1 {
			t.Error("another source is kept out")
		}
	})
	t.Run("sources", func(t *testing.T) {
		var s synStore
		for i := range synSources + 1000 {
			s.add(source(i), 443, at)
		}
		s.add(source(0), 444, at) // a known one
		if got := []int{s.total, len(s.from), int(s.lost())}; !cmp.Equal(got, []int{synSources + 1, synSources, 1000}) {
			t.Errorf("total, sources, lost: %v", got)
		}
	})
	t.Run("what is old makes room", func(t *testing.T) {
		var s synStore
		for i := range synSources {
			s.add(source(i), 443, at)
		}
		later := at.Add(synKept + time.Second)
		s.add(near.Addr(), 443, later)
		if got := []int{s.total, len(s.from), int(s.lost())}; !cmp.Equal(got, []int{1, 1, 0}) {
			t.Errorf("total, sources, lost: %v", got)
		}
	})
}

// A flood must not make every SYN search through all that is kept.
func TestFullStoreIsSearchedOnceAMinute(t *testing.T) {
	var s synStore
	at := newClock().now()
	for i := range synSources {
		s.add(source(i), 443, at)
	}
	s.add(source(synSources), 443, at.Add(synSweep))
	swept := s.swept
	s.add(source(synSources), 443, at.Add(2*synSweep-1))
	if s.swept != swept || !swept.Equal(at.Add(synSweep)) {
		t.Errorf("searched at %v and %v", swept, s.swept)
	}
	s.add(source(synSources), 443, at.Add(2*synSweep))
	if !s.swept.Equal(at.Add(2 * synSweep)) {
		t.Errorf("not searched after a minute: %v", s.swept)
	}
}
