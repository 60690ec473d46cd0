package lab

import (
	"bytes"
	"cmp"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What iptables-restore and ipset say.
var (
	complaint = regexp.MustCompile(`^\S+ v[\d.]+( \(nf_tables\))?: *|^\S+-restore: *`)
	faultLine = regexp.MustCompile(`(?:at line: |^line |in line |at line )(\d+)(?::? *(.*))?`)
	noChain   = regexp.MustCompile(`Chain '(\S+)' does not exist`)
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
	// A chain that is missing is missed only when all is committed.
	if m := noChain.FindStringSubmatch(message); m != nil {
		at = cmp.Or(lineJumping(d.Text, m[1]), at)
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

// lineJumping is the first line that jumps to a chain, 0 if none does.
func lineJumping(text []byte, chain string) int {
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if words := strings.Fields(line); len(words) > 1 && after(words, "-j", "--jump", "-g", "--goto") == chain {
			return n
		}
	}
	return 0
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

var includes = regexp.MustCompile(`(?m)^\s*include\s+"([^"]*)"`)

// emptyIncludes are the patterns of files to include that no file here has; nft
// says nothing of these. dir is where the rules are.
func emptyIncludes(text []byte, dir string) (patterns []string) {
	for _, m := range includes.FindAllSubmatch(text, -1) {
		pattern := string(m[1])
		if !strings.ContainsAny(pattern, "*?[") {
			continue // nft speaks up itself
		}
		at := pattern
		if !filepath.IsAbs(at) {
			at = filepath.Join(dir, at)
		}
		if files, err := filepath.Glob(at); err == nil && len(files) == 0 {
			patterns = append(patterns, pattern)
		}
	}
	return patterns
}

// flush is put before a user's rules, on their first line so that the others keep
// their numbers.
const flush = "flush ruleset; "

var (
	firstLine = regexp.MustCompile(`^(.*?:1:)(\d+)-(\d+)(: .*)$`)
	markLine  = regexp.MustCompile(`^[\s^]*\^[\s^]*$`)
)

// asInFile makes nft's complaint one about the user's file: without what stood
// before the first line, neither in the text nor in the columns.
func asInFile(complaint, source string) string {
	var out []string
	cut := false // the text and the mark that follow are of the first line
	for line := range strings.Lines(strings.ReplaceAll(complaint, "/dev/stdin:", source+":")) {
		line = strings.TrimRight(line, "\n")
		m := firstLine.FindStringSubmatch(line)
		switch {
		case m != nil:
			from, _ := strconv.Atoi(m[2])
			to, _ := strconv.Atoi(m[3])
			cut = from > len(flush)
			if cut {
				line = fmt.Sprintf("%s%d-%d%s", m[1], from-len(flush), to-len(flush), m[4])
			}
		case markLine.MatchString(line) && cut && len(line) > len(flush):
			line = line[len(flush):]
		default:
			line = strings.TrimPrefix(line, flush)
		}
		out = append(out, line)
	}
	return strings.TrimSpace(strings.Join(out, "\n"))
}

var (
	ofFamily = `((?:inet|ip|ip6|arp|bridge|netdev)\s+)?`
	removal  = regexp.MustCompile(`^\s*(?:delete|destroy|flush)\s+table\s+` + ofFamily + `([\w./-]+)\s*;?\s*(?:#.*)?$`)
	making   = regexp.MustCompile(`^\s*(?:add\s+|create\s+)?table\s+` + ofFamily + `([\w./-]+)`)
)

// withoutRemovals leaves out what removes tables that the file has not made yet:
// a file is written for a machine that has loaded it before, and the lab begins
// with nothing. Columns and lines stay.
func withoutRemovals(text []byte) []byte {
	made := make(map[string]bool)
	id := func(m [][]byte) string { return cmp.Or(strings.TrimSpace(string(m[1])), "ip") + " " + string(m[2]) }
	out := make([]byte, 0, len(text))
	for line := range bytes.Lines(text) {
		kept := bytes.TrimRight(line, "\r\n")
		if m := removal.FindSubmatch(kept); m != nil && !made[id(m)] {
			line = append(bytes.Repeat([]byte(" "), len(kept)), line[len(kept):]...)
		}
		if m := making.FindSubmatch(kept); m != nil {
			made[id(m)] = true
		}
		out = append(out, line...)
	}
	return out
}

// hint is what to do about a complaint of nft, where nft does not say it.
func hint(complaint string) string {
	switch {
	case strings.Contains(complaint, "Could not open file") || strings.Contains(complaint, "File not found"):
		return "\nWhat is included is looked for here, beside the file unless its path begins with a slash: copy it there too, or test the output of: nft list ruleset"
	case strings.Contains(complaint, "flowtable ") && noDevice.MatchString(complaint):
		return "\nThe kernel here has no flow tables (nf_flow_table). They change speed and no verdict: leave out the flow table and the rules that add flows to it."
	case strings.Contains(complaint, "xt match") || strings.Contains(complaint, "xt target"):
		return "\nThese rules were made by iptables; save them with iptables-save and ip6tables-save."
	}
	return ""
}
