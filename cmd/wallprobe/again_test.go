package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A script is what a lab measures, time after time: findings such as "SC-3 cut?"
// of which ? stands for what no rule explains, and ! for a call from outside in a
// run whose control came late; or an error.
type labScript struct {
	script []string
	asked  []string // the paths of each time, and the time given
}

func (l *labScript) measure(_ context.Context, m lab.Measurement) ([]*client.Result, error) {
	now := l.script[len(l.asked)]
	var ids []string
	for _, p := range m.Scenarios[0].Paths {
		ids = append(ids, p.ID)
	}
	l.asked = append(l.asked, fmt.Sprint(strings.Join(ids, " "), " ", m.Timeout))
	if now == "error" {
		return nil, errors.New("no world")
	}
	r := &client.Result{Scenario: m.Scenarios[0].Name, Role: "machine", Complete: true, Seconds: 1, Ledgers: map[client.Where]*wire.Ledger{client.WhereFar: {Missed: uint64(len(l.asked))}}}
	for text := range strings.SplitSeq(now, ", ") {
		path, verdict, _ := strings.Cut(text, " ")
		v, sure := strings.CutSuffix(verdict, "?")
		direction := scenarios.Out
		if v, r.Offline = strings.CutSuffix(v, "!"); r.Offline {
			direction, r.Control.Via = scenarios.In, "80/tcp"
		}
		r.Findings = append(r.Findings, client.Finding{Path: path, Transport: scenarios.TCP, Need: scenarios.Required, Direction: direction, Verdict: client.Verdict(v), Unexplained: sure})
	}
	return []*client.Result{r}, nil
}

func TestOnlyWhatNoRuleExplainsIsMeasuredAgain(t *testing.T) {
	s, err := scenarios.Load("screenconnect")
	if err != nil {
		t.Fatal(err)
	}
	list, err := confined([]*scenarios.Scenario{s}, []string{"SC-3", "SC-4"})
	if err != nil {
		t.Fatal(err)
	}
	const all, one = "SC-3 SC-4 1s", "SC-3 2s"
	for _, tt := range []struct {
		name   string
		script []string
		client []string
		asked  []string
		want   string
	}{
		{"all open", []string{"SC-3 open, SC-4 open"}, nil, []string{all}, "SC-3 open 0, SC-4 open 0; works"},
		{"a rule stopped it", []string{"SC-3 cut, SC-4 open"}, nil, []string{all}, "SC-3 cut 0, SC-4 open 0; fails"},
		{"the machine did", []string{"SC-3 cut?, SC-4 open", "SC-3 open"}, nil, []string{all, one}, "SC-3 open 1 of 2, SC-4 open 0; works"},
		{"the machine did twice", []string{"SC-3 cut?, SC-4 open", "SC-3 request-lost?", "SC-3 open"}, nil, []string{all, one, one}, "SC-3 open 2 of 3, SC-4 open 0; works"},
		{"it stays so", []string{"SC-3 cut?, SC-4 open", "SC-3 cut?", "SC-3 cut?"}, nil, []string{all, one, one}, "SC-3 cut? 2 of 3, SC-4 open 0; fails"},
		{"a rule is found later", []string{"SC-3 cut?, SC-4 open", "SC-3 cut"}, nil, []string{all, one}, "SC-3 cut 1 of 2, SC-4 open 0; fails"},
		{"it says less", []string{"SC-3 cut?, SC-4 open", "SC-3 unmeasured", "SC-3 unmeasured"}, nil, []string{all, one, one}, "SC-3 cut? 0, SC-4 open 0; fails"},
		{"no second world", []string{"SC-3 cut?, SC-4 open", "error", "error"}, nil, []string{all, one, one}, "SC-3 cut? 0, SC-4 open 0; fails"},
		{"only what was doubtful", []string{"SC-3 cut?, SC-4 open", "SC-3 open, SC-4 cut?"}, nil, []string{all, one}, "SC-3 open 1 of 2, SC-4 open 0; works"},
		{"control came late", []string{"SC-4 open, SC-3 unmeasured!", "SC-3 open"}, nil, []string{all, one}, "SC-4 open 0, SC-3 open 1 of 2; works"},
		{"nobody calls", []string{"SC-3 unmeasured, SC-4 open"}, nil, []string{all}, "SC-3 unmeasured 0, SC-4 open 0; fails"},
		{"large transfers", []string{"SC-3 cut?, SC-4 open"}, []string{"--bytes", "1GiB"}, []string{all}, "SC-3 cut? 0, SC-4 open 0; fails"},
	} {
		l := labScript{script: tt.script}
		results, err := measureSurely(t.Context(), lab.Measurement{Scenarios: list, Timeout: time.Second, Client: tt.client}, l.measure)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		var got []string
		for _, f := range results[0].Findings {
			text := fmt.Sprintf("%s %s", f.Path, f.Verdict)
			if f.Unexplained {
				text += "?"
			}
			text += fmt.Sprintf(" %d", f.Round)
			if f.Round > 0 {
				text += fmt.Sprintf(" of %d", results[0].Ledgers[f.Where()].Missed)
			}
			got = append(got, text)
		}
		state := "works"
		for _, o := range client.Outcomes(s, "machine", results[0].Findings) {
			if o.ID == "remote-control" && !o.Works {
				state = "fails"
			}
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, ", ")+"; "+state); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.asked, l.asked); diff != "" {
			t.Errorf("%s: asked (-want +got):\n%s", tt.name, diff)
		}
		if len(tt.asked) > 1 && len(results[0].Outcomes) == 0 {
			t.Errorf("%s: outcomes are not worked out anew", tt.name)
		}
	}
	failing := labScript{script: []string{"error"}}
	if _, err := measureSurely(t.Context(), lab.Measurement{Scenarios: list}, failing.measure); err == nil {
		t.Error("a measurement that failed is told as one")
	}
}
