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
	"github.com/wallprobe/wallprobe/report"
)

// An output takes results as they come and writes them where the flags say.
type output struct {
	stdout   io.Writer
	jsonName string
	text     report.Options
	line     *report.ProgressLine

	mu      sync.Mutex
	results []*client.Result
}

// saveEvery is how often an unfinished result is saved; a client that is
// killed has lost no more than this.
const saveEvery = 500 * time.Millisecond

// newOutput prepares what the flags say. That a file cannot be written shows
// here, before anything is measured.
func newOutput(c *cli.Context) (*output, error) {
	if err := writable(c.String("json")); err != nil {
		return nil, err
	}
	return &output{
		stdout: c.App.Writer, jsonName: c.String("json"),
		text: textOptions(c), line: progressLine(c),
	}, nil
}

// writable tries to make a file beside the one that --json names.
func writable(name string) error {
	if name == "" || name == "-" {
		return nil
	}
	st, err := os.Stat(name)
	switch {
	case err == nil && st.IsDir():
		return usage("--json %s: is a folder; name a file", name)
	case err == nil && !st.Mode().IsRegular():
		return nil // a device or a pipe
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return cannotWrite(name, err)
	}
	f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return cannotWrite(name, err)
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
	if o.jsonName == "" || o.jsonName == "-" {
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

// saveSoFar saves results when there are more to come.
func (o *output) saveSoFar(results ...*client.Result) {
	if o.jsonName != "" && o.jsonName != "-" {
		o.save(results) // a failure to save shows at the end
	}
}

func (o *output) add(r *client.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.results = append(o.results, r)
}

// finish writes everything.
func (o *output) finish() error {
	o.line.Clear()
	if o.jsonName == "-" {
		return report.JSON(o.stdout, o.results)
	}
	for i, r := range o.results {
		if i > 0 {
			fmt.Fprintln(o.stdout)
		}
		if err := report.Text(o.stdout, r, o.text); err != nil {
			return err
		}
	}
	return o.saveResults()
}

// saveResults saves what finish saves.
func (o *output) saveResults() error {
	if o.jsonName == "" {
		return nil
	}
	return o.save(o.results)
}

func (o *output) close() { o.line.Clear() }

// save writes a file whole or not at all.
func (o *output) save(results []*client.Result) error {
	var b bytes.Buffer
	if err := report.JSON(&b, results); err != nil {
		return err
	}
	if err := writeWhole(o.jsonName, b.Bytes()); err != nil {
		return cannotWrite(o.jsonName, err)
	}
	return nil
}

// cannotWrite names the file that somebody named, and not the temporary one
// beside it.
func cannotWrite(name string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return usage("--json %s: %v", name, err)
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
