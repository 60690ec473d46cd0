package witness

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/internal/sockdiag"
)

// HalfOpen lists the TCP connections whose SYN has been answered but whose
// handshake is not complete. It needs no privilege. Time is the time of the
// call; TTL and TOS are not known. Connections answered with a SYN cookie
// leave no trace, nor do those that a reset has ended: [Hidden] counts them.
func HalfOpen() ([]SYN, error) {
	now := time.Now()
	var out []SYN
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		socks, err := sockdiag.List(family, unix.IPPROTO_TCP, sockdiag.SynRecv)
		if err != nil {
			return nil, fmt.Errorf("list half-open connections: %w", err)
		}
		for _, s := range socks {
			out = append(out, SYN{Time: now, Source: s.Remote, Dest: s.Local})
		}
	}
	return out, nil
}

// hidden are the counters of TcpExt in /proc/net/netstat whose growth says that
// a SYN came of which [HalfOpen] may have nothing: a reset ended the connection,
// it was answered with a cookie, there was no room for it.
var hidden = []string{"EmbryonicRsts", "SyncookiesSent", "ListenDrops", "TCPReqQFullDrop"}

// Hidden counts the SYNs of this network namespace that [HalfOpen] may have
// missed, since its beginning. It needs no privilege.
func Hidden() (uint64, error) {
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return 0, fmt.Errorf("count hidden SYNs: %w", err)
	}
	counters := parse(string(b), "TcpExt:")
	var n uint64
	for _, name := range hidden {
		v, ok := counters[name]
		if !ok {
			return 0, fmt.Errorf("count hidden SYNs: this system does not count %s", name)
		}
		n += v
	}
	return n, nil
}

// parse reads a group of /proc/net/netstat: a line of names and one of numbers.
func parse(netstat, group string) map[string]uint64 {
	var names []string
	out := make(map[string]uint64)
	for line := range strings.Lines(netstat) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] != group:
		case names == nil:
			names = f
		default:
			for i := range min(len(names), len(f)) {
				if n, err := strconv.ParseUint(f[i], 10, 64); err == nil {
					out[names[i]] = n
				}
			}
		}
	}
	return out
}
