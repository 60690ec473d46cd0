package middlebox

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Lines is a TCP box's Between for what is spoken in lines. edit gets each with
// its end and tells what goes on in its place, and what goes back to who said it.
func Lines(edit func(from Side, line string) (on, back string)) func(client, server net.Conn) {
	return func(client, server net.Conn) {
		relay(client, server, func(to, from net.Conn, side Side) {
			for r := bufio.NewReader(from); ; {
				line, err := r.ReadString('\n')
				on, back := edit(side, line)
				_, unsent := io.WriteString(to, on)
				_, unanswered := io.WriteString(from, back)
				if err != nil || unsent != nil || unanswered != nil {
					return
				}
			}
		})
	}
}

// An FTPGateway stands in the way of FTP as a translator's helper does: in some
// lines it puts another port in the place of that of a data connection (RFC 959,
// RFC 2428), and it knows which stands for which. It is a TCP box's Between for
// control connections and another one's To for data connections.
type FTPGateway struct {
	Verbs []string // how the lines begin: "227", "229", "PORT" or "EPRT"

	mu   sync.Mutex
	real map[uint16]uint16
}

// Between is TCP.Between.
func (g *FTPGateway) Between(client, server net.Conn) {
	Lines(func(_ Side, line string) (on, back string) { return g.edit(line), "" })(client, server)
}

// To is TCP.To.
func (g *FTPGateway) To(aimed netip.AddrPort) netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	if port, ok := g.real[aimed.Port()]; ok {
		return netip.AddrPortFrom(aimed.Addr(), port)
	}
	return aimed
}

// The ports in both notations.
var (
	twoBytes = regexp.MustCompile(`,(\d+),(\d+)(\)?[^,\d]*)$`)
	barred   = regexp.MustCompile(`\|(\d+)\|([^|\d]*)$`)
)

func (g *FTPGateway) edit(line string) string {
	if !slices.ContainsFunc(g.Verbs, func(verb string) bool { return strings.HasPrefix(line, verb+" ") }) {
		return line
	}
	if m := twoBytes.FindStringSubmatch(line); m != nil {
		high, _ := strconv.Atoi(m[1])
		low, _ := strconv.Atoi(m[2])
		port := g.shown(uint16(high<<8 | low))
		return strings.TrimSuffix(line, m[0]) + fmt.Sprintf(",%d,%d%s", port>>8, port&0xff, m[3])
	}
	if m := barred.FindStringSubmatch(line); m != nil {
		port, _ := strconv.Atoi(m[1])
		return strings.TrimSuffix(line, m[0]) + fmt.Sprintf("|%d|%s", g.shown(uint16(port)), m[2])
	}
	return line
}

// shown gives the port that stands for another: its neighbour.
func (g *FTPGateway) shown(port uint16) uint16 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.real == nil {
		g.real = make(map[uint16]uint16)
	}
	g.real[port^1] = port
	return port ^ 1
}
