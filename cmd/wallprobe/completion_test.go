//go:build linux

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/scenarios"
)

// offered are the words that the program offers a shell.
func offered(t testing.TB, words ...string) (out []string) {
	t.Helper()
	var b, complaints bytes.Buffer
	if status := run(t.Context(), append([]string{"wallprobe", completeWord}, words...), &b, &complaints); status != exitHolds || complaints.Len() > 0 {
		t.Errorf("%q: status %d, %s", words, status, complaints.String())
	}
	for line := range strings.Lines(b.String()) {
		word, _, ok := strings.Cut(line, "\t")
		if !ok {
			t.Errorf("%q: line without a tab: %q", words, line)
		}
		out = append(out, word)
	}
	return out
}

func TestCompletionOffersWhatMayComeNext(t *testing.T) {
	crd, err := scenarios.Load("chrome-remote-desktop")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, p := range crd.Paths {
		paths = append(paths, p.ID)
	}
	for _, tt := range []struct {
		words string // with spaces between; the last may be empty
		want  []string
	}{
		{"re", []string{"reflector", "report"}},
		{"run ", scenarios.Names()},
		{"run chrome-remote-desktop sc", []string{"screenconnect"}},
		{"run --as ", []string{"host", "client", "agent", "technician", "server", "web-server", "machine", "office", "server-365", "client-365"}},
		{"run chrome-remote-desktop --as ", []string{"host", "client"}},
		{"run chrome-remote-desktop --as host --path ", paths},
		{"run chrome-remote-desktop --path=CRD-A", []string{"--path=CRD-A1", "--path=CRD-A2", "--path=CRD-A3", "--path=CRD-A3b", "--path=CRD-A4"}},
		{"run --no", []string{"--no-color"}},
		{"run --no-color --no", nil},
		{"run --path CRD-A1 --pat", []string{"--path"}}, // may be repeated
		{"run --ow", nil}, // hidden
		{"run --watch ", nil},
		{"run --sweep chrome", []string{"chrome-remote-desktop"}}, // --sweep takes no value
		{"lab --firewall ", lab.FirewallNames()},
		{"lab diff --old st", []string{"stateful"}},
		{"lab diff --fail-on w", []string{"worse"}},
		{"lab e", []string{"experiments", "exec"}},
		{"lab exec --host l", []string{"lan2"}},
		{"lab exec -- r", nil},
		{"lab experiments --only CRD-E1", []string{"CRD-E1", "CRD-E10", "CRD-E17", "CRD-E18"}},
		{"scenario sho", []string{"show"}},
		{"scenario show goto", []string{"goto-meeting"}},
		{"scenario check ", nil}, // files
		{"merge ", nil},          // files
		{"completion ", []string{"bash", "fish", "zsh"}},
		{"completion bash ", nil},
		{"no-such-command ", nil},
	} {
		if diff := cmp.Diff(tt.want, offered(t, strings.Split(tt.words, " ")...)); diff != "" {
			t.Errorf("%q:\n%s", tt.words, diff)
		}
	}
}

func TestCompletionReadsScenarioFilesOfOnesOwn(t *testing.T) {
	own := filepath.Join("..", "..", "testdata", "script", "own.yaml")
	if diff := cmp.Diff([]string{"O-1", "O-2"}, offered(t, "run", own, "--path", "")); diff != "" {
		t.Error(diff)
	}
}

// A flag that is renamed must not leave its values behind.
func TestEveryFlagWithKnownValuesExists(t *testing.T) {
	var names []string
	var walk func([]*cli.Command)
	walk = func(list []*cli.Command) {
		for _, c := range list {
			for _, f := range c.Flags {
				names = append(names, f.Names()...)
			}
			walk(c.Subcommands)
		}
	}
	walk(newApp(nil, nil).Commands)
	for name := range flagValues {
		if !slices.Contains(names, name) {
			t.Errorf("no command has --%s", name)
		}
	}
}

// shell runs a script in a real shell, with the program in PATH.
func shell(t *testing.T, script string, command ...string) string {
	t.Helper()
	need.Program(t, command[0])
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], "-c", script)...)
	home := t.TempDir()
	cmd.Dir, cmd.WaitDelay = home, time.Second
	cmd.Env = append(os.Environ(), "HOME="+home, "TERM=dumb")
	if err := os.WriteFile(filepath.Join(home, "some-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command[0], err, out)
	}
	return string(out)
}

// ask makes a script of a shell out of a command line to complete.
type ask func(line string) string

func TestCompletionInBash(t *testing.T) {
	// As readline does it: words split at COMP_WORDBREAKS as well.
	words := map[string]string{
		"wallprobe lab --firewall=st": "wallprobe lab --firewall = st",
		"wallprobe lab --firewall=":   "wallprobe lab --firewall =",
	}
	tried(t, func(line string) string {
		w := words[line]
		if w == "" {
			w = strings.TrimSuffix(line, " ")
			if w != line {
				w += " ''"
			}
		}
		return `set -euo pipefail
source <(wallprobe completion bash)
complete -p wallprobe | grep -q -- '-o default -F _wallprobe'
COMP_WORDS=(` + w + `) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_wallprobe wallprobe
printf '%s\n' "${COMPREPLY[@]}"`
	}, []string{"bash", "--norc"}, "stateful", false)
}

func TestCompletionInFish(t *testing.T) {
	tried(t, func(line string) string {
		return "wallprobe completion fish | source; complete -C '" + line + "'"
	}, []string{"fish", "--no-config"}, "--firewall=stateful", true)
}

// In zsh, completion works at a terminal alone: one is made, and what comes out
// is read until the shell says that it is done.
func TestCompletionInZsh(t *testing.T) {
	tried(t, func(line string) string {
		return `zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1='> '; autoload -U compinit; compinit -u -D; source <(wallprobe completion zsh)"
zpty -w z "LISTMAX=1000; LINES=500; COLUMNS=200; zstyle ':completion:*' list-prompt ''; setopt no_always_last_prompt; bindkey '^I' list-choices"
zpty -w z 'echo re''ady'
local out all=
repeat 200; do zpty -r -t z out && all+=$out; [[ $all == *$'\nready'* ]] && break; sleep 0.05; done
zpty -w -n z "` + line + `"$'\t'
all=
repeat 100; do zpty -r -t z out && all+=$out || { ((n++ > 20)) && [[ -n $all ]] && break; }; sleep 0.05; done
print -r -- "$all"
zpty -d z`
	}, []string{"zsh", "-f"}, "--firewall=stateful", true)
}

// tried completes some lines in a shell. equals is what it makes of
// --firewall=st; helps tells whether it shows what words mean.
func tried(t *testing.T, ask ask, command []string, equals string, helps bool) {
	for _, tt := range []struct {
		line       string
		want, lack []string
	}{
		{"wallprobe ", []string{"reflector", "completion"}, []string{"some-file", "__complete"}},
		{"wallprobe run chrome-remote-desktop --as ", []string{"host", "client"}, []string{"technician"}},
		{"wallprobe lab --firewall=st", []string{equals}, []string{"https-only"}},
		{"wallprobe lab --firewall=", []string{equals, strings.ReplaceAll(equals, "stateful", "https-only")}, []string{"reflector"}},
		{"wallprobe lab exec --", []string{"--bare", "--firewall"}, []string{"--reflector"}},
	} {
		out := shell(t, ask(tt.line), command...)
		if helps && tt.line == "wallprobe " {
			tt.want = append(tt.want, "measure across a real firewall")
		}
		for _, w := range tt.want {
			if !strings.Contains(out, w) {
				t.Errorf("%q: no %s in\n%s", tt.line, w, out)
			}
		}
		for _, w := range tt.lack {
			if strings.Contains(out, w) {
				t.Errorf("%q: %s in\n%s", tt.line, w, out)
			}
		}
	}
}
