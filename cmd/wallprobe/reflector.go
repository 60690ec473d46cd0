package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

func reflectorCommand() *cli.Command {
	return &cli.Command{
		Name:  "reflector",
		Usage: "listen on every documented port, beyond the firewall",
		Description: "Listens on every port of the scenarios and answers only what proves to know the key.\n" +
			"At the first start it makes a key and prints the line to run at the other end.\n" +
			"Ends with SIGINT or SIGTERM; no ledger is lost.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "listen", Usage: "`ADDR` to listen on; may be repeated (default: all, IPv4 and IPv6)"},
			&cli.StringFlag{Name: "key-file", Usage: "`FILE` that holds the key; made if it is not there (default: wallprobe.key in your configuration folder)"},
			&cli.StringSliceFlag{Name: "scenario", Usage: "serve only the ports of scenario `NAME|FILE`; may be repeated (default: all built-in ones)"},
			&cli.StringSliceFlag{Name: "except", Usage: "leave out `PORTS`: tcp/22, udp/5000-5999; may be repeated"},
			&cli.StringFlag{Name: "steering", Value: "auto", Usage: "`MODE` for the wide ranges: auto, bpf, tproxy or sockets"},
			&cli.BoolFlag{Name: "allow-unbound", Usage: "go on without ports that cannot be bound; clients are told"},
			&cli.BoolFlag{Name: "inward", Usage: "probe a client's own address when it asks: for paths into the client's site"},
			&cli.BoolFlag{Name: "plain-stun", Usage: "answer STUN without credentials too, rate-limited"},
			&cli.BoolFlag{Name: "private-peers", Usage: "relay to private addresses that are the client's own: for labs"},
			&cli.StringFlag{Name: "journal", Usage: "append what was seen to `FILE`, for wallprobe merge"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "tell more on standard error"},
		},
		Action: reflect,
	}
}

func reflect(c *cli.Context) error {
	if c.Args().Present() {
		return usage("reflector: takes no arguments, but got %q; scenarios go after --scenario", c.Args().First())
	}
	cfg, err := reflectorConfig(c)
	if err != nil {
		return err
	}
	key, err := loadKey(c.String("key-file"))
	if err != nil {
		return err
	}
	cfg.Key = key.Key
	if name := c.String("journal"); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return usage("journal: %v", err)
		}
		defer f.Close()
		cfg.Journal = f
	}
	r, err := reflector.Listen(cfg)
	if err != nil {
		return cannotBind(err)
	}
	if err := key.keep(); err != nil {
		return errors.Join(err, r.Close())
	}
	announce(c.App.Writer, r, runLine(c, cfg, key), key.made)
	if err := r.Serve(c.Context); err != nil && !errors.Is(err, context.Canceled) {
		return &exitError{exitInconclusive, err.Error()}
	}
	return nil
}

func reflectorConfig(c *cli.Context) (reflector.Config, error) {
	cfg := reflector.Config{
		AllowUnbound: c.Bool("allow-unbound"), Inward: c.Bool("inward"), PlainSTUN: c.Bool("plain-stun"),
		PrivatePeers: c.Bool("private-peers"), Program: version(),
	}
	level := slog.LevelWarn
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
	var err error
	if cfg.Mode, err = steer.ParseMode(c.String("steering")); err != nil {
		return cfg, usage("%v", err)
	}
	for _, text := range commaList(c, "listen") {
		a, err := netip.ParseAddr(strings.Trim(text, "[]"))
		if err != nil {
			return cfg, usage("--listen %s: not an IP address", text)
		}
		cfg.Addrs = append(cfg.Addrs, a)
	}
	list, err := loadScenarios(c.StringSlice("scenario"))
	if err != nil {
		return cfg, err
	}
	cfg.TCP, cfg.UDP = scenarios.Ports(list...)
	cfg.First.TCP, cfg.First.UDP = scenarios.NarrowPorts(list...)
	cfg.Speaks = protocol.ByPort(list...)
	for _, text := range exceptions(c.StringSlice("except")) {
		t, ports, ok := strings.Cut(text, "/")
		set, err := scenarios.ParsePortSet(ports)
		switch {
		case !ok || t != "tcp" && t != "udp":
			return cfg, usage("--except %s: write tcp/PORTS or udp/PORTS, for example tcp/22", text)
		case err != nil:
			return cfg, usage("--except %s: %v", text, err)
		case t == "tcp":
			cfg.TCP = cfg.TCP.Without(set)
		default:
			cfg.UDP = cfg.UDP.Without(set)
		}
	}
	return cfg, nil
}

// exceptions parts at commas what is of different transports: "tcp/22,25,udp/53"
// is "tcp/22,25" and "udp/53".
func exceptions(values []string) []string {
	var out []string
	for _, v := range values {
		for i, part := range strings.Split(v, ",") {
			if i > 0 && !strings.Contains(part, "/") {
				out[len(out)-1] += "," + part
				continue
			}
			out = append(out, strings.TrimSpace(part))
		}
	}
	return out
}

// cannotBind turns the error of binding into what a person can do about it.
func cannotBind(err error) error {
	return &exitError{exitUsage, "nothing was started:\n" + err.Error()}
}

// loadScenarios loads the named ones, or all built-in ones when none is named.
func loadScenarios(names []string) ([]*scenarios.Scenario, error) {
	if len(names) == 0 {
		return scenarios.Builtin()
	}
	var out []*scenarios.Scenario
	for _, n := range names {
		s, err := scenarios.Load(n)
		if err != nil {
			return nil, &exitError{exitUsage, err.Error()}
		}
		out = append(out, s)
	}
	return out, nil
}

// A keyFile is the key and where it is kept.
type keyFile struct {
	wire.Key
	name string
	made bool
}

// keep writes a key that was made.
func (k keyFile) keep() error {
	if !k.made {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(k.name), 0o700); err != nil {
		return usage("key file: %v", err)
	}
	if err := os.WriteFile(k.name, []byte(k.String()+"\n"), 0o600); err != nil {
		return usage("key file: %v", err)
	}
	return nil
}

// loadKey reads the key file, or makes a key where there is none. It is not
// kept yet: a start that fails must not use up the one time that it is shown.
func loadKey(name string) (keyFile, error) {
	k := keyFile{name: name}
	if name == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return k, usage("no folder for the key: %v; name one with --key-file", err)
		}
		k.name = filepath.Join(dir, "wallprobe.key")
	}
	b, err := os.ReadFile(k.name)
	if errors.Is(err, fs.ErrNotExist) {
		k.Key, k.made = wire.NewKey(), true
		return k, nil
	}
	if err != nil {
		return k, usage("key file: %v", err)
	}
	if k.Key, err = wire.ParseKey(string(b)); err != nil {
		return k, usage("key file %s: %v", k.name, err)
	}
	return k, nil
}

// announce says what is served and what to run at the other end.
func announce(w io.Writer, r *reflector.Reflector, line string, made bool) {
	tcp, udp := r.Served()
	fmt.Fprintf(w, "wallprobe reflector: %s TCP and %s UDP ports, %d descriptors\n", group(tcp.Len()), group(udp.Len()), r.Descriptors())
	for _, line := range r.Describe() {
		fmt.Fprintf(w, "  %s\n", line)
	}
	if made {
		fmt.Fprintln(w, "  a new key was made")
	}
	fmt.Fprintf(w, "\nAt the other end of the firewall:\n\n  %s\n\nready\n", line)
}

// runLine is the command for the other end. The key is in it when it is new, or
// where a person looks on; else it would end up in every log.
func runLine(c *cli.Context, cfg reflector.Config, key keyFile) string {
	names := "SCENARIO"
	if list := c.StringSlice("scenario"); len(list) > 0 {
		names = strings.Join(list, " ")
	}
	how := "--key-file " + key.name
	f, ok := c.App.Writer.(*os.File)
	if key.made || ok && term.IsTerminal(int(f.Fd())) {
		how = "--key " + key.String()
	}
	return fmt.Sprintf("wallprobe run %s --reflector %s %s", names, ownAddress(cfg.Addrs), how)
}

// ownAddress guesses the address that a client would use: the first one that
// was named, else the first of this machine that is not its own loopback.
func ownAddress(named []netip.Addr) string {
	for _, a := range named {
		if !a.IsUnspecified() {
			return a.String()
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			return p.Addr().String()
		}
	}
	return "THIS-HOST"
}

// group writes n with a comma between thousands.
func group(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
