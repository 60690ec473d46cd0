package client

import (
	"fmt"

	"github.com/wallprobe/wallprobe/protocol"
)

// media completes the flows of a media probe with what the reflector saw of
// each: the video's counts are those of a probe of its own.
func (v *farView) media(e *portEvidence, port uint16) {
	for i := range e.near.Media {
		m := &e.near.Media[i]
		part := uint32(0)
		if m.Flow == "video" {
			part = protocol.MediaVideo
		}
		p := v.probes[e.near.Probe+part]
		if m.Seen = 0; p != nil {
			m.Seen = int(p.seen[port])
		}
		m.Seen = max(m.Seen, m.Heard) // what was answered was seen, even where the ledger was full
		up, down := lostShare(m.Sent, m.Seen), lostShare(m.Seen, m.Heard)
		m.LossUp, m.LossDown = &up, &down
		if part != 0 && p != nil {
			e.seen, e.answered = e.seen+m.Seen, e.answered+int(p.answered[port])
		}
	}
}

// lostShare is how much of n did not become m.
func lostShare(n, m int) float64 {
	if n == 0 {
		return 0
	}
	return 1 - float64(m)/float64(n)
}

// mediaLoss says of media that lose too much in which direction they do. It is
// empty where they do not, and where the reflector's counts are not known.
func (e *portEvidence) mediaLoss() string {
	var sent, seen, heard int
	for _, m := range e.near.Media {
		sent, seen, heard = sent+m.Sent, seen+m.Seen, heard+m.Heard
	}
	if !e.ledger || sent < lossFrom {
		return ""
	}
	up, down := lostShare(sent, seen), lostShare(seen, heard)
	if max(up, down) <= e.maxLoss {
		return ""
	}
	return fmt.Sprintf("%.0f %% of %d datagrams lost on the way there and %.0f %% of %d on the way back; at most %.0f %% are allowed",
		up*100, sent, down*100, seen, e.maxLoss*100)
}
