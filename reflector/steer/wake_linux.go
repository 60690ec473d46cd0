package steer

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A waker is a descriptor that ends loops: once woken it stays readable until
// it is drained.
type waker int

func newWaker() (waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return waker(fd), nil
}

func (w waker) wake() {
	_, _ = unix.Write(int(w), binary.NativeEndian.AppendUint64(nil, 1))
}

func (w waker) drain() {
	_, _ = unix.Read(int(w), make([]byte, 8))
}

// whenDone calls do when ctx ends. The function it returns gives that up, or waits
// until it is over.
func whenDone(ctx context.Context, do func()) (giveUp func()) {
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		do()
	})
	return func() {
		if !stop() {
			<-over
		}
	}
}
