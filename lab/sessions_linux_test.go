package lab_test

import (
	"slices"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Everything that one session leaves behind at a reflector, after sweeps of all
// ports, must leave the next one its due: the verdicts of both are the same.
func TestNextSessionFaresLikeTheOneBefore(t *testing.T) {
	lab.NeedLab(t)
	s, err := scenarios.Load("chrome-remote-desktop")
	if err != nil {
		t.Fatal(err)
	}
	list := []*scenarios.Scenario{s}
	w := lab.Stand(t, lab.ConfigFor(list))
	results, err := w.Measure(t.Context(), lab.Measurement{
		Scenarios: list, Program: programFor(t), Read: report.ReadJSON,
		Roles: func(*scenarios.Scenario) []string { return []string{"client", "client", "host"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 3 {
		t.Fatalf("%d results, want 3", len(results))
	}
	for _, r := range results {
		for _, f := range r.Findings {
			if f.Verdict != client.Open && f.Verdict != client.Unmeasured {
				t.Errorf("%s: %s is %s behind no firewall: %s", r.Role, f.Path, f.Sentence(), f.Why)
			}
		}
		relayed := slices.ContainsFunc(r.Findings, func(f client.Finding) bool { return f.Path == "CRD-A3b" && f.Verdict == client.Open })
		if !relayed {
			t.Errorf("%s: no allocation over UDP was measured", r.Role)
		}
	}
}
