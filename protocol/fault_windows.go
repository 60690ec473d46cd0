package protocol

import (
	"errors"
	"syscall"
)

// wsaeConnAborted is WSAECONNABORTED: Windows gives it to writes after a reset.
const wsaeConnAborted = syscall.Errno(10053)

func isReset(err error) bool {
	return errors.Is(err, syscall.WSAECONNRESET) || errors.Is(err, wsaeConnAborted)
}

// wsaeConnRefused is WSAECONNREFUSED.
const wsaeConnRefused = syscall.Errno(10061)

func isRefused(err error) bool { return errors.Is(err, wsaeConnRefused) }
