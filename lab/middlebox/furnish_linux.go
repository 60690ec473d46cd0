package middlebox

import (
	"context"
	"errors"
	"fmt"

	"github.com/wallprobe/wallprobe/lab"
)

// openers are the boxes that a firewall's file can ask for, by lab.BoxKinds.
var openers = map[string]func(*lab.Host, lab.Box) (served, error){
	lab.BoxIntercept: func(h *lab.Host, b lab.Box) (served, error) {
		return TCP{Ports: nftPorts(b.Ports), AsClient: true, Between: new(Interceptor).Between}.Open(h)
	},
	lab.BoxInspect: func(h *lab.Host, b lab.Box) (served, error) {
		return Squid{Ports: nftPorts(b.Ports)}.Open(h)
	},
}

// served is a box put into the way.
type served interface {
	Serve(context.Context) error
	Close() error
}

// Furnish starts the boxes that a firewall's file asks for on the world's
// firewall host, in the order of the file. They work until stop, which waits
// for their end; a box that ended before says why. Where a box needs a program
// that is not there, the error is a *MissingError.
func Furnish(ctx context.Context, w *lab.World, f lab.Firewall) (stop func() error, err error) {
	var boxes []served
	for _, b := range f.Boxes {
		open := openers[b.Kind]
		if open == nil {
			err = fmt.Errorf("firewall %s, line %d: there is no box %q", f.Name, b.Line, b.Kind)
			break
		}
		var box served
		if box, err = open(w.Host("firewall"), b); err != nil {
			err = fmt.Errorf("firewall %s, line %d: %w", f.Name, b.Line, err)
			break
		}
		boxes = append(boxes, box)
	}
	if err != nil {
		for _, b := range boxes {
			err = errors.Join(err, b.Close())
		}
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, len(boxes))
	for _, b := range boxes {
		go func() { ended <- b.Serve(ctx) }()
	}
	return func() error {
		cancel()
		var errs []error
		for range boxes {
			errs = append(errs, <-ended)
		}
		return errors.Join(errs...)
	}, nil
}
