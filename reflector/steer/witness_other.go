//go:build !linux

package steer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// SYNs sees TCP SYNs below the sockets; on this system it does not exist.
type SYNs struct{}

// Witness needs Linux: its error wraps errors.ErrUnsupported.
func Witness(...netip.Addr) (*SYNs, error) {
	return nil, fmt.Errorf("witness: Linux only: %w", errors.ErrUnsupported)
}

// Run needs Linux.
func (*SYNs) Run(context.Context, func([]SYN)) error {
	return fmt.Errorf("witness: Linux only: %w", errors.ErrUnsupported)
}

// Lost is always 0 here.
func (*SYNs) Lost() uint64 { return 0 }

// Close does nothing here.
func (*SYNs) Close() error { return nil }

// HalfOpen needs Linux: its error wraps errors.ErrUnsupported.
func HalfOpen() ([]SYN, error) {
	return nil, fmt.Errorf("half-open connections: Linux only: %w", errors.ErrUnsupported)
}
