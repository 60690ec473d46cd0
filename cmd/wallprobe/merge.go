package main

import (
	"maps"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

func mergeCommand() *cli.Command {
	return &cli.Command{
		Name:      "merge",
		Usage:     "join both ends' evidence when control had no path",
		ArgsUsage: "CLIENT-RESULT REFLECTOR-JOURNAL",
		Description: "CLIENT-RESULT is what wallprobe run --json wrote, REFLECTOR-JOURNAL what wallprobe\n" +
			"reflector --journal wrote. Every silent path gets its exact verdict. Name a\n" +
			"scenario file of your own with --scenario.",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "scenario", Usage: "scenario `FILE` that the result was made with; may be repeated"},
			expectFlag(),
		}, outputFlags()...),
		Action: merge,
	}
}

func merge(c *cli.Context) error {
	if c.NArg() != 2 {
		return usage("merge: needs two files, the client's result and the reflector's journal; see wallprobe merge --help")
	}
	results, err := openResults(c, "merge", c.Args().Get(0))
	if err != nil {
		return err
	}
	j, err := readJournal(c.Args().Get(1))
	if err != nil {
		return err
	}
	known, err := scenariosOf("merge", results, c.StringSlice("scenario"))
	if err != nil {
		return err
	}
	wanted, err := givenExpectations(c.StringSlice("expect"), listOf(known))
	if err != nil {
		return err
	}
	out, err := newOutput(c, listOf(known))
	if err != nil {
		return err
	}
	out.wanted = wanted
	for _, r := range results {
		l, err := j.For(r)
		if err != nil {
			return &exitError{exitInconclusive, "merge: " + err.Error()}
		}
		r.Attach(client.WhereFar, l)
		client.Conclude(r, known[r.Scenario])
		out.add(r)
	}
	if err := out.finish(); err != nil {
		return err
	}
	return out.wanted.status(results, verdictStatus)
}

func readJournal(name string) (*client.Journal, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, unopened("merge", err, "journals come from wallprobe reflector with --journal FILE")
	}
	defer f.Close()
	j, err := client.ReadJournal(f)
	if err != nil {
		return nil, usage("%s: %v", name, err)
	}
	return j, nil
}

// scenariosOf loads the scenarios that results were made with.
func scenariosOf(command string, results []*client.Result, files []string) (map[string]*scenarios.Scenario, error) {
	known := make(map[string]*scenarios.Scenario)
	for _, name := range files {
		s, err := scenarios.Load(name)
		if err != nil {
			return nil, &exitError{exitUsage, err.Error()}
		}
		known[s.Name] = s
	}
	for _, r := range results {
		if known[r.Scenario] != nil {
			continue
		}
		s, err := scenarios.Load(r.Scenario)
		if err != nil {
			return nil, usage("%s: the result's scenario %s is not built in; name its file with --scenario", command, r.Scenario)
		}
		known[r.Scenario] = s
	}
	return known, nil
}

// listOf is the scenarios by their names.
func listOf(known map[string]*scenarios.Scenario) []*scenarios.Scenario {
	var out []*scenarios.Scenario
	for _, name := range slices.Sorted(maps.Keys(known)) {
		out = append(out, known[name])
	}
	return out
}
