package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// expectFlag is that of every command whose results can be held against files.
func expectFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "expect", Usage: "`FILE` that says which verdicts are acceptable; may be repeated; see wallprobe expect --help"}
}

// expectations are the files that flags name.
type expectations []*expect.File

// givenExpectations reads them and sees that they fit the scenarios that are
// measured, before anything is.
func givenExpectations(names []string, known []*scenarios.Scenario) (expectations, error) {
	var out expectations
	var errs []error
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, usage("--expect %s: is given twice", name)
		}
		f, err := expect.Load(name)
		if err == nil {
			err = f.Fit(known)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, f)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, &exitError{exitUsage, err.Error()}
	}
	return out, nil
}

// judge adds to a result what came of its expectations, in the place of those
// of an earlier judgement.
func (list expectations) judge(r *client.Result) {
	if len(list) > 0 {
		r.Expectations = nil
	}
	for _, f := range list {
		r.Expectations = append(r.Expectations, f.Check(r)...)
	}
}

// status is what the exit status says of results that were judged: of those
// that no file speaks of, what it says without any.
func (list expectations) status(results []*client.Result, otherwise func([]*client.Result) error) error {
	if len(list) == 0 {
		return otherwise(results)
	}
	status := exitHolds
	var messages []string
	for _, f := range list {
		if told := f.Unmatched(results); len(told) > 0 {
			status, messages = exitInconclusive, append(messages, told...)
		}
	}
	var others []*client.Result
	for _, r := range results {
		if why := expect.Void(r); why != "" || len(r.Expectations) == 0 {
			others = append(others, r)
		}
		if why := expect.Uncontrolled(r); why != "" {
			status, messages = exitInconclusive, append(messages, why)
		}
		status = max(status, expectationStatus(r))
	}
	if err := otherwise(others); err != nil {
		e, ok := errors.AsType[*exitError](err)
		if !ok {
			return err
		}
		status = max(status, e.status)
		if e.message != "" {
			messages = append(messages, e.message)
		}
	}
	if status == exitHolds {
		return nil
	}
	return &exitError{status, strings.Join(messages, "\n")}
}

// expectationStatus is that of one result. Something that fails is certain,
// whatever else could not be told.
func expectationStatus(r *client.Result) int {
	has := func(s client.State) bool {
		return slices.ContainsFunc(r.Expectations, func(x client.Expectation) bool { return x.State == s })
	}
	switch {
	case has(client.Fails):
		return exitBroken
	case has(client.Untold):
		return exitInconclusive
	}
	return exitHolds
}

func expectCommand() *cli.Command {
	return &cli.Command{
		Name:      "expect",
		Usage:     "make a file of expectations from results, or hold a result against one",
		ArgsUsage: "RESULT...",
		Description: "RESULT is a file that --json wrote, - is standard input. Expectations by which it\n" +
			"holds go to standard output; change them as you like and give them to later runs:\n\n" +
			"  wallprobe expect result.json >office.yaml\n" +
			"  wallprobe run NAME ... --expect office.yaml\n" +
			"  wallprobe expect --check office.yaml result.json       without measuring again\n\n" +
			"One run is as good as its hour. Several of the same (scenario, near end, firewall and\n" +
			"reflector) make one file: what all of them say is expected. Where they differ, to the\n" +
			"port, each verdict that was seen is acceptable, and a comment with the word \"differs\"\n" +
			"says how often; look at those lines and take out what must not be. Of an outcome that\n" +
			"worked in some of the runs nothing is expected, and a comment says so:\n\n" +
			"  for i in 1 2 3; do wallprobe run NAME ... --json $i.json; done\n" +
			"  wallprobe expect 1.json 2.json 3.json >office.yaml\n\n" +
			"The file is written for one version of a scenario:\n\n" +
			exampleExpectations + "\n" +
			"Each port must have one of the verdicts: open, degraded, altered, cut, reply-lost,\n" +
			"request-lost, rejected, refused or impostor; other ports of the path do not count, nor\n" +
			"do paths that are not mentioned. Nor do other outcomes, unless the run says others:\n" +
			"as-scenario; then they must work, if they are not optional. What must be closed has to\n" +
			"say how; silence proves nothing. It also needs a positive control: a path across the\n" +
			"firewall that is expected open and is, or nothing is proved and the exit status is 3.\n\n" +
			"Exit status of a command with expectations: 0 all hold, 1 one does not, 2 the file is\n" +
			"wrong or does not fit the scenario, 3 one cannot be told, or no result is of its run.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "check", Usage: "hold the result against the expectations in `FILE`, and write none; may be repeated"},
			&cli.StringSliceFlag{Name: "scenario", Usage: "with --check, scenario `FILE` that the result was made with; may be repeated"},
			&cli.BoolFlag{Name: "schema", Usage: "write the JSON Schema of such files, for editors, and need no result"},
			&cli.BoolFlag{Name: "details", Usage: "with --check, show what holds as well"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colour, even on a terminal"},
		},
		Action: expectAction,
	}
}

// exampleExpectations is valid; a test sees to that.
const exampleExpectations = `  schema: wallprobe/expect/1
  runs:
    - scenario: chrome-remote-desktop
      version: 1
      role: host
      paths:
        - {path: CRD-A1, verdicts: [open]}
        - {path: CRD-B11, ports: 40001-65535, verdicts: [request-lost, rejected]}
      outcomes:
        - {outcome: session-outside, works: true, way: 2}   # by way 2 or one before it
`

func expectAction(c *cli.Context) error {
	if c.Bool("schema") {
		b, err := expect.Schema()
		if err != nil {
			return err
		}
		_, err = c.App.Writer.Write(b)
		return err
	}
	if c.NArg() == 0 {
		return usage("expect: needs a result, which --json wrote, or several of the same; see wallprobe expect --help")
	}
	names := c.StringSlice("check")
	if len(names) > 0 && c.NArg() > 1 {
		return usage("expect: --check holds one result against expectations, and %d are named", c.NArg())
	}
	sources, err := openSources(c)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return checkResults(c, names, sources[0].Results)
	}
	if err := expect.SameRuns(sources); err != nil {
		return usage("expect: %v", err)
	}
	b, err := expect.Write(sources)
	if err != nil {
		return &exitError{exitInconclusive, fmt.Sprintf("expect: %v", err)}
	}
	_, err = c.App.Writer.Write(b)
	return err
}

// openSources reads the results that the arguments name.
func openSources(c *cli.Context) ([]expect.Source, error) {
	var out []expect.Source
	for i, name := range c.Args().Slice() {
		if slices.Contains(c.Args().Slice()[:i], name) {
			return nil, usage("expect: %s is named twice, and would count twice", name)
		}
		results, err := openResults(c, "expect", name)
		if err != nil {
			return nil, err
		}
		out = append(out, expect.Source{Name: name, Results: results})
	}
	return out, nil
}

// checkResults holds saved results against files.
func checkResults(c *cli.Context, names []string, results []*client.Result) error {
	known, err := scenariosOf("expect", results, c.StringSlice("scenario"))
	if err != nil {
		return err
	}
	list, err := givenExpectations(names, listOf(known))
	if err != nil {
		return err
	}
	for _, r := range results {
		list.judge(r)
	}
	if err := printExpectations(c.App.Writer, results, textOptions(c)); err != nil {
		return err
	}
	return list.status(results, func([]*client.Result) error { return nil })
}

// printExpectations prints those of each result, under its name where there are several.
func printExpectations(w io.Writer, results []*client.Result, o report.Options) error {
	for _, r := range results {
		if len(r.Expectations) == 0 {
			continue
		}
		if len(results) > 1 {
			if _, err := fmt.Fprintf(w, "\n%s\n", expect.SubjectOf(r)); err != nil {
				return err
			}
		}
		if err := report.Expectations(w, r, o); err != nil {
			return err
		}
	}
	return nil
}
