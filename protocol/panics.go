package protocol

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// A Panic is what something panicked with in a goroutine other than the one
// that serves the peer. That one panics with it anew, so that all panics come
// out where the end's caller can bound them.
type Panic struct {
	Value any
	Stack []byte // of where it was
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// panics are those of what serves one peer. Libraries call this package in
// goroutines of their own, where a panic ends the program or, with HTTP, is
// swallowed without a word.
type panics struct {
	mu    sync.Mutex
	first *Panic
}

// keep is deferred in what runs in other goroutines: it keeps a panic and calls
// end, which ends what is served.
func (p *panics) keep(end func()) {
	if v := recover(); v != nil {
		p.note(v)
		end()
	}
}

func (p *panics) note(v any) {
	first, ok := v.(*Panic)
	if !ok {
		first = &Panic{v, debug.Stack()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == nil {
		p.first = first
	}
}

// again panics with what was kept, if anything was.
func (p *panics) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first != nil {
		panic(p.first)
	}
}
