package lab_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// countsResets lets everything pass and counts resets, those of each path by end.
func countsResets(s *scenarios.Scenario) lab.Firewall {
	var b strings.Builder
	for _, p := range s.Paths {
		if p.Transport[0] != scenarios.TCP {
			continue
		}
		for side, match := range map[string]string{"near": `iifname "lan0" tcp dport`, "far": `iifname "wan0" tcp sport`} {
			fmt.Fprintf(&b, "\t\t%s { %s } tcp flags & rst == rst counter accept comment \"%s, %s end\"\n", match, p.Ports, p.Title, side)
		}
	}
	b.WriteString("\t\ttcp flags & rst == rst counter comment \"another port\"\n")
	b.WriteString("\t\ttcp flags & fin == fin counter comment \"ends\"\n")
	return lab.Firewall{Name: "counts resets", Text: []byte(firewall(b.String()))}
}

// A firewall's log and whoever looks at packets take a reset for an abort: an
// exchange that nobody disturbs has none, from either end.
func TestUndisturbedExchangesEndWithoutResets(t *testing.T) {
	lab.NeedLab(t)
	t.Parallel()
	program := programFor(t)
	for _, more := range []string{", bytes: 100000, idle: 100ms", ", bytes: 100000", ", idle: 100ms", ""} {
		s := everyProtocol(t, more, 443) // that of control
		c := lab.ConfigFor([]*scenarios.Scenario{s})
		c.Firewall = countsResets(s)
		w := lab.Stand(t, c)
		results, err := w.Measure(t.Context(), lab.Measurement{Scenarios: []*scenarios.Scenario{s}, Timeout: truthTimeout, Program: program, Read: report.ReadJSON})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range results[0].Findings {
			if f.Verdict != client.Open {
				t.Errorf("%s over %s: %s (%s)", f.Title, f.Transport, f.Sentence(), f.Why)
			}
		}
		ends := uint64(0)
		for _, r := range results[0].Firewall.Rules { // those that counted something
			switch {
			case strings.Contains(r.Text, "rst"):
				t.Errorf("with %q: %d resets: %s", more, r.Packets, r.Text)
			case strings.Contains(r.Text, "fin"):
				ends = r.Packets
			}
		}
		if ends < 2*uint64(len(protocol.Names())) {
			t.Fatalf("with %q: %d orderly ends", more, ends)
		}
	}
}
