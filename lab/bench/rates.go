//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// allScenarios times all five in one run, from nothing to the last verdict.
func (b *bench) allScenarios(ctx context.Context) error {
	args := append([]string{"lab"}, scenarios.Names()...)
	d, err := b.median(func() (time.Duration, error) {
		began := time.Now()
		out, err := exec.CommandContext(ctx, b.program, append(args, "--firewall", "open")...).CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() != 2 {
			err = nil // a verdict, whatever it is
		}
		if err != nil {
			err = fmt.Errorf("lab: %w: %s", err, out)
		}
		return time.Since(began), err
	})
	if err != nil {
		return err
	}
	limit, err := b.limit(ctx)
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("lab run, open firewall, all %d scenarios in one", len(scenarios.Names())), "under 3 s", seconds(d),
		fmt.Sprintf("limit in this run %s, ratio %.1f; where it is %s, 3 s are %.1f times that",
			seconds(limit), d.Seconds()/limit.Seconds(), seconds(usualLimit), 3/usualLimit.Seconds()))
	return nil
}

// usualLimit is the limit on the machine that the figures were set for.
const usualLimit = 730 * time.Millisecond

// bulk is what each transfer carries each way, in bytes.
const bulk = 64 << 20

// rates compares bulk transfers of ours with iperf3 in the same lab, through
// the same open firewall: medians of ratios of neighbouring runs. iperf3 carries
// one stream from the far end to the near one. Ours goes both ways, HTTP and TURN
// one after the other, WebSocket both at once; the rate is that of the slower way.
// The variants of a protocol are carried one after another, each for itself.
func (b *bench) rates(ctx context.Context) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		b.add("HTTPS and TURN bulk rate over iperf3's", "-", "not measured", "iperf3 is missing: apt-get install iperf3")
		return nil
	}
	for _, way := range []struct{ what, protocol, transport, ports string }{
		{"HTTPS bulk rate over iperf3's on TCP", "https", "tcp", "443"},
		{"TURN bulk rate over iperf3's on TCP", "turn", "tcp", "3478"},
		{"TURN bulk rate over iperf3's on UDP", "turn", "udp", "3478"},
	} {
		s, remove, err := bulkScenario(way.protocol, way.transport, way.ports)
		if err != nil {
			return err
		}
		err = b.rate(ctx, s, way.what, way.protocol, way.transport)
		remove()
		if err != nil {
			return err
		}
	}
	return nil
}

// rate measures one way in a world of its own.
func (b *bench) rate(ctx context.Context, s *scenarios.Scenario, what, speak, transport string) error {
	w, err := lab.Build(ctx, lab.ConfigFor([]*scenarios.Scenario{s}))
	if err != nil {
		return err
	}
	defer w.Close()
	names := []string{""}
	if p := protocol.Named(speak); p != nil && len(p.Variants) > 0 {
		names = p.Variants
	}
	ratios, last := make([][]float64, len(names)), make([]string, len(names))
	spoken := ""
	for range b.runs {
		theirs, err := iperf(ctx, w, transport)
		if err != nil {
			return err
		}
		results, err := w.Measure(ctx, lab.Measurement{Scenarios: []*scenarios.Scenario{s}, Program: b.program, Read: report.ReadJSON,
			Timeout: 10 * time.Second})
		if err != nil {
			return err
		}
		var ours []float64
		if ours, spoken = carried(results[0], transport); len(names) == 1 && len(ours) > 1 {
			ours = []float64{slices.Max(ours)}
		}
		if len(ours) != len(names) {
			b.add(what, "-", "not measured", "this end tells no data rate there")
			return nil
		}
		for i, rate := range ours {
			ratios[i] = append(ratios[i], rate/theirs)
			last[i] = megabytes(rate)
		}
		last = append(last[:len(names)], "against "+megabytes(theirs))
	}
	measured := make([]string, len(names))
	for i, name := range names {
		slices.Sort(ratios[i])
		measured[i] = strings.TrimSpace(fmt.Sprintf("%s %.2f", name, ratios[i][len(ratios[i])/2]))
	}
	note := "last run: " + strings.Join(last, ", ")
	if spoken != "" {
		note += "; " + spoken + " stands in"
	}
	b.add(what, "-", strings.Join(measured, ", "), note)
	return nil
}

// carried are the rates of the transfers over one transport, those of variants
// in their order, in bytes per second of the slower way. One that carried less
// than was asked for tells no rate: it would be that of its latency.
func carried(r *client.Result, transport string) (rates []float64, spoken string) {
	for _, f := range r.Findings {
		if f.Path != "R" || string(f.Transport) != transport {
			continue
		}
		spoken = f.Spoken
		for _, o := range f.Evidence.Near {
			if o.Rate > 0 && o.Down >= bulk*9/10 {
				rates = append(rates, o.Rate)
			}
		}
	}
	return rates, spoken
}

func megabytes(rate float64) string { return fmt.Sprintf("%.0f MB/s", rate/1e6) }

// iperf measures what iperf3 carries from the server to the host within one
// second, in bytes per second.
func iperf(ctx context.Context, w *lab.World, transport string) (float64, error) {
	server, host := w.Host("server"), w.Host("host")
	v4, _ := server.Addrs()
	listener, err := server.Start(server.Command(ctx, "iperf3", "--server", "--one-off", "--port", "5201"))
	if err != nil {
		return 0, err
	}
	defer listener.Stop(time.Second)
	args := []string{"--client", v4.String(), "--port", "5201", "--time", "1", "--reverse", "--json"}
	if transport == "udp" {
		args = append(args, "--udp", "--bitrate", "0", "--length", "1200")
	}
	for range 40 { // until it listens, which iperf3 tells in JSON alone
		cmd := host.Command(ctx, "iperf3", args...)
		stdout, pipeErr := os.CreateTemp("", "iperf-*.json")
		if pipeErr != nil {
			return 0, pipeErr
		}
		cmd.Stdout = stdout
		err = host.Run(cmd)
		out, _ := os.ReadFile(stdout.Name())
		stdout.Close()
		os.Remove(stdout.Name())
		var rate float64
		if err == nil {
			rate, err = parseIperf(out, transport)
		}
		if err == nil {
			return rate, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, fmt.Errorf("iperf3: %w", err)
}

// parseIperf reads the rate that arrived: of UDP without what was lost.
func parseIperf(out []byte, transport string) (float64, error) {
	var told struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				BitsPerSecond float64 `json:"bits_per_second"`
				LostPercent   float64 `json:"lost_percent"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &told); err != nil {
		return 0, fmt.Errorf("iperf3's result: %w", err)
	}
	if told.Error != "" {
		return 0, errors.New(told.Error)
	}
	bits := told.End.Received.BitsPerSecond
	if bits == 0 && transport == "udp" {
		bits = told.End.Sum.BitsPerSecond * (1 - told.End.Sum.LostPercent/100)
	}
	if bits <= 0 || math.IsInf(bits, 1) {
		return 0, errors.New("iperf3's result has no rate")
	}
	return bits / 8, nil
}

// bulkScenario is a scenario of one path that carries a lot. How much is a key of
// paths over TCP alone, so one over UDP is tried over both.
func bulkScenario(protocol, transport, ports string) (*scenarios.Scenario, func(), error) {
	if transport == "udp" {
		transport = "tcp, udp"
	}
	return written(fmt.Sprintf(`schema: wallprobe/scenario/1
name: bench-%s
title: one bulk transfer
version: 1
sources: [{id: B, file: bench, title: bench, language: en}]
roles: [{name: near, title: near end, site: inside}, {name: far, title: far end, site: outside}]
paths:
  - {id: R, title: bulk, from: [near], to: [far], direction: out, transport: [%s], ports: "%s", protocol: %[1]s, need: req, source: B, bytes: %[4]d}
  - {id: C, title: control, from: [near], to: [far], direction: out, transport: [tcp], ports: "80", protocol: http, need: opt, source: B}
outcomes:
  - {id: o, title: bulk, roles: [near], ways: [{title: bulk, paths: [R]}]}
`, protocol, transport, ports, bulk))
}
