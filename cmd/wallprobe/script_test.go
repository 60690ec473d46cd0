//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"

	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/report"
)

// programs are what scripts can run besides the tools of the system.
var programs = map[string]func(){"wallprobe": main, "within": within}

// enterErr is why the tests have no network of their own.
var enterErr error

// TestMain gives the tests a network of their own, where every port is free.
func TestMain(m *testing.M) {
	if programs[filepath.Base(os.Args[0])] == nil {
		inside, code, err := lab.Enter(context.Background())
		if !inside && err == nil {
			os.Exit(code)
		}
		if enterErr = err; err == nil {
			enterErr = bringUpLoopback()
		}
		// A program with the race detector would rest for a second at its end.
		os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	}
	testscript.Main(m, programs)
}

func bringUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func TestScripts(t *testing.T) {
	if enterErr != nil {
		need.Missing(t, enterErr)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "testdata", "script"),
		Setup:               setUp,
		RequireExplicitExec: true,
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "start": start, "end": end, "until": until,
			"world": world, "mute": mute, "free": free, "findings": findings, "get": get,
		},
	})
}

// condition is [program:NAME], which holds where a program is installed, and
// where nothing may be skipped.
func condition(name string) (bool, error) {
	program, ok := strings.CutPrefix(name, "program:")
	if !ok {
		return false, fmt.Errorf("there is no condition %q", name)
	}
	_, err := steer.Program(program)
	return err == nil || need.Forced(), nil
}

// What a script's commands keep in testscript.Env.Values.
type (
	envKey   struct{} // []string, the environment of its programs
	worldKey struct{} // *stage
)

// A stage is a script's lab and the programs it has started.
type stage struct {
	world *lab.World
	jobs  map[string]*job
}

// scripts counts those that were set up: each has loopback addresses of its own.
var scripts atomic.Int32

func setUp(env *testscript.Env) error {
	n := scripts.Add(1)
	for i := 1; i <= 3; i++ {
		env.Setenv(fmt.Sprintf("ADDR%d", i), fmt.Sprintf("127.0.%d.%d", n, i))
	}
	env.Setenv("HOME", env.WorkDir)
	testdata, err := filepath.Abs(filepath.Join("..", "..", "testdata"))
	if err != nil {
		return err
	}
	env.Setenv("TESTDATA", testdata)
	for _, name := range []string{"own.yaml", "branch.yaml"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "script", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), b, 0o644); err != nil {
			return err
		}
	}
	program, err := exec.LookPath("wallprobe")
	if err != nil {
		return err
	}
	// Another user must be able to come here, to write, and to run the program.
	open := map[string]os.FileMode{
		env.WorkDir: 0o777, filepath.Join(env.WorkDir, ".tmp"): 0o777, filepath.Dir(env.WorkDir): 0o755,
		filepath.Dir(program): 0o755, filepath.Dir(filepath.Dir(program)): 0o755,
	}
	for name, mode := range open {
		if err := os.Chmod(name, mode); err != nil {
			return err
		}
	}
	env.Values[envKey{}] = env.Vars
	env.Values[worldKey{}] = &stage{jobs: make(map[string]*job)}
	return nil
}

// patience is longer than anything takes that works.
const patience = time.Minute

// A job is a program that a script has started.
type job struct {
	signal func(os.Signal) error
	wait   func() error
}

// launch starts a program in the script's folder, "on HOST COMMAND..." on a
// host of the script's world.
func launch(ts *testscript.TestScript, args []string, outputs func(*exec.Cmd)) *job {
	s := ts.Value(worldKey{}).(*stage)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	var h *lab.Host
	if args[0] == "on" {
		if h = s.world.Host(args[1]); h == nil {
			ts.Fatalf("no host %s", args[1])
		}
		args = args[2:]
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = ts.MkAbs("."), ts.Value(envKey{}).([]string), time.Second
	outputs(cmd)
	if h != nil {
		p, err := h.Start(cmd)
		ts.Check(err)
		return &job{p.Signal, func() error { defer cancel(); return p.Wait() }}
	}
	ts.Check(cmd.Start())
	return &job{cmd.Process.Signal, func() error { defer cancel(); return cmd.Wait() }}
}

// ended is the status with which a program has ended, as a shell tells it.
func ended(ts *testscript.TestScript, err error) int {
	if err == nil {
		return 0
	}
	e, ok := err.(*exec.ExitError)
	if !ok {
		ts.Fatalf("%v", err)
	}
	if w := e.Sys().(syscall.WaitStatus); w.Signaled() {
		return 128 + int(w.Signal())
	}
	return e.ExitCode()
}

// exits STATUS COMMAND... runs a program and demands its exit status.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	j := launch(ts, args[1:], func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr() })
	if got := strconv.Itoa(ended(ts, j.wait())); got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// start NAME COMMAND... leaves a program running, with its outputs in NAME.out
// and NAME.err.
func start(ts *testscript.TestScript, _ bool, args []string) {
	s, name := ts.Value(worldKey{}).(*stage), args[0]
	var files []*os.File
	for _, suffix := range []string{".out", ".err"} {
		f, err := os.Create(ts.MkAbs(name + suffix))
		ts.Check(err)
		defer f.Close() // the program has its own
		files = append(files, f)
	}
	j := launch(ts, args[1:], func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = files[0], files[1] })
	s.jobs[name] = j
	ts.Defer(func() {
		if s.jobs[name] == j {
			j.signal(syscall.SIGKILL)
			j.wait()
		}
	})
}

// end NAME SIGNAL STATUS sends a signal, 0 for none, to a program that was
// started, and demands the exit status with which it ends.
func end(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(worldKey{}).(*stage)
	j := s.jobs[args[0]]
	delete(s.jobs, args[0])
	sig := map[string]syscall.Signal{"0": 0, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[1]]
	ts.Check(j.signal(sig))
	if got := strconv.Itoa(ended(ts, j.wait())); got != args[2] {
		ts.Fatalf("%s: exit status %s, want %s\n%s", args[0], got, args[2], ts.ReadFile(args[0]+".err"))
	}
}

// until FILE PATTERN waits for a line of a file; its name may be a pattern too.
func until(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile("(?m)" + args[1])
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		names, _ := filepath.Glob(ts.MkAbs(args[0]))
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && pattern.Match(b) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("%s never holds %s", args[0], args[1])
		}
	}
}

// world NAME|FILE builds a lab around a firewall for "on HOST".
func world(ts *testscript.TestScript, _ bool, args []string) {
	name := args[0]
	if filepath.Ext(name) != "" {
		name = ts.MkAbs(name)
	}
	f, err := lab.OpenFirewall(name)
	ts.Check(err)
	w, err := lab.Build(context.Background(), lab.Config{Firewall: f})
	ts.Check(err)
	ts.Value(worldKey{}).(*stage).world = w
	ts.Defer(func() { ts.Check(w.Close()) })
}

// mute NETWORK ADDR:PORT... holds ports and never answers there.
func mute(ts *testscript.TestScript, _ bool, args []string) {
	for _, at := range args[1:] {
		closer, err := hold(args[0], at)
		ts.Check(err)
		ts.Defer(func() { closer.Close() })
	}
}

// free NETWORK ADDR:PORT... demands that nobody holds ports.
func free(ts *testscript.TestScript, _ bool, args []string) {
	for _, at := range args[1:] {
		closer, err := hold(args[0], at)
		ts.Check(err)
		ts.Check(closer.Close())
	}
}

func hold(network, at string) (interface{ Close() error }, error) {
	if network == "udp" {
		return net.ListenPacket(network, at)
	}
	return net.Listen(network, at)
}

// findings FILE prints the verdicts and outcomes of every result in a file.
func findings(ts *testscript.TestScript, _ bool, args []string) {
	results, err := report.ReadJSON(bytes.NewReader([]byte(ts.ReadFile(args[0]))))
	ts.Check(err)
	out := ts.Stdout()
	for _, r := range results {
		fmt.Fprintf(out, "%s complete=%v %s\n", r.Scenario, r.Complete, r.Why)
		for i := range r.Findings {
			f := &r.Findings[i]
			fmt.Fprintf(out, "%s %s %s: %s\n", f.Path, f.Transport, f.Ports, f.Sentence())
		}
		for _, o := range r.Outcomes {
			fmt.Fprintf(out, "%s works=%v unknown=%v\n", o.ID, o.Works, o.Unknown)
		}
	}
}

// get URL prints what is there.
func get(ts *testscript.TestScript, _ bool, args []string) {
	resp, err := http.Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s", args[0], resp.Status)
	}
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}
