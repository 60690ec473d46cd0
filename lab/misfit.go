package lab

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// misfit says why rules that nft has loaded are no firewall between these
// interfaces, or nothing. nft loads an empty file and takes any name for an
// interface, so that all would pass, or nothing, and look like a measurement.
// listing is what `nft list ruleset` says, text the file.
func misfit(listing, text []byte, inside, outside string) string {
	if !bytes.Contains(listing, []byte(" hook ")) {
		return " no chain in it has a hook, so every packet would pass; for no firewall at all name \"open\""
	}
	names := interfaces(listing)
	if len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return matches(n, inside) || matches(n, outside) }) {
		return ""
	}
	place := " "
	for i, line := range slices.Collect(bytes.Lines(text)) {
		if bytes.Contains(line, []byte(names[0])) {
			place = fmt.Sprintf("%d: ", i+1)
			break
		}
	}
	return fmt.Sprintf("%sthere is no interface %s here; in the lab %s is inside and %s outside",
		place, strings.Join(names, " or "), inside, outside)
}

var (
	ifname = regexp.MustCompile(`\b[io]ifname\b.*`)
	quoted = regexp.MustCompile(`"([^"]*)"`)
	remark = regexp.MustCompile(`(comment|prefix) "[^"]*"`)
)

// interfaces are the names that rules compare interfaces with, each once, in
// their order, without the loopback interface. Rules that look a name up in a
// set or a map have it there, so then all names in quotes count.
func interfaces(listing []byte) []string {
	listing = remark.ReplaceAll(listing, nil)
	var names []string
	for _, rule := range ifname.FindAll(listing, -1) {
		if bytes.ContainsAny(rule, "@") {
			rule = listing
		}
		for _, m := range quoted.FindAllSubmatch(rule, -1) {
			if n := string(m[1]); n != "lo" && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// matches tells whether nft's name, which may end in a star, is that of an
// interface.
func matches(name, is string) bool {
	if start, ok := strings.CutSuffix(name, "*"); ok {
		return strings.HasPrefix(is, start)
	}
	return name == is
}
