package steer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/scenarios"
)

// tablePrefix begins the name of every nftables table of this package. The
// rest is the port of the TCP or UDP socket that the table steers to: a table
// whose port no socket has any more was left behind by a crash. Such a table
// does no harm meanwhile, because a tproxy statement without a transparent
// socket as its target lets the packet go on.
const tablePrefix = "wallprobe_"

func tableName(port uint16) string { return tablePrefix + strconv.Itoa(int(port)) }

// nftTimeout bounds every call of nft.
const nftTimeout = 5 * time.Second

// A tproxySteer is an nftables table of its own.
type tproxySteer struct {
	table, rules string
	attached     bool
}

// planTPROXY writes the table that steers ports at addrs to socks, and finds
// out whether nft may be used. The calling goroutine must be locked to its
// thread, whose network namespace it is.
func planTPROXY(addrs []netip.Addr, tcp, udp scenarios.PortSet, socks []*socket) (*tproxySteer, error) {
	stale, err := staleTables()
	if err != nil {
		return nil, err
	}
	t := &tproxySteer{table: tableName(socks[0].local.Port())}
	var b strings.Builder
	for _, name := range stale {
		fmt.Fprintf(&b, "delete table inet %s\n", name)
	}
	writeTable(&b, t.table, addrs, tcp, udp, socks)
	t.rules = b.String()
	return t, nil
}

// attach starts steering, on the same thread.
func (t *tproxySteer) attach() error {
	_, err := nft(t.rules, "-f", "-")
	t.attached = err == nil
	return err
}

// writeTable writes the rules. The chain runs after destination NAT (-100), so
// that ports published for containers are left alone. "socket transparent 0"
// matches whatever a socket of anybody else would get, listening, connected or
// just bound, now or later: that is left alone too. All packets without such a
// socket are steered, not only SYNs, because the ACK that answers a SYN cookie
// has no socket yet.
func writeTable(b *strings.Builder, table string, addrs []netip.Addr, tcp, udp scenarios.PortSet, socks []*socket) {
	var jumps, chains strings.Builder
	for _, s := range socks {
		ports, v4 := tcp, s.local.Addr().Is4()
		if s.transport == scenarios.UDP {
			ports = udp
		}
		if len(ports) == 0 {
			continue
		}
		ip := "ip6"
		if v4 {
			ip = "ip"
		}
		chain := fmt.Sprintf("%s_%s", s.transport, ip)
		fmt.Fprintf(&jumps, "\t\t%s %s dport { %s } goto %s\n", matchLocal(addrs, v4), s.transport, ports, chain)
		fmt.Fprintf(&chains, "\tchain %s {\n\t\tsocket transparent 0 return\n\t\tmeta l4proto %s tproxy %s to %s accept\n\t}\n",
			chain, s.transport, ip, s.local)
	}
	// A table of this name can only be a dead one's.
	fmt.Fprintf(b, "table inet %[1]s\ndelete table inet %[1]s\n", table)
	fmt.Fprintf(b, "table inet %s {\n%s\tchain steer {\n\t\ttype filter hook prerouting priority -90; policy accept;\n%s\t}\n}\n",
		table, &chains, &jumps)
}

// matchLocal matches what is aimed at an address listened on.
func matchLocal(addrs []netip.Addr, v4 bool) string {
	var mine []string
	for _, a := range addrs {
		if a.Is4() != v4 {
			continue
		}
		if a.IsUnspecified() {
			if v4 {
				return "meta nfproto ipv4 fib daddr type local"
			}
			return "meta nfproto ipv6 fib daddr type local"
		}
		mine = append(mine, a.WithZone("").String())
	}
	if v4 {
		return "ip daddr { " + strings.Join(mine, ", ") + " }"
	}
	return "ip6 daddr { " + strings.Join(mine, ", ") + " }"
}

// close removes the table.
func (t *tproxySteer) close() error {
	if !t.attached {
		return nil
	}
	_, err := nft("", "delete", "table", "inet", t.table)
	return err
}

// staleTables lists the tables that a crash left behind.
func staleTables() ([]string, error) {
	out, err := nft("", "list", "tables", "inet")
	if err != nil {
		return nil, err
	}
	left := tablesIn(out)
	if len(left) == 0 {
		return nil, nil
	}
	var alive scenarios.PortSet
	for _, t := range []scenarios.Transport{scenarios.TCP, scenarios.UDP} {
		ports, err := held(t, []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()})
		if err != nil {
			return nil, err
		}
		alive = append(alive, ports...)
	}
	var names []string
	for _, port := range left {
		if !alive.Contains(port) {
			names = append(names, tableName(port))
		}
	}
	return names, nil
}

// tablesIn finds in nft's list of tables those named after a port of ours.
func tablesIn(list string) (ports []uint16) {
	for line := range strings.Lines(list) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "table inet "+tablePrefix)
		if port, err := strconv.ParseUint(text, 10, 16); ok && err == nil && strconv.FormatUint(port, 10) == text {
			ports = append(ports, uint16(port))
		}
	}
	return ports
}

// nft runs the nft program with input. The program needs CAP_NET_ADMIN as this
// process has it, which a file capability alone would not hand on.
func nft(input string, args ...string) (string, error) {
	path, err := Program("nft")
	if err != nil {
		return "", errors.New("nft is not installed (package nftables)")
	}
	ctx, cancel := context.WithTimeout(context.Background(), nftTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}}
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		if first, _, _ := strings.Cut(strings.TrimSpace(problem.String()), "\n"); first != "" {
			return "", fmt.Errorf("nft %s: %s", args[0], first)
		}
		return "", fmt.Errorf("nft %s: %w", args[0], err)
	}
	return out.String(), nil
}

// Program finds a program, also where an ordinary user's PATH does not look.
func Program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
}
