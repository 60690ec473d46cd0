package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A formatOf is a form in which something can be written beside the text for a
// person: the flag that asks for it, and how it is written.
type formatOf[T any] struct {
	flag, what string
	write      func(io.Writer, T) error
}

// A target is a format and the file that its flag names, - for standard output.
type targetOf[T any] struct {
	formatOf[T]
	name string
}

// What commands that measure write.
type (
	shown struct {
		results []*client.Result
		known   []*scenarios.Scenario // whose documents are quoted
	}
	target = targetOf[shown]
)

// formats are all there are of results; JSON is the one that can be read again.
var formats = []formatOf[shown]{
	{jsonFlag, "the result as JSON", func(w io.Writer, s shown) error { return report.JSON(w, s.results) }},
	{"junit", "JUnit XML for continuous integration", func(w io.Writer, s shown) error { return report.JUnit(w, s.results) }},
	{"markdown", "Markdown for a pull request", func(w io.Writer, s shown) error { return report.Markdown(w, s.results) }},
	{"html", "one page of HTML that needs no other file", func(w io.Writer, s shown) error { return report.HTML(w, s.results, s.known) }},
}

// What commands that compare write.
type compared struct {
	comparison expect.Comparison
	on         []expect.FailOn // what counts as a failure
}

// comparisonFormats are all there are of comparisons.
var comparisonFormats = []formatOf[compared]{
	{jsonFlag, "the comparison as JSON", func(w io.Writer, c compared) error { return report.ComparisonJSON(w, c.comparison) }},
	{"junit", "JUnit XML for continuous integration", func(w io.Writer, c compared) error { return report.ComparisonJUnit(w, c.comparison, c.on...) }},
	{"markdown", "Markdown for a pull request", func(w io.Writer, c compared) error { return report.ComparisonMarkdown(w, c.comparison) }},
	{"html", "one page of HTML that needs no other file", func(w io.Writer, c compared) error { return report.ComparisonHTML(w, c.comparison) }},
}

const jsonFlag = "json"

// formatFlags has a flag for each format.
func formatFlags[T any](formats []formatOf[T]) []cli.Flag {
	var out []cli.Flag
	for _, f := range formats {
		out = append(out, &cli.StringFlag{Name: f.flag, Usage: "write " + f.what + " to `FILE`, - for standard output"})
	}
	return out
}

// An output takes results as they come and writes them where the flags say.
type output struct {
	stdout io.Writer
	files  []target
	known  []*scenarios.Scenario // whose documents are quoted
	text   report.Options
	line   *report.ProgressLine
	matrix bool         // the text is a matrix of outcomes by firewalls
	wanted expectations // which results are held against

	mu      sync.Mutex
	results []*client.Result
}

// standard tells whether the target is standard output.
func (t targetOf[T]) standard() bool { return t.name == stdoutName }

// stdoutName is what stands for standard output.
const stdoutName = "-"

// saveEvery is how often an unfinished result is saved; a client that is
// killed has lost no more than this.
const saveEvery = 500 * time.Millisecond

// newOutput prepares what the flags say. That a file cannot be written shows
// here, before anything is measured.
func newOutput(c *cli.Context, known []*scenarios.Scenario) (*output, error) {
	files, err := targets(c, formats)
	if err != nil {
		return nil, err
	}
	return &output{stdout: c.App.Writer, files: files, known: known, text: textOptions(c), line: progressLine(c)}, nil
}

// targets are the files that the flags name. No two may be one.
func targets[T any](c *cli.Context, formats []formatOf[T]) ([]targetOf[T], error) {
	var out []targetOf[T]
	taken := make(map[string]string) // file to flag
	for _, f := range formats {
		name := c.String(f.flag)
		if name == "" {
			continue
		}
		place := name
		if name != stdoutName {
			if abs, err := filepath.Abs(name); err == nil {
				place = abs
			}
		}
		switch other := taken[place]; {
		case other != "" && name == stdoutName:
			return nil, usage("--%s - and --%s -: only one of them can have standard output; name a file for the other", other, f.flag)
		case other != "":
			return nil, usage("--%s and --%s both name %s; each needs a file of its own", other, f.flag, name)
		}
		taken[place] = f.flag
		if err := writable(f.flag, name); err != nil {
			return nil, err
		}
		out = append(out, targetOf[T]{f, name})
	}
	return out, nil
}

// writable tries to make a file beside the one that a flag names.
func writable(flag, name string) error {
	if name == "" || name == stdoutName {
		return nil
	}
	st, err := os.Stat(name)
	switch {
	case err == nil && st.IsDir():
		return usage("--%s %s: is a folder; name a file", flag, name)
	case err == nil && !st.Mode().IsRegular():
		return nil // a device or a pipe
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return cannotWrite(flag, name, err)
	}
	f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return cannotWrite(flag, name, err)
	}
	return nil
}

// textOptions are width and colour for where standard output goes.
func textOptions(c *cli.Context) report.Options {
	o := report.Options{Details: c.Bool("details")}
	if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		o.Color = !c.Bool("no-color") && os.Getenv("NO_COLOR") == ""
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			o.Width = max(w, 80)
		}
	}
	return o
}

// progressLine shows progress on standard error, if that is a terminal.
func progressLine(c *cli.Context) *report.ProgressLine {
	if f, ok := c.App.ErrWriter.(*os.File); ok {
		return report.NewProgressLine(f)
	}
	return nil
}

// follow saves a run that has begun, and again while it goes on: update tells
// that there is more to save, stop ends the saving and waits for it.
func (o *output) follow(begun client.Result) (update func(snapshot func() client.Result), stop func()) {
	if o.lasting() == nil {
		return nil, func() {} // spares the judging
	}
	o.saveUnfinished(begun)
	news, ended := make(chan func() client.Result, 1), make(chan struct{})
	var saving sync.WaitGroup
	saving.Go(func() {
		for {
			select {
			case snapshot := <-news:
				o.saveUnfinished(snapshot())
			case <-ended:
				return
			}
			select {
			case <-time.After(saveEvery):
			case <-ended:
				return
			}
		}
	})
	update = func(snapshot func() client.Result) {
		select {
		case news <- snapshot:
		default: // the one that waits will see what is new as well
		}
	}
	return update, func() { close(ended); saving.Wait() }
}

// unfinished is why a result is not complete while it is being measured, and
// for ever after a kill.
const unfinished = "not finished"

// saveUnfinished saves the results that are done and the one that is not. Its
// ledgers, which the run is about to fetch, are left out.
func (o *output) saveUnfinished(res client.Result) {
	res.Ledgers, res.Why = nil, unfinished
	o.mu.Lock()
	done := slices.Clone(o.results)
	o.mu.Unlock()
	o.saveSoFar(append(done, &res)...)
}

// lasting is the file of JSON, from which everything else can be made later;
// nil where there is none.
func (o *output) lasting() *target {
	for i := range o.files {
		if o.files[i].flag == jsonFlag && !o.files[i].standard() {
			return &o.files[i]
		}
	}
	return nil
}

// saveSoFar saves results when there are more to come.
func (o *output) saveSoFar(results ...*client.Result) {
	if t := o.lasting(); t != nil {
		t.save(o.shown(results)) // a failure to save shows at the end
	}
}

// add takes a result, and adds to it what came of its expectations.
func (o *output) add(r *client.Result) {
	o.wanted.judge(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.results = append(o.results, r)
}

// finish writes everything.
func (o *output) finish() error {
	o.line.Clear()
	return deliver(o.files, o.shown(o.results), o.stdout, o.print)
}

func (o *output) shown(results []*client.Result) shown { return shown{results, o.known} }

// saveResults writes the files alone.
func (o *output) saveResults() error { return saveAll(o.files, o.shown(o.results)) }

// deliver writes files, lest a pipe that broke keeps them away, and then to
// standard output: what a flag wants there, or else the text for a person.
func deliver[T any](files []targetOf[T], what T, stdout io.Writer, print func() error) error {
	err := saveAll(files, what)
	if i := slices.IndexFunc(files, targetOf[T].standard); i >= 0 {
		return errors.Join(err, files[i].write(stdout, what))
	}
	return errors.Join(err, print())
}

// saveAll writes what goes to files.
func saveAll[T any](files []targetOf[T], what T) error {
	var errs []error
	for _, t := range files {
		if !t.standard() {
			errs = append(errs, t.save(what))
		}
	}
	return errors.Join(errs...)
}

// print writes the text for a person.
func (o *output) print() error {
	if o.matrix {
		return errors.Join(report.Matrix(o.stdout, o.results, o.text), printExpectations(o.stdout, o.results, o.text))
	}
	for i, r := range o.results {
		if i > 0 {
			fmt.Fprintln(o.stdout)
		}
		if err := report.Text(o.stdout, r, o.text); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) close() { o.line.Clear() }

// save writes a file whole or not at all.
func (t targetOf[T]) save(what T) error {
	var b bytes.Buffer
	if err := t.write(&b, what); err != nil {
		return err
	}
	if err := writeWhole(t.name, b.Bytes()); err != nil {
		return cannotWrite(t.flag, t.name, err)
	}
	return nil
}

// cannotWrite names the file that somebody named, and not the temporary one
// beside it.
func cannotWrite(flag, name string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return usage("--%s %s: %v", flag, name, err)
}

// writeWhole replaces a file by way of a temporary one beside it, unless it is
// a device or a pipe.
func writeWhole(name string, b []byte) error {
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		return os.WriteFile(name, b, 0o644)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		if err = os.Chmod(f.Name(), 0o644); err == nil {
			err = os.Rename(f.Name(), name)
		}
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
