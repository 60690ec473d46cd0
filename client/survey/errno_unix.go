//go:build !windows

package survey

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// faultOf classifies an error that came without an ICMP error. A refused UDP
// socket is the caller's to tell from a reset connection.
func faultOf(err error) Fault {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return Timeout
		}
		return Other
	}
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET:
		return Reset
	case unix.ETIMEDOUT:
		return Timeout
	case unix.EMSGSIZE:
		return TooBig
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EAFNOSUPPORT, unix.EADDRNOTAVAIL:
		return Unroutable
	}
	return Other
}
