//go:build linux

// Command bench measures the figures that the design names and prints them
// beside their targets. Everything happens in labs of its own. Times on a
// shared machine vary: quote medians, and ratios to the peers of the same run.
//
//	go run ./lab/bench -program bin/wallprobe
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

func main() {
	program := flag.String("program", "bin/wallprobe", "the wallprobe binary")
	runs := flag.Int("runs", 3, "runs of each figure; the median is shown")
	only := flag.String("only", "", "measure one `part` alone: lab, all, rates, reflector, udp or tcp")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	path, err := filepath.Abs(*program)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	inside, status, err := lab.Enter(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if !inside {
		os.Exit(status)
	}
	b := &bench{program: path, runs: max(*runs, 1)}
	if err := b.measure(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A figure is one line of the table.
type figure struct{ what, target, measured, note string }

type bench struct {
	program string
	runs    int
	figures []figure
}

// measure measures every part, or the one that is named.
func (b *bench) measure(ctx context.Context, only string) error {
	type part struct {
		name string
		run  func(context.Context) error
	}
	parts := []part{{"lab", b.labRuns}, {"all", b.allScenarios}, {"rates", b.rates}, {"reflector", b.reflector}, {"udp", b.udpSweep}, {"tcp", b.tcpSweep}}
	if only != "" {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == only })
		if i < 0 {
			return fmt.Errorf("-only %s: there is no such part; see -h", only)
		}
		parts = parts[i : i+1]
	}
	defer b.print() // what was measured until then is not lost
	for _, p := range parts {
		if err := p.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) print() {
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "figure\ttarget\tmeasured\t")
	for _, f := range b.figures {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", f.what, f.target, f.measured, f.note)
	}
	t.Flush()
}

func (b *bench) add(what, target, measured, note string) {
	b.figures = append(b.figures, figure{what, target, measured, note})
	fmt.Fprintf(os.Stderr, "measured: %s: %s\n", what, measured)
}

// median runs something several times.
func (b *bench) median(fn func() (time.Duration, error)) (time.Duration, error) {
	var all []time.Duration
	for range b.runs {
		d, err := fn()
		if err != nil {
			return 0, err
		}
		all = append(all, d)
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

const dropAll = "table inet bench {\n\tchain forward {\n\t\ttype filter hook forward priority 0\n\t\tcounter drop\n\t}\n}\n"

// labRuns times whole commands, from nothing to the verdict.
func (b *bench) labRuns(ctx context.Context) error {
	file, err := os.CreateTemp("", "drop-all-*.nft")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	file.WriteString(dropAll)
	file.Close()
	for _, row := range []struct{ what, target, scenario, firewall string }{
		{"lab run, open firewall, screenconnect", "under 1 s", "screenconnect", "open"},
		{"lab run, open firewall, goto-meeting", "under 1 s", "goto-meeting", "open"},
		{"lab run, open firewall, chrome-remote-desktop (116,000 ports)", "under 1 s", "chrome-remote-desktop", "open"},
		{"lab run, everything dropped, screenconnect", "1 s timeout + 0.5 s", "screenconnect", file.Name()},
		{"lab run, everything dropped, chrome-remote-desktop", "1 s timeout + 0.5 s", "chrome-remote-desktop", file.Name()},
	} {
		s, err := scenarios.Load(row.scenario)
		if err != nil {
			return err
		}
		role := s.NearRoles()[0]
		d, err := b.median(func() (time.Duration, error) {
			began := time.Now()
			cmd := exec.CommandContext(ctx, b.program, "lab", row.scenario, "--as", role, "--firewall", row.firewall)
			out, err := cmd.CombinedOutput()
			if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() != 2 {
				err = nil
			}
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return time.Since(began), err
		})
		if err != nil {
			return err
		}
		b.add(row.what, row.target, seconds(d), "")
	}
	return nil
}

// reflector starts one on every documented port and range.
func (b *bench) reflector(ctx context.Context) error {
	list, err := scenarios.Builtin()
	if err != nil {
		return err
	}
	w, err := lab.Build(ctx, lab.ConfigFor(list))
	if err != nil {
		return err
	}
	defer w.Close()
	key := filepath.Join(os.TempDir(), fmt.Sprintf("bench-%d.key", os.Getpid()))
	defer os.Remove(key)
	var rss, fds string
	start, err := b.median(func() (time.Duration, error) {
		cmd := w.Host("server").Command(ctx, b.program, "reflector", "--key-file", key)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		began := time.Now()
		p, err := w.Host("server").Start(cmd)
		if err != nil {
			return 0, err
		}
		defer p.Stop(5 * time.Second)
		in := bufio.NewScanner(out)
		for in.Scan() && in.Text() != "ready" {
		}
		took := time.Since(began)
		rss, fds = statusOf(p.Pid())
		return took, p.Signal(syscall.SIGTERM)
	})
	if err != nil {
		return err
	}
	tcp, udp := scenarios.Ports(list...)
	what := fmt.Sprintf("reflector on %d TCP and %d UDP ports", tcp.Len(), udp.Len())
	b.add(what+": up after", "under 50 ms", fmt.Sprintf("%d ms", start.Milliseconds()), "from the process's start")
	b.add(what+": memory", "under 30 MB", rss, "resident")
	b.add(what+": descriptors", "under 100", fds, "")
	return nil
}

// statusOf reads a process's resident memory and descriptors.
func statusOf(pid int) (rss, fds string) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			rss = fmt.Sprintf("%.1f MB", float64(kb)/1024)
		}
	}
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return rss, strconv.Itoa(len(list))
}

// sweepScenario is a scenario of one wide path.
func sweepScenario(transport, ports string) (*scenarios.Scenario, func(), error) {
	text := fmt.Sprintf(`schema: wallprobe/scenario/1
name: bench-%s
title: one wide range
version: 1
sources: [{id: B, file: bench, title: bench, language: en}]
roles: [{name: near, title: near end, site: inside}, {name: far, title: far end, site: outside}]
paths:
  - {id: R, title: range, from: [near], to: [far], direction: out, transport: [%s], ports: "%s", need: req, source: B}
  - {id: C, title: control, from: [near], to: [far], direction: out, transport: [tcp], ports: "443", protocol: https, need: req, source: B}
outcomes:
  - {id: o, title: range, roles: [near], ways: [{title: range, paths: [R]}]}
`, transport, transport, ports)
	return written(text)
}

// written is a scenario in a file of its own, which the returned function removes.
func written(text string) (*scenarios.Scenario, func(), error) {
	f, err := os.CreateTemp("", "bench-*.yaml")
	if err != nil {
		return nil, nil, err
	}
	f.WriteString(text)
	f.Close()
	s, err := scenarios.Load(f.Name())
	return s, func() { os.Remove(f.Name()) }, err
}

// sweep measures one range behind rules and checks that it is exact.
func (b *bench) sweep(ctx context.Context, transport, ports, rules, want string) (*lab.World, time.Duration, error) {
	s, remove, err := sweepScenario(transport, ports)
	if err != nil {
		return nil, 0, err
	}
	defer remove()
	cfg := lab.ConfigFor([]*scenarios.Scenario{s})
	cfg.Firewall = lab.Firewall{Name: "bench", Text: []byte(rules)}
	cfg.Own = append(cfg.Own, manyAddrs)
	w, err := lab.Build(ctx, cfg)
	if err != nil {
		return nil, 0, err
	}
	d, err := b.median(func() (time.Duration, error) {
		results, err := w.Measure(ctx, lab.Measurement{Scenarios: []*scenarios.Scenario{s}, Program: b.program, Read: report.ReadJSON})
		if err != nil {
			return 0, err
		}
		if got := sentence(results[0]); got != want {
			return 0, fmt.Errorf("%s sweep is not exact: %s, want %s", transport, got, want)
		}
		return time.Duration(results[0].Seconds * float64(time.Second)), nil
	})
	return w, d, err
}

func sentence(r *client.Result) string {
	for i := range r.Findings {
		if r.Findings[i].Path == "R" {
			return r.Findings[i].Sentence()
		}
	}
	return "no finding"
}
