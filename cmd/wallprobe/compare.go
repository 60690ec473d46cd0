package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/report"
)

// failOnFlag says which changes make a command that compares fail.
func failOnFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "fail-on", Usage: "exit with 1 on `CHANGE` beside something required that broke: " +
		"worse (anything that broke or got worse), opened (what was closed), change (any); may be repeated"}
}

// failOn reads failOnFlag.
func failOn(c *cli.Context) ([]expect.FailOn, error) {
	var out []expect.FailOn
	for _, text := range commaList(c, "fail-on") {
		f := expect.FailOn(text)
		if !slices.Contains(expect.FailOns, f) {
			return nil, usage("--fail-on %s: write %s", text, alternatives(expect.FailOns))
		}
		out = append(out, f)
	}
	return out, nil
}

// alternatives writes a list: "a, b or c".
func alternatives[T ~string](list []T) string {
	var out strings.Builder
	for i, x := range list {
		switch {
		case i > 0 && i == len(list)-1:
			out.WriteString(" or ")
		case i > 0:
			out.WriteString(", ")
		}
		out.WriteString(string(x))
	}
	return out.String()
}

func compareCommand() *cli.Command {
	return &cli.Command{
		Name:      "compare",
		Usage:     "what changed between two results, and what it broke",
		ArgsUsage: "OLD NEW",
		Description: "OLD and NEW are files that --json wrote; - for one of them is standard input. Only what\n" +
			"changed is printed: paths with exactly those ports that fare otherwise, and outcomes.\n\n" +
			"Verdicts are compared strictly. Times are not compared at all, unless --slower says\n" +
			"from where on a round trip counts; open and degraded differ only where the shares of\n" +
			fmt.Sprintf("lost datagrams differ by more than %.0f points of a hundred. What could not be measured\n", expect.LossTolerance*100) +
			"one of the two times is told, and never called broken. What is rejected both times, but\n" +
			"by another kind of rejection (a reset, one of the ICMP errors), is told as such, and\n" +
			"counts for --fail-on change alone.\n\n" +
			"Exit status: 0 nothing required broke, 1 something required broke (a required path, an\n" +
			"outcome that is not optional) or --fail-on counts, 2 the two cannot be compared (other\n" +
			"scenarios, another version of a scenario, a file that is no result), 3 the comparison\n" +
			"proves nothing: a result was cut off half-way, its reflector was not reached, something\n" +
			"required could not be measured this time, or the reflectors are not the same.\n\n" +
			"  wallprobe run NAME ... --json before.json        change the firewall, then\n" +
			"  wallprobe run NAME ... --json - | wallprobe compare before.json -",
		Flags: append([]cli.Flag{
			failOnFlag(),
			&cli.DurationFlag{Name: "slower", DefaultText: "times never count", Usage: "a round trip that grew by more than this `TIME`, such as 50ms, is worse"},
			&cli.BoolFlag{Name: "any-reflector", Usage: "compare although the results were measured against different reflectors"},
			&cli.BoolFlag{Name: "details", Usage: "show what could be told only one time and why, and every port"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colour, even on a terminal"},
		}, formatFlags(comparisonFormats)...),
		Action: compare,
	}
}

func compare(c *cli.Context) error {
	if c.NArg() != 2 {
		return usage("compare: needs two results, the old and the new; see wallprobe compare --help")
	}
	on, err := failOn(c)
	if err != nil {
		return err
	}
	if c.Duration("slower") < 0 {
		return usage("--slower %v: a time above zero", c.Duration("slower"))
	}
	oldName, newName := c.Args().Get(0), c.Args().Get(1)
	if oldName == "-" && newName == "-" {
		return usage("compare: only one of the two can be standard input")
	}
	files, err := targets(c, comparisonFormats)
	if err != nil {
		return err
	}
	old, err := openResults(c, "compare", oldName)
	if err != nil {
		return err
	}
	new, err := openResults(c, "compare", newName)
	if err != nil {
		return err
	}
	comparison, err := expect.Compare(old, new, expect.Options{Slower: c.Duration("slower"), AnyReflector: c.Bool("any-reflector")})
	if err != nil {
		return usage("compare: %v", err)
	}
	if err := writeComparison(c, compared{comparison, on}, files); err != nil {
		return err
	}
	return comparisonStatus(comparison, on)
}

// writeComparison writes to files and to standard output.
func writeComparison(c *cli.Context, what compared, files []targetOf[compared]) error {
	return deliver(files, what, c.App.Writer, func() error {
		return report.Comparison(c.App.Writer, what.comparison, textOptions(c))
	})
}

// comparisonStatus is the exit status of a comparison that was printed. A void
// one proves nothing, not even that something broke.
func comparisonStatus(c expect.Comparison, on []expect.FailOn) error {
	switch {
	case !c.Void() && c.Fails(on...):
		return &exitError{status: exitBroken}
	case len(c.Doubts()) > 0:
		return &exitError{status: exitInconclusive}
	}
	return nil
}

// openResults reads results from a file or, for -, from standard input.
func openResults(c *cli.Context, command, name string) ([]*client.Result, error) {
	in, named := c.App.Reader, "standard input"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, unopened(command, err, "results come from wallprobe run or lab with --json FILE")
		}
		defer f.Close()
		in, named = f, name
	}
	return decodeResults(in, named)
}

// unopened says of a file that is not there where the like of it comes from.
func unopened(command string, err error, origin string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return usage("%s: %v; %s", command, err, origin)
	}
	return usage("%s: %v", command, err)
}

func decodeResults(in io.Reader, name string) ([]*client.Result, error) {
	results, err := report.ReadJSON(in)
	if err != nil {
		return nil, usage("%s: %v", name, err)
	}
	return results, nil
}
