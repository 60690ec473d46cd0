package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker tells the re-executed program that it is to furnish its namespaces.
// It counts only for the first process of a process namespace, so a program
// that inherits it, a lab in the lab for one, is not misled.
const marker = "WALLPROBE_LAB"

// stopGrace is how long the re-executed program has to end by itself.
const stopGrace = 10 * time.Second

// entered is a fact about the whole process, hence not in a World.
var entered atomic.Bool

// Enter re-executes the running program, with the same arguments, in new
// network, mount and process namespaces, where worlds can be built. It uses a
// user namespace as well if this process may not do that itself; so as root
// the program keeps its true capabilities.
//
// Outside, Enter returns after the program inside has ended, with its exit
// status or 128 plus the number of the signal that ended it. Signals are
// passed on; when ctx ends, the program gets SIGTERM and 10 s later SIGKILL.
// However this process ends, everything inside ends with it. Inside, Enter
// returns at once with inside set. Call it first thing in main, before
// anything is opened or started.
//
// Where namespaces are forbidden the error names the setting that forbids them.
func Enter(ctx context.Context) (inside bool, exitCode int, err error) {
	if entered.Load() {
		return true, 0, nil
	}
	if os.Getpid() != 1 || os.Getenv(marker) == "" {
		exitCode, err = reexec(ctx)
		return false, exitCode, err
	}
	if err := os.Unsetenv(marker); err != nil {
		return true, 0, err
	}
	if err := furnish(); err != nil {
		return true, 0, err
	}
	entered.Store(true)
	return true, 0, nil
}

func reexec(ctx context.Context) (int, error) {
	// The signal sent at this process's death is really sent at the death of
	// the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = stopGrace
	cmd.SysProcAttr = namespaces()

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, explain(err)
	}
	ended := make(chan struct{})
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		for {
			select {
			case s := <-signals:
				// It fails only if the program has just ended.
				_ = cmd.Process.Signal(s)
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-forwarded
	return exitStatus(cmd, err)
}

// exitStatus turns the end of a command into what a shell would report; err
// is what Wait returned.
func exitStatus(cmd *exec.Cmd, err error) (int, error) {
	if cmd.ProcessState == nil {
		return 0, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// namespaces are those of the program inside. The process namespace ends
// everything in it when its first process ends.
func namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	if !capable(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN) {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// capable tells whether the process has all these capabilities, each below 32.
func capable(caps ...int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	for _, c := range caps {
		if data[0].Effective&(1<<c) == 0 {
			return false
		}
	}
	return true
}

// explain tells a refusal of namespaces from other errors.
func explain(err error) error {
	refusals := []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EUSERS, unix.EINVAL, unix.ENOSYS}
	for _, e := range refusals {
		if errors.Is(err, e) {
			return forbidden(os.DirFS("/proc"), err)
		}
	}
	return fmt.Errorf("enter the lab: %w", err)
}
