package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/wallprobe/wallprobe/rules"
)

// rulesFormats are the forms in which rules can be written.
var rulesFormats = map[string]func(rules.Set, io.Writer, rules.Options) error{
	"nft":      rules.Set.NFT,
	"iptables": rules.Set.IPTables,
	"markdown": rules.Set.Markdown,
	"csv":      func(s rules.Set, w io.Writer, _ rules.Options) error { return s.CSV(w) },
}

func rulesCommand() *cli.Command {
	return &cli.Command{
		Name:      "rules",
		Usage:     "the fewest firewall rules that the documents ask for",
		ArgsUsage: "NAME|FILE...",
		Description: "For a firewall at the site of one role that lets nothing else through: nft and iptables\n" +
			"can be loaded as they are, csv and markdown are a table for whoever keeps the firewall.\n" +
			"Each rule says which paths need it, with the sentences of the documents; what several\n" +
			"paths need is one rule.\n\n" +
			"Required is what the documents require, and what an outcome cannot do without;\n" +
			"recommended adds what is optional or needed for a feature; all adds fallbacks and what\n" +
			"only public sources name. See what such a firewall does to a scenario:\n\n" +
			"  wallprobe scenario rules screenconnect >rules.nft\n" +
			"  wallprobe lab screenconnect --firewall rules.nft",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: "nft", Usage: "`FORMAT`: " + alternatives(slices.Sorted(maps.Keys(rulesFormats)))},
			&cli.StringFlag{Name: "need", Value: string(rules.Required), Usage: "`LEVEL`: " + alternatives(rules.Levels)},
			&cli.StringFlag{Name: "as", Usage: "the `ROLE` at whose site the firewall stands (default: the scenario's first)"},
			&cli.StringFlag{Name: "inside", Value: "lan0", Usage: "name of the firewall's inner `INTERFACE`"},
			&cli.StringFlag{Name: "outside", Value: "wan0", Usage: "name of its outer `INTERFACE`"},
			&cli.BoolFlag{Name: "ipv6", Aliases: []string{"6"}, Usage: "iptables for ip6tables-restore; nft is for both families anyhow"},
		},
		Action: rulesAction,
	}
}

func rulesAction(c *cli.Context) error {
	if !c.Args().Present() {
		return usage("scenario rules: name at least one scenario or file; scenario list has the built-in ones")
	}
	write := rulesFormats[c.String("format")]
	if write == nil {
		return usage("scenario rules: --format is %s, not %s", alternatives(slices.Sorted(maps.Keys(rulesFormats))), c.String("format"))
	}
	level := rules.Level(c.String("need"))
	if !slices.Contains(rules.Levels, level) {
		return usage("scenario rules: --need is %s, not %s", alternatives(rules.Levels), level)
	}
	if c.Bool("ipv6") && c.String("format") != "iptables" {
		return usage("scenario rules: --ipv6 is for --format iptables; the other formats are for both families")
	}
	o := rules.Options{Inside: c.String("inside"), Outside: c.String("outside"), IPv6: c.Bool("ipv6")}
	for _, flag := range []string{"inside", "outside"} {
		if err := rules.CheckInterface(c.String(flag)); err != nil {
			return usage("--%s: %v", flag, err)
		}
	}
	if o.Inside == o.Outside {
		return usage("--inside and --outside are both %s", o.Inside)
	}
	near, err := nearEnds(c.Args().Slice(), c.String("as"))
	if err != nil {
		return err
	}
	var names []string
	for _, n := range near {
		names = append(names, n.Scenario.Name+" as "+n.Role)
	}
	o.Title = fmt.Sprintf("%s: what is %s", strings.Join(names, ", "), map[rules.Level]string{
		rules.Required: "required", rules.Recommended: "required or recommended", rules.All: "required, recommended or a fallback",
	}[level])
	return write(rules.For(near, level), c.App.Writer, o)
}

// nearEnds loads scenarios and chooses the near end of each.
func nearEnds(names []string, as string) ([]rules.Near, error) {
	list, err := loadScenarios(names)
	if err != nil {
		return nil, err
	}
	roles, err := rolesFor(list, as, true)
	if err != nil {
		return nil, err
	}
	var out []rules.Near
	for _, s := range list {
		for _, role := range roles(s) {
			out = append(out, rules.Near{Scenario: s, Role: role})
		}
	}
	return out, nil
}
