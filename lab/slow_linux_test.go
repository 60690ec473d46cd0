package lab_test

import (
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
)

// slowLine makes the firewall's links slow in both directions, with a queue of so
// many bytes before them.
func slowLine(rate, queue string) func(*scene) {
	return func(s *scene) {
		tc := need.Program(s, "tc")
		for _, link := range []string{"lan0", "wan0"} {
			cmd := s.firewall().Command(s.Context(), tc, "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", "32kb", "limit", queue)
			var said strings.Builder
			cmd.Stdout, cmd.Stderr = &said, &said
			switch err := s.firewall().Run(cmd); {
			case strings.Contains(said.String(), "kind is unknown"):
				need.Missing(s, "this kernel cannot make a line slow: it lacks CONFIG_NET_SCH_TBF")
			case err != nil:
				s.Fatalf("tc: %v\n%s", err, &said)
			}
		}
	}
}

// A line that is slow, and nothing else, cuts nothing: what was sent waits in
// queues, here of a second and half a second, and in the buffers of both ends.
func TestSlowLineCutsNothing(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for name, c := range map[string]struct {
		scenario, rate, queue string
		paths                 []string
		client                []string
	}{
		"all at once":        {"single", "1mbit", "128000", nil, nil},
		"files, all at once": {"files", "1mbit", "128000", nil, nil},
		"much":               {"http", "2mbit", "128000", []string{"HTTPS"}, []string{"--bytes", "1MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := row{name: "slow line", scenario: c.scenario, rules: firewall(""), boxes: slowLine(c.rate, c.queue)}
			w, s := r.stand(t)
			m := r.measurement(s, program, "ipv4")
			m.Timeout, m.Paths, m.Client = 5*time.Second, c.paths, c.client
			results, err := w.Measure(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range results[0].Findings {
				if f.Verdict != client.Open {
					t.Errorf("%s: %s", f.Path, f.Sentence())
					for _, p := range f.Parts {
						t.Logf("%s: %s: %s", p.Target, p.Verdict, p.Why)
					}
				}
			}
		})
	}
}
