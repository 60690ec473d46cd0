package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A World is the lab's network as long as it stands.
type World struct {
	config    Config
	hosts     []*Host
	wires     *namespace // holds the switches of the LAN and the WAN
	resolvers resolvers
	lock      *os.File // of a world that was joined

	mu        sync.Mutex
	closed    bool
	processes map[*Process]bool
}

// Build makes the world that the Config describes. The program must have
// called [Enter]. A firewall file that nft refuses gives a *[RulesError]. When
// ctx ends early, so does building.
func Build(ctx context.Context, c Config) (*World, error) {
	if !entered.Load() {
		return nil, errors.New("build lab: this program has not entered the lab's namespaces")
	}
	sites, err := plan(c)
	if err != nil {
		return nil, fmt.Errorf("build lab: %w", err)
	}
	w := &World{config: c.withDefaults(), processes: map[*Process]bool{}}
	if err := w.build(ctx, sites); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *World) build(ctx context.Context, sites []site) error {
	if err := w.makeNamespaces(sites); err != nil {
		return fmt.Errorf("build lab: %w", err)
	}
	ports, err := w.connect()
	if err != nil {
		return fmt.Errorf("build lab: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("build lab: %w", err)
	}
	// nft takes about as long as all the rest, so it runs beside it.
	var g errgroup.Group
	g.Go(func() error { return w.load(ctx, w.config.Firewall) })
	g.Go(func() error {
		for _, h := range w.hosts {
			if err := h.configure(w.hosts); err != nil {
				return fmt.Errorf("build lab: host %s: %w", h.Name(), err)
			}
		}
		if err := w.settle(ports); err != nil {
			return fmt.Errorf("build lab: %w", err)
		}
		return w.resolvers.start(w.hosts, w.config.Names)
	})
	return g.Wait()
}

func (w *World) makeNamespaces(sites []site) error {
	w.hosts = make([]*Host, len(sites))
	namespaces := make([]*namespace, len(sites)+1)
	var g errgroup.Group
	for i := range namespaces {
		g.Go(func() (err error) {
			namespaces[i], err = newNamespace()
			return err
		})
	}
	err := g.Wait()
	for i, s := range sites {
		w.hosts[i] = &Host{site: s, ns: namespaces[i], world: w}
	}
	w.wires = namespaces[len(sites)]
	return err
}

// Host finds a host by name; it is nil if the world has no such host.
func (w *World) Host(name string) *Host {
	i := slices.IndexFunc(w.hosts, func(h *Host) bool { return h.Name() == name })
	if i < 0 {
		return nil
	}
	return w.hosts[i]
}

// Load replaces all rules of the firewall in one step; connections that it
// knows stay known. Rules that nft refuses change nothing and give a *[RulesError];
// those of a user that cannot be meant for this firewall give a *[MisfitError].
func (w *World) Load(f Firewall) error { return w.load(context.Background(), f) }

func (w *World) load(ctx context.Context, f Firewall) error {
	if isDump(f.Text) {
		return fmt.Errorf("firewall %s is an iptables-save dump, which the lab cannot load", f.Name)
	}
	// Relative includes are looked for beside the file, as nft would if it
	// were called there. "-I" is for those that do not begin with a dot.
	dir, source := ".", f.Name
	if f.Path != "" {
		dir, source = filepath.Dir(f.Path), f.Path
	}
	script := f.script(w.config.Inside.Name, w.config.Outside.Name)
	_, err := w.Host(firewallName).nft(ctx, dir, script, "-I", ".", "-f", "-")
	if failed, ok := errors.AsType[*nftError](err); ok {
		message := strings.ReplaceAll(failed.message, "/dev/stdin:", source+":")
		message = strings.ReplaceAll(message, "flush ruleset; ", "")
		if strings.Contains(message, "Error: Interface does not exist") {
			message += fmt.Sprintf("\nIn the lab %s is inside and %s outside.", w.config.Inside.Name, w.config.Outside.Name)
		}
		return &RulesError{Firewall: source, Message: strings.TrimSpace(message)}
	}
	if err != nil || f.Path == "" || len(f.Boxes) > 0 {
		return err
	}
	listing, err := w.Host(firewallName).NFT(ctx, nil, "list", "ruleset")
	if err != nil {
		return err
	}
	if why := misfit(listing, f.Text, w.config.Inside.Name, w.config.Outside.Name); why != "" {
		return &MisfitError{Firewall: source, Why: why}
	}
	return nil
}

// Counters lists the rules of the firewall with what they have counted.
func (w *World) Counters() ([]Rule, error) {
	firewall := w.Host(firewallName)
	var list, text []byte
	var g errgroup.Group
	g.Go(func() (err error) {
		list, err = firewall.NFT(context.Background(), nil, "-j", "-a", "list", "ruleset")
		return err
	})
	g.Go(func() (err error) {
		text, err = firewall.NFT(context.Background(), nil, "-a", "list", "ruleset")
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return parseRules(list, text)
}

// Exec runs a program on a host with this process's standard input and
// outputs and returns its exit status, or 128 plus the number of the signal
// that ended it. An error means that it could not be run. It stays in this
// process's group, so a terminal's signals reach it directly; when ctx ends it
// gets SIGTERM and 10 s later SIGKILL.
func (w *World) Exec(ctx context.Context, host string, argv []string) (exitCode int, err error) {
	h := w.Host(host)
	if h == nil {
		return 0, fmt.Errorf("no host %q in the lab", host)
	}
	if len(argv) == 0 {
		return 0, fmt.Errorf("no program to run on %s", host)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = stopGrace
	p, err := h.Start(cmd)
	if err != nil {
		return 0, err
	}
	return exitStatus(cmd, p.Wait())
}

// Close ends every process on the hosts, the resolvers and the namespaces,
// and waits for all but the kernel's own cleaning up. Sockets opened with
// [Host.Do] keep a namespace alive until they are closed.
func (w *World) Close() error {
	w.mu.Lock()
	w.closed = true
	processes := make([]*Process, 0, len(w.processes))
	for p := range w.processes {
		processes = append(processes, p)
	}
	w.mu.Unlock()
	for _, p := range processes {
		p.kill()
	}
	for _, p := range processes {
		// How a killed process ended is nobody's interest any more.
		_ = p.Wait()
		reapGroup(p.Pid())
	}
	err := w.resolvers.stop()
	return errors.Join(err, w.sweep(), w.release())
}

// release lets go of the namespaces; a second call finds them released.
func (w *World) release() error {
	var errs []error
	if w.lock != nil {
		w.lock.Close() // it is only read; a second call finds it closed
	}
	all := []*namespace{w.wires}
	for _, h := range w.hosts {
		all = append(all, h.ns)
	}
	for _, n := range all {
		if n == nil || n.file == nil {
			continue
		}
		if err := n.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
