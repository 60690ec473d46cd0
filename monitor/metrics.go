package monitor

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/wallprobe/wallprobe/client"
)

// Metrics are what Prometheus is shown of a monitor. Findings and outcomes are
// those of the last round, and only where that proves something. The number of
// series depends on the scenarios alone. Make them with NewMetrics; a nil
// *Metrics notes nothing.
type Metrics struct {
	program  string
	interval time.Duration

	mu       sync.Mutex
	rounds   int
	failed   map[string]int // by reason
	started  time.Time      // of the round that runs or was the last
	took     time.Duration  // of the last that ended
	whole    bool           // the last that ended is
	results  []*client.Result
	complete map[near]time.Time // when a whole result began last
}

// near is what was measured.
type near struct{ scenario, role string }

// NewMetrics makes the metrics of a monitor; program is its version.
func NewMetrics(program string, interval time.Duration) *Metrics {
	return &Metrics{program: program, interval: interval, failed: make(map[string]int), complete: make(map[near]time.Time)}
}

// begin notes that a round begins.
func (m *Metrics) begin(now time.Time) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = now
}

// end notes a round that came to its end.
func (m *Metrics) end(r *Round) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rounds++
	m.took = r.Took
	reason := r.Failure()
	if m.whole = reason == ""; !m.whole {
		m.failed[reason]++
	}
	m.results = nil
	for _, res := range r.Results {
		if failure(res) == "" {
			m.results = append(m.results, lean(res))
			m.complete[near{res.Scenario, res.Role}] = res.Started
		}
	}
}

// lean leaves out of a result what no metric shows and takes much memory.
func lean(r *client.Result) *client.Result {
	out := *r
	out.Ledgers, out.Firewall, out.Findings = nil, nil, slices.Clone(r.Findings)
	for i := range out.Findings {
		out.Findings[i].Evidence, out.Findings[i].Passage = client.Evidence{}, nil
	}
	return &out
}

// Handler serves the metrics, and those of the Go runtime and of the process.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry(), promhttp.HandlerOpts{MaxRequestsInFlight: 8, Timeout: 10 * time.Second})
}

func (m *Metrics) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// What the metrics are called and mean.
var (
	scenarioLabels = []string{"scenario", "role"}
	findingLabels  = append(slices.Clone(scenarioLabels), "path", "transport", "need")
	outcomeLabels  = append(slices.Clone(scenarioLabels), "outcome", "need")

	descBuild = desc("build_info", "1, with the version of wallprobe and of Go.", "version", "goversion")

	descInterval = desc("interval_seconds", "Time from the beginning of a round to that of the next.")
	descRounds   = desc("rounds_total", "Rounds that came to their end, failed ones too.")
	descFailed   = desc("failed_rounds_total", "Rounds that prove nothing of some of what they should.", "reason")
	descStarted  = desc("round_started_timestamp_seconds", "When the round that runs, or the last one, began.")
	descTook     = desc("round_duration_seconds", "How long the last round took that ended.")
	descWhole    = desc("round_complete", "1 if the last round was whole, 0 if it failed: then its findings are not shown.")

	descMeasured = desc("measured_timestamp_seconds", "When the last whole measurement began; none is shown before the first.", scenarioLabels...)

	descWorks   = desc("outcome_works", "1 if what people want works, 0 if it fails; not there where that is unknown.", outcomeLabels...)
	descUnknown = desc("outcome_unknown", "1 if too little could be measured to say whether it works, else 0.", outcomeLabels...)
	descWay     = desc("outcome_way", "By which of the documented ways it works, from 1 in the application's order; 0 is none.", outcomeLabels...)

	descHolds = desc("expectation_holds", "With --expect: 1 if what a line of the file expects holds, 0 if not; not there where that could not be measured.",
		append(slices.Clone(scenarioLabels), "file", "line", "path", "outcome", "transport")...)

	descPasses   = desc("finding_passes", "1 if the application can use the path, 0 if not; not there where that could not be measured.", findingLabels...)
	descVerdict  = desc("finding_verdict", "1, with the verdict on the path.", append(slices.Clone(findingLabels), "verdict")...)
	descShare    = desc("finding_open_ratio", "Share of a range's ports that pass, of paths with a range.", findingLabels...)
	descAttempts = desc("finding_attempts", "Attempts of the last round: sent, seen by the reflector, answered.", append(slices.Clone(findingLabels), "stage")...)
	descRTT      = desc("finding_rtt_seconds", "Round-trip time.", findingLabels...)
)

// descs lists them all.
var descs = []*prometheus.Desc{
	descBuild, descInterval, descRounds, descFailed, descStarted, descTook, descWhole, descMeasured,
	descWorks, descUnknown, descWay, descHolds, descPasses, descVerdict, descShare, descAttempts, descRTT,
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("wallprobe_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range descs {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := series(to)
	s.gauge(descBuild, 1, m.program, runtime.Version())
	s.gauge(descInterval, m.interval.Seconds())
	s.counter(descRounds, m.rounds)
	for _, reason := range Reasons {
		s.counter(descFailed, m.failed[reason], reason)
	}
	if !m.started.IsZero() {
		s.gauge(descStarted, unix(m.started))
	}
	if m.rounds > 0 {
		s.gauge(descTook, m.took.Seconds())
		s.gauge(descWhole, number(m.whole))
	}
	for n, at := range m.complete {
		s.gauge(descMeasured, unix(at), n.scenario, n.role)
	}
	for _, r := range m.results {
		s.result(r)
	}
}

// series is where metrics go.
type series chan<- prometheus.Metric

func (s series) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s series) counter(d *prometheus.Desc, n int, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (s series) result(r *client.Result) {
	for i := range r.Findings {
		s.finding(r, &r.Findings[i])
	}
	for i := range r.Outcomes {
		s.outcome(r, &r.Outcomes[i])
	}
	s.expectations(r)
}

// expectations has one series for what a line of a file expects of a path or an
// outcome, for which it may expect several things.
func (s series) expectations(r *client.Result) {
	holds := make(map[[5]string]bool)
	for _, x := range r.Expectations {
		labels := [5]string{x.File, strconv.Itoa(x.Line), x.Path, x.Outcome, string(x.Transport)}
		switch before, known := holds[labels]; x.State {
		case client.Holds:
			holds[labels] = before || !known
		case client.Fails:
			holds[labels] = false
		}
	}
	for labels, h := range holds {
		s.gauge(descHolds, number(h), append([]string{r.Scenario, r.Role}, labels[:]...)...)
	}
}

func (s series) finding(r *client.Result, f *client.Finding) {
	labels := []string{r.Scenario, r.Role, f.Path, string(f.Transport), string(f.Need)}
	and := func(l string) []string { return append(slices.Clone(labels), l) }
	s.gauge(descVerdict, 1, and(string(f.Verdict))...)
	if f.Verdict == client.Unmeasured || f.Verdict == client.Silent {
		return
	}
	s.gauge(descPasses, number(f.Survives()), labels...)
	if f.Share != nil {
		s.gauge(descShare, *f.Share, labels...)
	}
	if a := f.Attempts; a != nil {
		s.gauge(descAttempts, float64(a.Sent), and("sent")...)
		s.gauge(descAttempts, float64(a.Seen), and("seen")...)
		s.gauge(descAttempts, float64(a.Answered), and("answered")...)
	}
	if f.RTT > 0 {
		s.gauge(descRTT, f.RTT/1000, labels...)
	}
}

func (s series) outcome(r *client.Result, o *client.Outcome) {
	need := "required"
	if o.Optional {
		need = "optional"
	}
	labels := []string{r.Scenario, r.Role, o.ID, need}
	s.gauge(descUnknown, number(o.Unknown), labels...)
	if o.Unknown {
		return
	}
	s.gauge(descWorks, number(o.Works), labels...)
	s.gauge(descWay, float64(1+slices.IndexFunc(o.Ways, func(w client.Way) bool { return w.Works })), labels...)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// unix is a time in seconds, exact to the millisecond.
func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
