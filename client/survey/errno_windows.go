package survey

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// faultOf classifies an error that came without an ICMP error. A refused UDP
// socket is the caller's to tell from a reset connection.
func faultOf(err error) Fault {
	errno, ok := errors.AsType[windows.Errno](err)
	if !ok {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return Timeout
		}
		return Other
	}
	switch errno {
	case windows.WSAECONNREFUSED, windows.WSAECONNRESET:
		return Reset
	case windows.WSAETIMEDOUT:
		return Timeout
	case windows.WSAEMSGSIZE:
		return TooBig
	case windows.WSAENETUNREACH, windows.WSAEHOSTUNREACH, windows.WSAENETDOWN, windows.WSAEAFNOSUPPORT, windows.WSAEADDRNOTAVAIL:
		return Unroutable
	}
	return Other
}
