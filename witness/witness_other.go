//go:build !linux

package witness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Packets sees TCP SYNs below the sockets; on this system it does not exist.
type Packets struct{}

// Open needs Linux.
func Open(...netip.Addr) (*Packets, error) {
	return nil, fmt.Errorf("witness: Linux only: %w", errors.ErrUnsupported)
}

// Run needs Linux.
func (*Packets) Run(context.Context, func([]SYN)) error {
	return fmt.Errorf("witness: Linux only: %w", errors.ErrUnsupported)
}

// Lost is always 0 here.
func (*Packets) Lost() uint64 { return 0 }

// Close does nothing here.
func (*Packets) Close() error { return nil }

// HalfOpen needs Linux.
func HalfOpen() ([]SYN, error) {
	return nil, fmt.Errorf("half-open connections: Linux only: %w", errors.ErrUnsupported)
}

// Hidden needs Linux.
func Hidden() (uint64, error) {
	return 0, fmt.Errorf("count hidden SYNs: Linux only: %w", errors.ErrUnsupported)
}
