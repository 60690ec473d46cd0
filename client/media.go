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

// mediaAltered tells that large datagrams came at either end, as others.
func (e *portEvidence) mediaAltered() bool {
	return len(e.near.Media) > 0 && (e.near.Sample != "" || e.alteredThere(e.near.Probe+protocol.MediaVideo) != nil)
}

// lostShare is how much of n did not become m.
func lostShare(n, m int) float64 {
	if n == 0 {
		return 0
	}
	return float64(n-m) / float64(n)
}

// tooLossy says why what was answered loses too much; it is empty where it does
// not. Media are judged in each direction by itself, where the reflector's
// counts are known: their answers are a flow of their own.
func (e *portEvidence) tooLossy() string {
	o := e.near
	switch loss := lostShare(o.Sent, o.Answered); {
	case o.Sent < lossFrom:
		return ""
	case len(o.Media) > 0 && e.ledger:
		return e.mediaLoss()
	case loss > e.maxLoss:
		return fmt.Sprintf("%.0f %% of %d datagrams lost; at most %.0f %% are allowed", loss*100, o.Sent, e.maxLoss*100)
	}
	return ""
}

func (e *portEvidence) mediaLoss() string {
	var sent, seen, heard int
	for _, m := range e.near.Media {
		sent, seen, heard = sent+m.Sent, seen+m.Seen, heard+m.Heard
	}
	up, down := lostShare(sent, seen), lostShare(seen, heard)
	if max(up, down) <= e.maxLoss {
		return ""
	}
	return fmt.Sprintf("%.0f %% of %d datagrams lost on the way there and %.0f %% of %d on the way back; at most %.0f %% are allowed",
		up*100, sent, down*100, seen, e.maxLoss*100)
}
