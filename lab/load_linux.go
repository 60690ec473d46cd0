package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	w.loaded, w.source, w.notes = f, nil, nil
	w.mu.Unlock()
	if f.Path == "" || len(f.Boxes) > 0 {
		return nil
	}
	return w.fit(ctx, f)
}

// loadFar loads the rules of the second firewall, whose interfaces are always
// lan0 and wan0.
func (w *World) loadFar(ctx context.Context) error {
	f := w.config.Far
	if f == nil {
		return nil
	}
	if len(f.Dumps) > 0 || len(f.Boxes) > 0 {
		return &RulesError{Firewall: f.Path, Message: "the second firewall takes a file of nft without boxes; a dump is translated by: iptables-restore-translate -f FILE"}
	}
	dir, source := ".", f.Name
	if f.Path != "" {
		dir, source = filepath.Dir(f.Path), f.Path
	}
	_, err := w.Host(farName).nft(ctx, dir, f.script(farSite.Name, defaultWiring.Outside.Name), "-I", ".", "-f", "-")
	if failed, ok := errors.AsType[*nftError](err); ok {
		message := strings.ReplaceAll(failed.message, "/dev/stdin:", source+":")
		return &RulesError{Firewall: source, Message: strings.TrimSpace(strings.ReplaceAll(message, "flush ruleset; ", ""))}
	}
	if err == nil {
		w.note("beyond it, before the reflector's site, stands the firewall " + f.Name)
	}
	return err
}

// fit holds a user's rules, which are loaded, against the lab's interfaces.
func (w *World) fit(ctx context.Context, f Firewall) error {
	listing, err := w.Host(firewallName).NFT(ctx, nil, "-j", "list", "ruleset")
	if err != nil {
		return err
	}
	var cards []string
	if len(f.Dumps) == 0 {
		cards = devices(f.Text)
	}
	read, err := readMentions(listing, cards)
	if err != nil {
		return err
	}
	if len(read.hooks) == 0 {
		return &MisfitError{Firewall: f.Path, Why: " no chain in it has a hook, so every packet would pass; for no firewall at all name \"open\""}
	}
	fits := fit(read.interfaces, w.asked)
	if fits.why != "" || fits.instead != nil {
		place := lineWith(f.Text, strings.TrimSuffix(read.interfaces[0].name, "*"))
		return &MisfitError{Firewall: f.Path, Why: place + " " + fits.why, instead: fits.instead, notes: fits.notes}
	}
	w.note(fits.notes...)
	w.note(foreign(read.networks, w.asked)...)
	if len(f.Dumps) == 0 {
		for _, pattern := range emptyIncludes(f.Text, filepath.Dir(f.Path)) {
			w.note(fmt.Sprintf("include %q: there is no such file here, and nft goes on without", pattern))
		}
	}
	return nil
}

// Notes are what a person has to know of a user's rules beside what they decide:
// interfaces that were chosen for them, what they speak of and the lab lacks.
func (w *World) Notes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.notes)
}

// note keeps what a person has to know of the rules.
func (w *World) note(notes ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, notes...)
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
	made := make(map[string]bool)
	for {
		_, err := w.Host(firewallName).nft(ctx, dir, script, "-I", ".", "-f", "-")
		failed, ok := errors.AsType[*nftError](err)
		if !ok {
			return err
		}
		if more, err := w.furnishLinks(ctx, f, failed.message, made); err != nil {
			return err
		} else if more {
			continue
		}
		message := asInFile(failed.message, source)
		return &RulesError{Firewall: source, Message: message + hint(message)}
	}
}

// maxLinks bounds the interfaces that are made for rules to load.
const maxLinks = 64

// furnishLinks makes the interfaces that nft looked for in vain, with nothing
// behind them: rules know interfaces by number as well, and these must be there.
// It tells whether it made one.
func (w *World) furnishLinks(ctx context.Context, f Firewall, complaint string, made map[string]bool) (more bool, err error) {
	if f.Path == "" {
		return false, nil
	}
	for _, name := range lackingLinks(complaint, f.Text) {
		if made[name] || len(made) == maxLinks || checkName(name) != nil {
			continue
		}
		made[name] = true
		switch err := w.addLink(ctx, name, len(made)); {
		case errors.Is(err, unix.EEXIST):
		case err != nil:
			return false, fmt.Errorf("interface %s for the rules of %s: %w", name, f.Path, err)
		default:
			more = true
		}
	}
	return more, nil
}

// addLink adds an interface to the firewall that leads nowhere.
func (w *World) addLink(ctx context.Context, name string, number int) error {
	if w.keeper != "" {
		_, _, err := request{Do: askLink, Name: name, Number: number}.send(ctx, w.keeper)
		return err
	}
	return w.wires.do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("nowhere%d", number)
		return nl.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: name, PeerTxQLen: -1,
			PeerNamespace: netlink.NsFd(w.Host(firewallName).ns.file.Fd()),
		})
	})
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
