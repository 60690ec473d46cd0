package main

import (
	"bytes"
	"fmt"
	"io"
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
	saved   time.Time
}

// saveEvery is how often an unfinished result is saved; a client that is
// killed has lost no more than this.
const saveEvery = 500 * time.Millisecond

func newOutput(c *cli.Context) *output {
	return &output{
		stdout: c.App.Writer, jsonName: c.String("json"),
		text: textOptions(c), line: progressLine(c),
	}
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

func (o *output) progress(p client.Progress) {
	o.line.Show(fmt.Sprintf("%s of %s ports", group(p.Done), group(p.Total)))
}

// update saves what there is so far, when it is time.
func (o *output) update(snapshot func() client.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.jsonName == "" || o.jsonName == "-" || time.Since(o.saved) < saveEvery {
		return
	}
	res := snapshot()
	o.saved = time.Now()
	o.save(append(slices.Clone(o.results), &res)) // a failure to save shows at the end
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
	if o.jsonName == "" {
		return nil
	}
	if err := o.save(o.results); err != nil {
		return usage("--json: %v", err)
	}
	return nil
}

func (o *output) close() { o.line.Clear() }

// save writes a file whole or not at all.
func (o *output) save(results []*client.Result) error {
	var b bytes.Buffer
	if err := report.JSON(&b, results); err != nil {
		return err
	}
	return writeWhole(o.jsonName, b.Bytes())
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
