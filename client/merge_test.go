package client

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

var ranAt = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

func lines(t *testing.T, list ...wire.JournalLine) string {
	t.Helper()
	var b strings.Builder
	for _, l := range list {
		if err := json.NewEncoder(&b).Encode(l); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestLastLedgerOfASessionCounts(t *testing.T) {
	first, last, other := &wire.Ledger{Session: wire.SessionID{1}}, &wire.Ledger{Session: wire.SessionID{1}, Missed: 1}, &wire.Ledger{Session: wire.SessionID{2}}
	end := &wire.Unclaimed{Started: ranAt}
	j, err := ReadJournal(strings.NewReader(lines(t, wire.JournalLine{Ledger: first}, wire.JournalLine{Ledger: other}, wire.JournalLine{Ledger: last}, wire.JournalLine{Unclaimed: end})))
	if err != nil {
		t.Fatal(err)
	}
	want := &Journal{Ledgers: map[wire.SessionID]*wire.Ledger{{1}: last, {2}: other}, Unclaimed: []*wire.Unclaimed{end}}
	if diff := cmp.Diff(want, j, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestJournalCutOffHalfWayIsReadAsFarAsItGoes(t *testing.T) {
	first, second := &wire.Ledger{Session: wire.SessionID{1}}, &wire.Ledger{Session: wire.SessionID{1}, Missed: 1}
	whole := lines(t, wire.JournalLine{Ledger: first})
	text := lines(t, wire.JournalLine{Ledger: first}, wire.JournalLine{Ledger: second})
	for n := len(whole); n < len(text); n++ {
		want := first
		if n == len(text)-1 {
			want = second // only the newline is missing
		}
		j, err := ReadJournal(strings.NewReader(text[:n]))
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if diff := cmp.Diff(want, j.Ledgers[wire.SessionID{1}], same); diff != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", n, diff)
		}
	}
}

func TestUnreadableJournalsAreExplained(t *testing.T) {
	good := lines(t, wire.JournalLine{Ledger: &wire.Ledger{Session: wire.SessionID{1}}})
	const empty = "the journal is empty: a session stands in it when it is over, and all the rest when the reflector ends; stop that first"
	for text, want := range map[string]string{
		"":                            empty,
		"{}\n":                        empty,
		"garbage":                     "line 1: not a line of a reflector's journal: invalid character 'g' looking for beginning of value",
		good[:20]:                     "line 1: not a line of a reflector's journal: unexpected end of JSON input",
		"\x00\x01\n{}\n":              "line 1: not a line of a reflector's journal: invalid character '\\x00' looking for beginning of value",
		good + "garbage\n" + good:     "line 2: not a line of a reflector's journal: invalid character 'g' looking for beginning of value",
		`{"ledger":{"session":"12"}}`: `line 1: not a line of a reflector's journal: session id "12": want 32 hexadecimal digits`,
		"[1,2]":                       "line 1: not a line of a reflector's journal: json: cannot unmarshal array into Go value of type wire.JournalLine",
	} {
		j, err := ReadJournal(strings.NewReader(text))
		if err == nil {
			t.Errorf("%q is read as %+v", text, j)
			continue
		}
		if diff := cmp.Diff(want, err.Error()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

// offlineRun is what a client has that no port let through to control.
func offlineRun(t *testing.T) *Result {
	o := Observation{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 3, Stage: protocol.StageConnect, Fault: protocol.FaultTimeout, Local: netip.MustParseAddr("192.0.2.7")}
	return &Result{Session: wire.SessionID{1}, Started: ranAt, Seconds: 3, Findings: []Finding{{Path: "A", Direction: scenarios.Out, Transport: scenarios.TCP, Ports: o.Ports, Evidence: Evidence{Near: []Observation{o}}}}}
}

func unclaimed(t *testing.T, change func(*wire.Unclaimed)) *wire.Unclaimed {
	u := &wire.Unclaimed{Started: ranAt.Add(-time.Hour), Taken: ranAt.Add(time.Hour), Witness: "packet", TCP: ports(t, "443")}
	if change != nil {
		change(u)
	}
	return u
}

func TestMergeTurnsSilenceIntoAVerdict(t *testing.T) {
	own := netip.MustParseAddr("192.0.2.7")
	syns := func(from netip.Addr, at time.Time) func(*wire.Unclaimed) {
		return func(u *wire.Unclaimed) {
			u.SYNs = []wire.SourceSYNs{{Source: from, First: at, Last: at, SYNs: []wire.Caught{{Ports: ports(t, "443"), N: 3}}}}
		}
	}
	for name, c := range map[string]struct {
		line wire.JournalLine
		want Verdict
	}{
		"session found, SYN seen":       {wire.JournalLine{Ledger: &wire.Ledger{Session: wire.SessionID{1}, Witness: "packet", TCP: ports(t, "443"), SYNs: []wire.Caught{{Ports: ports(t, "443"), N: 1}}}}, ReplyLost},
		"session found, nothing seen":   {wire.JournalLine{Ledger: &wire.Ledger{Session: wire.SessionID{1}, Witness: "packet", TCP: ports(t, "443")}}, RequestLost},
		"session never seen, SYN seen":  {wire.JournalLine{Unclaimed: unclaimed(t, syns(own, ranAt.Add(time.Second)))}, ReplyLost},
		"session never seen, nor a SYN": {wire.JournalLine{Unclaimed: unclaimed(t, nil)}, RequestLost},
		"a SYN of somebody else":        {wire.JournalLine{Unclaimed: unclaimed(t, syns(netip.MustParseAddr("192.0.2.8"), ranAt))}, RequestLost},
		"a SYN of another time":         {wire.JournalLine{Unclaimed: unclaimed(t, syns(own, ranAt.Add(-time.Minute)))}, RequestLost},
		"no witness":                    {wire.JournalLine{Unclaimed: unclaimed(t, func(u *wire.Unclaimed) { u.Witness = "" })}, Silent},
	} {
		r := offlineRun(t)
		Conclude(r, &scenarios.Scenario{})
		if r.Findings[0].Verdict != Silent {
			t.Fatalf("before: %s", r.Findings[0].Verdict)
		}
		j, err := ReadJournal(strings.NewReader(lines(t, c.line)))
		if err != nil {
			t.Fatal(err)
		}
		l, err := j.For(r)
		if err != nil {
			t.Fatal(err)
		}
		r.Attach(WhereFar, l)
		Conclude(r, &scenarios.Scenario{})
		if diff := cmp.Diff(c.want, r.Findings[0].Verdict); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", name, r.Findings[0].Why, diff)
		}
	}
}

func TestUnclaimedArrivalsAreTheClientsByAddressAndTimeOrBySession(t *testing.T) {
	own := netip.MustParseAddrPort("192.0.2.7:5")
	e := func(from netip.AddrPort, at time.Time, id wire.SessionID) wire.Event {
		return wire.Event{Transport: scenarios.TCP, Remote: from, Time: at, Session: id}
	}
	other := netip.MustParseAddrPort("192.0.2.8:5")
	u := unclaimed(t, func(u *wire.Unclaimed) {
		u.Strays = []wire.Event{e(own, ranAt, wire.SessionID{}), e(other, ranAt, wire.SessionID{}), e(other, ranAt, wire.SessionID{1}), e(own, ranAt.Add(-time.Minute), wire.SessionID{})}
	})
	got, err := (&Journal{Unclaimed: []*wire.Unclaimed{unclaimed(t, func(u *wire.Unclaimed) { u.Taken = ranAt.Add(-time.Minute) }), u}}).For(offlineRun(t))
	if err != nil {
		t.Fatal(err)
	}
	want := &wire.Ledger{Session: wire.SessionID{1}, Started: ranAt.Add(-time.Second), Taken: u.Taken, Witness: "packet", TCP: u.TCP, Strays: []wire.Event{u.Strays[0], u.Strays[2]}}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestJournalOfAnotherTimeIsNoEvidence(t *testing.T) {
	j := &Journal{Unclaimed: []*wire.Unclaimed{unclaimed(t, func(u *wire.Unclaimed) { u.Started = ranAt.Add(time.Minute) })}}
	_, err := j.For(offlineRun(t))
	want := "the journal has neither session 01000000000000000000000000000000 nor the end of a reflector that ran at 2026-03-14 15:09:26; end the reflector with SIGTERM so that it writes both"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestLedgerThatIsThereIsNotReplaced(t *testing.T) {
	a, b := &wire.Ledger{Missed: 1}, &wire.Ledger{Missed: 2}
	var r Result
	r.Attach(WhereFar, a)
	r.Attach(WhereFar, b)
	r.Attach(WhereLAN, b)
	if diff := cmp.Diff(map[Where]*wire.Ledger{WhereFar: a, WhereLAN: b}, r.Ledgers, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
