package main

import (
	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

func reportCommand() *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "show saved results again, as text, JUnit XML, Markdown or a page of HTML",
		ArgsUsage: "RESULT...",
		Description: "RESULT is what --json wrote, - for standard input. Several are shown together, those\n" +
			"behind several firewalls as a matrix. Nothing is measured. Documents are quoted in the\n" +
			"page where their scenario is known: name a scenario file of your own with --scenario.\n\n" +
			"Example: wallprobe report before.json after.json --html both.html\n\n" +
			"Exit status: 0 shown, whatever it says, 2 wrong usage or unreadable input.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "scenario", Usage: "scenario `FILE` that a result was made with; may be repeated"},
		}, outputFlags()...),
		Action: reportAction,
	}
}

func reportAction(c *cli.Context) error {
	if !c.Args().Present() {
		return usage("report: which result? Name a file that --json wrote; see wallprobe report --help")
	}
	known, err := scenariosAndBuiltin(c.StringSlice("scenario"))
	if err != nil {
		return err
	}
	out, err := newOutput(c, known)
	if err != nil {
		return err
	}
	for _, name := range c.Args().Slice() {
		results, err := openResults(c, "report", name)
		if err != nil {
			return err
		}
		out.results = append(out.results, results...)
	}
	if len(out.results) == 0 {
		return usage("report: the list of results is empty")
	}
	out.matrix = report.Firewalls(out.results) > 1
	return out.finish()
}

// scenariosAndBuiltin loads files; they come before a built-in scenario of the
// same name.
func scenariosAndBuiltin(files []string) ([]*scenarios.Scenario, error) {
	var out []*scenarios.Scenario
	for _, name := range files {
		s, err := scenarios.Load(name)
		if err != nil {
			return nil, &exitError{exitUsage, err.Error()}
		}
		out = append(out, s)
	}
	all, err := scenarios.Builtin()
	return append(out, all...), err
}
