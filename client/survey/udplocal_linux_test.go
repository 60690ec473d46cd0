package survey

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

// An answer that is late is not lost: an own port that was tried again is heard
// until all of its datagrams are answered.
func TestLateAnswersToOwnPortsAreCounted(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64)
		held := make(map[netip.AddrPort][][]byte)
		for {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if held[from] = append(held[from], slices.Clone(b[:n])); len(held[from]) < 3 {
				continue
			}
			for _, answer := range held[from] {
				server.WriteToUDPAddrPort(answer, from)
				time.Sleep(5 * time.Millisecond) // so that each comes by itself
			}
		}
	}()
	ports := scenarios.PortSet{{First: 30610, Last: 30613}}
	got, err := UDP{Target: netip.MustParseAddr("127.0.0.1"), LocalPorts: ports, RemotePort: server.LocalAddr().(*net.UDPAddr).AddrPort().Port(),
		Attempts: 3, Spacing: 5 * time.Millisecond, Wait: 20 * time.Second, Request: request, Check: check}.Run(t.Context())
	must(t, err)
	var want []Answer
	for p := range ports.All {
		want = append(want, Answer{Port: p, Sent: 3, Answered: 3})
	}
	if diff := cmp.Diff(want, got, unstable); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	server.Close()
	<-done
}
