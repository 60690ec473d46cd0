package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// outputFlags are those of every command that measures.
func outputFlags() []cli.Flag {
	return append(formatFlags(formats),
		&cli.BoolFlag{Name: "details", Usage: "show what could not be measured and why, and every part of a range"},
		&cli.BoolFlag{Name: "no-color", Usage: "no colour, even on a terminal"},
	)
}

// keyVar may hold the key, so that it stands on no command line.
const keyVar = "WALLPROBE_KEY"

func runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "measure across a real firewall, from its inside",
		ArgsUsage: "SCENARIO...",
		Description: "SCENARIO is a built-in name (see wallprobe scenario list) or a file of your own.\n" +
			"On the other side of the firewall a reflector must run; it prints the line to paste here.\n" +
			"Needs no privilege. Exit status: 0 what people want works (or with --expect, all that\n" +
			"is expected holds), 1 something does not, 2 wrong usage, 3 inconclusive (the reflector\n" +
			"was not reached).\n\n" +
			"Interrupted (Ctrl-C), it judges and shows what was measured by then. The rest, port by\n" +
			"port, is unmeasured: nothing is called blocked whose answer was only not waited for.\n\n" +
			"With --watch it goes on until it is interrupted, then prints the last report; the exit\n" +
			"status is that of the last round, and the file of --json always holds that round. A round\n" +
			"that does not reach the reflector says so, and its findings vanish from the metrics.\n\n" +
			"  wallprobe run SCENARIO --reflector HOST --key-file FILE --watch 5m --metrics 127.0.0.1:9719",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "reflector", Usage: "name or address of the reflector's `HOST`; where a path has no names, TLS and HTTP say this one"},
			&cli.StringFlag{Name: "key", EnvVars: []string{keyVar}, Usage: "the `KEY` that the reflector printed"},
			&cli.StringFlag{Name: "key-file", Usage: "`FILE` that holds the key"},
			&cli.StringFlag{Name: "as", Usage: "near end: a `ROLE` of the scenario (default: its first)"},
			&cli.StringFlag{Name: "family", Usage: "address `FAMILY`: ipv4 or ipv6 (default: what the reflector's name gives first)"},
			&cli.StringFlag{Name: "lan", Usage: "`HOST` of this network that runs a reflector with the same key, for paths that do not cross the firewall"},
			expectFlag(),
			&cli.StringFlag{Name: "proxy", Usage: "proxy `URL` for control, http, https or socks5 (paths are probed without it); auto takes it from the environment"},
			&cli.BoolFlag{Name: "sweep", Usage: "try every port of a range beyond the firewall, not only edges, a sample and the boundaries between"},
			&cli.IntFlag{Name: "rate", DefaultText: "adapts", Usage: "`NUMBER` of packets a second of a sweep; 5000 to 10000 is polite"},
			&cli.DurationFlag{Name: "timeout", Value: client.DefaultTimeout, Usage: "the longest single wait, a `TIME` such as 500ms or 5s"},
			&cli.BoolFlag{Name: "one-by-one", Hidden: true, Usage: "nothing is probed side by side, for round trips that are to be compared"},
			&cli.DurationFlag{Name: "rtt", Hidden: true, Usage: "round-trip time, where it is known beforehand"},
			&cli.StringSliceFlag{Name: "owned", Hidden: true, Usage: "documented address ranges that lead to the reflector"},
		}, slices.Concat(monitorFlags(), longFlags(), outputFlags())...),
		Action: runAction,
	}
}

func runAction(c *cli.Context) error {
	if !c.Args().Present() {
		return usage("run: which scenario? See wallprobe scenario list, or name a file of your own")
	}
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
	cfg, err := runConfig(c)
	if err != nil {
		return err
	}
	if _, err := rolesFor(list, cfg.Role, true); err != nil {
		return err
	}
	out, err := newOutput(c, list)
	if err != nil {
		return err
	}
	defer out.close()
	out.wanted = wanted
	if c.IsSet("watch") {
		return watched(c, list, cfg, out)
	}
	if c.IsSet("metrics") {
		return usage("--metrics goes with --watch TIME: a single measurement ends before anybody reads them")
	}
	if err := locate(c.Context, c, &cfg); err != nil {
		return err
	}
	results, err := measureList(c.Context, list, cfg, out)
	if err := errors.Join(out.finish(), err); err != nil {
		return err
	}
	return wanted.status(results, verdictStatus)
}

// measureList measures one scenario after the other. What was measured before
// an error comes with it.
func measureList(ctx context.Context, list []*scenarios.Scenario, cfg client.Config, out *output) ([]*client.Result, error) {
	for _, s := range list {
		cfg.Scenario = s
		res, err := measure(ctx, cfg, out)
		if res != nil {
			out.add(res)
		}
		if err != nil {
			return out.results, err
		}
	}
	return out.results, nil
}

func runConfig(c *cli.Context) (client.Config, error) {
	cfg := client.Config{
		Role: c.String("as"), Sweep: c.Bool("sweep"), OneByOne: c.Bool("one-by-one"), Rate: c.Int("rate"), Timeout: c.Duration("timeout"), RTT: c.Duration("rtt"), Program: version(), Resolve: resolve,
	}
	if cfg.Rate < 0 {
		return cfg, usage("--rate %d: packets a second, or 0 to adapt", cfg.Rate)
	}
	err := checkTimeout(cfg.Timeout)
	if err != nil {
		return cfg, err
	}
	if cfg.Key, err = givenKey(c); err != nil {
		return cfg, err
	}
	if c.String("reflector") == "" {
		return cfg, usage("run: --reflector HOST is needed: the machine beyond the firewall that runs wallprobe reflector")
	}
	for _, text := range commaList(c, "owned") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return cfg, usage("--owned %s: not an address range", text)
		}
		cfg.Owned = append(cfg.Owned, p)
	}
	l, err := longConfig(c)
	if err != nil {
		return cfg, err
	}
	cfg.Bytes, cfg.Silences = l.bytes, l.silences
	cfg.Proxy, err = givenProxy(c.String("proxy"))
	return cfg, err
}

// locate looks up the addresses of the far ends.
func locate(ctx context.Context, c *cli.Context, cfg *client.Config) (err error) {
	host := c.String("reflector")
	if cfg.Reflector, err = lookup(ctx, host, c.String("family")); err != nil {
		return err
	}
	cfg.Name = nameOf(host)
	if lan := c.String("lan"); lan != "" {
		cfg.LAN, err = lookup(ctx, lan, familyOf(cfg.Reflector))
	}
	return err
}

// checkTimeout refuses a wait so short that a sound path would look dead.
func checkTimeout(d time.Duration) error {
	if d < 100*time.Millisecond {
		return usage("--timeout %v: at least 100ms", d)
	}
	return nil
}

func givenKey(c *cli.Context) (wire.Key, error) {
	text, from := c.String("key"), "--key"
	if name := c.String("key-file"); text == "" && name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return wire.Key{}, usage("key file: %v", err)
		}
		text, from = string(b), "key file "+name
	}
	if text == "" {
		return wire.Key{}, usage("run: --key KEY or --key-file FILE is needed: the reflector printed it when it started")
	}
	key, err := wire.ParseKey(text)
	if err != nil {
		return key, usage("%s: %v", from, err)
	}
	return key, nil
}

// proxySchemes are those that net/http knows.
var proxySchemes = []string{"http", "https", "socks5", "socks5h"}

func givenProxy(text string) (*url.URL, error) {
	if text == "auto" {
		for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
			if text = os.Getenv(name); text != "" {
				break
			}
		}
		if text == "auto" || text == "" {
			return nil, nil
		}
	}
	if text == "" {
		return nil, nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text // as the environment has it at times
	}
	u, err := url.Parse(text)
	if err == nil && u.Port() != "" {
		_, err = strconv.ParseUint(u.Port(), 10, 16)
	}
	if err != nil || u.Hostname() == "" || !slices.Contains(proxySchemes, u.Scheme) {
		return nil, usage("--proxy %s: write it as http://HOST:PORT", text)
	}
	return u, nil
}

func familyOf(a netip.Addr) string {
	if a.Is6() {
		return "ipv6"
	}
	return "ipv4"
}

// lookup finds the address of a host, of one family where that is asked for.
func lookup(ctx context.Context, host, family string) (netip.Addr, error) {
	network := map[string]string{"": "ip", "ipv4": "ip4", "ipv6": "ip6"}[family]
	if network == "" {
		return netip.Addr{}, usage("--family %s: there are ipv4 and ipv6", family)
	}
	host = strings.Trim(host, "[]")
	if a, err := netip.ParseAddr(host); err == nil {
		if family != "" && familyOf(a.Unmap()) != family {
			return a, usage("%s is not an %s address", host, family)
		}
		return a.Unmap(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
	if err != nil || len(addrs) == 0 {
		return netip.Addr{}, &exitError{exitInconclusive, fmt.Sprintf("the name %s has no %s address: %v", host, network, err)}
	}
	return addrs[0].Unmap(), nil
}

// nameOf is a host's name, as TLS and HTTP say it; "" for an address.
func nameOf(host string) string {
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ""
	}
	return strings.TrimSuffix(host, ".")
}

// resolve asks DNS for a documented name.
func resolve(name string) (netip.Addr, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil || len(addrs) == 0 {
		return netip.Addr{}, false
	}
	return addrs[0].Unmap(), true
}

// measure runs one scenario, with a reflector of its own for loopback paths.
func measure(ctx context.Context, cfg client.Config, out *output) (*client.Result, error) {
	own, err := serveLoop(ctx, cfg)
	if err != nil {
		return nil, err
	}
	cfg.Loop = own.at
	update, saved := out.follow(begun(cfg))
	watch, stop := watching(out.line, cfg.Scenario.Name, long{cfg.Bytes, cfg.Silences}.hint())
	cfg.Progress, cfg.Update = func(p client.Progress) { watch.show(fmt.Sprintf("%s of %s ports", group(p.Done), group(p.Total))) }, update
	res, err := client.Run(ctx, cfg)
	stop()
	saved()
	own.stop(res, cfg.Scenario)
	if refusal, ok := errors.AsType[*wire.ControlError](err); ok {
		return res, fmt.Errorf("%w%w%s", &exitError{status: exitInconclusive}, refusal, refusalRemedies[refusal.Code])
	}
	if res == nil {
		return nil, usage("%v", err)
	}
	if err != nil {
		return res, stopped()
	}
	return res, nil
}

// refusalRemedies say what to try next after a refusal, by its code.
var refusalRemedies = map[string]string{
	"key": "; take the one in the line that it printed when it started, or copy its key file here and name that with --key-file",
}

// stopped is how a command ends that somebody interrupts.
func stopped() error {
	return &exitError{exitInconclusive, "stopped before the end; what was measured so far is kept"}
}

// begun is a result that has only just begun: what a client that is killed
// before its first finding leaves behind.
func begun(cfg client.Config) client.Result {
	role := cfg.Role
	if role == "" {
		role = cfg.Scenario.NearRoles()[0]
	}
	return client.Result{
		Schema: client.ResultSchema, Program: cfg.Program, Scenario: cfg.Scenario.Name, Version: cfg.Scenario.Version, Role: role,
		Family: familyOf(cfg.Reflector), Reflector: cfg.Reflector, Started: time.Now(),
	}
}

// verdictStatus is what the exit status says of results.
func verdictStatus(results []*client.Result) error {
	status := exitHolds
	var messages []string
	for _, r := range results {
		if !r.Complete {
			status = exitInconclusive
			messages = append(messages, r.Why)
		}
		if r.Control.Via == "" && len(r.Ledgers) == 0 {
			status = exitInconclusive
			messages = append(messages, unreachable(r))
		}
		status = max(status, outcomeStatus(r))
	}
	if status == exitHolds {
		return nil
	}
	return &exitError{status, strings.Join(messages, "\n")}
}

// outcomeStatus is that of one result. What could not be measured from here,
// such as a path within the LAN without a second machine, says nothing against
// the rest; silence does, and so does a run that can tell of nothing at all.
// Where paths were chosen that decide no outcome, they count themselves.
func outcomeStatus(r *client.Result) int {
	required, known, broken := 0, 0, false
	for _, o := range r.Outcomes {
		if o.Optional {
			continue
		}
		required++
		if o.Unknown {
			continue
		}
		known++
		broken = broken || !o.Works
	}
	if len(r.Outcomes) == 0 {
		broken = slices.ContainsFunc(r.Findings, func(f client.Finding) bool {
			return !f.Verdict.Passes() && f.Verdict != client.Partial && f.Verdict != client.Unmeasured
		})
	}
	silent := slices.ContainsFunc(r.Findings, func(f client.Finding) bool { return f.Verdict == client.Silent })
	switch {
	case silent || required > 0 && known == 0:
		return exitInconclusive
	case broken:
		return exitBroken
	}
	return exitHolds
}

// unreachable says which ports were tried for control, what each said, and what
// to try next.
func unreachable(r *client.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "the reflector %s was not reached on any port", r.Reflector)
	if r.Control.Proxy != "" {
		fmt.Fprintf(&b, " through the proxy %s", r.Control.Proxy)
	}
	b.WriteString(":")
	said := make(map[string][]string)
	var order []string
	var faults []client.ProxyFault
	for _, t := range r.Control.Tried {
		if said[t.Error] == nil {
			order = append(order, t.Error)
		}
		said[t.Error] = append(said[t.Error], fmt.Sprint(t.Port))
		if !slices.Contains(faults, t.Proxy) {
			faults = append(faults, t.Proxy)
		}
	}
	for _, text := range order {
		fmt.Fprintf(&b, "\n  %s/tcp: %s", strings.Join(said[text], ","), text)
	}
	for _, fault := range faults {
		b.WriteString(proxyRemedies[fault])
	}
	if r.Control.Proxy != "" {
		b.WriteString("\nWithout --proxy, control is tried straight, as the probes are.")
	}
	b.WriteString("\nIs the reflector running, and with this address? If it is, stop it and join both ends' evidence:" +
		"\n  wallprobe merge RESULT.json REFLECTOR-JOURNAL")
	return b.String()
}

// proxyRemedies say what to try next after what a proxy did.
var proxyRemedies = map[client.ProxyFault]string{
	client.ProxyAway:    "\nIs the proxy's address right, and may this machine connect to it?",
	client.ProxyForeign: "\nIs it a proxy, and of this kind? http://, https:// and socks5:// are not alike.",
	client.ProxyLogin:   "\nThe proxy wants a name and a password that it knows: --proxy http://NAME:PASSWORD@HOST:PORT",
	client.ProxyForbids: "\nThe proxy's rules forbid it. Let them allow the reflector's name or address; many\nproxies allow CONNECT to port 443 alone, so let the reflector listen there.",
	client.ProxyInVain:  "\nThe proxy did not get to the reflector: may it connect to that address?",
}

// loopPorts are the ports of a scenario's loopback paths.
func loopPorts(s *scenarios.Scenario, role string) (tcp, udp scenarios.PortSet) {
	for _, p := range s.PathsFor(role) {
		if p.Direction != scenarios.Loop {
			continue
		}
		for _, t := range p.Transport {
			if t == scenarios.TCP {
				tcp = scenarios.Union(tcp, p.Ports)
			} else {
				udp = scenarios.Union(udp, p.Ports)
			}
		}
	}
	return tcp, udp
}
