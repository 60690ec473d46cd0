package monitor

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// ports reads a set of ports.
func ports(t testing.TB, text string) scenarios.PortSet {
	t.Helper()
	s, err := scenarios.ParsePortSet(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// result is one of three paths and two outcomes, all well.
func result(t testing.TB) *client.Result {
	share := 0.5
	return &client.Result{
		Scenario: "own", Role: "pc", Complete: true, Control: client.Control{Via: "443/tcp"}, Started: time.Unix(1_700_000_000, 0),
		Findings: []client.Finding{
			{Path: "O-1", Transport: "tcp", Need: scenarios.Required, Ports: ports(t, "443"), Verdict: client.Open, RTT: 1.5, Attempts: &client.Attempts{Sent: 1, Seen: 1, Answered: 1}},
			{Path: "O-2", Transport: "udp", Need: scenarios.Optional, Ports: ports(t, "4000-4009"), Verdict: client.Partial, Pick: scenarios.PickAny, Share: &share,
				Parts: []client.Part{{Ports: ports(t, "4000-4004"), Verdict: client.Open}, {Ports: ports(t, "4005-4009"), Verdict: client.RequestLost}}},
			{Path: "O-3", Transport: "tcp", Need: scenarios.Required, Ports: ports(t, "9"), Verdict: client.Unmeasured},
		},
		Outcomes: []client.Outcome{
			{ID: "sign-in", Title: "sign-in", Works: true, Via: "web", Ways: []client.Way{{Title: "web", Works: true}}},
			{ID: "talk", Title: "conversation", Optional: true, Works: true, Via: "relay", Ways: []client.Way{{Title: "direct"}, {Title: "relay", Works: true}}},
		},
		Expectations: []client.Expectation{
			{File: "office.yaml", Line: 6, Path: "O-1", Transport: "tcp", Ports: ports(t, "443"), Expected: []string{"open", "degraded"}, State: client.Holds},
			{File: "office.yaml", Line: 9, Outcome: "talk", Title: "conversation", Expected: []string{"works"}, State: client.Holds},
		},
	}
}

// with is a result that was changed.
func with(t testing.TB, change func(*client.Result)) *client.Result {
	r := result(t)
	change(r)
	return r
}

func TestChangesTellWhatIsDifferentAndNothingElse(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, now *client.Result
		want     []string
	}{
		{"first round", nil, with(t, func(r *client.Result) { r.Findings[0].Verdict = client.Rejected; r.Outcomes[0].Works = false }),
			[]string{"O-1 443/tcp: rejected", "sign-in: fails"}},
		{"first round, all well", nil, result(t), nil},
		{"first round, closed as documented", nil, with(t, func(r *client.Result) {
			r.Findings[0].Verdict, r.Findings[0].Need = client.Rejected, scenarios.Negative
		}), nil},
		{"same, but for times", result(t), with(t, func(r *client.Result) { r.Seconds, r.Findings[0].RTT = 9, 9 }), nil},
		{"a verdict", result(t), with(t, func(r *client.Result) { r.Findings[0].Verdict = client.RequestLost }), []string{"O-1 443/tcp: open -> request-lost"}},
		{"a boundary", result(t), with(t, func(r *client.Result) {
			r.Findings[1].Parts = []client.Part{{Ports: ports(t, "4000-4003"), Verdict: client.Open}, {Ports: ports(t, "4004-4009"), Verdict: client.RequestLost}}
		}), []string{"O-2 4004/udp: open -> request-lost"}},
		{"a range is whole", result(t), with(t, func(r *client.Result) { r.Findings[1].Verdict, r.Findings[1].Parts = client.Open, nil }),
			[]string{"O-2 4005-4009/udp: request-lost -> open"}},
		{"one target of several",
			with(t, func(r *client.Result) {
				r.Findings[0].Parts = []client.Part{{Target: "a", Ports: ports(t, "443"), Verdict: client.Open}, {Target: "b", Ports: ports(t, "443"), Verdict: client.Open}}
			}),
			with(t, func(r *client.Result) {
				r.Findings[0].Parts = []client.Part{{Target: "a", Ports: ports(t, "443"), Verdict: client.Open}, {Target: "b", Ports: ports(t, "443"), Verdict: client.Cut}}
			}), []string{"O-1 443/tcp at b: open -> cut"}},
		{"an expectation", result(t), with(t, func(r *client.Result) { r.Expectations[0].State = client.Fails }),
			[]string{"office.yaml:6 expects O-1 443/tcp open or degraded: holds -> fails"}},
		{"first round, an expectation", nil, with(t, func(r *client.Result) { r.Expectations[1].State = client.Untold }),
			[]string{"office.yaml:9 expects conversation works: untold"}},
		{"another way", result(t), with(t, func(r *client.Result) { r.Outcomes[1].Via = "direct" }), []string{"conversation: works by way 2, relay -> works by way 1, direct"}},
		{"an outcome", result(t), with(t, func(r *client.Result) { r.Outcomes[0].Works, r.Outcomes[0].Unknown = false, true }), []string{"sign-in: works -> unknown"}},
		{"a path that was not there", with(t, func(r *client.Result) { r.Findings = r.Findings[1:] }), result(t), []string{"O-1 443/tcp: not there -> open"}},
	} {
		if diff := cmp.Diff(tt.want, Changes(tt.old, tt.now)); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}

func TestRoundsBeginAtOnceNeverOverlapAndKeepTheirInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		began := time.Now()
		var running atomic.Int32
		var starts []time.Duration
		m := &Monitor{Interval: 5 * time.Minute,
			Measure: func(context.Context) ([]*client.Result, error) {
				if running.Add(1) != 1 {
					t.Error("two rounds at once")
				}
				starts = append(starts, time.Since(began))
				took := 10 * time.Second
				if len(starts) == 3 {
					took = 12 * time.Minute
				}
				time.Sleep(took)
				running.Add(-1)
				return []*client.Result{result(t)}, nil
			},
			Tell: func(*Round) error { return nil },
		}
		last, err := m.Run(ctx)
		if err != nil || last.Number != len(starts) {
			t.Errorf("%v, last round %d of %d", err, last.Number, len(starts))
		}
		if len(starts) < 8 || starts[0] != 0 {
			t.Fatalf("rounds began at %v", starts)
		}
		same := true
		for i := range starts[1:] {
			gap := starts[i+1] - starts[i]
			same = same && gap == starts[1]-starts[0]
			switch {
			case i == 2 && gap != 12*time.Minute+time.Second:
				t.Errorf("after a long round the next began %v later", gap)
			case i != 2 && (gap < 270*time.Second || gap > 330*time.Second):
				t.Errorf("round %d began %v after the one before", i+2, gap)
			}
		}
		if same {
			t.Error("no jitter")
		}
	})
}

func TestPauseHasItsBounds(t *testing.T) {
	for _, tt := range []struct {
		interval, took time.Duration
		at             float64
		want           time.Duration
	}{
		{100 * time.Second, 10 * time.Second, 0, 80 * time.Second},
		{100 * time.Second, 10 * time.Second, 0.5, 90 * time.Second},
		{100 * time.Second, 10 * time.Second, 1, 100 * time.Second},
		{100 * time.Second, time.Hour, 1, time.Second},
		{500 * time.Millisecond, time.Hour, 1, 500 * time.Millisecond},
	} {
		if got := pause(tt.interval, tt.took, tt.at); got != tt.want {
			t.Errorf("pause(%v, %v, %v) = %v, want %v", tt.interval, tt.took, tt.at, got, tt.want)
		}
	}
}

func TestAnInterruptedRoundIsNoneUnlessItIsTheFirst(t *testing.T) {
	for _, whole := range []int{0, 2} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			n, told := 0, 0
			m := &Monitor{Interval: time.Minute, Metrics: NewMetrics("v1", time.Minute),
				Measure: func(ctx context.Context) ([]*client.Result, error) {
					if n++; n > whole {
						stop()
						return nil, errors.New("stopped")
					}
					return []*client.Result{result(t)}, nil
				},
				Tell: func(*Round) error { told++; return nil },
			}
			last, err := m.Run(ctx)
			if err != nil || last.Number != max(1, whole) || told != whole || m.Metrics.rounds != whole {
				t.Errorf("after %d rounds: %v, last %d, told %d, counted %d", whole, err, last.Number, told, m.Metrics.rounds)
			}
		})
	}
}

func TestWhatCannotBeToldEndsTheMonitor(t *testing.T) {
	broken := errors.New("broken pipe")
	m := &Monitor{Interval: time.Hour, Measure: func(context.Context) ([]*client.Result, error) { return nil, nil },
		Tell: func(*Round) error { return broken }}
	if _, err := m.Run(t.Context()); err != broken {
		t.Error(err)
	}
}

func TestFailuresHaveTheirReasons(t *testing.T) {
	for want, r := range map[string]*Round{
		"":          {Results: []*client.Result{with(t, func(r *client.Result) { r.Findings[0].Verdict = client.RequestLost })}},
		Unreachable: {Results: []*client.Result{result(t), with(t, func(r *client.Result) { r.Control.Via = "" })}},
		Incomplete:  {Results: []*client.Result{with(t, func(r *client.Result) { r.Complete = false })}},
		Refused:     {Err: fmt.Errorf("round: %w", &wire.ControlError{Message: "too many sessions"})},
		Failed:      {Err: errors.New("the name has no address")},
	} {
		if got := r.Failure(); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}

const wholeRound = `
# HELP wallprobe_expectation_holds With --expect: 1 if what a line of the file expects holds, 0 if not; not there where that could not be measured.
# TYPE wallprobe_expectation_holds gauge
wallprobe_expectation_holds{file="office.yaml",line="6",outcome="",path="O-1",role="pc",scenario="own",transport="tcp"} 1
wallprobe_expectation_holds{file="office.yaml",line="9",outcome="talk",path="",role="pc",scenario="own",transport=""} 1
# HELP wallprobe_failed_rounds_total Rounds that prove nothing of some of what they should.
# TYPE wallprobe_failed_rounds_total counter
wallprobe_failed_rounds_total{reason="error"} 0
wallprobe_failed_rounds_total{reason="incomplete"} 0
wallprobe_failed_rounds_total{reason="refused"} 0
wallprobe_failed_rounds_total{reason="unreachable"} 0
# HELP wallprobe_finding_attempts Attempts of the last round: sent, seen by the reflector, answered.
# TYPE wallprobe_finding_attempts gauge
wallprobe_finding_attempts{need="req",path="O-1",role="pc",scenario="own",stage="answered",transport="tcp"} 1
wallprobe_finding_attempts{need="req",path="O-1",role="pc",scenario="own",stage="seen",transport="tcp"} 1
wallprobe_finding_attempts{need="req",path="O-1",role="pc",scenario="own",stage="sent",transport="tcp"} 1
# HELP wallprobe_finding_open_ratio Share of a range's ports that pass, of paths with a range.
# TYPE wallprobe_finding_open_ratio gauge
wallprobe_finding_open_ratio{need="opt",path="O-2",role="pc",scenario="own",transport="udp"} 0.5
# HELP wallprobe_finding_passes 1 if the application can use the path, 0 if not; not there where that could not be measured.
# TYPE wallprobe_finding_passes gauge
wallprobe_finding_passes{need="req",path="O-1",role="pc",scenario="own",transport="tcp"} 1
wallprobe_finding_passes{need="opt",path="O-2",role="pc",scenario="own",transport="udp"} 1
# HELP wallprobe_finding_rtt_seconds Round-trip time.
# TYPE wallprobe_finding_rtt_seconds gauge
wallprobe_finding_rtt_seconds{need="req",path="O-1",role="pc",scenario="own",transport="tcp"} 0.0015
# HELP wallprobe_finding_verdict 1, with the verdict on the path.
# TYPE wallprobe_finding_verdict gauge
wallprobe_finding_verdict{need="req",path="O-1",role="pc",scenario="own",transport="tcp",verdict="open"} 1
wallprobe_finding_verdict{need="opt",path="O-2",role="pc",scenario="own",transport="udp",verdict="partial"} 1
wallprobe_finding_verdict{need="req",path="O-3",role="pc",scenario="own",transport="tcp",verdict="unmeasured"} 1
# HELP wallprobe_interval_seconds Time from the beginning of a round to that of the next.
# TYPE wallprobe_interval_seconds gauge
wallprobe_interval_seconds 300
# HELP wallprobe_measured_timestamp_seconds When the last whole measurement began; none is shown before the first.
# TYPE wallprobe_measured_timestamp_seconds gauge
wallprobe_measured_timestamp_seconds{role="pc",scenario="own"} 1.7e+09
# HELP wallprobe_outcome_unknown 1 if too little could be measured to say whether it works, else 0.
# TYPE wallprobe_outcome_unknown gauge
wallprobe_outcome_unknown{need="required",outcome="sign-in",role="pc",scenario="own"} 0
wallprobe_outcome_unknown{need="optional",outcome="talk",role="pc",scenario="own"} 0
# HELP wallprobe_outcome_way By which of the documented ways it works, from 1 in the application's order; 0 is none.
# TYPE wallprobe_outcome_way gauge
wallprobe_outcome_way{need="required",outcome="sign-in",role="pc",scenario="own"} 1
wallprobe_outcome_way{need="optional",outcome="talk",role="pc",scenario="own"} 2
# HELP wallprobe_outcome_works 1 if what people want works, 0 if it fails; not there where that is unknown.
# TYPE wallprobe_outcome_works gauge
wallprobe_outcome_works{need="required",outcome="sign-in",role="pc",scenario="own"} 1
wallprobe_outcome_works{need="optional",outcome="talk",role="pc",scenario="own"} 1
# HELP wallprobe_round_complete 1 if the last round was whole, 0 if it failed: then its findings are not shown.
# TYPE wallprobe_round_complete gauge
wallprobe_round_complete 1
# HELP wallprobe_round_duration_seconds How long the last round took that ended.
# TYPE wallprobe_round_duration_seconds gauge
wallprobe_round_duration_seconds 2
# HELP wallprobe_round_started_timestamp_seconds When the round that runs, or the last one, began.
# TYPE wallprobe_round_started_timestamp_seconds gauge
wallprobe_round_started_timestamp_seconds 1.7e+09
# HELP wallprobe_rounds_total Rounds that came to their end, failed ones too.
# TYPE wallprobe_rounds_total counter
wallprobe_rounds_total 1
`

// build is what comes before wholeRound.
var build = fmt.Sprintf(`
# HELP wallprobe_build_info 1, with the version of wallprobe and of Go.
# TYPE wallprobe_build_info gauge
wallprobe_build_info{goversion="%s",version="v1"} 1`, runtime.Version())

// after is the metrics after some rounds.
func after(rounds ...*Round) *Metrics {
	m := NewMetrics("v1", 5*time.Minute)
	for _, r := range rounds {
		m.begin(time.Unix(1_700_000_000, 0))
		m.end(r)
	}
	return m
}

func TestMetricsShowARoundWhole(t *testing.T) {
	m := after(&Round{Took: 2 * time.Second, Results: []*client.Result{result(t)}})
	if err := testutil.CollectAndCompare(m, strings.NewReader(build+wholeRound)); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(m)
	if err != nil || len(problems) > 0 {
		t.Error(err, problems)
	}
}

func TestAFailedRoundWithdrawsItsFindingsAndKeepsTheirTime(t *testing.T) {
	whole := &Round{Results: []*client.Result{result(t), with(t, func(r *client.Result) { r.Scenario = "other" })}}
	for _, failed := range []*Round{
		{Err: errors.New("the name has no address")},
		{Results: []*client.Result{with(t, func(r *client.Result) { r.Control.Via = "" }), with(t, func(r *client.Result) { r.Scenario = "other" })}},
	} {
		m := after(whole, failed)
		for name, want := range map[string]int{
			"wallprobe_finding_verdict": 3 * len(failed.Results) / 2, "wallprobe_finding_passes": len(failed.Results),
			"wallprobe_outcome_works": len(failed.Results), "wallprobe_measured_timestamp_seconds": 2,
		} {
			if got := testutil.CollectAndCount(m, name); got != want {
				t.Errorf("%s: %d, want %d", name, got, want)
			}
		}
		want := "# HELP wallprobe_round_complete 1 if the last round was whole, 0 if it failed: then its findings are not shown.\n" +
			"# TYPE wallprobe_round_complete gauge\nwallprobe_round_complete 0\n"
		if err := testutil.CollectAndCompare(m, strings.NewReader(want), "wallprobe_round_complete"); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsUnknownIsNeitherWellNorIll(t *testing.T) {
	m := after(&Round{Results: []*client.Result{with(t, func(r *client.Result) {
		r.Outcomes = r.Outcomes[:1]
		r.Outcomes[0].Works, r.Outcomes[0].Unknown = false, true
		r.Findings = r.Findings[2:]
	})}})
	for name, want := range map[string]int{"wallprobe_outcome_works": 0, "wallprobe_outcome_unknown": 1, "wallprobe_finding_passes": 0, "wallprobe_finding_verdict": 1} {
		if got := testutil.CollectAndCount(m, name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

func TestEveryMetricIsDescribed(t *testing.T) {
	m := after(&Round{Results: []*client.Result{result(t)}})
	names, err := testutil.GatherAndCount(m.registry())
	if err != nil || names == 0 {
		t.Error(names, err)
	}
	all, err := m.registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, f := range all {
		if strings.HasPrefix(f.GetName(), "wallprobe_") {
			shown++
		}
	}
	if shown != len(descs) {
		t.Errorf("%d of %d metrics are shown after a whole round", shown, len(descs))
	}
}

// Two findings of the same labels would make every scrape fail.
func TestEveryFindingOfEveryScenarioHasASeriesOfItsOwn(t *testing.T) {
	list, err := scenarios.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	r := &Round{}
	for _, s := range list {
		for _, role := range s.NearRoles() {
			res := &client.Result{Scenario: s.Name, Role: role, Complete: true, Control: client.Control{Via: "443/tcp"}}
			for _, it := range client.MakePlan(s, client.Setting{Role: role, Inward: true}).Items {
				res.Findings = append(res.Findings, client.Finding{Path: it.Path.ID, Transport: it.Transport, Need: it.Path.Need, Verdict: client.Open})
			}
			res.Outcomes = client.Outcomes(s, role, res.Findings)
			r.Results = append(r.Results, res)
		}
	}
	if n, err := testutil.GatherAndCount(after(r).registry(), "wallprobe_finding_passes"); err != nil || n < 100 {
		t.Errorf("%d findings: %v", n, err)
	}
}

func TestNothingGrowsInAMonthOfRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rounds = 9000 // of five minutes each
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var m *Monitor
		before, n := make(map[string]*client.Result), 0
		var early, late runtime.MemStats
		series := make(map[int]bool)
		m = &Monitor{Interval: 5 * time.Minute, Metrics: NewMetrics("v1", 5*time.Minute),
			Measure: func(context.Context) ([]*client.Result, error) {
				r := with(t, func(r *client.Result) {
					r.Findings[0].Verdict = client.Verdicts[n%len(client.Verdicts)]
					r.Findings[0].Why = strings.Repeat("x", 4096) // what would show if it were kept
					r.Control.Via = map[bool]string{true: "443/tcp"}[n%7 != 0]
				})
				return []*client.Result{r}, nil
			},
			Tell: func(r *Round) error {
				Changes(before["own"], r.Results[0])
				before["own"] = r.Results[0]
				switch n++; {
				case n == rounds/10:
					runtime.GC()
					runtime.ReadMemStats(&early)
				case n == rounds:
					runtime.GC()
					runtime.ReadMemStats(&late)
					stop()
				}
				if n > 100 && n%100 < 14 {
					series[testutil.CollectAndCount(m.Metrics)] = true
				}
				return nil
			},
		}
		if _, err := m.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if grown := int64(late.HeapAlloc) - int64(early.HeapAlloc); grown > 1<<20 {
			t.Errorf("%d bytes more after %d rounds than after %d", grown, rounds, rounds/10)
		}
		// Not measured or measured, a round has one number of series or the other.
		if len(series) > 3 {
			t.Errorf("the number of series varies: %v", series)
		}
	})
}

func TestALineOfExpectationsHoldsOnlyWhereAllOfItDoes(t *testing.T) {
	for want, states := range map[float64][]client.State{
		1: {client.Holds, client.Holds}, 0: {client.Holds, client.Fails}, -1: {client.Untold, client.Untold},
	} {
		for range 2 {
			m := after(&Round{Results: []*client.Result{with(t, func(r *client.Result) {
				r.Expectations = nil
				for _, s := range states {
					r.Expectations = append(r.Expectations, client.Expectation{File: "f", Line: 1, Path: "O-1", State: s})
				}
			})}})
			got := -1.0
			if testutil.CollectAndCount(m, "wallprobe_expectation_holds") == 1 {
				all, err := m.registry().Gather()
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range all {
					if f.GetName() == "wallprobe_expectation_holds" {
						got = f.Metric[0].Gauge.GetValue()
					}
				}
			}
			if got != want {
				t.Errorf("%v: %v, want %v", states, got, want)
			}
			slices.Reverse(states)
		}
	}
}
