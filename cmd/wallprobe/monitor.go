package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/monitor"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// monitorFlags are of measuring again and again.
func monitorFlags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "watch", DefaultText: "once", Usage: "measure every `TIME`, such as 5m, until interrupted; print a line for each round and what changed"},
		&cli.StringFlag{Name: "metrics", Usage: "with --watch: serve metrics for Prometheus at http://`ADDR`/metrics, such as 127.0.0.1:9719; a port alone is on 127.0.0.1"},
	}
}

// shortestWatch keeps a reflector's table of sessions from being filled by one
// client: a session that no goodbye reaches the reflector for is remembered for a
// quarter of an hour.
const shortestWatch = time.Second

// watched is how run goes on with --watch.
func watched(c *cli.Context, list []*scenarios.Scenario, cfg client.Config, out *output) error {
	every := c.Duration("watch")
	if every < shortestWatch {
		return usage("--watch %v: at least %v", every, shortestWatch)
	}
	if i := slices.IndexFunc(out.files, target.standard); i >= 0 {
		return usage("--%s - does not go with --watch, which prints its rounds: name a file, it then holds the last round", out.files[i].flag)
	}
	w := &watcher{c: c, list: list, cfg: cfg, out: out, before: make(map[string]*client.Result)}
	m := monitor.Monitor{Interval: every, Measure: w.measure, Tell: w.tell}
	ctx, stop := context.WithCancelCause(c.Context)
	defer stop(nil)
	if addr := c.String("metrics"); addr != "" {
		m.Metrics = monitor.NewMetrics(version(), every)
		served, err := serveMetrics(ctx, stop, addr, m.Metrics)
		if err != nil {
			return err
		}
		defer served()
	}
	fmt.Fprintf(out.stdout, "every %v, against %s; end with Ctrl-C\n", every, c.String("reflector"))
	last, err := m.Run(ctx)
	if err != nil {
		return err
	}
	if c.Context.Err() == nil { // it was not a person who ended it
		return context.Cause(ctx)
	}
	return w.finish(last)
}

// A watcher measures and tells the rounds of one command.
type watcher struct {
	c      *cli.Context
	list   []*scenarios.Scenario
	cfg    client.Config
	out    *output
	before map[string]*client.Result // the last that was whole, by scenario
}

// measure is one round. The reflector's name is looked up in each.
func (w *watcher) measure(ctx context.Context) ([]*client.Result, error) {
	cfg := w.cfg
	if err := locate(ctx, w.c, &cfg); err != nil {
		return nil, err
	}
	// The file keeps the round before until this one is over.
	out := &output{line: w.out.line, wanted: w.out.wanted}
	defer out.line.Clear()
	return measureList(ctx, w.list, cfg, out)
}

// tell prints a round, and saves it.
func (w *watcher) tell(r *monitor.Round) error {
	if e, ok := errors.AsType[*exitError](r.Err); ok && e.status == exitUsage && r.Number == 1 {
		return r.Err // it would be the same in every round
	}
	if err := w.print(r); err != nil {
		return err
	}
	w.out.results = r.Results
	if err := w.out.saveResults(); err != nil { // a full disk may have room again in the next round
		fmt.Fprintf(w.c.App.ErrWriter, "wallprobe: %v\n", err)
	}
	return nil
}

func (w *watcher) print(r *monitor.Round) error {
	var b strings.Builder
	line := func(format string, args ...any) {
		fmt.Fprintf(&b, "%s  %s\n", r.Started.Format(time.DateTime), fmt.Sprintf(format, args...))
	}
	for _, res := range r.Results {
		if why := inconclusive(res); why != "" {
			line("%s as %s: %s", res.Scenario, res.Role, oneLine(why))
			continue
		}
		line("%s as %s: %s", res.Scenario, res.Role, report.Brief(res))
		if len(res.Expectations) > 0 {
			line("  %s", report.ExpectationsBrief(res))
		}
		for _, change := range monitor.Changes(w.before[res.Scenario], res) {
			line("  %s", change)
		}
		w.before[res.Scenario] = res
	}
	if r.Err != nil {
		line("%s", oneLine(r.Err.Error()))
	}
	_, err := io.WriteString(w.out.stdout, b.String())
	return err
}

// inconclusive is why a result proves nothing.
func inconclusive(r *client.Result) string {
	switch {
	case r.Control.Via == "":
		return unreachable(r)
	case !r.Complete:
		return r.Why
	}
	return ""
}

// oneLine joins what would take several: "nowhere: 80/tcp: refused".
func oneLine(text string) string {
	first, rest, _ := strings.Cut(text, "\n")
	if detail, _, _ := strings.Cut(strings.TrimSpace(rest), "\n"); detail != "" && strings.HasSuffix(first, ":") {
		return first + " " + detail
	}
	return first
}

// finish prints the last report, whole. The exit status is of the last round.
func (w *watcher) finish(last *monitor.Round) error {
	w.out.results = last.Results
	if len(last.Results) > 0 {
		fmt.Fprintln(w.out.stdout)
		if err := w.out.finish(); err != nil {
			return err
		}
	}
	switch {
	case last.Err != nil:
		return last.Err
	case len(last.Results) == 0:
		return &exitError{exitInconclusive, "stopped before the end of the first round"}
	}
	return w.out.wanted.status(last.Results, verdictStatus)
}

// serveMetrics serves until ctx ends, and calls stop where it cannot go on;
// wait returns when all is over.
func serveMetrics(ctx context.Context, stop context.CancelCauseFunc, addr string, m *monitor.Metrics) (wait func(), err error) {
	if _, err := strconv.ParseUint(addr, 10, 16); err == nil {
		addr = "127.0.0.1:" + addr
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		if e, ok := errors.AsType[*net.OpError](err); ok {
			err = e.Err
		}
		return nil, usage("--metrics %s: %v; write ADDR:PORT, with a port that is free", addr, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<!doctype html><title>wallprobe</title><p>wallprobe run --watch: <a href=metrics>metrics</a>\n")
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			stop(&exitError{exitInconclusive, fmt.Sprintf("the metrics at %s: %v", addr, err)})
		}
	}()
	return func() { s.Close(); <-ended }, nil
}
