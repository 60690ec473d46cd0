package lab

import (
	"context"
	"slices"

	"github.com/wallprobe/wallprobe/client"
)

// Turns measures from one near end behind two firewalls by turns, n rounds. Both
// worlds and their reflectors stand all the while, so that what else the machine
// does meanwhile concerns both.
func Turns(ctx context.Context, here, there *World, m Measurement, n int) ([]Round, error) {
	m.Client = append(slices.Clone(m.Client), "--one-by-one")
	var trials [2]*trial
	for i, w := range []*World{here, there} {
		t, err := w.trial(m)
		if err != nil {
			return nil, err
		}
		defer t.end()
		if err := t.startReflectors(ctx); err != nil {
			return nil, err
		}
		trials[i] = t
	}
	var rounds []Round
	for range n {
		var r Round
		for _, turn := range []struct {
			t    *trial
			into **client.Result
		}{{trials[1], &r.Before}, {trials[0], &r.Here}, {trials[1], &r.After}} {
			results, err := turn.t.runClients(ctx)
			if err != nil || len(results) == 0 {
				return nil, err
			}
			*turn.into = results[0]
		}
		rounds = append(rounds, r)
	}
	own, other := trials[0].stop(), trials[1].stop()
	for _, r := range rounds {
		trials[0].join(r.Here, own)
		trials[1].join(r.Before, other)
		trials[1].join(r.After, other)
	}
	return rounds, nil
}
