//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// within is a program for scripts that runs another one in a poorer place:
//
//	within user COMMAND...             as an ordinary user, without capabilities
//	within no-namespaces COMMAND...    without capabilities, where user namespaces are forbidden
//	within without PROGRAM COMMAND...  where a program cannot be found
//
// It becomes the command, after running itself once more in namespaces where
// the place needs some.
func within() {
	runtime.LockOSThread() // what follows is the thread's own until it becomes the command
	err := fmt.Errorf("within: no place %q", os.Args[1])
	place, argv := os.Args[1], os.Args[2:]
	switch place {
	case "user":
		err = asUser(argv)
	case "here":
		err = become(argv)
	case "no-namespaces":
		err = again(unix.CLONE_NEWUSER, 0, "forbid")
	case "forbid":
		if err = forbid(); err == nil {
			err = become(argv)
		}
	case "without":
		err = again(unix.CLONE_NEWNS, 0, "hide")
	case "hide":
		if err = hide(argv[0]); err == nil {
			err = become(argv[1:])
		}
	}
	fmt.Fprintln(os.Stderr, "within:", err)
	os.Exit(125)
}

// again runs this program in new namespaces for another place and ends as that
// does. In a user namespace there is nobody but the one user.
func again(flags uintptr, user int, place string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{"within", place}, os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: unix.SIGKILL}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getgid(), Size: 1}}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { // ends with this process
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	if e, ok := err.(*exec.ExitError); ok {
		os.Exit(e.ExitCode())
	}
	if err == nil {
		os.Exit(0)
	}
	return err
}

// nobody is an ordinary user.
const nobody = 65534

// asUser becomes the command as an ordinary user: as another one where there
// is one, else under another number in a user namespace.
func asUser(argv []string) error {
	if syscall.Setgroups([]int{nobody}) == nil && syscall.Setgid(nobody) == nil && syscall.Setuid(nobody) == nil {
		return become(argv)
	}
	return again(unix.CLONE_NEWUSER, nobody, "here")
}

// forbid allows no user namespace below this one, and nothing by being root.
func forbid() error {
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	const noRoot = 1 // SECBIT_NOROOT, capabilities(7)
	return unix.Prctl(unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0)
}

// hide puts a device over a program wherever it may be.
func hide(program string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"} {
		if st, err := os.Stat(dir + program); err != nil || !st.Mode().IsRegular() {
			continue
		}
		if err := unix.Mount("/dev/null", dir+program, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func become(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, argv, slices.Clone(os.Environ()))
}
