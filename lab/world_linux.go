package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A World is the lab's network as long as it stands.
type World struct {
	config    Config
	asked     Wiring // before anything was filled in
	hosts     []*Host
	wires     *namespace // holds what joins the hosts of a network: switches, or the wire that they share
	resolvers resolvers
	lock      *os.File // of a world that was joined
	keeper    string   // the socket of the one who keeps its switches

	mu        sync.Mutex
	loaded    Firewall
	source    *source  // where its rules stand, nil until that is asked
	notes     []string // on its rules
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
	return wiredFor(ctx, c, stand)
}

// wiredFor makes a world with the interfaces that its rules ask for, where these
// leave no doubt.
func wiredFor(ctx context.Context, c Config, stand func(context.Context, Config) (*World, error)) (*World, error) {
	w, err := stand(ctx, c)
	if m, ok := errors.AsType[*MisfitError](err); ok && m.instead != nil {
		c.Wiring = *m.instead
		if w, err = stand(ctx, c); err == nil {
			w.note(m.notes...)
		}
	}
	return w, err
}

// stand makes a world between the interfaces of the Config and no others.
func stand(ctx context.Context, c Config) (*World, error) {
	sites, err := plan(c)
	if err != nil {
		return nil, fmt.Errorf("build lab: %w", err)
	}
	w := &World{config: c, asked: c.Wiring, processes: map[*Process]bool{}}
	w.config.Wiring = c.Wiring.withDefaults()
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
	g.Go(func() error { return w.loadFar(ctx) })
	g.Go(func() error {
		for _, h := range w.hosts {
			if err := h.configure(w.hosts); err != nil {
				return fmt.Errorf("build lab: host %s: %w", h.Name(), err)
			}
		}
		if err := w.settle(ports); err != nil {
			return fmt.Errorf("build lab: %w", err)
		}
		return w.resolvers.start(w.hosts, w.names())
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

// explains tells whether a packet can be followed through the rules: that takes
// sockets in the networks of all hosts.
func (w *World) explains() bool { return w.keeper == "" }

// names are those that the lab's resolvers know: names without addresses are
// the server's.
func (w *World) names() map[string][]netip.Addr {
	names := maps.Clone(w.config.Names)
	v4, v6 := w.Host(serverName).Addrs()
	for n, addrs := range names {
		if len(addrs) == 0 {
			names[n] = []netip.Addr{v4, v6}
		}
	}
	return names
}

// Host finds a host by name; it is nil if the world has no such host.
func (w *World) Host(name string) *Host {
	i := slices.IndexFunc(w.hosts, func(h *Host) bool { return h.Name() == name })
	if i < 0 {
		return nil
	}
	return w.hosts[i]
}

// Counters lists the rules of the firewall with what they have counted.
func (w *World) Counters() ([]Rule, error) {
	set, err := w.ruleset()
	if err != nil {
		return nil, err
	}
	return set.rules, nil
}

// ruleset lists the rules and chains of the firewall, with their places in its
// file.
func (w *World) ruleset() (*ruleset, error) {
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
	set, err := parseRules(list, text)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.loaded.Dumps) > 0 {
		place(set.rules, w.loaded.Dumps)
		placePolicies(set.chains, w.loaded.Dumps)
		set.text = append(set.text, w.loaded.Text...) // of some matches nft lists no more than the name
		return set, nil
	}
	if w.source == nil {
		w.source = readSource(w.loaded)
	}
	set.locate(w.source)
	return set, nil
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
