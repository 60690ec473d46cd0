package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Host is one host of a [World].
type Host struct {
	site  site
	ns    *namespace // nil is this process's own
	world *World

	keeper string // the socket of the one who keeps the host; empty where nobody else does
	here   bool   // though it has a keeper, its network is this process's own
}

// Name is "host", "lan2", "firewall", "server" or "other".
func (h *Host) Name() string { return h.site.Name }

// Addrs are the host's own addresses; the firewall's are those of its inside.
func (h *Host) Addrs() (v4, v6 netip.Addr) { return h.site.V4, h.site.V6 }

// Do calls fn on a thread inside the host's network namespace. Sockets that fn
// opens belong to the host for good, but only those opened by fn's own
// goroutine: dial one address at a time, and no names. It fails on a host that
// is kept elsewhere.
func (h *Host) Do(fn func() error) error {
	if h.keeper != "" && !h.here {
		return fmt.Errorf("host %s is kept by another process: this needs a lab of namespaces", h.Name())
	}
	return h.ns.do(fn)
}

// Sysctl sets a kernel setting of the host, "net.ipv4.ip_forward" for one.
// Interfaces with a dot in their name cannot be named in the key.
func (h *Host) Sysctl(key, value string) error {
	return h.Do(func() error { return setSysctl(key, value) })
}

// Command makes a command to be given to [Host.Start] or [Host.Run]. It leads
// a process group of its own, which ends as a whole when ctx ends.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// A Process is a program that runs on a host.
type Process struct {
	cmd   *exec.Cmd
	world *World
	wait  func() error
}

// Start starts a command on the host. It asks the lab for names, and ends with
// the world at the latest.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	w := h.world
	// Held while starting, so that Close finds every process.
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, fmt.Errorf("start %s on %s: %w", cmd.Args[0], h.Name(), os.ErrClosed)
	}
	if h.keeper != "" && !h.here {
		if err := detour(cmd, h.keeper); err != nil {
			return nil, fmt.Errorf("start %s on %s: %w", cmd.Args[0], h.Name(), err)
		}
	}
	if err := h.ns.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", cmd.Args[0], h.Name(), err)
	}
	p := &Process{cmd: cmd, world: w}
	p.wait = sync.OnceValue(p.waitOnce)
	w.processes[p] = true
	return p, nil
}

// Run starts a command on the host and waits for its end.
func (h *Host) Run(cmd *exec.Cmd) error {
	p, err := h.Start(cmd)
	if err != nil {
		return err
	}
	return p.Wait()
}

// Pid is the number of the process within the lab.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Wait waits for the process to end, as [exec.Cmd.Wait] does, but may be
// called any number of times from anywhere.
func (p *Process) Wait() error { return p.wait() }

func (p *Process) waitOnce() error {
	err := p.cmd.Wait()
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	delete(p.world.processes, p)
	return err
}

// Signal sends a signal to the process alone. It returns [os.ErrProcessDone]
// after the process has ended.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end with SIGTERM, kills it and its group if it has
// not ended after the grace period, and returns what Wait returns.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.AfterFunc(grace, p.kill)
	defer timer.Stop()
	return p.Wait()
}

// kill ends the process and, if it leads a group, the group.
func (p *Process) kill() {
	if p.cmd.SysProcAttr != nil && p.cmd.SysProcAttr.Setpgid {
		// It fails only when all are dead already.
		_ = unix.Kill(-p.Pid(), unix.SIGKILL)
	}
	_ = p.cmd.Process.Kill()
}
