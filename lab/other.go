//go:build !linux

package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/wallprobe/wallprobe/client"
)

var errNotLinux = errors.New("the lab needs Linux")

// Enter always fails: the lab needs Linux.
func Enter(context.Context) (inside bool, exitCode int, err error) { return false, 0, errNotLinux }

// A World cannot be built on this system.
type World struct{ config Config }

// Build always fails: the lab needs Linux.
func Build(context.Context, Config) (*World, error) { return nil, errNotLinux }

// Join always fails.
func Join(context.Context, string, Config) (*World, error) { return nil, errNotLinux }

// Keep always fails.
func Keep(context.Context, string, string) error { return errNotLinux }

// Via always fails.
func Via(string, []string) (exitCode int, err error) { return 0, errNotLinux }

// Host knows no host.
func (*World) Host(string) *Host { return nil }

// Counters always fails.
func (*World) Counters() ([]Rule, error) { return nil, errNotLinux }

// Notes are none.
func (*World) Notes() []string { return nil }

func (*World) trouble(bool) []string { return nil }

// Explain always fails.
func (*World) Explain(context.Context, []*client.Result, func(client.Verdict) bool) error {
	return errNotLinux
}

// Load always fails.
func (*World) Load(Firewall) error { return errNotLinux }

// Exec always fails.
func (*World) Exec(context.Context, string, []string) (exitCode int, err error) {
	return 0, errNotLinux
}

func (*World) explains() bool { return false }

// Close has nothing to close.
func (*World) Close() error { return nil }

// A Host does not exist on this system.
type Host struct{}

// Name is empty.
func (*Host) Name() string { return "" }

// Addrs returns no addresses.
func (*Host) Addrs() (v4, v6 netip.Addr) { return netip.Addr{}, netip.Addr{} }

// Command makes a command that [Host.Start] will refuse.
func (*Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, name, args...)
}

// Start always fails.
func (*Host) Start(*exec.Cmd) (*Process, error) { return nil, errNotLinux }

// Run always fails.
func (*Host) Run(*exec.Cmd) error { return errNotLinux }

// Do always fails without calling fn.
func (*Host) Do(func() error) error { return errNotLinux }

// NFT always fails.
func (*Host) NFT(context.Context, []byte, ...string) ([]byte, error) { return nil, errNotLinux }

// Sysctl always fails.
func (*Host) Sysctl(string, string) error { return errNotLinux }

// A Process does not exist on this system.
type Process struct{}

// Pid is 0.
func (*Process) Pid() int { return 0 }

// Wait always fails.
func (*Process) Wait() error { return errNotLinux }

// Signal always fails.
func (*Process) Signal(os.Signal) error { return errNotLinux }

func (*Process) kill() {}

// Stop always fails.
func (*Process) Stop(time.Duration) error { return errNotLinux }
