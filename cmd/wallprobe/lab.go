package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

func labCommand() *cli.Command {
	return &cli.Command{
		Name:      "lab",
		Usage:     "measure through a firewall made here, of network namespaces; needs no root",
		ArgsUsage: "[SCENARIO...]",
		Description: "Builds hosts as network namespaces, loads the firewall with nft, and runs the real\n" +
			"reflector and the real client on its two sides. Without arguments it runs every\n" +
			"scenario against the main firewalls and prints which application works behind which\n" +
			"firewall, and by which way.\n\n" +
			"Exit status: 0 what people want works, 1 something does not, 2 wrong usage or rules\n" +
			"that cannot be loaded, 3 inconclusive. Behind several firewalls, blocking is no fault.\n" +
			"With --expect what is expected decides instead.\n\n" +
			"Behind one firewall, and with --json behind several, the rules that stop a path are\n" +
			"named. What is not open although none of them can have stopped it is measured again,\n" +
			"at most twice, for a busy machine loses packets of its own; if it stays so, it is told\n" +
			"as measured, and that no rule explains it. What a rule may have done by contents, sizes,\n" +
			"amounts, rates or chance is never measured away.\n\n" +
			wrap("Firewalls: "+strings.Join(lab.FirewallNames(), ", ")+", or a file of your own.", 88) + "\n\n" +
			ownRulesHelp + "\n\n" +
			"A comment in the file puts a box in the way that no rule can be:\n" + boxHelp(),
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "firewall", EnvVars: []string{"WALLPROBE_FIREWALL"}, Usage: "`NAME|FILE` of the rules, or FILE+FILE; may be repeated (default: the main firewalls)"},
			&cli.StringFlag{Name: "as", Usage: "near end: a `ROLE` of the scenario (default: its first; all of them without arguments, and behind a file of your own)"},
			expectFlag(),
			&cli.BoolFlag{Name: "ipv6", Aliases: []string{"6"}, Usage: "measure over IPv6"},
			&cli.DurationFlag{Name: "timeout", Value: lab.DefaultTimeout, Usage: "the longest single wait, a `TIME` such as 500ms or 5s"},
			farFlag(),
		}, slices.Concat(firewallFlags(), longFlags(), outputFlags())...),
		Action:      labAction,
		Subcommands: []*cli.Command{diffCommand(), experimentsCommand(), execCommand(), keepCommand(), viaCommand()},
	}
}

// boxHelp lists the boxes that a firewall's file can ask for.
func boxHelp() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(lab.BoxKinds)) {
		line := fmt.Sprintf("# wallprobe: %-9s 443/tcp   ", kind)
		text := wrap(lab.BoxKinds[kind], 88-2-len(line))
		fmt.Fprintf(&b, "  %s%s\n", line, strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", 2+len(line))))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// wrap breaks a text into lines of at most width bytes.
func wrap(text string, width int) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
		case column+1+len(word) > width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

func labAction(c *cli.Context) error {
	list, err := loadScenarios(c.Args().Slice())
	if err != nil {
		return err
	}
	wanted, err := givenExpectations(c.StringSlice("expect"), list)
	if err != nil {
		return err
	}
	if list, err = confined(list, commaList(c, "path")); err != nil {
		return err
	}
	named := c.StringSlice("firewall")
	if len(named) == 0 {
		named = lab.Main()
	}
	firewalls, err := openFirewalls(named)
	if err != nil {
		return err
	}
	// Nobody knows at whose site a user's own firewall stands.
	own := slices.ContainsFunc(firewalls, func(f lab.Firewall) bool { return f.Path != "" })
	m, err := labMeasurement(c, list, c.Args().Present() && !own)
	if err != nil {
		return err
	}
	// A matrix has no room for rules. What passes is told by which only where a
	// later comparison may ask.
	if kept := c.String(jsonFlag) != ""; kept || len(firewalls) == 1 {
		m.Explain = func(v client.Verdict) bool { return kept || v != client.Open }
	}
	if m.Far, err = farFirewall(c); err != nil {
		return err
	}
	l, err := longConfig(c)
	if err != nil {
		return err
	}
	for _, name := range []string{"bytes", "idle"} {
		if c.String(name) != "" {
			m.Client = append(m.Client, "--"+name, c.String(name))
		}
	}
	out, err := newOutput(c, list)
	if err != nil {
		return err
	}
	defer out.close()
	out.wanted = wanted
	if done, err := enterLab(c.Context); done || err != nil {
		return err
	}
	watch, stop := watching(out.line, labProgress(firewalls, 0, ""), l.hint())
	defer stop()
	results, err := measureAll(c.Context, firewalls, m, func(done int, doing string, soFar []*client.Result) {
		watch.show(labProgress(firewalls, done, doing))
		if done < len(firewalls) {
			out.saveSoFar(soFar...)
		}
	})
	stop()
	for _, r := range results {
		out.add(r)
	}
	out.matrix = !c.Args().Present() || len(firewalls) > 1
	if err := errors.Join(err, out.finish()); err != nil {
		return err
	}
	if out.matrix {
		return wanted.status(results, complete)
	}
	return wanted.status(results, verdictStatus)
}

// labMeasurement is what the flags say that every command of the lab has which
// measures scenarios; where no role is named, first tells to take the first one
// and not all.
func labMeasurement(c *cli.Context, list []*scenarios.Scenario, first bool) (m lab.Measurement, err error) {
	m = lab.Measurement{Scenarios: list, IPv6: c.Bool("ipv6"), Timeout: c.Duration("timeout"), Paths: commaList(c, "path"), Read: report.ReadJSON}
	if m.Roles, err = rolesFor(list, c.String("as"), first); err != nil {
		return m, err
	}
	if err := checkTimeout(m.Timeout); err != nil {
		return m, err
	}
	m.Wiring, err = firewallConfig(c)
	return m, err
}

// labProgress says how far a lab is, and which firewall was the last.
func labProgress(firewalls []lab.Firewall, done int, last string) string {
	if len(firewalls) == 1 {
		return "measuring behind " + firewalls[0].Name
	}
	text := fmt.Sprintf("%d of %d firewalls", done, len(firewalls))
	if last != "" {
		text += ", " + last + " done"
	}
	return text
}

// complete is the exit status of a survey of firewalls: what they block is
// what they are for.
func complete(results []*client.Result) error {
	for _, r := range results {
		if !r.Complete {
			return &exitError{exitInconclusive, fmt.Sprintf("%s behind %s: %s", r.Scenario, r.Firewall.Name, r.Why)}
		}
	}
	return nil
}

// rolesFor chooses the near ends: the one that was asked for, the first of
// each scenario that was named, or all.
func rolesFor(list []*scenarios.Scenario, as string, named bool) (func(*scenarios.Scenario) []string, error) {
	if as != "" {
		for _, s := range list {
			if len(s.PathsFor(as)) == 0 {
				return nil, usage("--as %s: scenario %s has no such near end; it has %s", as, s.Name, strings.Join(s.NearRoles(), ", "))
			}
		}
		return func(*scenarios.Scenario) []string { return []string{as} }, nil
	}
	if named {
		return func(s *scenarios.Scenario) []string { return s.NearRoles()[:1] }, nil
	}
	return nil, nil
}

func openFirewalls(names []string) ([]lab.Firewall, error) {
	var out []lab.Firewall
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			return nil, usage("--firewall %s: it is named twice", n)
		}
		f, err := lab.OpenFirewall(n)
		if err != nil {
			return nil, &exitError{exitUsage, err.Error()}
		}
		out = append(out, f)
	}
	tellApart(out)
	return out, nil
}

// tellApart gives files that are called alike the names of their folders too.
func tellApart(list []lab.Firewall) {
	count := make(map[string]int)
	for _, f := range list {
		count[f.Name]++
	}
	for i, f := range list {
		if count[f.Name] > 1 && f.Path != "" {
			list[i].Name = f.Path
		}
	}
}

// enterLab goes into the lab's namespaces. done tells that the program ran
// inside and has ended; err then carries its exit status.
func enterLab(ctx context.Context) (done bool, err error) {
	if keptHosts() != "" {
		return false, nil // the hosts are there
	}
	inside, status, err := lab.Enter(ctx)
	switch {
	case err != nil:
		return true, &exitError{exitUsage, err.Error()}
	case inside:
		return false, nil
	case status != 0:
		return true, &exitError{status: status}
	}
	return true, nil
}

// worlds is how many labs are measured side by side. Most of them wait most of
// their time, for packets that a firewall swallowed or for the next one of a
// rhythm. More would save little on two cores, and make answers late.
const worlds = 3

// measureAll measures behind every firewall, in worlds of their own. Results
// come in the order of the firewalls, and behind each in that of the scenarios.
func measureAll(ctx context.Context, firewalls []lab.Firewall, m lab.Measurement, progress func(done int, doing string, soFar []*client.Result)) ([]*client.Result, error) {
	parts := apart(m, len(firewalls))
	results := make([][]*client.Result, len(firewalls)*len(parts))
	errs := make([]error, len(results))
	left := make([]int, len(firewalls)) // parts that are still to come
	var mu sync.Mutex
	done := 0
	measure := func(fw, part int) {
		i := fw*len(parts) + part
		measured, err := measureSurely(ctx, parts[part], func(ctx context.Context, m lab.Measurement) ([]*client.Result, error) {
			return measureOne(ctx, firewalls[fw], m)
		})
		mu.Lock()
		defer mu.Unlock()
		results[i], errs[i] = measured, err
		if left[fw]--; left[fw] == 0 {
			done++
			progress(done, firewalls[fw].Name, slices.Concat(results...))
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, sideBySide())
	for fw := range firewalls {
		left[fw] = len(parts)
		for _, part := range longestFirst(parts) {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if ctx.Err() == nil {
					measure(fw, part)
				}
			})
		}
	}
	wg.Wait()
	err := cmp.Or(errs...) // where rules cannot be loaded, each world says the same
	if ctx.Err() != nil {
		err = stopped()
	}
	return slices.Concat(results...), err
}

// apart gives each scenario a world of its own where there are fewer firewalls
// than worlds to measure in. In one world they would share ports, addresses and
// counters, and so have to wait for each other.
func apart(m lab.Measurement, firewalls int) []lab.Measurement {
	if firewalls >= worlds {
		return []lab.Measurement{m}
	}
	var out []lab.Measurement
	for _, s := range m.Scenarios {
		m.Scenarios = []*scenarios.Scenario{s}
		out = append(out, m)
	}
	return out
}

// longestFirst orders parts by how many ports they have to try, so that none
// of the long ones is left alone at the end.
func longestFirst(parts []lab.Measurement) []int {
	ports := func(i int) (n int) {
		for _, s := range parts[i].Scenarios {
			for _, p := range s.Paths {
				n += p.Ports.Len()
			}
		}
		return n
	}
	order := make([]int, len(parts))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(ports(b), ports(a)) })
	return order
}

func measureOne(ctx context.Context, f lab.Firewall, m lab.Measurement) (results []*client.Result, err error) {
	err = inWorld(ctx, f, m, func(w *lab.World) (err error) {
		results, err = w.Measure(ctx, m)
		return err
	})
	return results, err
}

// inWorld does something in the world that a measurement asks for.
func inWorld(ctx context.Context, f lab.Firewall, m lab.Measurement, do func(*lab.World) error) error {
	cfg := lab.ConfigFor(m.Scenarios)
	cfg.Firewall, cfg.Wiring, cfg.Far = f, m.Wiring, m.Far
	w, err := buildWorld(ctx, cfg)
	if err != nil {
		return labError(err)
	}
	defer w.Close()
	stop, err := middlebox.Furnish(ctx, w, f)
	if err != nil {
		return labError(err)
	}
	err = do(w)
	if err = errors.Join(err, stop()); err != nil && ctx.Err() == nil {
		if _, named := errors.AsType[*exitError](err); !named {
			err = &exitError{exitInconclusive, err.Error()}
		}
	}
	return err
}

// labError: rules that nft refuses are unreadable input. What is missing here
// says nothing about them.
func labError(err error) error {
	_, missing := errors.AsType[*middlebox.MissingError](err)
	_, kept := errors.AsType[*lab.KeptError](err)
	if missing || kept {
		return &exitError{exitInconclusive, err.Error()}
	}
	return &exitError{exitUsage, err.Error()}
}

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run any program on a host of the lab",
		ArgsUsage: "-- COMMAND [ARG...]",
		Description: "Hosts: host and lan2 (inside), firewall, server and other (outside). A reflector with\n" +
			"every documented port runs on server unless --bare is given, and its key is in\n" +
			"$WALLPROBE_KEY. Examples:\n" +
			"  wallprobe lab exec --host host --firewall stateful -- ping -c 1 server\n" +
			"  wallprobe lab exec --firewall my.nft -- wallprobe run screenconnect --reflector server",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "host", Value: "host", Usage: "`NAME` of the host"},
			&cli.StringFlag{Name: "firewall", EnvVars: []string{"WALLPROBE_FIREWALL"}, Value: "open", Usage: "`NAME|FILE` of the rules, or FILE+FILE"},
			&cli.BoolFlag{Name: "bare", Usage: "no reflector"},
			farFlag(),
		}, firewallFlags()...),
		Action: execAction,
	}
}

func execAction(c *cli.Context) error {
	if !c.Args().Present() {
		return usage("lab exec: which command? Write it after --, for example: wallprobe lab exec -- ip addr")
	}
	firewalls, err := openFirewalls([]string{c.String("firewall")})
	if err != nil {
		return err
	}
	wiring, err := firewallConfig(c)
	if err != nil {
		return err
	}
	far, err := farFirewall(c)
	if err != nil {
		return err
	}
	if done, err := enterLab(c.Context); done || err != nil {
		return err
	}
	list, err := scenarios.Builtin()
	if err != nil {
		return err
	}
	cfg := lab.ConfigFor(list)
	cfg.Firewall, cfg.Wiring, cfg.Far, cfg.Hosts = firewalls[0], wiring, far, []string{"lan2", "other"}
	w, err := buildWorld(c.Context, cfg)
	if err != nil {
		return labError(err)
	}
	defer w.Close()
	if w.Host(c.String("host")) == nil {
		return usage("--host %s: there are host, lan2, firewall, server and other, and firewall2 with --far-firewall", c.String("host"))
	}
	for _, note := range w.Notes() {
		fmt.Fprintf(c.App.ErrWriter, "firewall %s: %s\n", firewalls[0].Name, note)
	}
	unfurnish, err := middlebox.Furnish(c.Context, w, firewalls[0])
	if err != nil {
		return labError(err)
	}
	defer unfurnish()
	if !c.Bool("bare") {
		key, stop, err := w.StartReflector(c.Context, lab.Measurement{Scenarios: list})
		if err != nil {
			return &exitError{exitInconclusive, err.Error()}
		}
		defer stop()
		os.Setenv(keyVar, key.String()) // for the program
	}
	status, err := w.Exec(c.Context, c.String("host"), c.Args().Slice())
	if err != nil {
		return usage("%v", err)
	}
	if status != 0 {
		return &exitError{status: status}
	}
	return nil
}
