//go:build !windows

package protocol

import (
	"errors"
	"syscall"
)

// A write to a connection that was reset before gives EPIPE.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
