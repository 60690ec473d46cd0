package wire

import "sync"

// A Transcript is a Said that is being made. The zero value is empty. It is
// safe for concurrent use: a ledger may tell of a dialogue that goes on.
type Transcript struct {
	mu   sync.Mutex
	said Said
}

// Say records a line before it is sent, so that whatever the other end heard is
// known to have been said.
func (t *Transcript) Say(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.said.Sent = appendSaid(t.said.Sent, line)
}

// Hear records a line that was heard.
func (t *Transcript) Hear(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.said.Heard = appendSaid(t.said.Heard, line)
}

// Said is what was said and heard so far. It does not change any more.
func (t *Transcript) Said() *Said {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, m := len(t.said.Sent), len(t.said.Heard)
	return &Said{Sent: t.said.Sent[:n:n], Heard: t.said.Heard[:m:m]} // more goes behind these, or elsewhere
}

func appendSaid(list []string, line string) []string {
	if len(list) >= MaxSaid {
		return list
	}
	return append(list, cut(line, MaxSaidLine))
}
