package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// sweep kills the processes that are left in the world's namespaces: those
// that a program on a host started and left behind in groups of their own.
func (w *World) sweep() error {
	ours := map[string]bool{}
	for _, h := range w.hosts {
		if h != nil && h.ns != nil {
			ours[h.ns.id] = true
		}
	}
	killed := map[int]bool{}
	// A process may start another while the list is read, hence until none is left.
	for range 1000 {
		left, err := processesIn(ours)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			reap(killed)
			return nil
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
			killed[pid] = true
		}
		reap(killed)
	}
	return errors.New("processes keep starting in the lab")
}

// reap takes the dead off the list of processes. Orphans are this process's
// children, for it is the first of its process namespace; waiting for one that
// is not, or not yet, returns at once.
func reap(killed map[int]bool) {
	for pid := range killed {
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
}

// reapGroup does the same for what a killed process group has left behind.
func reapGroup(leader int) {
	for {
		_, err := unix.Wait4(-leader, nil, 0, nil)
		if err != nil && err != unix.EINTR {
			return
		}
	}
}

// processesIn lists the processes in the given network namespaces. It finds
// none if /proc shows another process namespace than this one.
func processesIn(namespaces map[string]bool) ([]int, error) {
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return nil, err
	}
	if self != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, l := range links {
		id, err := os.Readlink(l)
		if err != nil || !namespaces[id] {
			continue // ended meanwhile, or not ours
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(l))))
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
