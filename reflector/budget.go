package reflector

import (
	"sync/atomic"

	"github.com/wallprobe/wallprobe/wire"
)

// Bounds on the memory of records, in bytes. Beyond maxRich a session's events
// lose their dialogues and handshakes, beyond maxHeld there are no more of
// them; what is beyond maxMemory of all sessions together is not kept at all.
const (
	maxRich    = 4 << 20
	maxHeld    = 24 << 20
	maxMemory  = 512 << 20
	wideBytes  = 128 << 10
	probeBytes = 4 << 10 // a probe with a port or two; its table of 64 included
)

// A budget is shared by all sessions. The zero value is untouched.
type budget struct{ used atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.used.Add(n) <= maxMemory {
		return true
	}
	b.used.Add(-n)
	return false
}

// take asks for n bytes; the caller holds the lock.
func (r *record) take(n int64) bool {
	switch {
	case r.shared == nil:
		return true
	case r.held+n > maxHeld || !r.shared.take(n):
		return false
	}
	r.held += n
	return true
}

// room asks for an event's bytes, and makes it smaller where that helps; the
// caller holds the lock.
func (r *record) room(e *wire.Event) bool {
	if r.held+int64(e.Size()) > maxRich || !r.take(int64(e.Size())) {
		e.Bare()
		return r.take(int64(e.Size()))
	}
	return true
}

// release gives everything back, once.
func (r *record) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shared != nil {
		r.shared.used.Add(-r.held)
	}
	r.held, r.shared = 0, nil
}
