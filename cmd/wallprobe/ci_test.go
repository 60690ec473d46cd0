//go:build linux

package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/wallprobe/wallprobe/internal/need"
)

// root is the folder of the module.
var root = filepath.Join("..", "..")

// An action is what of GitHub's metadata syntax is tested.
type action struct {
	Name, Description string
	Inputs            map[string]struct {
		Description, Default string
		Required             bool
	}
	Outputs map[string]struct{ Description, Value string }
	Runs    struct {
		Using string
		Steps []step
	}
}

// A step is one of an action or of a workflow.
type step struct {
	ID, Name, Uses, Shell, Run string
	Env                        map[string]string
	With                       map[string]any
}

// readYAML reads one of the files that others copy.
func readYAML(t testing.TB, into any, path ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", filepath.Join(path...), err)
	}
}

// shellcheck checks a script of bash, which comes from a file or from within one.
func shellcheck(t testing.TB, where, script string) {
	t.Helper()
	if script == "" {
		t.Fatalf("%s: no script", where)
	}
	cmd := exec.CommandContext(t.Context(), "shellcheck", "--external-sources", "--source-path=SCRIPTDIR", "--shell=bash", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", where, err, out)
	}
}

func TestEveryScriptIsSound(t *testing.T) {
	need.Programs(t, "shellcheck")
	files := []string{filepath.Join("cmd", "wallprobe", "completion", "bash")}
	for _, pattern := range []string{"scripts/*", "contrib/*/*.sh", ".ci/*"} {
		list, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(list) == 0 {
			t.Fatalf("%s: %v, %v", pattern, list, err)
		}
		for _, f := range list {
			rel, err := filepath.Rel(root, f)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, rel)
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			t.Fatal(err)
		}
		shellcheck(t, f, string(b))
	}
	var a action
	readYAML(t, &a, "action.yml")
	w := workflow(t)
	for _, s := range slices.Concat(a.Runs.Steps, w.Jobs["diff"].Steps) {
		if s.Run != "" {
			script := "#!/bin/bash\nset -eo pipefail\n"
			for _, name := range slices.Sorted(maps.Keys(s.Env)) {
				script += "export " + name + "=given\n"
			}
			shellcheck(t, s.Name, script+s.Run)
		}
	}
	for i, line := range gitlab(t).lines() {
		shellcheck(t, "gitlab-ci.yml, line of script", "#!/bin/bash\nset -eo pipefail\n"+line)
		if i > 9 {
			t.Fatal("that is no example any more")
		}
	}
}

type githubWorkflow struct {
	On          map[string]any `yaml:"on"`
	Permissions map[string]string
	Jobs        map[string]struct {
		RunsOn string `yaml:"runs-on"`
		Steps  []step
	}
}

func workflow(t testing.TB) (w githubWorkflow) {
	t.Helper()
	readYAML(t, &w, "contrib", "ci", "github-actions.yml")
	return w
}

type gitlabJob struct {
	Image        string
	BeforeScript []string `yaml:"before_script"`
	Script       []string
	Artifacts    struct {
		Paths   []string
		Reports map[string]string
	}
}

func (j gitlabJob) lines() []string { return append(slices.Clone(j.BeforeScript), j.Script...) }

func gitlab(t testing.TB) gitlabJob {
	t.Helper()
	var file map[string]gitlabJob
	readYAML(t, &file, "contrib", "ci", "gitlab-ci.yml")
	if len(file) != 1 || len(file["wallprobe"].Script) == 0 {
		t.Fatalf("%+v", file)
	}
	return file["wallprobe"]
}

// expression is one of GitHub's.
var expression = regexp.MustCompile(`\$\{\{ *([^}]*?) *\}\}`)

func TestActionNamesOnlyWhatThereIs(t *testing.T) {
	var a action
	readYAML(t, &a, "action.yml")
	if a.Runs.Using != "composite" || a.Name == "" || a.Description == "" || len(a.Runs.Steps) == 0 {
		t.Fatalf("%+v", a)
	}
	ids := make(map[string]bool)
	used := make(map[string]bool)
	for _, s := range a.Runs.Steps {
		ids[s.ID] = true
		if (s.Run == "") == (s.Uses == "") || s.Run != "" && s.Shell != "bash" {
			t.Errorf("step %q: either uses, or run with a shell", s.Name)
		}
		// What others name must not become a part of the script.
		if expression.MatchString(s.Run) {
			t.Errorf("step %q: an expression in its script", s.Name)
		}
		for _, v := range s.Env {
			for _, m := range expression.FindAllStringSubmatch(v, -1) {
				name, ok := strings.CutPrefix(m[1], "inputs.")
				if _, known := a.Inputs[name]; !ok || !known {
					t.Errorf("step %q: there is no %s", s.Name, m[1])
				}
				used[name] = true
			}
		}
	}
	for name, in := range a.Inputs {
		if !used[name] || in.Description == "" {
			t.Errorf("input %s: not used, or not described", name)
		}
	}
	for name, out := range a.Outputs {
		m := regexp.MustCompile(`^\$\{\{ steps\.(\w+)\.outputs\.(\w+) \}\}$`).FindStringSubmatch(out.Value)
		if m == nil || !ids[m[1]] || m[2] != name || out.Description == "" {
			t.Errorf("output %s: %+v", name, out)
		}
	}
	for _, s := range workflow(t).Jobs["diff"].Steps {
		if !strings.HasPrefix(s.Uses, "wallprobe/") {
			continue
		}
		for name := range s.With {
			if _, ok := a.Inputs[name]; !ok {
				t.Errorf("the example gives the action %s, which it does not take", name)
			}
		}
		for name, in := range a.Inputs {
			if s.With[name] == nil && in.Required {
				t.Errorf("the example lacks %s", name)
			}
		}
		return
	}
	t.Error("the example does not use the action")
}

// repository makes one with a rules file, which includes another, on main and a
// branch that changes one line; it is checked out there.
func repository(t *testing.T, change func(rules string) string) (dir, base string) {
	t.Helper()
	need.Programs(t, "git", "nft")
	dir = t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		out, err := command(t, dir, "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"}, args...)...)
		if err != nil {
			t.Fatalf("git %s: %v %s", args, err, out)
		}
		return strings.TrimSpace(out)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	own, err := os.ReadFile(filepath.Join(root, "testdata", "script", "own.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write("own.yaml", string(own))
	write("firewall/ports.nft", "define media = 28444-28445\n")
	write("firewall/edge.nft", edgeRules)
	git("init", "-q")
	git("add", "-A")
	git("commit", "-qm", "rules")
	base = git("rev-parse", "HEAD")
	git("checkout", "-qb", "change")
	write("firewall/edge.nft", change(edgeRules))
	git("commit", "-qam", "change", "--allow-empty")
	return dir, base
}

const edgeRules = `include "./ports.nft"

table inet edge {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "eth1" tcp dport 28443 accept
		iifname "eth1" udp dport $media accept
	}
}
`

// a runner is what GitHub's gives the step that compares.
type runner struct {
	status                  int
	said, summary, reported string
	dir                     string
}

// runAction runs the step of action.yml that compares, as GitHub's runner does.
func runStep(t *testing.T, dir string, inputs map[string]string) (r runner) {
	t.Helper()
	var a action
	readYAML(t, &a, "action.yml")
	i := slices.IndexFunc(a.Runs.Steps, func(s step) bool { return s.ID == "diff" })
	if i < 0 {
		t.Fatal("no step diff")
	}
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	summary, outputs := filepath.Join(files, "summary"), filepath.Join(files, "outputs")
	cmd := exec.CommandContext(t.Context(), "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", a.Runs.Steps[i].Run)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GITHUB_ACTIONS=true", "GITHUB_ACTION_PATH="+here, "GITHUB_STEP_SUMMARY="+summary, "GITHUB_OUTPUT="+outputs)
	for name, text := range a.Runs.Steps[i].Env {
		value := expression.ReplaceAllStringFunc(text, func(e string) string {
			input := strings.TrimPrefix(expression.FindStringSubmatch(e)[1], "inputs.")
			if v, ok := inputs[input]; ok {
				return v
			}
			return a.Inputs[input].Default
		})
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	if e, ok := err.(*exec.ExitError); ok {
		r.status = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	read := func(name string) string { b, _ := os.ReadFile(name); return string(b) }
	r.said, r.summary, r.reported, r.dir = string(out), read(summary), read(outputs), dir
	return r
}

// wants demands what a run of the step must have left.
func (r runner) wants(t *testing.T, status int, outputs string, said ...string) {
	t.Helper()
	if r.status != status || r.reported != outputs {
		t.Errorf("status %d, outputs %q; want %d, %q", r.status, r.reported, status, outputs)
	}
	for _, s := range said {
		if !strings.Contains(r.summary, s) {
			t.Errorf("no %q in the summary", s)
		}
	}
	if t.Failed() {
		t.Fatalf("summary:\n%s\nsaid:\n%s", r.summary, r.said)
	}
}

var given = map[string]string{"rules": "\n  firewall/edge.nft\n", "scenarios": "own.yaml\n", "inside": "eth1", "outside": "eth0"}

// with adds to inputs.
func adding(inputs map[string]string, more ...string) map[string]string {
	out := maps.Clone(inputs)
	for i := 0; i < len(more); i += 2 {
		out[more[i]] = more[i+1]
	}
	return out
}

func TestActionTellsWhatOneChangedLineBreaks(t *testing.T) {
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	dir, base := repository(t, func(s string) string { return strings.Replace(s, "udp dport $media", "udp dport 28444", 1) })
	r := runStep(t, dir, adding(given, "base", base))
	r.wants(t, 1, "changed=true\nbroke=true\nreports=wallprobe-report\n", "something required broke", "28445/udp | open | request-lost",
		"old: "+base[:10]+":firewall/edge.nft", "new: firewall/edge.nft", "policy drop", "conversation | works | fails")
	if !strings.Contains(r.said, "\n::error file=firewall/edge.nft::") {
		t.Errorf("no annotation in:\n%s", r.said)
	}
	for _, ext := range []string{".txt", ".json", ".xml", ".md", ".html"} {
		if st, err := os.Stat(filepath.Join(dir, "wallprobe-report", "firewall-edge.nft"+ext)); err != nil || st.Size() == 0 {
			t.Error(st, err)
		}
	}
	// Nothing of it is left in the repository of whoever runs it.
	if out, err := command(t, dir, "git", "worktree", "list"); err != nil || strings.Count(out, "\n") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestActionIsContentWithAChangeOfNoEffect(t *testing.T) {
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	dir, base := repository(t, func(s string) string { return strings.Replace(s, "policy drop;", "policy drop; # nothing else", 1) })
	runStep(t, dir, adding(given, "base", base, "fail-on", "change")).wants(t, 0, "changed=false\nbroke=false\nreports=wallprobe-report\n")
}

func TestActionSaysWhatIsWrong(t *testing.T) {
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	dir, base := repository(t, func(s string) string { return strings.Replace(s, "accept", "acept", 1) })
	r := runStep(t, dir, adding(given, "base", base))
	r.wants(t, 2, "changed=false\nbroke=false\nreports=wallprobe-report\n", "`firewall/edge.nft` could not be compared", "firewall/edge.nft:6", "syntax error")

	for want, inputs := range map[string]map[string]string{
		"fetch the whole history":          adding(given, "base", "no-such-branch"),
		"firewall/no.nft: no such":         adding(given, "base", base, "rules", "firewall/no.nft"),
		"--base REF or --old FILE":         adding(given, "base", ""),
		"which rules files?":               adding(given, "base", base, "rules", "\n"),
		"--old goes with one rules file":   adding(given, "old", "firewall/edge.nft", "rules", "firewall/edge.nft\nfirewall/ports.nft"),
		`no scenario and no file is named`: adding(given, "old", "firewall/ports.nft", "scenarios", "nonsense"),
	} {
		if r := runStep(t, dir, inputs); r.status != exitUsage || !strings.Contains(r.said, want) {
			t.Errorf("%v: status %d, no %q in:\n%s", inputs, r.status, want, r.said)
		}
	}
}

func TestActionSkipsRulesThatAreNew(t *testing.T) {
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	dir, base := repository(t, func(s string) string { return s })
	if err := os.WriteFile(filepath.Join(dir, "firewall", "second.nft"), []byte(edgeRules), 0o644); err != nil {
		t.Fatal(err)
	}
	r := runStep(t, dir, adding(given, "base", base, "rules", "firewall/second.nft"))
	r.wants(t, 0, "changed=false\nbroke=false\nreports=wallprobe-report\n", "firewall/second.nft is new: there is nothing to compare it with")
}
