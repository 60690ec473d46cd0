// Command wallprobe tells which paths of an application survive a firewall,
// and what exactly stops the others, with proof from both ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
)

// Exit statuses.
const (
	exitHolds        = 0 // all that was expected holds
	exitBroken       = 1 // something expected does not hold
	exitUsage        = 2 // wrong usage or unreadable input
	exitInconclusive = 3 // void run, or the reflector was not reached
)

// An exitError ends the program with a status. An empty message is silent:
// what there is to say was printed.
type exitError struct {
	status  int
	message string
}

func (e *exitError) Error() string { return e.message }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Sprintf(format, args...)}
}

func main() {
	log.SetOutput(io.Discard) // net/http's words there about ports that greet are no news
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// newApp is the command line as a whole.
func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:  "wallprobe",
		Usage: "tell which paths of an application survive a firewall, and what stops the others",
		Description: "A reflector stands outside the firewall and plays every server that the vendor\n" +
			"documents; this program inside plays the application. Both keep evidence, so the\n" +
			"answer is exact: the request was lost, the reply was lost, somebody in the middle\n" +
			"sent that reset.\n\n" +
			"Without a firewall at hand:      wallprobe lab\n" +
			"One application, one firewall:   wallprobe lab chrome-remote-desktop --firewall stateful\n" +
			"Across a real firewall:          wallprobe reflector     on the far side, which prints\n" +
			"                                 wallprobe run ...       to paste on the near side\n" +
			"The same again and again:        wallprobe run ... --watch 5m --metrics 127.0.0.1:9719",
		Version:         version(),
		Writer:          stdout,
		ErrWriter:       stderr,
		Reader:          os.Stdin,
		HideHelpCommand: true,
		// The names of files may hold commas. Flags of other things read lists by commaList.
		DisableSliceFlagSeparator: true,
		Commands: []*cli.Command{
			reflectorCommand(),
			runCommand(),
			labCommand(),
			compareCommand(),
			expectCommand(),
			mergeCommand(),
			reportCommand(),
			scenarioCommand(),
			completionCommand(),
		},
		CommandNotFound: func(c *cli.Context, name string) {
			fmt.Fprintf(stderr, "wallprobe: there is no command %q; see wallprobe --help\n", name)
		},
		ExitErrHandler: func(*cli.Context, error) {}, // run decides
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return usage("%v; see wallprobe --help", err)
		},
		Action: func(c *cli.Context) error {
			if first := c.Args().First(); first != "" && first != "help" {
				return usage("there is no command %q; see wallprobe --help", first)
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range app.Commands {
		strict(c, c.Name)
	}
	return app
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	if len(args) > 1 && args[1] == completeWord {
		if writeCandidates(stdout, app, args[2:]) != nil {
			return exitUsage
		}
		return exitHolds
	}
	args, err := reorder(args, app)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		return exitHolds
	}
	status := exitUsage
	if e, ok := errors.AsType[*exitError](err); ok {
		status = e.status
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(stderr, "wallprobe: %s\n", msg)
	}
	return status
}

// strict makes wrong flags an error with status 2 instead of a page of help.
// There is --help everywhere; a command of that name would only be in the way.
func strict(c *cli.Command, name string) {
	c.HideHelpCommand = true
	for _, f := range c.Flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true // "default: false" tells nobody anything
		}
	}
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
		return usage("%s: %s; see wallprobe %s --help", name, wrongValue(c, err), name)
	}
	for _, sub := range c.Subcommands {
		strict(sub, name+" "+sub.Name)
	}
}

// wrongValue says how to write a value that could not be read; the flag
// package says "parse error" alone.
func wrongValue(c *cli.Command, err error) string {
	for _, f := range c.Flags {
		how := ""
		switch f.(type) {
		case *cli.DurationFlag:
			how = "write a time with its unit, such as 500ms or 5s"
		case *cli.IntFlag:
			how = "write a whole number"
		default:
			continue
		}
		if text, ok := strings.CutSuffix(err.Error(), fmt.Sprintf("for flag -%s: parse error", f.Names()[0])); ok {
			return fmt.Sprintf("%sfor --%s: %s", text, f.Names()[0], how)
		}
	}
	return err.Error()
}

// version is the module's version with the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 10 {
			v += " " + s.Value[:10]
		}
	}
	return v
}
