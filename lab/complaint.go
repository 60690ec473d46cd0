package lab

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What iptables-restore and ipset say.
var (
	complaint = regexp.MustCompile(`^\S+ v[\d.]+( \(nf_tables\))?: *|^\S+-restore: *`)
	faultLine = regexp.MustCompile(`(?:at line: |^line |in line |at line )(\d+)(?::? *(.*))?`)
	noSet     = regexp.MustCompile(`Set (\S+) doesn't exist`)
)

// explainDump puts what iptables-restore or ipset said after the line that it
// speaks of: "rules.v4:7: Set blocked doesn't exist.", and the line below.
func explainDump(d Dump, message string) string {
	at, said := 0, []string{}
	for line := range strings.Lines(message) {
		line = strings.TrimSpace(complaint.ReplaceAllString(strings.TrimSpace(line), ""))
		if m := faultLine.FindStringSubmatch(line); m != nil {
			at, _ = strconv.Atoi(m[1])
			line = m[2]
		}
		if line != "" && !strings.HasPrefix(line, "Try `") {
			said = append(said, line)
		}
	}
	out := d.Path + ": " + strings.Join(said, "\n")
	if at > 0 {
		out = fmt.Sprintf("%s:%d: %s\n\t%s", d.Path, at, strings.Join(said, "\n"), lineOf(d.Text, at))
	}
	if noSet.MatchString(message) {
		out += fmt.Sprintf("\nSave the sets with: ipset save > ipsets; then join both with a plus sign: --firewall ipsets+%s", d.Path)
	}
	return out
}

// What nft says of interfaces that are not there, with the line and a mark below
// the name; and where a file names the cards that it is attached to.
var (
	noInterface = regexp.MustCompile(`(?m)^\S+?:\d+:(\d+)-(\d+): Error: Interface does not exist\n(.*)$`)
	noDevice    = regexp.MustCompile(`Could not process rule: No such (file or directory|device)`)
	remarks     = regexp.MustCompile(`(?m)^\s*#.*|(comment|prefix) "[^"]*"`)
	devicesOf   = regexp.MustCompile(`\bdevices?\s*=?\s*(\{[^}]*\}|"?[\w.$-]+"?)`)
	definition  = regexp.MustCompile(`(?m)^\s*define\s+(\w+)\s*=\s*(\{[^}]*\}|\S+)`)
	wordPattern = regexp.MustCompile(`[\w.$@-]+`)
)

// lackingLinks are the interfaces whose lack nft complained of. Kernels before
// 6.16 want the cards that a chain or a flow table is attached to as well, and do
// not say which.
func lackingLinks(complaint string, text []byte) []string {
	var out []string
	for _, m := range noInterface.FindAllStringSubmatch(complaint, -1) {
		from, _ := strconv.Atoi(m[1])
		to, _ := strconv.Atoi(m[2])
		if from >= 1 && from <= to && to <= len(m[3]) {
			out = append(out, strings.Trim(m[3][from-1:to], `"`))
		}
	}
	if noDevice.MatchString(complaint) {
		out = append(out, devices(text)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// devices are those that chains and flow tables of a file are attached to.
func devices(text []byte) (names []string) {
	for _, m := range devicesOf.FindAllSubmatch(remarks.ReplaceAll(text, nil), -1) {
		names = append(names, resolved(string(m[1]), string(text), 0)...)
	}
	return names
}

// resolved are the words of a list, with the values of what the file defines.
func resolved(list, text string, depth int) []string {
	var out []string
	for _, word := range wordPattern.FindAllString(list, -1) {
		name, defined := strings.CutPrefix(word, "$")
		if !defined {
			out = append(out, word)
			continue
		}
		for _, d := range definition.FindAllStringSubmatch(text, -1) {
			if d[1] == name && depth < 8 {
				out = append(out, resolved(d[2], text, depth+1)...)
			}
		}
	}
	return out
}

// hint is what to do about a complaint of nft, where nft does not say it.
func hint(complaint string) string {
	switch {
	case strings.Contains(complaint, "flowtable ") && noDevice.MatchString(complaint):
		return "\nThe kernel here has no flow tables (nf_flow_table). They change speed and no verdict: leave out the flow table and the rules with \"flow add\"."
	case strings.Contains(complaint, "xt match") || strings.Contains(complaint, "xt target"):
		return "\nThese rules were made by iptables; save them with iptables-save and ip6tables-save."
	}
	return ""
}
