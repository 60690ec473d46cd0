package lab_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// truthTimeout is the client's longest single wait: long enough for a busy
// machine with 2 cores, and less than the second after which the system sends a SYN
// or its answer once more by itself, which the counters would count.
const truthTimeout = 600 * time.Millisecond

// callTimeout is that where the reflector is to call: it can be asked only if
// control is there within a quarter of it, which a busy machine may not manage.
const callTimeout = 2 * time.Second

// A row is one fault and what must be found on every path.
type row struct {
	name      string
	scenario  string // file of testdata/truth; "" is single
	family    string // "ipv4" or "ipv6" alone; "" is each in a world of its own
	rules     string // the firewall's file
	config    lab.Config
	sysctl    map[string]string // of the firewall
	reflector []string          // flags
	noRaw     bool              // both ends are without CAP_NET_RAW
	boxes     func(*scene)
	want      map[string]fact
}

// A fact is what is demanded of one path; fields left empty are not.
type fact struct {
	Verdict  client.Verdict
	Why      string // parts of it, in order, with "…" between them
	Parts    string // as Why, of every part of the path's ways
	Ways     string // one line for each part of the path's ways, in their order, with "…" for what is not demanded
	Passage  string // header fields that arrived changed, or were translated; "none"
	Ports    string // verdicts of a range's parts
	Near     string // stage and fault at the client
	ICMP     string // type/code, name and sender
	Attempts string // sent/seen/answered
	Received string // bytes in the stage that failed
	Far      string // how the probe ended at the reflector: stage and fault
	Counted  string // by the firewall's rule for the path: "as sent", "as seen", "some"
}

// all demands the same of several paths.
func all(f fact, paths ...string) map[string]fact {
	m := make(map[string]fact)
	for _, id := range paths {
		m[id] = f
	}
	return m
}

// join makes one map of several.
func join(parts ...map[string]fact) map[string]fact {
	m := make(map[string]fact)
	for _, p := range parts {
		maps.Copy(m, p)
	}
	return m
}

func TestVerdictsNameTheInjectedFault(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	t.Run("rows", func(t *testing.T) {
		for _, r := range table(t) {
			r.holds(t, program)
		}
	})
	t.Run("control has no way", func(t *testing.T) { silentRows(t, program) })
	t.Run("the table goes red", func(t *testing.T) { redRows(t, program) })
}

func (r *row) families() []string {
	if r.family != "" {
		return []string{r.family}
	}
	return []string{"ipv4", "ipv6"}
}

// holds plays a row in each of its families and compares what is found.
func (r *row) holds(t *testing.T, program string) {
	for _, family := range r.families() {
		t.Run(r.name+"/"+family, func(t *testing.T) {
			t.Parallel()
			res := r.play(t, program, family)
			if diff := r.mismatch(res); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
				r.explain(t, res)
			}
		})
	}
}

// programFor builds wallprobe itself, once for all tests.
func programFor(t *testing.T) string {
	t.Helper()
	name, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

var built = sync.OnceValues(func() (string, error) {
	dir, err := lab.TempDir()
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "wallprobe")
	if text, err := exec.Command("go", "build", "-o", name, "github.com/wallprobe/wallprobe/cmd/wallprobe").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return name, nil
})

func (r *row) load(t testing.TB) *scenarios.Scenario {
	t.Helper()
	file := "single"
	if r.scenario != "" {
		file = r.scenario
	}
	path, err := filepath.Abs("../testdata/truth/" + file + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, err := scenarios.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// play builds the row's world, injects its fault and measures.
func (r *row) play(t testing.TB, program, family string) *client.Result {
	t.Helper()
	w, s := r.stand(t)
	if r.noRaw {
		program = withoutRaw(t, program)
	}
	results, err := w.Measure(t.Context(), r.measurement(s, program, family))
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 1 {
		t.Fatalf("%d results, want 1", len(results))
	}
	return results[0]
}

// withoutRaw is a program that runs another without CAP_NET_RAW, as most people
// run the near end.
func withoutRaw(t testing.TB, program string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wallprobe")
	text := fmt.Sprintf("#!/bin/sh\nexec setpriv --bounding-set=-net_raw --inh-caps=-net_raw %s \"$@\"\n", program)
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func (r *row) measurement(s *scenarios.Scenario, program, family string) lab.Measurement {
	timeout := truthTimeout
	if slices.ContainsFunc(s.Paths, func(p scenarios.Path) bool { return p.Direction == scenarios.In }) {
		timeout = callTimeout
	}
	return lab.Measurement{
		Scenarios: []*scenarios.Scenario{s}, IPv6: family == "ipv6", Timeout: timeout, Program: program,
		Reflector: r.reflector, Read: report.ReadJSON,
	}
}

// stand builds the world and puts the fault into it.
func (r *row) stand(t testing.TB) (*lab.World, *scenarios.Scenario) {
	t.Helper()
	s := r.load(t)
	c := lab.ConfigFor([]*scenarios.Scenario{s})
	c.Firewall = lab.Firewall{Name: r.name, Text: []byte(r.rules)}
	c.Hosts, c.MTU = append(c.Hosts, r.config.Hosts...), r.config.MTU
	w := lab.Stand(t, c)
	for key, value := range r.sysctl {
		if err := w.Host("firewall").Sysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	if r.boxes != nil {
		r.boxes(&scene{t, w})
	}
	return w, s
}

// mismatch compares what the row demands with what was found. It is empty
// when they agree.
func (r *row) mismatch(res *client.Result) string {
	got := make(map[string]fact)
	for i := range res.Findings {
		f := &res.Findings[i]
		if want, ok := r.want[f.Path]; ok {
			got[f.Path] = found(res, f).demanded(want)
		}
	}
	return gocmp.Diff(r.want, got)
}

// wrong lists the paths that the row is wrong about.
func (r *row) wrong(res *client.Result) []string {
	var ids []string
	for i := range res.Findings {
		f := &res.Findings[i]
		if want, ok := r.want[f.Path]; ok && found(res, f).demanded(want) != want {
			ids = append(ids, f.Path)
		}
	}
	slices.Sort(ids)
	return ids
}

// without removes the rules with a comment from a firewall's file.
func without(t testing.TB, rules, comment string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(rules) {
		if !strings.Contains(line, fmt.Sprintf("comment %q", comment)) {
			b.WriteString(line)
		}
	}
	if b.Len() == len(rules) {
		t.Fatalf("no rule has the comment %q", comment)
	}
	return b.String()
}

// found is everything about one path.
func found(res *client.Result, f *client.Finding) fact {
	o := f.Evidence.Near[0]
	got := fact{
		Verdict: f.Verdict, Why: f.Why, Ports: f.Sentence(), Near: strings.TrimSpace(o.Stage + " " + o.Fault),
		Attempts: fmt.Sprintf("%d/%d/%d", f.Attempts.Sent, f.Attempts.Seen, f.Attempts.Answered),
		Received: fmt.Sprint(o.Down), Far: farEnd(res.Ledgers[client.WhereFar], f), Counted: counted(res, f),
	}
	got.Passage = passage(f)
	for _, p := range f.Parts {
		got.Parts += p.Why + "\n"
		got.Ways += fmt.Sprintf("%s: %s: %s\n", p.Target, p.Verdict, p.Why)
	}
	got.Parts = cmp.Or(got.Parts, f.Why)
	if o.ICMP != nil {
		got.ICMP = fmt.Sprintf("%d/%d %s from %s", o.ICMP.Type, o.ICMP.Code, o.ICMP.Name, hostOf(o.ICMP.From))
	}
	return got
}

// demanded leaves out what is not demanded, and of sentences keeps the part that is.
func (f fact) demanded(want fact) fact {
	keep := func(got *string, want string) {
		if want == "" {
			*got = ""
		}
	}
	keep(&f.Ports, want.Ports)
	keep(&f.Near, want.Near)
	keep(&f.ICMP, want.ICMP)
	keep(&f.Attempts, want.Attempts)
	f.Attempts = needed(f.Attempts, want.Attempts)
	keep(&f.Received, want.Received)
	keep(&f.Far, want.Far)
	keep(&f.Counted, want.Counted)
	if want.Counted == "some" && f.Counted != "nothing" {
		f.Counted = "some"
	}
	keep(&f.Passage, want.Passage)
	every := strings.Split(strings.TrimSuffix(f.Parts, "\n"), "\n")
	if !slices.ContainsFunc(every, func(why string) bool { return !containsInOrder(why, strings.Split(want.Parts, "…")) }) {
		f.Parts = want.Parts
	}
	if matchesEach(f.Ways, want.Ways) {
		f.Ways = want.Ways
	}
	if containsInOrder(f.Why, strings.Split(want.Why, "…")) {
		f.Why = want.Why
	}
	return f
}

// needed takes from attempts what a slow machine sent beyond need, because an answer
// was late: each of those was seen and answered. What was lost stays counted.
func needed(attempts, want string) string {
	var sent, seen, answered, most int
	fmt.Sscanf(attempts, "%d/%d/%d", &sent, &seen, &answered)
	fmt.Sscanf(want[strings.LastIndex(want, "/")+1:], "%d", &most)
	beyond := answered - most
	if most == 0 || beyond <= 0 {
		return attempts
	}
	return fmt.Sprintf("%d/%d/%d", sent-beyond, seen-beyond, answered-beyond)
}

// matchesEach compares lines with patterns, each as a whole.
func matchesEach(lines, patterns string) bool {
	if patterns == "" {
		return true
	}
	got, want := strings.Split(strings.TrimSuffix(lines, "\n"), "\n"), strings.Split(patterns, "\n")
	return slices.EqualFunc(got, want, func(line, pattern string) bool {
		parts := strings.Split(pattern, "…")
		return strings.HasPrefix(line, parts[0]) && strings.HasSuffix(line, parts[len(parts)-1]) && containsInOrder(line, parts)
	})
}

func containsInOrder(text string, parts []string) bool {
	for _, p := range parts {
		_, rest, ok := strings.Cut(text, p)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}

// passage lists the header fields that did not arrive as they were sent.
func passage(f *client.Finding) string {
	var said []string
	for _, p := range f.Passage {
		if p.Changed || p.Field == "source" {
			said = append(said, p.String())
		}
	}
	return cmp.Or(strings.Join(said, "; "), "none")
}

// farEnd says how a path's probe ended at the reflector.
func farEnd(l *wire.Ledger, f *client.Finding) string {
	if l == nil {
		return "no ledger"
	}
	var own []wire.Event
	for _, p := range l.Probes {
		own = append(own, p.Events...)
	}
	if said := told(own, f); said != "" {
		return said
	}
	return cmp.Or(told(l.Strays, f), "nothing") // control may have tried the port as well
}

// told are the ends of the events that belong to a path.
func told(events []wire.Event, f *client.Finding) string {
	var said []string
	o := f.Evidence.Near[0]
	for _, e := range events {
		if e.Transport != f.Transport || !o.Ports.Contains(e.Local.Port()) || e.Probe != 0 && e.Probe != o.Probe {
			continue
		}
		if e.Fault == "" && e.Stage == "tls" {
			continue // control tried the port as well
		}
		if text := strings.TrimSpace(e.Stage + " " + e.Fault); !slices.Contains(said, text) {
			said = append(said, text)
		}
	}
	return strings.Join(said, ", ")
}

// counted compares the counters of the rules that are named for the path with
// what both ends counted. Control may have tried a TCP port once as well, and on
// the path of another protocol one datagram was marked.
func counted(res *client.Result, f *client.Finding) string {
	packets := 0
	for _, rule := range res.Firewall.Rules {
		if strings.Contains(rule.Text, fmt.Sprintf("comment %q", f.Path)) {
			packets += int(rule.Packets)
		}
	}
	slack := 0
	if m := f.Evidence.Near[0].Mark; f.Transport == scenarios.TCP || m != nil && m.Plain {
		slack = 1
	}
	near := func(n int) bool { return n > 0 && packets >= n && packets <= n+slack }
	switch {
	case near(f.Attempts.Sent - f.Attempts.Seen):
		return "as lost"
	case near(f.Attempts.Seen - f.Attempts.Answered):
		return "as unanswered"
	case packets > 0:
		return fmt.Sprintf("%d packets", packets)
	}
	return "nothing"
}

// explain shows the evidence behind a mismatch.
func (r *row) explain(t testing.TB, res *client.Result) {
	t.Helper()
	t.Logf("control via %q, complete %v, %s", res.Control.Via, res.Complete, res.Why)
	for i := range res.Findings {
		f := &res.Findings[i]
		if _, ok := r.want[f.Path]; ok {
			t.Logf("%s: %+v", f.Path, found(res, f))
		}
	}
}
