package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExceptionsOfSeveralTransportsMayStandInOneValue(t *testing.T) {
	got := exceptions([]string{"tcp/22,25,udp/53", "udp/5000-5999, tcp/80", "22"})
	if diff := cmp.Diff([]string{"tcp/22,25", "udp/53", "udp/5000-5999", "tcp/80", "22"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
