package client

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Loss by direction needs both ends: the near end's counts and the ledger's, in
// which the video is a probe of its own.
func TestLossOfMediaIsJudgedByDirection(t *testing.T) {
	seen := func(audio, video int) *wire.Ledger {
		return of(t, counted(t, 1, "443", audio, audio), counted(t, 1+protocol.MediaVideo, "443", video, video))
	}
	share := func(s float64) *float64 { return &s }
	for name, c := range map[string]struct {
		audio, video int // heard, of 40 and 20
		far          *wire.Ledger
		maxLoss      float64
		verdict      Verdict
		why          string
		seen         int
		up, down     *float64 // of the audio
	}{
		"nothing lost":       {40, 20, seen(40, 20), 0, Open, "fine", 60, share(0), share(0)},
		"lost there":         {20, 10, seen(20, 10), 0, Degraded, "50 % of 60 datagrams lost on the way there and 0 % of 30 on the way back; at most 20 % are allowed", 30, share(0.5), share(0)},
		"lost back":          {20, 10, seen(40, 20), 0, Degraded, "0 % of 60 datagrams lost on the way there and 50 % of 60 on the way back; at most 20 % are allowed", 60, share(0), share(0.5)},
		"a little both ways": {30, 16, seen(34, 18), 0, Open, "fine", 52, share(6.0 / 40), share(4.0 / 34)},
		"less is allowed":    {30, 16, seen(34, 18), 0.1, Degraded, "13 % of 60 datagrams lost on the way there and 12 % of 52 on the way back; at most 10 % are allowed", 52, share(6.0 / 40), share(4.0 / 34)},
		"no ledger":          {20, 10, nil, 0, Degraded, "50 % of 60 datagrams lost; at most 20 % are allowed", 0, nil, nil},
	} {
		f := Finding{Transport: scenarios.UDP, Protocol: "goto-media", Ports: ports(t, "443"), MaxLoss: c.maxLoss}
		f.Evidence.Near = []Observation{{Probe: 1, Addr: farAddr, Ports: ports(t, "443"), Sent: 60, Answered: c.audio + c.video, Stage: "done", Detail: "fine",
			Media: []wire.Media{{Flow: "audio", Sent: 40, Heard: c.audio}, {Flow: "video", Sent: 20, Heard: c.video}}}}
		list := []Finding{f}
		for range 2 { // judging again changes nothing
			Judge(list, map[Where]*wire.Ledger{WhereFar: c.far}, Control{})
			got := list[0]
			if got.Verdict != c.verdict || got.Why != c.why || got.Attempts.Seen != c.seen {
				t.Errorf("%s: %s, %q, %+v", name, got.Verdict, got.Why, *got.Attempts)
			}
			audio := got.Evidence.Near[0].Media[0]
			if diff := cmp.Diff([]*float64{c.up, c.down}, []*float64{audio.LossUp, audio.LossDown}); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
	}
}
