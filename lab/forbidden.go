package lab

import (
	"fmt"
	"io/fs"
	"strings"
)

// forbidden explains why the kernel refused namespaces: it looks in proc, the
// /proc file system, for the setting that forbids them and names the remedy.
func forbidden(proc fs.FS, cause error) error {
	setting := func(name string) string {
		b, err := fs.ReadFile(proc, name)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	status := "\n" + setting("self/status")
	reason := "the kernel does not say why"
	switch {
	case setting("sys/user/max_user_namespaces") == "0":
		reason = "user.max_user_namespaces is 0; allow them with: sudo sysctl -w user.max_user_namespaces=15000"
	case setting("sys/kernel/unprivileged_userns_clone") == "0":
		reason = "kernel.unprivileged_userns_clone is 0; allow them with: sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case setting("sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		reason = "AppArmor restricts them (kernel.apparmor_restrict_unprivileged_userns is 1); allow them with: " +
			"sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run this as root"
	case strings.Contains(status, "\nSeccomp:\t2"):
		reason = "a seccomp profile forbids them, as in a container; run the container with --privileged, or with " +
			"--cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
	}
	return fmt.Errorf("user namespaces are forbidden here: %s: %w", reason, cause)
}
