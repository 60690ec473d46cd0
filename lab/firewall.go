package lab

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/wallprobe/wallprobe/scenarios"
)

//go:embed firewalls/*.nft
var firewalls embed.FS

// A Firewall is a file of nftables rules, or one or more dumps of iptables-save. The zero Firewall has no rules and
// lets everything through.
type Firewall struct {
	Name string // "stateful", or the file's name without its folder
	Path string // of the user's file; empty for a built-in firewall
	Text []byte // what nft loads

	// Dumps are what other programs load in place of nft: a user's rules as
	// iptables-save, ip6tables-save and ipset save wrote them. Text then is all
	// of them.
	Dumps []Dump

	// Boxes are those that the file asks for. World.Build does not start them;
	// middlebox.Furnish does.
	Boxes []Box
}

// A RulesError is what nft or iptables-restore said about rules it would not load.
type RulesError struct {
	Firewall string // its path, or its name if it has none
	Message  string // the program's own, with the line, lines separated by \n
}

func (e *RulesError) Error() string {
	return fmt.Sprintf("firewall %s:\n%s", e.Firewall, e.Message)
}

// A MisfitError is why rules that nft loads say nothing here.
type MisfitError struct {
	Firewall string // its path
	Why      string // begins with the line, where there is one

	instead *Wiring // interfaces between which the rules are a firewall without a doubt
	notes   []string
}

func (e *MisfitError) Error() string { return fmt.Sprintf("firewall %s:%s", e.Firewall, e.Why) }

// OpenFirewall finds a built-in firewall by its name or reads a user's rules: a
// file in nft's own form, a dump of iptables-save or ip6tables-save or of both,
// or several that plus signs join. With rules.v4 goes the rules.v6 beside it, and
// the other way around.
func OpenFirewall(nameOrFile string) (Firewall, error) {
	if text, err := firewalls.ReadFile("firewalls/" + nameOrFile + ".nft"); err == nil {
		if st, err := os.Stat(nameOrFile); err == nil && st.Mode().IsRegular() {
			return Firewall{}, fmt.Errorf("%q is a built-in firewall and a file here; for the file write ./%[1]s", nameOrFile)
		}
		return withBoxes(Firewall{Name: nameOrFile, Text: text})
	}
	if files := dumpFiles(nameOrFile); len(files) > 1 {
		f, err := openDumps(files)
		if err != nil {
			return f, err
		}
		return withBoxes(f)
	}
	text, err := readRules(nameOrFile)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(nameOrFile, `/\.`) {
		hint := ""
		if near := scenarios.Nearest(nameOrFile, FirewallNames()); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
		return Firewall{}, fmt.Errorf("no firewall %q: neither a file nor one of %s%s", nameOrFile, strings.Join(FirewallNames(), ", "), hint)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Firewall{}, fmt.Errorf("firewall: %w; wallprobe lab --help lists the built-in ones", err)
	}
	if err != nil {
		return Firewall{}, fmt.Errorf("firewall: %w", err)
	}
	if isDump(text) {
		f, err := openDumps([]string{nameOrFile})
		if err != nil {
			return f, err
		}
		return withBoxes(f)
	}
	return withBoxes(Firewall{Name: filepath.Base(nameOrFile), Path: nameOrFile, Text: text})
}

// readRules reads a file, which must be one: the lab reads it again in its own
// namespaces, where a pipe would be empty, and one without a writer never ends.
func readRules(name string) ([]byte, error) {
	if st, err := os.Stat(name); err == nil && !st.IsDir() && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is a pipe or a device; save the rules to a file", name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if at := bytes.IndexByte(text, 0); at >= 0 {
		return nil, fmt.Errorf("%s:%d: a byte of zero: this is no text", name, 1+bytes.Count(text[:at], []byte("\n")))
	}
	if bytes.Contains(text, []byte("\r\n")) {
		return nil, fmt.Errorf(`%s has the line ends of Windows, which nft refuses; mend it with: sed -i 's/\r$//' %[1]s`, name)
	}
	return text, nil
}

// withBoxes reads the boxes that the text asks for.
func withBoxes(f Firewall) (Firewall, error) {
	var err error
	if f.Boxes, err = parseBoxes(f.Text); err != nil {
		file := cmp.Or(f.Path, f.Name)
		return Firewall{}, fmt.Errorf("firewall %s:%s", file, strings.ReplaceAll(err.Error(), "\n", "\nfirewall "+file+":"))
	}
	return f, nil
}

// FirewallNames lists the built-in firewalls in the order of the alphabet.
func FirewallNames() []string {
	files, err := fs.Glob(firewalls, "firewalls/*.nft")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = strings.TrimSuffix(filepath.Base(f), ".nft")
	}
	return names
}

// Main names the built-in firewalls that a first look should take, from the
// most open to the most closed for UDP.
func Main() []string {
	return []string{"open", "stateful", "https-only", "web-and-stun", "no-3478", "drop-udp-remote-40001", "drop-udp-all"}
}

// Title is the text of the comment "# title:" among the first lines of the
// rules, or the name of a firewall that has none.
func (f Firewall) Title() string {
	for line := range bytes.Lines(f.Text) {
		if len(bytes.TrimSpace(line)) > 0 && line[0] != '#' {
			break
		}
		if title, ok := bytes.CutPrefix(line, []byte("# title:")); ok {
			return string(bytes.TrimSpace(title))
		}
	}
	return f.Name
}

// script is the text for nft that replaces all rules by those of f in one
// transaction. Nothing is put on a line of its own before the rules, so the
// lines in nft's messages are those of the file.
func (f Firewall) script(inside, outside string) []byte {
	text := f.Text
	if f.Path != "" {
		text = withoutRemovals(text)
	} else {
		text = bytes.Replace(text, []byte(`define inside = "lan0"`), []byte(`define inside = "`+inside+`"`), 1)
		text = bytes.Replace(text, []byte(`define outside = "wan0"`), []byte(`define outside = "`+outside+`"`), 1)
	}
	return append([]byte(flush), append(bytes.Clone(text), '\n')...)
}
