package client

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// A Journal is what a reflector kept: the last ledger of every session, and
// what it saw without knowing whose it was.
type Journal struct {
	Ledgers   map[wire.SessionID]*wire.Ledger
	Unclaimed []*wire.Unclaimed // one for each orderly end of a reflector
}

// maxLine bounds a journal's line, bytes.
const maxLine = 64 << 20

// ReadJournal reads a journal. A last line that was cut off is left out: the
// one before it holds all but the last second.
func ReadJournal(r io.Reader) (*Journal, error) {
	j := &Journal{Ledgers: make(map[wire.SessionID]*wire.Ledger)}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	var bad error
	for n := 1; in.Scan(); n++ {
		if bad != nil {
			return nil, bad // a bad line that is not the last
		}
		var line wire.JournalLine
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			bad = fmt.Errorf("line %d: not a line of a reflector's journal: %w", n, err)
			continue
		}
		if line.Ledger != nil {
			j.Ledgers[line.Ledger.Session] = line.Ledger
		}
		if line.Unclaimed != nil {
			j.Unclaimed = append(j.Unclaimed, line.Unclaimed)
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if len(j.Ledgers) == 0 && len(j.Unclaimed) == 0 {
		if bad != nil {
			return nil, bad
		}
		return nil, fmt.Errorf("the journal is empty: a session stands in it when it is over, and all the rest when the reflector ends; stop that first")
	}
	return j, nil
}

// For gives the ledger of a result's session. Where no token ever arrived, it
// is made of what came from the client's addresses at that time.
func (j *Journal) For(r *Result) (*wire.Ledger, error) {
	if l := j.Ledgers[r.Session]; l != nil {
		return l, nil
	}
	from, to := r.Started.Add(-time.Second), r.Started.Add(time.Duration(r.Seconds*float64(time.Second))+time.Second)
	for _, u := range j.Unclaimed {
		if u.Started.After(to) || u.Taken.Before(from) {
			continue
		}
		return claimed(u, r, from, to), nil
	}
	return nil, fmt.Errorf("the journal has neither session %s nor the end of a reflector that ran at %s; end the reflector with SIGTERM so that it writes both",
		r.Session, r.Started.Format(time.DateTime))
}

// claimed picks what came from the client out of what belonged to nobody.
func claimed(u *wire.Unclaimed, r *Result, from, to time.Time) *wire.Ledger {
	l := &wire.Ledger{Session: r.Session, Started: from, Taken: u.Taken, Witness: u.Witness, TCP: u.TCP, UDP: u.UDP, Unserved: u.Unserved}
	own := ownAddrs(r)
	for _, s := range u.SYNs {
		if slices.Contains(own, s.Source) && !s.First.After(to) && !s.Last.Before(from) {
			l.SYNs = append(l.SYNs, s.SYNs...)
			l.Sources = append(l.Sources, s.Source)
		}
	}
	for _, e := range u.Strays {
		if e.Session == r.Session || slices.Contains(own, e.Remote.Addr()) && !e.Time.Before(from) && !e.Time.After(to) {
			l.Strays = append(l.Strays, e)
		}
	}
	return l
}

// ownAddrs are the addresses that the client sent from.
func ownAddrs(r *Result) []netip.Addr {
	var own []netip.Addr
	for _, f := range r.Findings {
		for _, o := range f.Evidence.Near {
			if o.Local.IsValid() && !slices.Contains(own, o.Local) {
				own = append(own, o.Local)
			}
		}
	}
	return own
}

// Attach adds a far end's ledger to a result that has none from it.
func (r *Result) Attach(where Where, l *wire.Ledger) {
	if r.Ledgers[where] != nil {
		return
	}
	if r.Ledgers == nil {
		r.Ledgers = make(map[Where]*wire.Ledger)
	}
	r.Ledgers[where] = l
}

// noLedger is in the reason of a run whose probes all came to their end, but
// whose reflector was not reached any more.
const noLedger = "did not give its ledger"

// LedgerLost tells whether nothing but a ledger is missing from the result.
func (r *Result) LedgerLost() bool { return !r.Complete && strings.Contains(r.Why, noLedger) }
