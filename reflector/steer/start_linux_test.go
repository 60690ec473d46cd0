package steer

import (
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// documented are about the ports that the five documents name, with the
// ranges of the sweeps.
var documented = Config{
	TCP:          ports("21-23,25,53,70,80,110,143,443,902,1433,1723,3306,3389,5222-5228,5900,7000,8040-8041,8080,8443,49152-65535"),
	UDP:          ports("53,123,443,1024-65535"),
	AllowUnbound: true,
}

func BenchmarkStart(b *testing.B) {
	if os.Geteuid() != 0 {
		skip(b, "needs root: it makes network namespaces in this process")
	}
	for _, m := range []Mode{BPF, TPROXY, Sockets} {
		b.Run(m.String(), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			old, err := netns.Get()
			if err != nil {
				b.Fatal(err)
			}
			defer old.Close()
			ns, err := netns.New()
			if err != nil {
				b.Fatal(err)
			}
			defer ns.Close()
			defer func() {
				if err := netns.Set(old); err != nil {
					b.Fatal(err)
				}
			}()
			cfg := documented
			cfg.Mode = m
			for b.Loop() {
				s, err := Listen(cfg)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				tcp, udp := s.Served()
				b.ReportMetric(float64(tcp.Len()+udp.Len()), "ports")
				b.ReportMetric(float64(s.Descriptors()), "descriptors")
				b.ReportMetric(residentMB(b), "MB-resident")
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// residentMB is the memory of this process; what sockets take in the kernel is
// not in it.
func residentMB(b *testing.B) float64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			var kb float64
			for _, c := range strings.TrimSuffix(strings.TrimSpace(rest), " kB") {
				kb = kb*10 + float64(c-'0')
			}
			return kb / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// BenchmarkHeader makes the headers of one answer of 64 bytes.
func BenchmarkHeader(b *testing.B) {
	d := Datagram{Local: netip.MustParseAddrPort("[2001:db8::1]:443"), Remote: netip.MustParseAddrPort("[2001:db8::2]:50000"), Payload: make([]byte, 64)}
	buf := make([]byte, 0, 64)
	for b.Loop() {
		buf = appendHeader(buf[:0], d)
	}
	if len(buf) != unix.SizeofSockaddrInet6+20 {
		b.Fatal(len(buf))
	}
}
