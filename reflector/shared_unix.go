//go:build unix

package reflector

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// shared lets a connection leave from a port that something listens on.
func shared(_, _ string, c syscall.RawConn) error {
	var errs error
	err := c.Control(func(fd uintptr) {
		errs = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		)
	})
	return errors.Join(err, errs)
}
