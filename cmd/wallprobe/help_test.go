package main

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// listed are the commands that a page of help names.
var listed = regexp.MustCompile(`(?m)^   ([a-z]+)  +\S`)

// helps collects the pages of help of a command and of all below it.
func helps(t *testing.T, pages map[string]string, path ...string) {
	t.Helper()
	var out, complaints bytes.Buffer
	status := run(t.Context(), append(append([]string{"wallprobe"}, path...), "--help"), &out, &complaints)
	name := strings.Join(path, " ")
	if status != exitHolds || complaints.Len() > 0 {
		t.Errorf("%s --help: status %d, %s", name, status, complaints.String())
	}
	pages[name] = out.String()
	_, commands, _ := strings.Cut(out.String(), "\nCOMMANDS:\n")
	commands, _, _ = strings.Cut(commands, "\n\n")
	for _, m := range listed.FindAllStringSubmatch(commands, -1) {
		helps(t, pages, append(slices.Clone(path), m[1])...)
	}
}

// everyCommand lists commands that people call, with those below them.
func everyCommand(above string, commands []*cli.Command) (out []string) {
	for _, c := range commands {
		if c.Hidden {
			continue
		}
		name := strings.TrimSpace(above + " " + c.Name)
		out = append(append(out, name), everyCommand(name, c.Subcommands)...)
	}
	return out
}

func TestEveryCommandAndFlagExplainsItself(t *testing.T) {
	pages := make(map[string]string)
	helps(t, pages)
	for _, name := range everyCommand("", newApp(io.Discard, io.Discard).Commands) {
		if pages[name] == "" {
			t.Errorf("%q has no page, or no page leads to it", name)
		}
	}
	for name, page := range pages {
		if !strings.Contains(page, "\nDESCRIPTION:\n   ") {
			t.Errorf("%s has no description:\n%s", name, page)
		}
		_, options, _ := strings.Cut(page, "OPTIONS:\n")
		for line := range strings.Lines(options) {
			// Two spaces part a flag from what it does.
			if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "  ") {
				t.Errorf("%s: flag without a word about it: %s", name, line)
			}
			if strings.Contains(line, " value  ") {
				t.Errorf("%s: flag does not say what its value is: %s", name, line)
			}
		}
	}
}
