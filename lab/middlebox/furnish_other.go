//go:build !linux

package middlebox

import (
	"context"
	"errors"

	"github.com/wallprobe/wallprobe/lab"
)

// Furnish always fails: the lab needs Linux.
func Furnish(context.Context, *lab.World, lab.Firewall) (stop func() error, err error) {
	return nil, errors.New("the lab needs Linux")
}
