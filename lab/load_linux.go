package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Load replaces all rules of the firewall; connections that it knows stay known.
// Rules that are refused give a *[RulesError], and those of a user that cannot be
// meant for this firewall a *[MisfitError]. Those of nft are replaced in one step
// and change nothing when they are refused, a dump's table by table.
func (w *World) Load(f Firewall) error { return w.load(context.Background(), f) }

func (w *World) load(ctx context.Context, f Firewall) error {
	load := w.loadNFT
	if len(f.Dumps) > 0 {
		load = w.loadDumps
	}
	if err := load(ctx, f); err != nil {
		return err
	}
	w.mu.Lock()
	w.loaded = f
	w.mu.Unlock()
	if f.Path == "" || len(f.Boxes) > 0 {
		return nil
	}
	listing, err := w.Host(firewallName).NFT(ctx, nil, "list", "ruleset")
	if err != nil {
		return err
	}
	if why := misfit(listing, f.Text, w.config.Inside.Name, w.config.Outside.Name); why != "" {
		return &MisfitError{Firewall: f.Path, Why: why}
	}
	return nil
}

// loadNFT has nft load a file in its own form.
func (w *World) loadNFT(ctx context.Context, f Firewall) error {
	// Relative includes are looked for beside the file, as nft would if it
	// were called there. "-I" is for those that do not begin with a dot.
	dir, source := ".", f.Name
	if f.Path != "" {
		dir, source = filepath.Dir(f.Path), f.Path
	}
	script := f.script(w.config.Inside.Name, w.config.Outside.Name)
	_, err := w.Host(firewallName).nft(ctx, dir, script, "-I", ".", "-f", "-")
	if failed, ok := errors.AsType[*nftError](err); ok {
		message := strings.ReplaceAll(failed.message, "/dev/stdin:", source+":")
		message = strings.ReplaceAll(message, "flush ruleset; ", "")
		if strings.Contains(message, "Error: Interface does not exist") {
			message += fmt.Sprintf("\nIn the lab %s is inside and %s outside.", w.config.Inside.Name, w.config.Outside.Name)
		}
		return &RulesError{Firewall: source, Message: strings.TrimSpace(message)}
	}
	return err
}

// loadDumps has each dump loaded by the program that it is meant for, over
// nothing.
func (w *World) loadDumps(ctx context.Context, f Firewall) error {
	firewall := w.Host(firewallName)
	if _, err := firewall.NFT(ctx, nil, "flush", "ruleset"); err != nil {
		return err
	}
	for _, d := range f.Dumps {
		// The variants that speak with nftables, whatever the system's default:
		// their rules are counted and traced as nft's own.
		program, pkg, args := d.Form+"-nft-restore", "iptables", []string{}
		if d.Form == "ipset" {
			program, pkg, args = "ipset", "ipset", []string{"restore"}
		}
		_, err := firewall.ruler(ctx, program, pkg, ".", d.Text, args...)
		if failed, ok := errors.AsType[*nftError](err); ok {
			return &RulesError{Firewall: d.Path, Message: explainDump(d, failed.message)}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

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
