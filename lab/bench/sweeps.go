//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/wallprobe/wallprobe/lab"
)

// manyAddrs belongs to the server in the sweeps' worlds: one datagram to each
// of its addresses makes as many flows as one to each port.
var manyAddrs = netip.MustParsePrefix("198.18.0.0/16")

const flows = 64512

const udpRules = `table inet bench {
	chain forward {
		type filter hook forward priority 0; policy drop;
		udp dport { 2000-2999, 33333, 60000-65535 } counter drop
		ct state established,related accept
		iifname "lan0" accept
	}
}
`

const udpWant = "open 1024-1999,3000-33332,33334-59999, request-lost 2000-2999,33333,60000-65535"

// udpSweep compares a sweep of 64,512 ports with what the same path can carry.
func (b *bench) udpSweep(ctx context.Context) error {
	w, took, err := b.sweep(ctx, "udp", "1024-65535", udpRules, udpWant)
	if err != nil {
		return err
	}
	defer w.Close()
	limit, err := b.median(func() (time.Duration, error) { return echoAll(ctx, w) })
	if err != nil {
		return err
	}
	ratio := took.Seconds() / limit.Seconds()
	b.add("UDP sweep of 64,512 ports, stateful firewall, exact", "twice the limit", seconds(took),
		fmt.Sprintf("limit in this run %s, ratio %.1f", seconds(limit), ratio))
	const few, part = "33300-33799", 500
	peer, err := b.nmap(ctx, w, "-sU", few, []string{"-T4"})
	b.peer("  nmap -sU -T4 on 500 of them, same rules", peer, err)
	if err == nil {
		b.figures[len(b.figures)-1].note = fmt.Sprintf("%.0f times as long for each port", flows/part*peer.Seconds()/took.Seconds())
	}
	return nil
}

// limit is what path and machine can carry of a sweep at best, in a world of
// its own.
func (b *bench) limit(ctx context.Context) (time.Duration, error) {
	cfg := lab.Config{Firewall: lab.Firewall{Name: "bench", Text: []byte(udpRules)}, Own: []netip.Prefix{manyAddrs}}
	w, err := lab.Build(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	return b.median(func() (time.Duration, error) { return echoAll(ctx, w) })
}

// echoAll sends a datagram for every flow to a bare echo server and counts
// until all came back: what path and machine can carry.
func echoAll(ctx context.Context, w *lab.World) (time.Duration, error) {
	var server, near net.PacketConn
	listen := func(c *net.PacketConn, addr string) func() error {
		return func() (err error) { *c, err = net.ListenPacket("udp4", addr); return err }
	}
	if err := errors.Join(w.Host("server").Do(listen(&server, "0.0.0.0:4444")), w.Host("host").Do(listen(&near, "0.0.0.0:0"))); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() { defer close(done); echo(ipv4.NewPacketConn(server)) }()
	defer func() { server.Close(); near.Close(); <-done }()
	return blast(ctx, ipv4.NewPacketConn(near))
}

const batch = 64

func messages() []ipv4.Message {
	ms := make([]ipv4.Message, batch)
	for i := range ms {
		ms[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 84)}, OOB: ipv4.NewControlMessage(ipv4.FlagDst)}
	}
	return ms
}

// echo answers every datagram from the address that it was aimed at.
func echo(c *ipv4.PacketConn) {
	if c.SetControlMessage(ipv4.FlagDst, true) != nil {
		return
	}
	in := messages()
	for {
		n, err := c.ReadBatch(in, 0)
		if err != nil {
			return
		}
		for i := range n {
			var cm ipv4.ControlMessage
			if cm.Parse(in[i].OOB[:in[i].NN]) == nil {
				in[i].OOB = (&ipv4.ControlMessage{Src: cm.Dst}).Marshal()
			}
		}
		for sent := 0; sent < n; {
			k, err := c.WriteBatch(in[sent:n], 0)
			if err != nil {
				return
			}
			sent += k
		}
		for i := range n {
			in[i].OOB = ipv4.NewControlMessage(ipv4.FlagDst)
		}
	}
}

// blast keeps a window of datagrams in flight, which a socket's buffer can
// hold, until every flow was answered.
func blast(ctx context.Context, c *ipv4.PacketConn) (time.Duration, error) {
	const window = 192
	began := time.Now()
	out, in := messages(), messages()
	sent, got := 0, 0
	for got < flows && ctx.Err() == nil {
		for sent < flows && sent-got < window {
			n := min(batch, flows-sent, window-(sent-got))
			for i := range n {
				a := manyAddrs.Addr().As4()
				a[2], a[3] = byte((sent+i)>>8), byte(sent+i)
				out[i].Addr, out[i].OOB = &net.UDPAddr{IP: net.IP(a[:]), Port: 4444}, nil
			}
			k, err := c.WriteBatch(out[:n], 0)
			if err != nil {
				return 0, err
			}
			sent += k
		}
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.ReadBatch(in, 0)
		if err != nil { // what is missing was lost; count it as carried late
			got = sent
			continue
		}
		got += n
	}
	return time.Since(began), ctx.Err()
}

const tcpRules = `table inet bench {
	chain forward {
		type filter hook forward priority 0; policy drop;
		tcp dport { 443, 50000, 60000-60002, 65535 } counter accept
		ct state established,related accept
	}
}
`

const tcpWant = "request-lost 49152-49999,50001-59999,60003-65534, open 50000,60000-60002,65535"

// tcpSweep compares a sweep of 16,384 ports, all but five dropped, with nmap.
func (b *bench) tcpSweep(ctx context.Context) error {
	w, took, err := b.sweep(ctx, "tcp", "49152-65535", tcpRules, tcpWant)
	if err != nil {
		return err
	}
	defer w.Close()
	b.add("TCP sweep of 16,384 ports, all but 5 dropped, exact", "under 5 s for all 65,535", seconds(took), "")
	// An eighth of the ports, since nmap takes minutes for all of them.
	const part, whole = "49152-51199", 8
	for _, kind := range []string{"-sT", "-sS"} {
		peer, err := b.nmap(ctx, w, kind, part, []string{"-T4"})
		b.peer("  nmap "+kind+" -T4 on 2,048 of them, same rules", peer, err)
		if err == nil {
			b.figures[len(b.figures)-1].note = fmt.Sprintf("%.0f times as long for each port", whole*peer.Seconds()/took.Seconds())
		}
	}
	return nil
}

func (b *bench) peer(what string, d time.Duration, err error) {
	if err != nil {
		b.add(what, "-", "not measured", err.Error())
		return
	}
	b.add(what, "-", seconds(d), "")
}

// nmap scans the server from the host, once; a bare listener answers.
func (b *bench) nmap(ctx context.Context, w *lab.World, kind, ports string, more []string) (time.Duration, error) {
	if _, err := exec.LookPath("nmap"); err != nil {
		return 0, errors.New("nmap is not installed: apt-get install nmap")
	}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	v4, _ := w.Host("server").Addrs()
	args := append([]string{kind, "-n", "-Pn", "-p", ports}, more...)
	began := time.Now()
	cmd := w.Host("host").Command(ctx, "nmap", append(args, v4.String())...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := w.Host("host").Run(cmd); err != nil {
		return 0, fmt.Errorf("%w %s", err, strings.TrimSpace(complaints.String()))
	}
	return time.Since(began), nil
}
