package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// resolverAddr is where each host's resolver listens, on its own loopback.
const resolverAddr = "127.0.0.53:53"

// The files of /etc that decide how names are found. nsswitch.conf is among
// them lest a C library ask a daemon outside over a socket in the file system.
var etc = map[string]string{
	"resolv.conf":   "nameserver 127.0.0.53\noptions timeout:1 attempts:2\n",
	"hosts":         "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

// furnish prepares the mount namespace: nothing done here is seen outside.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return explain(fmt.Errorf("make mounts private: %w", err))
	}
	// A /proc that shows this process namespace. A container with masked parts
	// of /proc refuses it; the old one does, for all but foreign process ids.
	err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil && !errors.Is(err, unix.EPERM) {
		return explain(fmt.Errorf("mount /proc: %w", err))
	}
	if err := silenceDaemons(); err != nil {
		return err
	}
	return replaceEtc()
}

// replaceEtc puts the lab's files over those of /etc. They are made in a file
// system in memory that is mounted for a moment only: the files stay, being
// mounted themselves, and nothing has to be removed afterwards.
func replaceEtc() error {
	dir := os.TempDir()
	if err := unix.Mount("lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	for name, content := range etc {
		from, to := filepath.Join(dir, name), filepath.Join("/etc", name)
		if err := os.WriteFile(from, []byte(content), 0o644); err != nil {
			return err
		}
		err := unix.Mount(from, to, "", unix.MS_BIND, "")
		if err != nil && (name == "resolv.conf" || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("mount on %s: %w", to, err)
		}
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// silenceDaemons hides the sockets of name service daemons, which answer
// across network namespaces.
func silenceDaemons() error {
	for _, dir := range []string{"/run/nscd", "/run/systemd/resolve"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		// /etc/resolv.conf may be a link into the folder, so its target must stay.
		kept := filepath.Join(dir, "stub-resolv.conf")
		if target, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil && filepath.Dir(target) == dir {
			kept = target
		}
		if err := unix.Mount("lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
			return fmt.Errorf("mount on %s: %w", dir, err)
		}
		if err := os.WriteFile(kept, nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}
