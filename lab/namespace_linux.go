package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A namespace is a network namespace, kept alive by its file descriptor.
type namespace struct {
	file *os.File
	id   string // "net:[4026532000]"
}

const threadNamespace = "/proc/thread-self/ns/net"

var errLeftEarly = errors.New("function ended its goroutine")

// newNamespace makes an empty network namespace with its loopback down.
func newNamespace() (*namespace, error) {
	n := &namespace{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		var err error
		if n.id, err = os.Readlink(threadNamespace); err != nil {
			return err
		}
		n.file, err = os.Open(threadNamespace)
		return err
	})
	return n, err
}

// do runs fn in the namespace; nil is that of this process.
func (n *namespace) do(fn func() error) error {
	if n == nil {
		return fn()
	}
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on an operating system thread of its own and brings that
// back to the network namespace it came from. If that fails the thread is
// thrown away.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errLeftEarly // stands if fn calls runtime.Goexit
		runtime.LockOSThread()
		defer func() { result <- err }()
		home, openErr := os.Open(threadNamespace)
		if openErr != nil {
			err = openErr
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			home.Close()
		}()
		err = fn()
	}()
	return <-result
}

// setSysctl writes a kernel setting of the current thread's network namespace.
// Where none can be written, as in a container, it must have the value already.
func setSysctl(key, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, unix.EROFS) {
		if is, readErr := os.ReadFile(path); readErr == nil && strings.TrimSpace(string(is)) == value {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	return nil
}
