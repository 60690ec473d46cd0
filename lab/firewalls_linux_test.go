package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A shot is the first packet of a flow that crosses the firewall.
type shot struct {
	UDP           bool
	In            bool // from the server to the host, not the other way
	Local, Remote uint16
}

// shots aim at every boundary of the built-in firewalls from both sides. The
// local port is 0, for any, with TCP.
func shots() []shot {
	var all []shot
	edges := []uint16{53, 74, 75, 76, 443, 1023, 1024, 3477, 3478, 3479, 12399, 12400, 12409, 12410, 32767, 32768, 40000, 40001, 59999, 60000, 65535}
	for i, p := range edges {
		all = append(all, shot{UDP: true, Local: uint16(700 + i), Remote: p}, shot{UDP: true, Local: p, Remote: uint16(20 + i)})
	}
	for _, p := range []uint16{19, 20, 21, 22, 23, 75, 80, 442, 443, 444, 465, 587, 993, 995, 1023, 1024, 3478, 5221, 5222, 5228, 5229, 8039, 8040, 8041, 8042, 8080, 40001} {
		all = append(all, shot{Remote: p})
	}
	return append(all, shot{In: true, Remote: 8443}, shot{UDP: true, In: true, Local: 700, Remote: 5000})
}

// stopped says for every built-in firewall what its title promises to stop.
var stopped = map[string]func(shot) bool{
	"open":       func(shot) bool { return false },
	"stateful":   func(s shot) bool { return s.In },
	"https-only": func(s shot) bool { return s.In || s.UDP || s.Remote != 443 },
	"web-and-stun": func(s shot) bool {
		return s.In || s.UDP && s.Remote != 3478 || !s.UDP && s.Remote != 443 && s.Remote != 80
	},
	"no-3478":        func(s shot) bool { return s.In || s.Remote == 3478 },
	"no-5222-5228":   func(s shot) bool { return s.In || !s.UDP && s.Remote >= 5222 && s.Remote <= 5228 },
	"no-443":         func(s shot) bool { return s.In || !s.UDP && s.Remote == 443 },
	"no-udp-replies": func(s shot) bool { return s.In },

	"timesensor-table":            onlyTCP(timeSensor...),
	"timesensor-table-ftp-helper": onlyTCP(timeSensor...),
	"timesensor-table-high-ports": func(s shot) bool { return onlyTCP(timeSensor...)(s) && (s.In || s.UDP || s.Remote < 1024) },
	"only-80":                     onlyTCP(80),
	"only-8080":                   onlyTCP(8080),
	"only-8040-8041":              onlyTCP(8040, 8041),
	"no-mail":                     noTCP(465, 587, 993, 995),
	"no-8040":                     noTCP(8040),
	"no-8041":                     noTCP(8041),
	"no-75":                       func(s shot) bool { return s.UDP && s.Remote == 75 },
	"inspect-443":                 func(s shot) bool { return s.In },

	"drop-udp-remote-60000":       remoteUDP(60000, 65535),
	"drop-udp-remote-12400-12409": remoteUDP(12400, 12409),
	"drop-udp-remote-32768":       remoteUDP(32768, 65535),
	"drop-udp-remote-40001":       remoteUDP(40001, 65535),
	"drop-udp-remote-1024":        remoteUDP(1024, 65535),
	"drop-udp-all":                remoteUDP(0, 65535),
	"drop-udp-local-60000":        localUDP(60000, 65535),
	"drop-udp-local-12400-12409":  localUDP(12400, 12409),
	"drop-udp-local-32768":        localUDP(32768, 65535),
	"drop-udp-local-40001":        localUDP(40001, 65535),
	"drop-udp-local-1024":         localUDP(1024, 65535),
	"drop-udp-local-all":          localUDP(0, 65535),
}

// timeSensor are the ports that its list for the classic installation has.
var timeSensor = []uint16{80, 443, 8080, 20, 21, 22, 465, 587, 993, 995}

func onlyTCP(ports ...uint16) func(shot) bool {
	return func(s shot) bool { return s.In || s.UDP || !slices.Contains(ports, s.Remote) }
}

func noTCP(ports ...uint16) func(shot) bool {
	return func(s shot) bool { return s.In || !s.UDP && slices.Contains(ports, s.Remote) }
}

func remoteUDP(low, high uint16) func(shot) bool {
	return func(s shot) bool { return s.In || s.UDP && s.Remote >= low && s.Remote <= high }
}

func localUDP(low, high uint16) func(shot) bool {
	return func(s shot) bool { return s.In || s.UDP && s.Local >= low && s.Local <= high }
}

func TestEachFirewallStopsExactlyWhatItsTitleSays(t *testing.T) {
	for _, name := range FirewallNames() {
		t.Run(name, func(t *testing.T) {
			stops := stopped[name]
			if stops == nil {
				t.Fatal("nobody says what this firewall stops")
			}
			w := build(t, Config{Firewall: builtin(t, name)})
			r := &shooting{T: t, world: w, arrived: map[string]bool{}}
			want, drops := map[string]bool{}, uint64(0)
			for _, s := range shots() {
				for _, v6 := range []bool{false, true} {
					if stops(s) {
						drops++
					} else {
						want[label(s, v6)] = true
					}
				}
			}
			r.fire(len(want), drops)
			if diff := cmp.Diff(want, r.arrived); diff != "" {
				t.Errorf("arrived (-want +got):\n%s", diff)
			}
			if got := dropped(t, w); got != drops {
				t.Errorf("the rules counted %d drops, want %d", got, drops)
			}
		})
	}
	if len(stopped) != len(FirewallNames()) {
		t.Errorf("%d firewalls are described, %d exist", len(stopped), len(FirewallNames()))
	}
}

func label(s shot, v6 bool) string { return fmt.Sprintf("%+v v6=%v", s, v6) }

// dropped adds up what all dropping rules have counted.
func dropped(t testing.TB, w *World) uint64 {
	t.Helper()
	rules, err := w.Counters()
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, r := range rules {
		if r.Stops() {
			sum += r.Packets
		}
		if r.Stops() && (!r.Counted || r.Comment == "") {
			t.Errorf("rule %q has no counter or no comment", r.Text)
		}
	}
	return sum
}

// shooting sends all shots through a firewall and notes which arrive.
type shooting struct {
	*testing.T
	world   *World
	mu      sync.Mutex
	arrived map[string]bool
}

func (r *shooting) hit(s shot, v6 bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrived[label(s, v6)] = true
}

func (r *shooting) hits() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.arrived)
}

// fire sends everything and waits until as many have arrived and have been
// dropped as should, or for 5 s: silence need not be waited for.
func (r *shooting) fire(arrive int, drop uint64) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, s := range shots() {
		for i, v6 := range []bool{false, true} {
			from, to := r.world.Host("host"), r.world.Host("server")
			if s.In {
				from, to = to, from
			}
			source := netip.AddrPortFrom(addrs(from)[i], s.Local)
			target := netip.AddrPortFrom(addrs(to)[i], s.Remote)
			arrived := r.shootTCP
			if s.UDP {
				arrived = r.shootUDP
			}
			shoot := arrived(ctx, from, to, source, target)
			wg.Go(func() {
				if shoot() {
					r.hit(s, v6)
				}
			})
		}
	}
	for ctx.Err() == nil && (r.hits() < arrive || dropped(r, r.world) < drop) {
	}
}

// shootUDP sends a datagram. The function it returns tells whether it arrived,
// and returns when it has or ctx ends.
func (r *shooting) shootUDP(ctx context.Context, from, to *Host, source, target netip.AddrPort) func() bool {
	far, near := listenUDP(r, to, target), listenUDP(r, from, source)
	if _, err := near.WriteToUDPAddrPort([]byte("shot"), target); err != nil {
		r.Fatal(err)
	}
	return func() bool {
		defer context.AfterFunc(ctx, func() { far.Close() })()
		buf := make([]byte, 16)
		n, sender, err := far.ReadFromUDPAddrPort(buf)
		return err == nil && string(buf[:n]) == "shot" && sender == source
	}
}

// shootTCP returns a function that tells whether a connection came about.
func (r *shooting) shootTCP(ctx context.Context, from, to *Host, _, target netip.AddrPort) func() bool {
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", target.String())
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { l.Close() })
	return func() bool {
		err := from.Do(func() error {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", target.String())
			if err == nil {
				c.Close()
			}
			return err
		})
		return err == nil
	}
}

func TestNoUDPRepliesDropsTheReplyOfAnArrivedRequest(t *testing.T) {
	w := build(t, Config{Firewall: builtin(t, "no-udp-replies")})
	echoUDP(t, w.Host("server"), 7)
	for i, a := range addrs(w.Host("host")) {
		c := listenUDP(t, w.Host("host"), netip.AddrPortFrom(a, 0))
		target := netip.AddrPortFrom(addrs(w.Host("server"))[i], 7)
		if err := exchange(c, target, 50*time.Millisecond); err == nil {
			t.Errorf("%s answered", target)
		}
	}
	if got := dropped(t, w); got != 2 {
		t.Errorf("%d replies were dropped, want 2", got)
	}
}

func TestMissingDropRuleIsNoticed(t *testing.T) {
	f := builtin(t, "drop-udp-all")
	f.Text = bytes.ReplaceAll(f.Text, []byte("udp dport 1-65535 counter drop"), []byte("udp dport 1-65535 counter accept"))
	w := build(t, Config{Firewall: f})
	echoUDP(t, w.Host("server"), 7)
	v4, _ := w.Host("host").Addrs()
	server, _ := w.Host("server").Addrs()
	c := listenUDP(t, w.Host("host"), netip.AddrPortFrom(v4, 0))
	if err := exchange(c, netip.AddrPortFrom(server, 7), time.Second); err != nil {
		t.Errorf("without its rule the firewall still stops UDP: %v", err)
	}
	if got := dropped(t, w); got != 0 {
		t.Errorf("%d packets were dropped, want 0", got)
	}
}
