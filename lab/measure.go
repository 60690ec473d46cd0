package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// A Measurement runs the real reflector and the real client on the two sides
// of a world's firewall.
type Measurement struct {
	Wiring    Wiring    // of the world to build for it
	Far       *Firewall // of that world
	Scenarios []*scenarios.Scenario
	Roles     func(*scenarios.Scenario) []string // near ends to measure from; nil is every near end
	IPv6      bool
	Timeout   time.Duration                             // the client's longest single wait; 0 is DefaultTimeout
	Program   string                                    // the wallprobe binary; empty is the running one
	Reflector []string                                  // further flags for the reflector
	Client    []string                                  // further flags for the client
	Paths     []string                                  // to measure, of those that a scenario has; nil is all
	Read      func(io.Reader) ([]*client.Result, error) // reads the client's JSON
	Explain   func(client.Verdict) bool                 // which findings are told the rules that decided them; nil is none, and so it is where others keep the hosts
	Progress  func(client.Progress)
	Stderr    io.Writer // of reflector and client; nil keeps it for error messages
}

// DefaultTimeout is enough where every host is on one machine.
const DefaultTimeout = time.Second

// labRTT is about the round-trip time between two hosts of the lab.
const labRTT = 100 * time.Microsecond

// stopWait is how long a reflector may take to write its journal and end.
const stopWait = 10 * time.Second

// ConfigFor is the world that scenarios ask for: a second host in the LAN where
// a path stays there, and a server that owns the documented names and addresses.
func ConfigFor(list []*scenarios.Scenario) Config {
	c := Config{Names: make(map[string][]netip.Addr)}
	for _, s := range list {
		for _, p := range s.Paths {
			if p.Direction == scenarios.LAN && !slices.Contains(c.Hosts, lan2Name) {
				c.Hosts = append(c.Hosts, lan2Name)
			}
			for _, a := range p.Addresses {
				if !slices.Contains(c.Own, a) {
					c.Own = append(c.Own, a)
				}
			}
			for _, n := range p.Names {
				c.Names[n] = nil
			}
		}
	}
	return c
}

// StartReflector starts the measurement's reflectors alone, and gives the key
// that a client needs. stop ends them in an orderly way.
func (w *World) StartReflector(ctx context.Context, m Measurement) (key wire.Key, stop func(), err error) {
	t, err := w.trial(m)
	if err != nil {
		return wire.Key{}, nil, err
	}
	if err := t.startReflectors(ctx); err != nil {
		t.end()
		return wire.Key{}, nil, err
	}
	return t.key, func() { t.stop(); t.end() }, nil
}

// trial prepares a measurement.
func (w *World) trial(m Measurement) (*trial, error) {
	var err error
	if m.Program == "" {
		if m.Program, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	if m.Timeout == 0 {
		m.Timeout = DefaultTimeout
	}
	dir, err := os.MkdirTemp("", "wallprobe-lab-")
	return &trial{world: w, m: m, dir: dir, key: wire.NewKey()}, err
}

// end ends what still runs and removes what was written: nobody reads it.
func (t *trial) end() {
	for _, f := range t.reflectors {
		if f.process != nil {
			f.process.kill()
		}
	}
	for _, f := range t.reflectors {
		if f.process != nil {
			_ = f.process.Wait() // how it ended is nobody's interest
			f.process = nil
		}
	}
	os.RemoveAll(t.dir)
}

// Measure runs every scenario from every role and joins both ends' journals
// with the firewall's counters.
func (w *World) Measure(ctx context.Context, m Measurement) ([]*client.Result, error) {
	t, err := w.trial(m)
	if err != nil {
		return nil, err
	}
	defer t.end()
	var before []Rule
	var g errgroup.Group
	g.Go(func() error { return t.startReflectors(ctx) })
	g.Go(func() (err error) { before, err = w.Counters(); return err }) // reflectors send nothing by themselves
	if err := g.Wait(); err != nil {
		return nil, err
	}
	results, err := t.runClients(ctx)
	if err != nil {
		return results, err
	}
	after, err := w.Counters()
	if err != nil {
		return results, err
	}
	notes := slices.Concat(w.Notes(), w.trouble(m.IPv6))
	var lacking []*client.Result
	for _, r := range results {
		r.Firewall = &client.Firewall{Name: w.config.Firewall.Name, Notes: notes, Rules: counted(before, after)}
		if t.lacks(r) {
			lacking = append(lacking, r)
		}
	}
	if len(lacking) > 0 {
		journals := t.stop()
		var joining sync.WaitGroup
		for _, r := range lacking {
			joining.Go(func() { t.join(r, journals) })
		}
		joining.Wait()
	}
	if m.Explain == nil || !w.explains() {
		return results, nil
	}
	withoutFirewall(results, m.Explain)
	if len(questions(results, nil, m.Explain)) == 0 {
		return results, nil
	}
	t.stop()
	return results, w.Explain(ctx, results, m.Explain)
}

// lacks tells whether a far end's journal has something to add to a result.
func (t *trial) lacks(r *client.Result) bool {
	return slices.ContainsFunc(t.reflectors, func(f *far) bool { return r.Ledgers[f.where] == nil })
}

// A trial is one Measure under way.
type trial struct {
	world      *World
	m          Measurement
	dir        string
	key        wire.Key
	reflectors []*far
}

// far is a running reflector.
type far struct {
	where   client.Where
	host    *Host
	process *Process
	journal string
	stderr  *bytes.Buffer
}

func (t *trial) startReflectors(ctx context.Context) error {
	t.reflectors = append(t.reflectors, &far{where: client.WhereFar, host: t.world.Host(serverName)})
	if lan := t.world.Host(lan2Name); lan != nil {
		t.reflectors = append(t.reflectors, &far{where: client.WhereLAN, host: lan})
	}
	if err := os.WriteFile(t.keyFile(), []byte(t.key.String()+"\n"), 0o600); err != nil {
		return err
	}
	ready := make(chan error, len(t.reflectors))
	for _, f := range t.reflectors {
		go func() { ready <- t.start(ctx, f) }()
	}
	var errs []error
	for range t.reflectors {
		errs = append(errs, <-ready)
	}
	return errors.Join(errs...)
}

func (t *trial) keyFile() string { return filepath.Join(t.dir, "key") }

// command is wallprobe itself on a host. Its ends live for seconds here: they
// need not collect their garbage as often as one that stays (4 % of a run).
func (t *trial) command(ctx context.Context, h *Host, args []string) *exec.Cmd {
	cmd := h.Command(ctx, t.m.Program, args...)
	if _, set := os.LookupEnv("GOGC"); !set {
		cmd.Env = append(os.Environ(), "GOGC=400")
	}
	return cmd
}

// start starts a reflector and waits until it says that it is ready.
func (t *trial) start(ctx context.Context, f *far) error {
	f.journal = filepath.Join(t.dir, string(f.where)+".journal")
	args := []string{"reflector", "--key-file", t.keyFile(), "--journal", f.journal, "--inward", "--private-peers"}
	for _, s := range t.m.Scenarios {
		args = append(args, "--scenario", scenarioArg(s))
	}
	if f.where == client.WhereLAN { // its loopback has the lab's resolver
		v4, v6 := f.host.Addrs()
		args = append(args, "--listen", v4.String(), "--listen", v6.String())
	}
	cmd := t.command(ctx, f.host, append(args, t.m.Reflector...))
	f.stderr = new(bytes.Buffer)
	cmd.Stderr = f.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if f.process, err = f.host.Start(cmd); err != nil {
		return err
	}
	in := bufio.NewScanner(out)
	for in.Scan() {
		if in.Text() == "ready" {
			go io.Copy(io.Discard, out) // ends with the process
			return nil
		}
	}
	f.process.Wait()
	return fmt.Errorf("the reflector on %s did not start: %s", f.host.Name(), strings.TrimSpace(f.stderr.String()))
}

// scenarioArg names a scenario on a command line.
func scenarioArg(s *scenarios.Scenario) string {
	if strings.HasPrefix(s.File, "builtin:") {
		return s.Name
	}
	return s.File
}

// runClients measures from every near end, one after the other: a firewall's
// counters and its table of connections are shared. While one tells what it has
// found, and that is read, the next begins.
func (t *trial) runClients(ctx context.Context) ([]*client.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends := t.nearEnds()
	found, errs := make([][]*client.Result, len(ends)), make([]error, len(ends))
	var reading sync.WaitGroup
	for i, e := range ends {
		out := &firstByte{came: make(chan struct{})}
		ended := make(chan struct{})
		reading.Go(func() {
			err := t.runClient(ctx, e, out)
			if errs[i] = err; err != nil {
				cancel() // none begins after one that could not measure
			}
			close(ended)
			if err != nil {
				return
			}
			if found[i], err = t.m.Read(&out.Buffer); err != nil {
				errs[i] = fmt.Errorf("the client's result of %s: %w", e.scenario.Name, err)
			}
		})
		select {
		case <-out.came:
		case <-ended:
		}
		if ctx.Err() != nil {
			break
		}
	}
	reading.Wait()
	return slices.Concat(found...), cmp.Or(errs...)
}

// firstByte is a buffer that tells when something was written to it.
type firstByte struct {
	bytes.Buffer
	once sync.Once
	came chan struct{}
}

func (b *firstByte) Write(p []byte) (int, error) {
	b.once.Do(func() { close(b.came) })
	return b.Buffer.Write(p)
}

// A nearEnd is a role of a scenario to measure from.
type nearEnd struct {
	scenario *scenarios.Scenario
	role     string
}

func (t *trial) nearEnds() []nearEnd {
	var out []nearEnd
	for _, s := range t.m.Scenarios {
		roles := s.NearRoles()
		if t.m.Roles != nil {
			roles = t.m.Roles(s)
		}
		for _, role := range roles {
			out = append(out, nearEnd{s, role})
		}
	}
	return out
}

// runClient measures from one near end; the client writes to out, once it has
// measured all.
func (t *trial) runClient(ctx context.Context, e nearEnd, out *firstByte) error {
	s := e.scenario
	host := t.world.Host(hostName)
	server := address(t.world.Host(serverName), t.m.IPv6)
	args := []string{"run", scenarioArg(s), "--as", e.role, "--reflector", server.String(), "--key-file", t.keyFile(),
		"--timeout", t.m.Timeout.String(), "--rtt", labRTT.String(), "--sweep", "--json", "-"}
	for _, p := range t.world.config.Own {
		args = append(args, "--owned", p.String())
	}
	if lan := t.world.Host(lan2Name); lan != nil {
		args = append(args, "--lan", address(lan, t.m.IPv6).String())
	}
	for _, p := range s.Paths {
		if slices.Contains(t.m.Paths, p.ID) {
			args = append(args, "--path", p.ID)
		}
	}
	cmd := t.command(ctx, host, append(args, t.m.Client...))
	var complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &complaints
	// A client that is interrupted tells what it has measured so far.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Second
	err := host.Run(cmd)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if exit != nil && exit.ExitCode() == 2 || out.Len() == 0 {
		return fmt.Errorf("the client did not measure %s: %s", s.Name, strings.TrimSpace(complaints.String()))
	}
	return nil
}

func address(h *Host, ipv6 bool) netip.Addr {
	v4, v6 := h.Addrs()
	if ipv6 {
		return v6
	}
	return v4
}

// stop ends the reflectors in an orderly way, so that their journals are
// whole, and reads them. It may be called again.
func (t *trial) stop() map[client.Where]*client.Journal {
	out := make(map[client.Where]*client.Journal)
	for _, f := range t.reflectors {
		if f.process == nil {
			continue
		}
		f.process.Signal(syscall.SIGTERM)
	}
	for _, f := range t.reflectors {
		if f.process == nil {
			continue
		}
		f.process.Stop(stopWait)
		f.process = nil
		if file, err := os.Open(f.journal); err == nil {
			if j, err := client.ReadJournal(file); err == nil {
				out[f.where] = j
			}
			file.Close()
		}
	}
	return out
}

// join adds the ledgers that control could not fetch and judges again. The
// reflectors have ended in order here, so that a journal is as good as a ledger.
func (t *trial) join(r *client.Result, journals map[client.Where]*client.Journal) {
	for where, j := range journals {
		if l, err := j.For(r); err == nil {
			if r.Attach(where, l); r.LedgerLost() && r.Ledgers[client.WhereFar] != nil {
				r.Complete, r.Why = true, ""
			}
		}
	}
	for _, s := range t.m.Scenarios {
		if s.Name == r.Scenario {
			client.Conclude(r, s)
		}
	}
}

// counted are the rules that counted packets between two readings.
func counted(before, after []Rule) []client.Rule {
	old := make(map[string]Rule)
	id := func(r Rule) string { return fmt.Sprint(r.Family, r.Table, r.Chain, r.Handle) }
	for _, r := range before {
		old[id(r)] = r
	}
	var out []client.Rule
	for _, r := range after {
		b := old[id(r)]
		if r.Packets == b.Packets {
			continue
		}
		c := r.forClient()
		c.Packets, c.Bytes = r.Packets-b.Packets, r.Bytes-b.Bytes
		out = append(out, c)
	}
	return out
}
