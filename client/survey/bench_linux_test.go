package survey

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// BenchmarkSweeps times sweeps through a stateful firewall, beside the
// physical limit: the same datagrams sent and read with nothing in between.
func BenchmarkSweeps(b *testing.B) {
	l := newLab(b)
	if l == nil {
		return
	}
	l.echoAll()
	l.serve(2000, 9999)
	const stateful = "ct state established,related accept\n"
	ports := scenarios.PortSet{{First: 1024, Last: 65535}}
	udp := UDP{Target: serverAddr[false], Ports: ports, Spacing: 100 * time.Millisecond, RTT: time.Millisecond, Request: request, Check: check}
	sweep := func(u UDP, answered int) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				l.flush()
				got, err := u.Run(b.Context())
				must(b, err)
				expect(b, got, answered)
			}
		}
	}
	l.rules("ct state new accept\n")
	b.Run("udp/limit", func(b *testing.B) { physicalLimit(b, l, ports) })
	b.Run("udp/open", sweep(udp, 64512))
	unhinted := udp
	unhinted.RTT = 0
	b.Run("udp/open-unknown-rtt", sweep(unhinted, 64512))
	l.rules(stateful + "udp dport 40001-65535 drop\n")
	b.Run("udp/mixed", sweep(udp, 38977))
	l.rules(stateful + "udp dport != 5000 drop\n")
	b.Run("udp/dropped", sweep(udp, 1))
	l.rules(stateful)
	local := UDP{Target: serverAddr[false], LocalPorts: scenarios.PortSet{{First: 40000, Last: 65535}}, RemotePort: 3478,
		Spacing: 100 * time.Millisecond, RTT: time.Millisecond, Request: request, Check: check}
	b.Run("udp/local", sweep(local, 25536))
	l.rules(stateful + "udp sport 40001-65535 drop\n")
	b.Run("udp/local-dropped", sweep(local, 1))
	l.rules(stateful + "tcp dport != { 2000, 9999 } drop\n")
	tcp := TCP{Target: serverAddr[false], Ports: scenarios.PortSet{{First: 1025, Last: 17408}}, Timeout: 250 * time.Millisecond, RTT: time.Millisecond, Exchange: greet}
	for _, attempts := range []int{2, 3} {
		tcp.Attempts = attempts
		b.Run(fmt.Sprintf("tcp/dropped-%d-attempts", attempts), func(b *testing.B) {
			for b.Loop() {
				got, err := tcp.Run(b.Context())
				must(b, err)
				expect(b, got, 2)
			}
		})
	}
}

func expect(b *testing.B, got []Answer, answered int) {
	n, sent := 0, 0
	for _, a := range got {
		n += min(1, int(a.Answered))
		sent += int(a.Sent)
	}
	b.ReportMetric(float64(sent), "sent")
	if n != answered {
		b.Errorf("%d ports answered, want %d", n, answered)
	}
}

// physicalLimit sends every datagram once, window by window, until all are
// echoed; lost ones are sent again.
func physicalLimit(b *testing.B, l *lab, ports scenarios.PortSet) {
	list := slices.Collect(ports.All)
	for b.Loop() {
		l.flush()
		c, err := net.ListenUDP("udp4", nil)
		must(b, err)
		raw, err := c.SyscallConn()
		must(b, err)
		out, in := newBatch(0), newBatch(64)
		raw.Control(func(fd uintptr) { flood(b, int(fd), out, in, list) })
		c.Close()
	}
}

func flood(b *testing.B, fd int, out, in *batch, list []uint16) {
	var seen [65536]bool
	for missing := len(list); missing > 0; {
		flying := 0
		for k := 0; k < len(list) || flying > 0; {
			n := 0
			for ; k < len(list) && n < batchSize && flying < 256; k++ {
				if !seen[list[k]] {
					out.put(n, netipPort(list[k]), request(out.bufs[n][:0], list[k], 0))
					n++
					flying++
				}
			}
			if n > 0 {
				sent, err := out.send(fd, 0, n)
				must(b, err)
				flying -= n - sent
			}
			if flying >= 256 || k == len(list) {
				if ev, _ := poll(fd, unix.POLLIN, 5*time.Millisecond); ev == 0 {
					flying = 0 // lost: the next pass repeats them
				}
			}
			for {
				n, err := in.receive(fd, 0, false)
				for m := range n {
					from, _ := in.datagram(m)
					if !seen[from.Port()] {
						seen[from.Port()] = true
						missing--
					}
				}
				flying = max(0, flying-n)
				if err != nil || n < batchSize {
					break
				}
			}
		}
	}
}

func netipPort(port uint16) netip.AddrPort { return netip.AddrPortFrom(serverAddr[false], port) }
