package monitor

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
)

var (
	alertsFile    = filepath.Join("..", "contrib", "prometheus", "wallprobe-alerts.yml")
	dashboardFile = filepath.Join("..", "contrib", "grafana", "wallprobe.json")
)

// promtool runs Prometheus' own checker.
func promtool(t testing.TB, stdin string, args ...string) {
	t.Helper()
	path := need.Program(t, "promtool")
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin, cmd.WaitDelay = strings.NewReader(stdin), time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// shown is what Prometheus reads after a whole round.
func shown(t testing.TB) string {
	t.Helper()
	w := httptest.NewRecorder()
	after(&Round{Results: []*client.Result{result(t)}}).Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	return w.Body.String()
}

func TestPrometheusTakesTheMetrics(t *testing.T) {
	var own strings.Builder
	for line := range strings.Lines(shown(t)) {
		if strings.Contains(line, "wallprobe_") { // what is wrong with others' metrics is theirs
			own.WriteString(line)
		}
	}
	promtool(t, own.String(), "check", "metrics")
}

func TestAlertsComeWhenTheyShouldAndNotBefore(t *testing.T) {
	promtool(t, "", "check", "rules", alertsFile)
	promtool(t, "", "test", "rules", filepath.Join("..", "testdata", "prometheus", "alerts_test.yml"))
}

func TestEveryAlertIsTested(t *testing.T) {
	tests, err := os.ReadFile(filepath.Join("..", "testdata", "prometheus", "alerts_test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alerts(t) {
		if !regexp.MustCompile(`(?m)^ +alertname: ` + r.Alert + `$`).Match(tests) {
			t.Errorf("no test expects %s", r.Alert)
		}
	}
}

type alert struct{ Alert, Expr string }

func alerts(t testing.TB) (list []alert) {
	t.Helper()
	b, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []alert } }
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		list = append(list, g.Rules...)
	}
	if len(list) == 0 {
		t.Fatal("no alerts")
	}
	return list
}

// A dashboard is what of Grafana's format is tested.
type dashboard struct {
	Title      string
	Panels     []panel
	Templating struct {
		List []struct{ Name, Definition string }
	}
}

type panel struct {
	ID      int
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr string }
}

func readDashboard(t testing.TB) (d dashboard) {
	t.Helper()
	b, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// metric finds metrics of wallprobe and of the process in an expression.
var metric = regexp.MustCompile(`\b(?:wallprobe|process)_[a-z_]+\b`)

func TestAlertsAndDashboardNameMetricsThatThereAre(t *testing.T) {
	text := shown(t)
	named := make(map[string]bool)
	check := func(where, expr string) {
		names := metric.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%s: no metric in %s", where, expr)
		}
		for _, name := range names {
			named[name] = true
			if !strings.Contains(text, "\n# TYPE "+name+" ") {
				t.Errorf("%s: there is no %s", where, name)
			}
		}
	}
	for _, r := range alerts(t) {
		if !strings.HasPrefix(r.Expr, "up{") {
			check(r.Alert, r.Expr)
		}
	}
	d := readDashboard(t)
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
	}
	for _, v := range d.Templating.List {
		if v.Definition != "" {
			check("variable "+v.Name, v.Definition)
		}
	}
	for _, name := range []string{"wallprobe_outcome_works", "wallprobe_finding_verdict", "wallprobe_finding_rtt_seconds", "wallprobe_measured_timestamp_seconds"} {
		if !named[name] {
			t.Errorf("%s is on no panel", name)
		}
	}
}

func TestDashboardHasSoundExpressionsAndNoPanelUponAnother(t *testing.T) {
	d := readDashboard(t)
	var known []string
	for _, v := range d.Templating.List {
		known = append(known, v.Name)
	}
	variable := regexp.MustCompile(`\$\{?(\w+)`)
	rules := "groups:\n- name: dashboard\n  rules:\n"
	taken := make(map[[2]int]string)
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("%s: id %d again, or no query", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s: column %d, row %d is taken by %q, or outside", p.Title, x, y, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for i, target := range p.Targets {
			for _, m := range variable.FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(known, m[1]) {
					t.Errorf("%s: there is no variable %s", p.Title, m[1])
				}
			}
			rules += fmt.Sprintf("  - record: panel:%d_%d\n    expr: %q\n", p.ID, i, target.Expr)
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "check", "rules", file)
}
