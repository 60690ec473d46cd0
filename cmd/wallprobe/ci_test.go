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
	need(t, "shellcheck")
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
