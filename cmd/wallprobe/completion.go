package main

import (
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/scenarios"
)

// completionScripts hold a file for every shell. What they offer comes from
// this program, so that it is never older than the program.
//
//go:embed completion
var completionScripts embed.FS

func shells() (names []string) {
	entries, _ := completionScripts.ReadDir("completion") // it is there, being embedded
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "a script that completes commands, flags and their values in your shell",
		ArgsUsage: strings.Join(shells(), "|"),
		Description: "It completes scenarios, roles, paths and firewalls too. For good, put one of these into\n" +
			"the file that your shell reads at its start:\n\n" +
			"  bash   source <(wallprobe completion bash)       ~/.bashrc\n" +
			"  zsh    source <(wallprobe completion zsh)        ~/.zshrc, after compinit\n" +
			"  fish   wallprobe completion fish | source        ~/.config/fish/config.fish",
		Action: func(c *cli.Context) error {
			script, err := completionScripts.ReadFile("completion/" + c.Args().First())
			if c.NArg() != 1 || err != nil {
				return usage("completion: for which shell? There are %s", strings.Join(shells(), ", "))
			}
			_, err = c.App.Writer.Write(script)
			return err
		},
	}
}

// completeWord is the first argument with which the scripts ask for what may
// come next.
const completeWord = "__complete"

// A candidate is a word that may come next, and what it means.
type candidate struct{ word, help string }

// writeCandidates answers a shell: a line for each, with a tab before its help.
// Where there are none, the shell offers files.
func writeCandidates(w io.Writer, app *cli.App, words []string) error {
	for _, c := range candidates(app, words) {
		if _, err := fmt.Fprintf(w, "%s\t%s\n", c.word, c.help); err != nil {
			return err
		}
	}
	return nil
}

// candidates are the words that may stand in the place of the last one, which is
// being typed and may be empty.
func candidates(app *cli.App, words []string) []candidate {
	if len(words) == 0 {
		words = []string{""}
	}
	typed := words[len(words)-1]
	l := readLine(app, words[:len(words)-1])
	var out []candidate
	switch name, value, ok := strings.Cut(typed, "="); {
	case l.over: // what follows -- is not of this program
	case l.pending != "":
		out = l.values(l.pending)
	case ok && strings.HasPrefix(name, "--"):
		typed = value
		out = matching(l.values(strings.TrimLeft(name, "-")), value)
		for i := range out {
			out[i].word = name + "=" + out[i].word
		}
		return out
	case strings.HasPrefix(typed, "-"):
		out = l.unused()
	default:
		out = l.words()
	}
	return matching(out, typed)
}

func matching(list []candidate, typed string) []candidate {
	return slices.DeleteFunc(list, func(c candidate) bool { return !strings.HasPrefix(c.word, typed) })
}

// A line is what was typed before the word to complete.
type line struct {
	commands []*cli.Command // that may come next
	flags    []cli.Flag
	used     map[string]bool // flags
	args     []string
	usage    string // of the arguments
	pending  string // flag whose value comes next
	over     bool   // there was a --
}

func readLine(app *cli.App, words []string) *line {
	l := &line{commands: app.Commands, flags: app.Flags, used: make(map[string]bool)}
	for _, w := range words {
		switch name := strings.TrimLeft(w, "-"); {
		case l.over:
		case l.pending != "":
			l.pending = ""
		case w == "--":
			l.over = true
		case len(w) > 1 && w[0] == '-':
			name, _, _ = strings.Cut(name, "=")
			l.used[name] = true
			if takesValue(l.flags, w) {
				l.pending = name
			}
		case len(l.args) == 0 && find(l.commands, w) != nil:
			c := find(l.commands, w)
			l.commands, l.flags, l.usage = c.Subcommands, c.Flags, c.ArgsUsage
		default:
			l.args = append(l.args, w)
		}
	}
	return l
}

// words are the commands and arguments that may come next.
func (l *line) words() (out []candidate) {
	if len(l.args) == 0 {
		for _, c := range l.commands {
			if !c.Hidden {
				out = append(out, candidate{c.Name, c.Usage})
			}
		}
	}
	switch {
	case strings.Contains(l.usage, "SCENARIO") || strings.Contains(l.usage, "NAME"):
		return append(out, scenarioCandidates()...)
	case l.usage != "" && l.usage == strings.ToLower(l.usage) && len(l.args) == 0: // literally what may stand there
		return append(out, list(strings.Split(l.usage, "|"))...)
	}
	return out
}

// unused are the flags that may still come.
func (l *line) unused() (out []candidate) {
	for _, f := range append(slices.Clone(l.flags), cli.HelpFlag) {
		name := f.Names()[0]
		_, repeats := f.(*cli.StringSliceFlag)
		if l.used[name] && !repeats {
			continue
		}
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		help := ""
		if d, ok := f.(cli.DocGenerationFlag); ok {
			help = strings.ReplaceAll(d.GetUsage(), "`", "")
		}
		out = append(out, candidate{"--" + name, help})
	}
	return out
}

// values are those of a flag, by its name.
func (l *line) values(flag string) []candidate {
	if give := flagValues[flag]; give != nil {
		return give(l)
	}
	return nil
}

// flagValues holds the flags whose values are known.
var flagValues = map[string]func(*line) []candidate{
	"as":       (*line).roles,
	"path":     (*line).paths,
	"firewall": (*line).firewalls,
	"old":      (*line).firewalls,
	"new":      (*line).firewalls,
	"fail-on":  func(*line) []candidate { return list(failOns()) },
	"scenario": func(*line) []candidate { return scenarioCandidates() },
	"only":     func(*line) []candidate { return experimentCandidates() },
	"family":   func(*line) []candidate { return list([]string{"ipv4", "ipv6"}) },
	"proxy":    func(*line) []candidate { return list([]string{"auto"}) },
	"steering": func(*line) []candidate { return list([]string{"auto", "bpf", "tproxy", "sockets"}) },
	"format":   func(*line) []candidate { return list([]string{"text", "json"}) },
	"host":     func(*line) []candidate { return list([]string{"host", "lan2", "firewall", "server", "other"}) },
}

func (l *line) firewalls() []candidate { return list(lab.FirewallNames()) }

func failOns() (out []string) {
	for _, f := range expect.FailOns {
		out = append(out, string(f))
	}
	return out
}

func list(words []string) (out []candidate) {
	for _, w := range words {
		out = append(out, candidate{word: w})
	}
	return out
}

// named are the scenarios of the line, or all built-in ones. A file that cannot
// be read is no matter for completion.
func (l *line) named() (out []*scenarios.Scenario) {
	for _, a := range l.args {
		if s, err := scenarios.Load(a); err == nil {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		out, _ = scenarios.Builtin()
	}
	return out
}

func scenarioCandidates() (out []candidate) {
	list, _ := scenarios.Builtin()
	for _, s := range list {
		out = append(out, candidate{s.Name, s.Title})
	}
	return out
}

func (l *line) roles() (out []candidate) {
	for _, s := range l.named() {
		near := s.NearRoles()
		for _, r := range s.Roles {
			known := slices.ContainsFunc(out, func(c candidate) bool { return c.word == r.Name })
			if slices.Contains(near, r.Name) && !known {
				out = append(out, candidate{r.Name, r.Title})
			}
		}
	}
	return out
}

func (l *line) paths() (out []candidate) {
	for _, s := range l.named() {
		for _, p := range s.Paths {
			out = append(out, candidate{p.ID, p.Title})
		}
	}
	return out
}

func experimentCandidates() (out []candidate) {
	books, _ := lab.Books()
	for _, b := range books {
		for _, x := range b.Experiments {
			out = append(out, candidate{word: x.ID})
		}
	}
	return out
}
