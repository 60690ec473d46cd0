package reflector

import (
	"net"
	"testing"
)

// Ports that wait for data connections are bounded over all sessions, and one
// that is closed, however often, makes room for one.
func TestPortsThatWaitForDataAreBounded(t *testing.T) {
	b := newBench(t, Config{})
	var open []net.Listener
	defer func() {
		for _, l := range open {
			l.Close()
		}
	}()
	for len(b.data) < maxData-2 {
		b.data <- struct{}{} // as if others had them
	}
	for range 2 {
		l, err := b.Listen(loopback)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
	}
	if l, err := b.Listen(loopback); err == nil {
		l.Close()
		t.Error("one more than may be")
	}
	open[0].Close()
	open[0].Close()
	if n := len(b.data); n != maxData-1 {
		t.Errorf("%d are counted", n)
	}
	l, err := b.Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	open[0] = l
}
