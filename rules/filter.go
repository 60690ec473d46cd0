package rules

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/wallprobe/wallprobe/scenarios"
)

// Options say for which firewall rules are written.
type Options struct {
	Inside, Outside string // names of its interfaces
	IPv6            bool   // of iptables, whose files are for one family: for ip6tables
	Title           string // what the rules are for, in a line
}

// CheckInterface says what is wrong with the name of an interface (Linux,
// dev_valid_name, and what a quoted string of nft can hold).
func CheckInterface(name string) error {
	bad := strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`/:"\'*$`, r)
	})
	if bad || name == "" || len(name) > 15 || name == "." || name == ".." {
		return fmt.Errorf("%q is no name of an interface: at most 15 bytes, without spaces, slashes, colons and quotes", name)
	}
	return nil
}

// NFT writes the set as a file for nft -f: one table of its own.
func (s Set) NFT(w io.Writer, o Options) error {
	var out bytes.Buffer
	out.WriteString(comment("", "title: "+o.Title))
	s.preface(&out, "Load it with: nft -f FILE")
	fmt.Fprintf(&out, "\ndefine inside = \"%s\"\ndefine outside = \"%s\"\n\ntable inet wallprobe {\n", o.Inside, o.Outside)
	s.nftHelper(&out)
	out.WriteString("\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\tct state established,related counter accept\n")
	for _, r := range s.Rules {
		out.WriteByte('\n')
		r.explain(&out, "\t\t")
		for _, v6 := range []bool{false, true} {
			if text := r.nft(v6); text != "" {
				out.WriteString("\t\t" + text + "\n")
			}
		}
	}
	out.WriteString("\t}\n}\n")
	_, err := out.WriteTo(w)
	return err
}

func (s Set) nftHelper(out *bytes.Buffer) {
	var ports []scenarios.PortSet
	for _, r := range s.Rules {
		if r.FTP {
			ports = append(ports, r.ftpPorts())
		}
	}
	if len(ports) == 0 {
		return
	}
	out.WriteString(comment("\t", "FTP announces the ports of its data connections inside its control connection."))
	fmt.Fprintf(out, "\tct helper ftp {\n\t\ttype \"ftp\" protocol tcp\n\t}\n\tchain helpers {\n"+
		"\t\ttype filter hook prerouting priority filter; policy accept;\n\t\ttcp dport %s ct helper set \"ftp\"\n\t}\n", nftPorts(scenarios.Union(ports...)))
}

// ftpPorts are the ports of the control connections.
func (r Rule) ftpPorts() scenarios.PortSet {
	var sets []scenarios.PortSet
	for _, x := range r.Reasons {
		if x.Path.Protocol == "ftp" {
			sets = append(sets, x.Path.Ports)
		}
	}
	return scenarios.Union(sets...)
}

// nft is the rule's text. A rule for any address is one for both families, and
// written as that of IPv4.
func (r Rule) nft(v6 bool) string {
	addresses, has := r.family(v6)
	if !has || v6 && len(addresses) == 0 {
		return ""
	}
	parts := []string{"iifname $inside oifname $outside"}
	far := "daddr"
	if r.Inward {
		parts, far = []string{"iifname $outside oifname $inside"}, "saddr"
	}
	if len(addresses) > 0 {
		family := "ip"
		if v6 {
			family = "ip6"
		}
		parts = append(parts, family, far, braced(addresses))
	}
	if len(r.LocalPorts) > 0 {
		parts = append(parts, string(r.Transport), "sport", nftPorts(r.LocalPorts))
	}
	if len(r.Ports) > 0 {
		parts = append(parts, string(r.Transport), "dport", nftPorts(r.Ports))
	}
	if len(r.Ports)+len(r.LocalPorts) == 0 {
		parts = append(parts, "meta l4proto", string(r.Transport))
	}
	return strings.Join(append(parts, "counter accept comment", `"`+r.ids(120)+`"`), " ")
}

func nftPorts(s scenarios.PortSet) string {
	if len(s) == 1 {
		return s.String()
	}
	return "{ " + strings.ReplaceAll(s.String(), ",", ", ") + " }"
}

func braced(list []netip.Prefix) string {
	text := make([]string, len(list))
	for i, p := range list {
		text[i] = p.String()
	}
	if len(text) == 1 {
		return text[0]
	}
	return "{ " + strings.Join(text, ", ") + " }"
}

// ids names the paths of a rule in so many bytes.
func (r Rule) ids(most int) string {
	text := ""
	for i, x := range r.Reasons {
		next := text + ", " + x.Path.ID
		if more := len(r.Reasons) - i; len(next)+12 > most {
			return fmt.Sprintf("%s and %d more", text, more)
		}
		text = strings.TrimPrefix(next, ", ")
	}
	return text
}

// IPTables writes the set as a file for iptables-restore, or ip6tables-restore.
func (s Set) IPTables(w io.Writer, o Options) error {
	var out bytes.Buffer
	program := "iptables-restore"
	if o.IPv6 {
		program = "ip6tables-restore"
	}
	out.WriteString(comment("", o.Title))
	s.preface(&out, "Load it with: "+program+" FILE, which replaces the table filter; with --noflush it adds to the chain FORWARD")
	s.rawHelper(&out, o)
	out.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n" +
		"-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n")
	for _, r := range s.Rules {
		lines := r.iptables(o)
		if len(lines) == 0 {
			continue
		}
		r.explain(&out, "")
		for _, line := range lines {
			out.WriteString(line + "\n")
		}
	}
	out.WriteString("COMMIT\n")
	_, err := out.WriteTo(w)
	return err
}

func (s Set) rawHelper(out *bytes.Buffer, o Options) {
	var lines []string
	for _, r := range s.Rules {
		if !r.FTP {
			continue
		}
		from := o.Inside
		if r.Inward {
			from = o.Outside
		}
		for _, match := range multiport("dport", r.ftpPorts()) {
			lines = append(lines, fmt.Sprintf("-A PREROUTING -i %s -p tcp%s -j CT --helper ftp\n", from, match))
		}
	}
	if len(lines) > 0 {
		out.WriteString(comment("", "FTP announces the ports of its data connections inside its control connection."))
		out.WriteString("*raw\n" + strings.Join(lines, "") + "COMMIT\n")
	}
}

// iptables is the rule's lines: one for each address and for each run of ports
// that one match can hold.
func (r Rule) iptables(o Options) []string {
	addresses, has := r.family(o.IPv6)
	if !has {
		return nil
	}
	from, to, far := o.Inside, o.Outside, "-d"
	if r.Inward {
		from, to, far = to, from, "-s"
	}
	ends := []string{""}
	if len(addresses) > 0 {
		ends = nil
	}
	for _, a := range addresses {
		ends = append(ends, " "+far+" "+a.String())
	}
	var out []string
	for _, end := range ends {
		for _, source := range multiport("sport", r.LocalPorts) {
			for _, destination := range multiport("dport", r.Ports) {
				out = append(out, fmt.Sprintf("-A FORWARD -i %s -o %s%s -p %s%s%s -m comment --comment \"%s\" -j ACCEPT",
					from, to, end, r.Transport, source, destination, r.ids(200)))
			}
		}
	}
	return out
}

// multiport are the matches for a set of ports; one of several ports holds 15,
// of which a range takes two (iptables-extensions, multiport).
func multiport(side string, s scenarios.PortSet) []string {
	switch {
	case len(s) == 0:
		return []string{""}
	case len(s) == 1:
		return []string{" --" + side + " " + iptablesPorts(s)}
	}
	var out []string
	for len(s) > 0 {
		n, room := 0, 15
		for n < len(s) && room > 0 {
			slots := min(2, int(s[n].Last-s[n].First)+1)
			if slots > room {
				break
			}
			n, room = n+1, room-slots
		}
		out = append(out, " -m multiport --"+side+"s "+iptablesPorts(s[:n]))
		s = s[n:]
	}
	return out
}

func iptablesPorts(s scenarios.PortSet) string { return strings.ReplaceAll(s.String(), "-", ":") }

// preface says what a file is and what no rule of it is for.
func (s Set) preface(out *bytes.Buffer, load string) {
	out.WriteString(comment("", ""))
	text := "Everything else that would cross the firewall is dropped; answers come back. " +
		"A packet filter cannot match names: they stand in comments. " +
		"DNS is let through only where a document asks for it. "
	if slices.ContainsFunc(s.Rules, func(r Rule) bool { return r.Inward }) {
		text += "With address translation, each rule for what comes in needs a port forwarding as well. "
	}
	out.WriteString(comment("", text+load+"."))
	var titles []string
	for _, r := range s.reasons() {
		if text := fmt.Sprintf("%s: %s", r.Path.Source, r.Source()); r.Path.Source != "" && !slices.Contains(titles, text) {
			titles = append(titles, text)
		}
	}
	section(out, "The documents:", titles)
	section(out, "Asked for, but of these no rule can be made:", told(s.Unruled, true))
	section(out, "Within the site, not across the firewall:", told(s.Within, false))
	section(out, "Not let through, because the documents say that these need not, or must not, be open:", told(s.Negative, true))
}

// reasons are all that a set knows of.
func (s Set) reasons() []Reason {
	var out []Reason
	for _, r := range s.Rules {
		out = append(out, r.Reasons...)
	}
	return slices.Concat(out, s.Unruled, s.Within, s.Negative)
}

func section(out *bytes.Buffer, head string, lines []string) {
	if len(lines) == 0 {
		return
	}
	out.WriteString(comment("", "") + comment("", head))
	for _, line := range lines {
		out.WriteString(comment("  ", line))
	}
}

// told names reasons in a line each, with why where that is known.
func told(list []Reason, why bool) []string {
	var out []string
	for _, r := range list {
		text := r.Path.ID + " " + r.Path.Title
		if why && r.Path.Unmeasured != "" {
			text += ": " + r.Path.Unmeasured
		}
		out = append(out, text)
	}
	return out
}

// explain writes why a rule is there.
func (r Rule) explain(out *bytes.Buffer, indent string) {
	for _, x := range r.Reasons {
		out.WriteString(comment(indent, fmt.Sprintf("%s %s (%s)", x.Path.ID, x.Path.Title, x.need())))
		if len(x.Path.Names) > 0 {
			out.WriteString(comment(indent+"  ", "names: "+strings.Join(x.Path.Names, ", ")))
		}
		if len(x.Path.Addresses) > 0 && len(r.Addresses) == 0 {
			out.WriteString(comment(indent+"  ", "addresses, among others: "+join(x.Path.Addresses)))
		}
		if x.Path.Quote != "" {
			out.WriteString(comment(indent+"  ", fmt.Sprintf("%s: “%s”", x.Path.Source, x.Path.Quote)))
		}
	}
}

func join(list []netip.Prefix) string {
	return strings.Trim(braced(list), "{ }")
}

// comment writes text as lines of a comment that are easy to read. Nothing in
// it can end the comment.
func comment(indent, text string) string {
	tabs := strings.TrimRight(indent, " ")
	inner := strings.TrimPrefix(indent, tabs)
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control) {
			return ' '
		}
		return r
	}, text)
	var out strings.Builder
	line := ""
	flush := func() {
		out.WriteString(strings.TrimRight(tabs+"# "+inner+line, " ") + "\n")
		line = ""
	}
	for _, word := range strings.Fields(text) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > 90 {
			flush()
			if hang := strings.TrimPrefix(indent, tabs); hang != "" {
				inner = hang + "  "
			}
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	flush()
	return out.String()
}
