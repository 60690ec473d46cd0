package reflector

import (
	"net/netip"
	"testing"
)

func TestOneSourceCannotTakeEveryConnection(t *testing.T) {
	var s sources
	a := netip.MustParseAddr("2001:db8::1")
	for i := range maxConnsPerSource {
		if !s.enter(a) {
			t.Fatalf("connection %d was refused", i)
		}
	}
	if s.enter(netip.MustParseAddr("2001:db8::2")) {
		t.Error("another address of the same /64 got a connection more")
	}
	if !s.enter(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("another /64 was refused")
	}
	s.leave(a)
	if !s.enter(a) {
		t.Error("refused although a connection had ended")
	}
}

func TestSourcesWithoutConnectionsAreForgotten(t *testing.T) {
	var s sources
	a := netip.MustParseAddr("::ffff:192.0.2.1")
	s.enter(a)
	s.leave(a.Unmap())
	if len(s.n) != 0 {
		t.Errorf("%d sources are remembered", len(s.n))
	}
}
