package rules

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/wallprobe/wallprobe/scenarios"
)

// columns of a table for whoever keeps the firewall, a row for each path.
var columns = []string{"direction", "transport", "ports", "own ports", "far addresses", "far names", "need", "what for", "path", "the document says", "document"}

// rows are the paths in the order of the rules.
func (s Set) rows() [][]string {
	var out [][]string
	for _, r := range s.Rules {
		direction := "outward"
		if r.Inward {
			direction = "inward"
		}
		for _, x := range r.Reasons {
			addresses := "any"
			if len(x.Path.Addresses) > 0 {
				addresses = join(x.Path.Addresses)
			}
			ports := r.Ports
			if len(x.Path.Ports) > 0 {
				ports = x.Path.Ports
			}
			out = append(out, []string{direction, string(r.Transport), plainPorts(ports), plainPorts(x.Path.LocalPorts), addresses,
				strings.Join(x.Path.Names, ", "), x.need(), x.Path.Title, x.Scenario.Name + " " + x.Path.ID, x.Path.Quote, document(x)})
		}
	}
	return out
}

func plainPorts(s scenarios.PortSet) string { return strings.ReplaceAll(s.String(), ",", ", ") }

func document(r Reason) string {
	if r.Path.Source == "" {
		return ""
	}
	return r.Path.Source + ": " + r.Source()
}

// CSV writes the set as comma-separated values (RFC 4180), a row for each path.
func (s Set) CSV(w io.Writer) error {
	out := csv.NewWriter(w)
	if err := out.Write(columns); err != nil {
		return err
	}
	for _, row := range s.rows() {
		for i, text := range row {
			row[i] = harmless(text)
		}
		if err := out.Write(row); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// harmless keeps spreadsheets from taking a text for a formula.
func harmless(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}
	return text
}

// Markdown writes the set as a table that can be sent to whoever keeps the firewall.
func (s Set) Markdown(w io.Writer, o Options) error {
	var out bytes.Buffer
	fmt.Fprintf(&out, "## %s\n\nOutward is from inside to outside. Answers must come back; everything else may stay closed.\n\n", cellText(o.Title))
	if len(s.Rules) == 0 {
		out.WriteString("Nothing has to be open.\n")
	} else {
		out.WriteString("| " + strings.Join(columns, " | ") + " |\n|" + strings.Repeat(" --- |", len(columns)) + "\n")
	}
	for _, row := range s.rows() {
		for i, text := range row {
			row[i] = cellText(text)
		}
		out.WriteString("| " + strings.Join(row, " | ") + " |\n")
	}
	bullets(&out, "Asked for, but without a port:", s.Unruled)
	bullets(&out, "Need not, or must not, be open:", s.Negative)
	_, err := out.WriteTo(w)
	return err
}

func bullets(out *bytes.Buffer, head string, list []Reason) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s\n\n", head)
	for _, text := range told(list, true) {
		fmt.Fprintf(out, "- %s\n", cellText(text))
	}
}

// cellText is text that Markdown shows as it is.
func cellText(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control):
			out.WriteByte(' ')
		case r == '<':
			out.WriteString("&lt;")
		case r == '&':
			out.WriteString("&amp;")
		case strings.ContainsRune("\\`*_[]|#!~$", r):
			out.WriteString("\\" + string(r))
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}
