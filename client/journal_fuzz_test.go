package client

import (
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A journal is refused with its line, or holds something. Merged into a run
// that had no control, it harms nothing.
func FuzzReadJournal(f *testing.F) {
	f.Add("")
	f.Add("{}\n")
	f.Add("garbage\n{}")
	f.Add(`{"ledger":{"session":"01000000000000000000000000000000","probes":[{"probe":1,"events":[{"transport":"tcp","remote":"192.0.2.7:9","stage":"token","said":{"heard":["x"]}}]}],"strays":[{"tls":{}}]}}` + "\n")
	f.Add(`{"unclaimed":{"started":"2026-01-01T00:00:00Z","taken":"2027-01-01T00:00:00Z","tcp":"443","syns":[{}],"strays":[{}]}}` + "\n" + `{"ledger":null,"unclaimed":null}`)
	f.Add(`{"ledger":{"session":"01000000000000000000000000000000","syns":[{}],"unserved":[{"ports":"1-9"}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		j, err := ReadJournal(strings.NewReader(text))
		if err != nil {
			return
		}
		if len(j.Ledgers)+len(j.Unclaimed) == 0 {
			t.Errorf("%q is an empty journal", text)
		}
		r := offlineRun(t)
		l, err := j.For(r)
		if err != nil {
			return
		}
		r.Attach("", l)
		Conclude(r, &scenarios.Scenario{})
		if len(r.Findings) != 1 || r.Findings[0].Verdict == "" {
			t.Errorf("%q: %+v", text, r.Findings)
		}
	})
}
