package main

import (
	"bytes"
	"context"
	"net/netip"
	"sync"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/reflector"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A loop is a reflector on this machine's own loopback address, for paths of a
// scenario that stay within one machine, so that a local firewall can be measured.
type loop struct {
	at      netip.Addr // zero when the scenario has no such path
	cancel  context.CancelFunc
	serving sync.WaitGroup
	journal bytes.Buffer
}

// serveLoop starts it. Ports that another program holds are left to that.
func serveLoop(ctx context.Context, cfg client.Config) (*loop, error) {
	l := &loop{cancel: func() {}}
	role := cfg.Role
	if role == "" {
		role = cfg.Scenario.NearRoles()[0]
	}
	tcp, udp := loopPorts(cfg.Scenario, role)
	if len(tcp)+len(udp) == 0 {
		return l, nil
	}
	l.at = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if cfg.Reflector.Is6() {
		l.at = netip.IPv6Loopback()
	}
	r, err := reflector.Listen(reflector.Config{
		Key: cfg.Key, Addrs: []netip.Addr{l.at}, TCP: tcp, UDP: udp, AllowUnbound: true, Journal: &l.journal,
	})
	if err != nil {
		return nil, &exitError{exitUsage, err.Error()}
	}
	ctx, l.cancel = context.WithCancel(ctx)
	l.serving.Go(func() { r.Serve(ctx) })
	return l, nil
}

// stop ends it and adds its ledger to the result: it has no port for control.
func (l *loop) stop(res *client.Result, s *scenarios.Scenario) {
	l.cancel()
	l.serving.Wait()
	if res == nil || !l.at.IsValid() {
		return
	}
	j, err := client.ReadJournal(&l.journal)
	if err != nil {
		return
	}
	if ledger, err := j.For(res); err == nil {
		res.Attach(client.WhereLoop, ledger)
		client.Conclude(res, s)
	}
}
