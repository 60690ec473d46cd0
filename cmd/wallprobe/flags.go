package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// reorder moves flags in front of arguments, so that "wallprobe lab NAME
// --json -" reads as "wallprobe lab --json - NAME": people write the thing they
// mean first. What follows "--" stays as it is. A last flag that lacks its value
// is an error, lest it take the first argument for it.
func reorder(args []string, app *cli.App) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	head, rest := args[:1:1], args[1:]
	flags := app.Flags
	commands := app.Commands
	for len(rest) > 0 {
		c := find(commands, rest[0])
		if c == nil {
			break
		}
		head, rest = append(head, rest[0]), rest[1:]
		flags, commands = c.Flags, c.Subcommands
	}
	var options, words []string
	for i := 0; i < len(rest); i++ {
		a := rest[i]
		switch {
		case a == "--":
			words = append(words, rest[i:]...)
			i = len(rest)
		case len(a) > 1 && a[0] == '-':
			options = append(options, a)
			if !takesValue(flags, a) {
				continue
			}
			if i++; i == len(rest) {
				return nil, usage("%s needs a value; see %s --help", a, strings.Join(head, " "))
			}
			options = append(options, rest[i])
		default:
			words = append(words, a)
		}
	}
	return append(append(head, options...), words...), nil
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// takesValue tells whether a flag is followed by its value.
func takesValue(flags []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				_, isBool := f.(*cli.BoolFlag)
				return !isBool
			}
		}
	}
	return false
}

// commaList are the values of a flag that may be repeated, and of which none holds a
// comma: one value may then be a list of them.
func commaList(c *cli.Context, flag string) []string {
	var out []string
	for _, value := range c.StringSlice(flag) {
		for part := range strings.SplitSeq(value, ",") {
			out = append(out, strings.TrimSpace(part))
		}
	}
	return out
}
