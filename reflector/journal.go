package reflector

import (
	"encoding/json"
	"io"
	"slices"
	"sync"

	"github.com/wallprobe/wallprobe/wire"
)

// maxUnclaimed bounds the arrivals kept that belong to no session.
const maxUnclaimed = 4096

// maxUnclaimedBytes bounds those that keep their dialogues and handshakes.
const maxUnclaimedBytes = 4 << 20

// A journal writes wire.JournalLine values, one JSON object a line. The last
// line of a session holds all of the lines before it.
type journal struct {
	mu     sync.Mutex
	w      io.Writer // nil keeps no journal
	err    error     // first error of writing; nothing is written after it
	strays []wire.Event
	held   int // bytes of strays
}

func (j *journal) write(line wire.JournalLine) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.w == nil || j.err != nil {
		return
	}
	j.err = json.NewEncoder(j.w).Encode(line)
}

func (j *journal) ledger(l *wire.Ledger) { j.write(wire.JournalLine{Ledger: l}) }

// stray keeps an arrival for the journal's last line.
func (j *journal) stray(e wire.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.w != nil && len(j.strays) < maxUnclaimed {
		if j.held += e.Size(); j.held > maxUnclaimedBytes {
			e.Bare()
		}
		j.strays = append(j.strays, e)
	}
}

// close writes what belongs to no session: with it, merge can tell that a SYN
// arrived although no token ever did.
func (j *journal) close(r *Reflector) {
	u := &wire.Unclaimed{Started: r.started, Taken: r.now(), Witness: r.witnessKind(), Strays: slices.Clone(j.strays)}
	u.TCP, u.UDP = r.set.Served()
	u.Unserved = r.unserved
	u.SYNs = r.syns.bySource()
	j.write(wire.JournalLine{Unclaimed: u})
}

// Err is the first error of writing.
func (j *journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}
