package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/lab"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "what a change of the firewall's rules breaks or opens, and by which line",
		Before:    needsNamespaces,
		ArgsUsage: "--old NAME|FILE --new NAME|FILE [SCENARIO...]",
		Description: "Measures behind the old rules and behind the new ones, side by side in two labs, and\n" +
			"prints only what changed: each path with exactly those ports that fare otherwise, the\n" +
			"rule of either file that decides it, and what that means for the outcomes. Without a\n" +
			"scenario it takes all of them, from every near end. What differs only once, and not\n" +
			"when it is tried again, is no change.\n\n" +
			"Which rule decides is seen by tracing a few packets like those of the path. A rule that\n" +
			"the first packets do not show, for it goes by contents, amounts or rates, is named where\n" +
			"its own counter proves that it, and no other, stopped packets of this path.\n\n" +
			"Exit status: 0 nothing required broke, 1 something required broke (a required path, an\n" +
			"outcome that is not optional) or --fail-on counts, 2 wrong usage or rules that cannot\n" +
			"be loaded, 3 inconclusive.\n\n" +
			"  wallprobe lab diff --old office.nft --new office-new.nft screenconnect\n" +
			"  git show HEAD:office.nft >old.nft; wallprobe lab diff --old old.nft --new office.nft",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "old", Usage: "`NAME|FILE` of the rules as they were"},
			&cli.StringFlag{Name: "new", Usage: "`NAME|FILE` of the rules as they are to be"},
			failOnFlag(),
			&cli.StringFlag{Name: "as", Usage: "near end: a `ROLE` of the scenario (default: all of them)"},
			&cli.BoolFlag{Name: "ipv6", Aliases: []string{"6"}, Usage: "measure over IPv6"},
			&cli.DurationFlag{Name: "timeout", Value: lab.DefaultTimeout, Usage: "the longest single wait, a `TIME` such as 500ms or 5s"},
			&cli.StringSliceFlag{Name: "path", Usage: "measure only the path with this `ID`; may be repeated"},
			&cli.BoolFlag{Name: "details", Usage: "show what could be told behind one of them only and why, and every port"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colour, even on a terminal"},
		}, slices.Concat(firewallFlags(), formatFlags(comparisonFormats))...),
		Action: diffAction,
	}
}

func diffAction(c *cli.Context) error {
	sides, err := openSides(c.String("old"), c.String("new"))
	if err != nil {
		return err
	}
	on, err := failOn(c)
	if err != nil {
		return err
	}
	d, err := newDiff(c, sides)
	if err != nil {
		return err
	}
	files, err := targets(c, comparisonFormats)
	if err != nil {
		return err
	}
	if done, err := enterLab(c.Context); done || err != nil {
		return err
	}
	line := progressLine(c)
	watch, stop := watching(line, fmt.Sprintf("measuring behind %s and %s", sides[0].firewall.Name, sides[1].firewall.Name), "")
	defer stop()
	d.tell = watch.show
	comparison, err := d.run(c.Context)
	stop()
	line.Clear()
	if err != nil {
		return err
	}
	for _, note := range d.notes {
		fmt.Fprintln(c.App.ErrWriter, note)
	}
	if err := writeComparison(c, compared{comparison, on}, files); err != nil {
		return err
	}
	return comparisonStatus(comparison, on)
}

// A side is one of the two firewalls.
type side struct {
	name     string // "old" or "new"
	firewall lab.Firewall
}

// openSides opens both firewalls, which must be two.
func openSides(old, new string) ([2]side, error) {
	var sides [2]side
	switch {
	case old == "" || new == "":
		return sides, usage("lab diff: two sets of rules are compared: --old FILE --new FILE; see wallprobe lab diff --help")
	case old == new || sameFile(old, new):
		return sides, usage("lab diff: --old %s and --new %s are the same; nothing can have changed", old, new)
	}
	for i, s := range []struct{ name, file string }{{"old", old}, {"new", new}} {
		f, err := lab.OpenFirewall(s.file)
		if err != nil {
			return sides, usage("--%s: %v", s.name, err)
		}
		sides[i] = side{s.name, f}
	}
	if a, b := &sides[0].firewall, &sides[1].firewall; a.Name == b.Name {
		a.Name, b.Name = old, new // files of one name in two folders
	}
	return sides, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// A diff is a measurement behind two firewalls.
type diff struct {
	sides [2]side
	m     lab.Measurement
	tell  func(string) // how far it is
	notes []string     // what is to be known of one of them and not of the other
}

// newDiff reads the flags that say what to measure.
func newDiff(c *cli.Context, sides [2]side) (*diff, error) {
	list, err := loadScenarios(c.Args().Slice())
	if err != nil {
		return nil, err
	}
	if list, err = confined(list, commaList(c, "path")); err != nil {
		return nil, err
	}
	m, err := labMeasurement(c, list, false)
	m.Explain = func(client.Verdict) bool { return true }
	return &diff{sides: sides, m: m}, err
}

// run measures and compares, and again what would be a change that no traced
// packet bears out.
func (d *diff) run(ctx context.Context) (expect.Comparison, error) {
	compare := func(results [][]*client.Result) (expect.Comparison, error) {
		c, err := expect.Compare(results[0], results[1], expect.Options{})
		if err != nil {
			err = &exitError{exitInconclusive, err.Error()}
		}
		return c, err
	}
	results, err := surely(ctx, d.m, d.measure, func(results [][]*client.Result, try int) ([]string, error) {
		c, err := compare(results)
		return unproven(c, try), err
	}, func(client.Finding) bool { return true }, d.tell) // of both sides, which are compared
	if err != nil {
		return expect.Comparison{}, err
	}
	d.notes = notesApart(d.sides, results)
	return compare(results)
}

// unproven are the paths of changes that traced packets do not bear out: these
// met no rule, or the change is in how many got through. What could not be told
// twice is not tried a third time.
func unproven(c expect.Comparison, try int) (ids []string) {
	for _, p := range c.Pairs {
		for _, x := range p.Changes {
			decided := len(x.Old.DecidedBy) > 0 && len(x.New.DecidedBy) > 0
			borneOut := decided && !(x.Old.Verdict.Passes() && x.New.Verdict.Passes())
			hopeless := x.Kind == expect.Untold && try > 1
			if !borneOut && !hopeless && !slices.Contains(ids, x.Path) {
				ids = append(ids, x.Path)
			}
		}
	}
	return ids
}

// measure measures behind both firewalls at once.
func (d *diff) measure(ctx context.Context, m lab.Measurement) ([][]*client.Result, error) {
	results := make([][]*client.Result, len(d.sides))
	var errs [2]error
	var wg sync.WaitGroup
	for i, s := range d.sides {
		wg.Go(func() { results[i], errs[i] = measureOne(ctx, s.firewall, m) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return results, stopped()
	}
	for i, s := range d.sides {
		if errs[i] != nil {
			return results, s.wrong(errs[i])
		}
	}
	return results, nil
}

// wrong says on which side something went wrong.
func (s side) wrong(err error) error {
	status := exitInconclusive
	if e, ok := err.(*exitError); ok {
		status = e.status
	}
	return &exitError{status, fmt.Sprintf("--%s: %s", s.name, strings.TrimSpace(err.Error()))}
}
