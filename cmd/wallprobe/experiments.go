package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

func experimentsCommand() *cli.Command {
	return &cli.Command{
		Name:   "experiments",
		Before: needsNamespaces,
		Usage:  "try what the documents say happens behind a firewall, and compare",
		Description: "Each experiment is a firewall together with what a document says happens behind it.\n" +
			"It is run, and its outcome is reported as confirmed, contradicted (with the evidence)\n" +
			"or unmeasured (with the reason). Exit status 0 when all could be run, whatever they showed.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "large", Usage: "transfers of the size that the documents name, 1 GiB instead of 64 MiB: minutes more"},
			&cli.StringSliceFlag{Name: "only", Usage: "those whose id matches `GLOB`, for example 'CRD-E[1-4]'; may be repeated"},
			&cli.StringFlag{Name: jsonFlag, Usage: "write the rows as JSON to `FILE`, - for standard output"},
			&cli.BoolFlag{Name: "ipv6", Aliases: []string{"6"}, Usage: "measure over IPv6"},
			&cli.DurationFlag{Name: "timeout", Value: lab.DefaultTimeout, Usage: "the longest single wait, a `TIME` such as 500ms or 5s"},
			&cli.BoolFlag{Name: "details", Usage: "show the findings, what was a stand-in, and the documents' own sentences"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colour, even on a terminal"},
		},
		Action: experiments,
	}
}

// A task is one experiment in one of its variants.
type task struct {
	book    *lab.Book
	x       lab.Experiment
	variant lab.Variant
}

func experiments(c *cli.Context) error {
	if c.Args().Present() {
		return usage("lab experiments takes no arguments; choose with --only '%s'", c.Args().First())
	}
	books, err := lab.Books()
	if err != nil {
		return err
	}
	tasks, err := choose(books, commaList(c, "only"))
	if err != nil {
		return err
	}
	if err := checkTimeout(c.Duration("timeout")); err != nil {
		return err
	}
	if err := writable(jsonFlag, c.String(jsonFlag)); err != nil {
		return err
	}
	if done, err := enterLab(c.Context); done || err != nil {
		return err
	}
	line := progressLine(c)
	defer line.Clear()
	t := &trials{m: lab.Measurement{IPv6: c.Bool("ipv6"), Timeout: c.Duration("timeout"), Read: report.ReadJSON}, most: math.MaxInt64, done: make(map[place]*trialResult)}
	if !c.Bool("large") {
		t.most = usualBytes
	}
	t.run(c.Context, tasks, books, func(done, total int, doing string) {
		line.Show(fmt.Sprintf("%d of %d firewalls, %s done", done, total, doing))
	})
	line.Clear()
	if c.Context.Err() != nil {
		return &exitError{exitInconclusive, "stopped before the end"}
	}
	rows, disputes := t.rows(tasks), t.disputes(tasks, books)
	if name := c.String(jsonFlag); name != "" {
		if err := writeRows(c, name, rows); err != nil || name == stdoutName {
			return errors.Join(err, t.status(tasks))
		}
	}
	if err := showExperiments(c, rows, disputes); err != nil {
		return err
	}
	return t.status(tasks)
}

// showExperiments prints the rows, and what the documents disagree about.
func showExperiments(c *cli.Context, rows []report.ExperimentRow, disputes [][]string) error {
	if err := report.Experiments(c.App.Writer, rows, textOptions(c)); err != nil {
		return err
	}
	for _, d := range disputes {
		t := report.Table{Width: textOptions(c).Width, Indent: 2, Columns: []report.Column{{Flex: 1}}}
		for _, line := range d[1:] {
			t.Row(line)
		}
		if _, err := fmt.Fprintf(c.App.Writer, "\n%s\n", d[0]); err != nil {
			return err
		}
		if _, err := t.WriteTo(c.App.Writer); err != nil {
			return err
		}
	}
	return nil
}

func choose(books []lab.Book, only []string) ([]task, error) {
	var out []task
	var ids []string
	for i := range books {
		for _, x := range books[i].Experiments {
			ids = append(ids, x.ID)
			ok, err := lab.Match(only, x.ID)
			if err != nil {
				return nil, usage("--only: %v", err)
			}
			if !ok {
				continue
			}
			for _, v := range x.All() {
				out = append(out, task{&books[i], x, v})
			}
		}
	}
	if len(out) == 0 {
		return nil, usage("--only: no experiment matches; there are %s", strings.Join(ids, ", "))
	}
	return out, nil
}

// A place is where an experiment is run. Experiments in one place share its result.
type place struct {
	scenario, role, firewall string
	bytes                    int64
	than                     string // the firewall that it is compared with by turns; empty is none
	alone                    string // the paths to which it is bound, with spaces between; empty is all
}

// place is where a task is decided; bytes bounds its transfer.
func (t task) place(most int64) place {
	return place{
		scenario: t.book.Scenario, role: cmp.Or(t.variant.Role, t.book.Role), firewall: t.variant.Firewall,
		bytes: min(t.x.Bytes, most), than: t.x.Against(t.variant), alone: strings.Join(t.x.Alone(t.variant), " "),
	}
}

// usualBytes is how much of a document's transfer is carried unless all of it
// is asked for.
const usualBytes = 64 << 20

// trials runs every place once.
type trials struct {
	m    lab.Measurement
	most int64 // bytes of a transfer
	mu   sync.Mutex
	done map[place]*trialResult
}

type trialResult struct {
	res    *client.Result
	rounds []lab.Round // with the firewall that it is compared with
	err    error
}

func (t *trials) run(ctx context.Context, tasks []task, books []lab.Book, progress func(done, total int, doing string)) {
	places := places(tasks, books, t.most)
	var wg sync.WaitGroup
	try := func(p place) {
		got := t.one(ctx, p)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.done[p] = got
		progress(len(t.done), len(places), p.firewall)
	}
	slots := make(chan struct{}, worlds)
	for _, p := range places {
		if p.alone != "" {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			try(p)
		})
	}
	wg.Wait()
	for _, p := range places { // what is about speed has the machine to itself
		if p.alone != "" {
			try(p)
		}
	}
}

// places lists where the tasks and the disputes about them are decided.
func places(tasks []task, books []lab.Book, most int64) []place {
	var out []place
	add := func(p place) {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	for _, t := range tasks {
		add(t.place(most))
	}
	for i := range books {
		for _, d := range books[i].Disputes {
			if concerns(d, tasks) {
				add(disputed(books[i], d))
			}
		}
	}
	return out
}

// disputed is the place where a dispute is decided.
func disputed(b lab.Book, d lab.Dispute) place {
	return place{scenario: b.Scenario, role: b.Role, firewall: d.Firewall}
}

// concerns tells whether a dispute is about any of the tasks.
func concerns(d lab.Dispute, tasks []task) bool {
	return slices.ContainsFunc(tasks, func(t task) bool { return slices.Contains(d.Experiments, t.x.ID) })
}

func (t *trials) one(ctx context.Context, p place) *trialResult {
	m, err := t.measurement(p)
	if err != nil {
		return &trialResult{err: err}
	}
	f, err := lab.OpenFirewall(p.firewall)
	if err != nil {
		return &trialResult{err: err}
	}
	if p.than != "" {
		return byTurns(ctx, f, p.than, m)
	}
	results, err := measureOne(ctx, f, m)
	if err != nil || len(results) == 0 {
		return &trialResult{err: err}
	}
	return &trialResult{res: results[0]}
}

// measurement is how a place is measured.
func (t *trials) measurement(p place) (lab.Measurement, error) {
	s, err := scenarios.Load(p.scenario)
	if err != nil {
		return t.m, err
	}
	m := t.m
	only := strings.Fields(p.alone)
	m.Scenarios = []*scenarios.Scenario{s.Only(only)}
	for _, id := range only {
		m.Client = append(slices.Clone(m.Client), "--path", id)
	}
	m.Roles = func(*scenarios.Scenario) []string { return []string{p.role} }
	if p.bytes > 0 {
		m.Client = append(slices.Clone(m.Client), "--bytes", fmt.Sprint(p.bytes))
	}
	return m, nil
}

// byTurns measures behind a firewall and another one by turns. Of the results
// behind the first, the last that is complete stands for all.
func byTurns(ctx context.Context, f lab.Firewall, than string, m lab.Measurement) *trialResult {
	other, err := lab.OpenFirewall(than)
	if err != nil {
		return &trialResult{err: err}
	}
	got := new(trialResult)
	got.err = inWorld(ctx, f, m, func(here *lab.World) error {
		return inWorld(ctx, other, m, func(there *lab.World) (err error) {
			got.rounds, err = lab.Turns(ctx, here, there, m, lab.Rounds)
			return err
		})
	})
	var seconds float64
	for _, r := range got.rounds {
		seconds += r.Before.Seconds + r.Here.Seconds + r.After.Seconds
		if got.res == nil || r.Here.Complete {
			got.res = r.Here
		}
	}
	if got.res != nil {
		got.res.Seconds = seconds
	}
	return got
}

func (t *trials) rows(tasks []task) []report.ExperimentRow {
	var rows []report.ExperimentRow
	for _, k := range tasks {
		row := report.ExperimentRow{ID: k.x.ID, Variant: k.variant.Name, Firewall: k.variant.Firewall,
			Document: k.x.Document, Quote: cmp.Or(k.variant.Quote, k.x.Quote), Source: k.x.Source, Bytes: k.place(t.most).bytes}
		got := t.done[k.place(t.most)]
		if got.res == nil {
			row.Status, row.Measured, row.Reason = string(lab.Unmeasured), "nothing", fmt.Sprint(got.err)
			rows = append(rows, row)
			continue
		}
		status, measured, reason := k.x.Compare(k.variant, got.res, got.rounds)
		if row.Bytes > 0 {
			measured += "; " + transfer(row.Bytes, k.x.Bytes)
		}
		row.Status, row.Measured, row.Reason, row.Seconds = string(status), measured, reason, got.res.Seconds
		row.Findings = evidence(got.res, k.x.Show)
		rows = append(rows, row)
	}
	return rows
}

// transfer says how much was carried of what a document names.
func transfer(carried, named int64) string {
	if carried < named {
		return fmt.Sprintf("tried with %s, which is not the %s of the document: --large carries all of it", report.Bytes(carried), report.Bytes(named))
	}
	return "tried with " + report.Bytes(carried)
}

// evidence are the findings on some paths, a line each.
func evidence(r *client.Result, paths []string) []string {
	var out []string
	for i := range r.Findings {
		if f := &r.Findings[i]; slices.Contains(paths, f.Path) {
			line := fmt.Sprintf("%s %s", f.Path, f.Sentence())
			if f.Why != "" && len(f.Parts) == 0 {
				line += ": " + f.Why
			}
			out = append(out, line)
		}
	}
	return out
}

// disputes says which of two documents the measurement supports.
// The first line of each says what they disagree on.
func (t *trials) disputes(tasks []task, books []lab.Book) [][]string {
	var out [][]string
	for i := range books {
		for _, d := range books[i].Disputes {
			if !concerns(d, tasks) {
				continue
			}
			got := t.done[disputed(books[i], d)]
			if got.res == nil {
				continue
			}
			lines := []string{"The documents disagree: " + d.Title}
			supported := d.Supported(got.res)
			for _, s := range d.Sides {
				mark := "not supported"
				if slices.ContainsFunc(supported, func(o lab.Side) bool { return o.Source == s.Source }) {
					mark = "supported by the measurement"
				}
				lines = append(lines, fmt.Sprintf("%s: %s - %s (behind %s)", s.Source, s.Says, mark, d.Firewall))
			}
			if d.Note != "" {
				lines = append(lines, d.Note)
			}
			out = append(out, lines)
		}
	}
	return out
}

// status is not good only where something could not be run.
func (t *trials) status(tasks []task) error {
	for _, k := range tasks {
		got := t.done[k.place(t.most)]
		switch {
		case got.res == nil:
			return &exitError{exitInconclusive, fmt.Sprintf("%s behind %s could not be measured: %v", k.x.ID, k.variant.Firewall, got.err)}
		case !got.res.Complete:
			return &exitError{exitInconclusive, fmt.Sprintf("%s behind %s: %s", k.x.ID, k.variant.Firewall, got.res.Why)}
		}
	}
	return nil
}

// writeRows writes the rows where --json says.
func writeRows(c *cli.Context, name string, rows []report.ExperimentRow) error {
	var b bytes.Buffer
	if err := report.ExperimentsJSON(&b, rows); err != nil {
		return err
	}
	if name == stdoutName {
		_, err := c.App.Writer.Write(b.Bytes())
		return err
	}
	if err := writeWhole(name, b.Bytes()); err != nil {
		return cannotWrite(jsonFlag, name, err)
	}
	return nil
}
