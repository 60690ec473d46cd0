package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

func scenarioCommand() *cli.Command {
	return &cli.Command{
		Name:  "scenario",
		Usage: "look at scenarios: what vendors document about their paths",
		Description: "A scenario is one YAML file about one vendor's system: its roles (who talks), its paths\n" +
			"(one documented way a packet takes, with the sentence that says so) and its outcomes\n" +
			"(what a person wants to work, and the ways to it in the order they are tried).\n\n" +
			"Your own file works exactly like a built-in one: wherever a NAME stands, a FILE may.\n" +
			"Begin with a copy of one that is close, put this line at its top, and your editor\n" +
			"knows every key:\n\n" +
			"  # yaml-language-server: $schema=schema.json     (wallprobe scenario schema >schema.json)\n" +
			"  wallprobe scenario check FILE                   tells every mistake at once",
		Subcommands: []*cli.Command{
			{Name: "list", Usage: "the built-in scenarios", Action: scenarioList,
				Description: "Roles are the ends that can be measured from: wallprobe run NAME --as ROLE."},
			{Name: "show", Usage: "one scenario: roles, paths, outcomes and contradictions", ArgsUsage: "NAME|FILE",
				Description: "A direction is seen from the site that owns the firewall: out, in, lan (within the\n" +
					"site), loop (within one machine), p2p (both ends send). What a document does not say\n" +
					"itself is marked inferred or external.\n\n" +
					"The last column says how real it is what goes over the wire, and a line below it what\n" +
					"that is: real (the protocol itself), imitation (as far as it is known), stand-in\n" +
					"(something else in its place), own (wallprobe's own message, as no protocol is\n" +
					"documented), unmeasured (nothing).",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "quotes", Usage: "with the sentences of the documents, in their language"}},
				Action: scenarioShow},
			{Name: "check", Usage: "every mistake in scenario files", ArgsUsage: "FILE...", Action: scenarioCheck,
				Description: "One line for each mistake, FILE:LINE:COLUMN: and what to do about it. Exit status 0\n" +
					"when there is none, else 2."},
			{Name: "ports", Usage: "the ports that a reflector must serve", ArgsUsage: "[NAME|FILE]...", Action: scenarioPorts,
				Description: "All built-in scenarios together, unless some are named. These are also the ports to\n" +
					"open in a cloud's firewall in front of the reflector.",
				Flags: []cli.Flag{&cli.StringFlag{Name: "format", Value: "text", Usage: "`FORMAT`: text or json"}}},
			rulesCommand(),
			{Name: "schema", Usage: "the JSON Schema of scenario files, for editors", Action: scenarioSchema,
				Description: "Editors with a YAML language server complete and check scenario files by it."},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("scenario: there is no command %q; see wallprobe scenario --help", c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

func scenarioList(c *cli.Context) error {
	if c.Args().Present() {
		return usage("scenario list: takes no arguments; see one with: wallprobe scenario show %s", c.Args().First())
	}
	list, err := scenarios.Builtin()
	if err != nil {
		return err
	}
	t := report.Table{Width: textOptions(c).Width, Columns: []report.Column{{}, {Flex: 1}, {Flex: 1}, {Right: true}, {Right: true}}}
	t.Row("name", "title", "roles", "paths", "outcomes")
	for _, s := range list {
		t.Row(s.Name, s.Title, strings.Join(s.NearRoles(), ", "), fmt.Sprint(len(s.Paths)), fmt.Sprint(len(s.Outcomes)))
	}
	_, err = t.WriteTo(c.App.Writer)
	return err
}

func scenarioShow(c *cli.Context) error {
	if c.Args().Len() != 1 {
		return usage("scenario show: name one scenario or file, for example %s; scenario list has them all", scenarios.Names()[0])
	}
	s, err := scenarios.Load(c.Args().First())
	if err != nil {
		return &exitError{exitUsage, err.Error()}
	}
	return (&display{s: s, quotes: c.Bool("quotes"), width: textOptions(c).Width}).write(c.App.Writer)
}

func scenarioCheck(c *cli.Context) error {
	if !c.Args().Present() {
		return usage("scenario check: name at least one file")
	}
	bad := false
	for _, file := range c.Args().Slice() {
		s, err := scenarios.Load(file)
		_, told := errors.AsType[scenarios.Errors](err)
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err // the name is told already
		}
		switch {
		case told:
			_, err = fmt.Fprintln(c.App.Writer, err)
			bad = true
		case err != nil:
			_, err = fmt.Fprintf(c.App.Writer, "%s: %v\n", file, err)
			bad = true
		default:
			_, err = fmt.Fprintf(c.App.Writer, "%s: fine, %s\n", file, number(len(s.Paths), "path"))
		}
		if err != nil {
			return err
		}
	}
	if bad {
		return &exitError{status: exitUsage}
	}
	return nil
}

func scenarioPorts(c *cli.Context) error {
	format := c.String("format")
	if !slices.Contains([]string{"text", "json"}, format) {
		return usage("scenario ports: --format is text or json, not %s", format)
	}
	list, err := loadScenarios(c.Args().Slice())
	if err != nil {
		return err
	}
	tcp, udp := scenarios.Ports(list...)
	if format == "json" {
		e := json.NewEncoder(c.App.Writer)
		return e.Encode(map[scenarios.Transport]scenarios.PortSet{scenarios.TCP: tcp, scenarios.UDP: udp})
	}
	for _, p := range []struct {
		transport scenarios.Transport
		ports     scenarios.PortSet
	}{{scenarios.TCP, tcp}, {scenarios.UDP, udp}} {
		if len(p.ports) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%s  %s: %s\n", p.transport, number(p.ports.Len(), "port"), p.ports); err != nil {
			return err
		}
	}
	return nil
}

func scenarioSchema(c *cli.Context) error {
	b, err := scenarios.Schema()
	if err != nil {
		return err
	}
	_, err = c.App.Writer.Write(b)
	return err
}

// number writes a number of things: "1 path", "2 paths".
func number(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return report.Group(n) + " " + thing
}

// A display shows one scenario.
type display struct {
	s      *scenarios.Scenario
	quotes bool
	width  int
}

func (d *display) write(w io.Writer) error {
	s := d.s
	tables := []struct {
		head  string
		table *report.Table
	}{
		{fmt.Sprintf("%s: %s, version %d", s.Name, s.Title, s.Version), d.about()},
		{"\nRoles", d.roles()},
		{"\nPaths", d.paths()},
		{"", d.names()},
		{"\nOutcomes, with their ways in the order in which they are tried", d.outcomes()},
		{"\nStatements that contradict each other", d.conflicts()},
	}
	for _, t := range tables {
		if t.table == nil {
			continue
		}
		if _, err := fmt.Fprintln(w, t.head); err != nil {
			return err
		}
		if _, err := t.table.WriteTo(w); err != nil {
			return err
		}
	}
	return nil
}

// table has an indent and the columns' shares of the width.
func (d *display) table(flex ...int) *report.Table {
	t := &report.Table{Width: d.width, Indent: 2}
	for _, f := range flex {
		t.Columns = append(t.Columns, report.Column{Flex: f})
	}
	return t
}

func (d *display) about() *report.Table {
	t := d.table(1)
	if d.s.Description != "" {
		t.Row(d.s.Description)
	}
	for _, x := range d.s.Sources {
		t.Row(fmt.Sprintf("%s: %s (%s, %s)", x.ID, x.Title, x.Language, x.File))
	}
	return t
}

func (d *display) roles() *report.Table {
	t := d.table(0, 1, 1, 0)
	near := d.s.NearRoles()
	for _, r := range d.s.Roles {
		measured := ""
		if slices.Contains(near, r.Name) {
			measured = "--as " + r.Name
		}
		t.Row(r.Name, r.Title, "at "+r.Site, measured)
	}
	return t
}

func (d *display) paths() *report.Table {
	t := d.table(0, 1, 0, 0, 0, 0, 0)
	for column, most := range map[int]int{3: 19, 4: 19, 5: 11} { // ports, protocol, need
		t.Columns[column].Max = most
	}
	told := make(map[string]string) // by a path before
	for _, p := range d.s.Paths {
		kind, wires := wiresOf(p)
		for i, text := range wires {
			if id := told[text]; id != "" {
				wires[i] = "wire: as " + id
				continue
			}
			told[text] = p.ID
		}
		t.Row(p.ID, p.Title, string(p.Direction), portsOf(p), p.Protocol, needOf(p), kind)
		from := strings.Join(p.From, ", ") + " -> " + strings.Join(p.To, ", ")
		if b := basisOf(p); b != "" {
			from += "; " + b
		}
		t.Note(1, from)
		for _, n := range append(notesOf(p), wires...) {
			t.Note(1, n)
		}
		d.quote(t, p.Source, p.Quote)
	}
	return t
}

// names says what is said in the place of names that the documents do not have.
func (d *display) names() *report.Table {
	says := func(p scenarios.Path) bool {
		known := protocol.Named(p.Protocol)
		return p.Unmeasured == "" && p.Direction == scenarios.Out && len(p.Names)+len(p.Addresses) == 0 &&
			known != nil && !known.Nameless && (known.Names || protocol.Secure(p.Protocol))
	}
	if !slices.ContainsFunc(d.s.Paths, says) {
		return nil
	}
	t := d.table(1)
	t.Row("Where a path has no names, TLS, HTTP and the like say the name that --reflector has; where that is an address, TLS says none.")
	return t
}

func (d *display) outcomes() *report.Table {
	t := d.table(0, 1, 0)
	for _, o := range d.s.Outcomes {
		title := o.Title
		if o.Optional {
			title += " (optional)"
		}
		t.Row(o.ID, title, "for "+strings.Join(o.Roles, ", "))
		for i, w := range o.Ways {
			text := fmt.Sprintf("%d %s: %s", i+1, w.Title, strings.Join(w.Paths, ", "))
			if w.Basis != "" && w.Basis != scenarios.Stated {
				text += " (" + string(w.Basis) + ")"
			}
			t.Note(1, text)
			note(t, w.Note)
		}
		note(t, o.Note)
		d.quote(t, o.Source, o.Quote)
	}
	return t
}

func (d *display) conflicts() *report.Table {
	if len(d.s.Conflicts) == 0 {
		return nil
	}
	t := d.table(0, 1)
	for _, x := range d.s.Conflicts {
		t.Row(x.ID, x.Title+" "+strings.Join(x.Claims, ", "))
		note(t, x.Note)
	}
	return t
}

func note(t *report.Table, text string) {
	if text != "" {
		t.Note(1, "note: "+text)
	}
}

func (d *display) quote(t *report.Table, source, quote string) {
	if d.quotes && quote != "" {
		t.Note(1, fmt.Sprintf("%s: “%s”", source, quote))
	}
}

// portsOf writes ports and transports: "3478/tcp+udp", "own 40000-65535/udp to 40000".
func portsOf(p scenarios.Path) string {
	var transports []string
	for _, t := range p.Transport {
		transports = append(transports, string(t))
	}
	on := "/" + strings.Join(transports, "+")
	switch {
	case len(p.Ports) == 0:
		return strings.TrimPrefix(on, "/")
	case len(p.LocalPorts) > 0:
		return fmt.Sprintf("own %s%s to %s", p.LocalPorts, on, p.Ports)
	}
	return p.Ports.String() + on
}

func needOf(p scenarios.Path) string {
	switch p.Need {
	case scenarios.Required:
		return "required"
	case scenarios.Optional:
		return "optional"
	case scenarios.Conditional:
		return "conditional"
	case scenarios.Fallback:
		return fmt.Sprintf("fallback %d", p.Order)
	case scenarios.Negative:
		return "need not be open"
	}
	return string(p.Need)
}

func basisOf(p scenarios.Path) string {
	switch {
	case p.Basis != "" && p.Basis != scenarios.Stated:
		return string(p.Basis)
	case len(p.Inferred) > 0:
		return "inferred: " + strings.Join(p.Inferred, ", ")
	}
	return ""
}

// notesOf are the rest of what a path says.
func notesOf(p scenarios.Path) []string {
	var out []string
	add := func(is bool, format string, args ...any) {
		if is {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	var ranges []string
	for _, a := range p.Addresses {
		ranges = append(ranges, a.String())
	}
	add(p.When != "", "required when %s", p.When)
	add(len(p.Names) > 0, "names: %s", strings.Join(p.Names, ", "))
	add(len(ranges) > 0, "addresses: %s", strings.Join(ranges, ", "))
	add(p.Pick == scenarios.PickAny, "one open port is enough")
	add(p.Pick == scenarios.PickOne, "each session draws one port at random")
	add(p.Bytes > 0, "carries %s bytes each way", report.Group(p.Bytes))
	add(p.Datagram > 0, "datagrams of up to %s bytes", report.Group(p.Datagram))
	add(p.Idle > 0, "survives a silence of %s", p.Idle)
	add(p.MaxLoss > 0, "may lose %.3g %% of the datagrams", p.MaxLoss*100)
	add(p.Unmeasured != "", "unmeasured: %s", p.Unmeasured)
	add(p.Note != "", "note: %s", p.Note)
	return out
}
