package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

func contextFor(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func TestErrorsAreNamedInTheWordsOfTheFaults(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", err)}
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{io.EOF, FaultEOF},
		{io.ErrUnexpectedEOF, FaultEOF},
		{net.ErrClosed, FaultEOF},
		{fmt.Errorf("byte 3: %w", errAltered), FaultAltered},
		{wire.ErrAltered, FaultAltered},
		{wire.ErrNotMessage, FaultForeign},
		{ErrForeign, FaultForeign},
		{op(syscall.ECONNRESET), FaultReset},
		{os.ErrDeadlineExceeded, FaultTimeout},
		{context.DeadlineExceeded, FaultTimeout},
		{errors.New("something new"), "something new"},
	} {
		if diff := cmp.Diff([]string{c.want, c.want}, []string{faultOf(c.err), FaultOf(c.err)}); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.err, diff)
		}
	}
	if got := FaultOf(op(syscall.ECONNREFUSED)); got != FaultRefused {
		t.Errorf("a refusal is called %s", got)
	}
}
