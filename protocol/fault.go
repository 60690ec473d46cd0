package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"github.com/wallprobe/wallprobe/wire"
)

// faultOf names what an error of a read or write means.
func faultOf(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errAltered), errors.Is(err, wire.ErrAltered):
		return FaultAltered
	case errors.Is(err, ErrForeign), errors.Is(err, wire.ErrNotMessage):
		return FaultForeign
	case isReset(err):
		return FaultReset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return FaultEOF
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return FaultTimeout
	}
	return err.Error()
}

var (
	errAltered = errors.New("bytes altered on the way")
	// ErrForeign means that somebody answered who does not know the key.
	ErrForeign = errors.New("the answer is not the reflector's")
)

// FaultOf names what an error of a dial, read or write means, in the words of
// the Fault constants; "refused" is a reset that answered a SYN.
func FaultOf(err error) string {
	if isRefused(err) {
		return FaultRefused
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return FaultTimeout
	}
	return faultOf(err)
}
