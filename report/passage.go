package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/wire"
)

// rewrites lists header fields that arrived changed and stopped nothing, each
// with the paths on which it was seen.
func rewrites(r *client.Result) []string {
	var order []string
	paths := make(map[string][]string)
	for i := range r.Findings {
		for _, p := range r.Findings[i].Passage {
			if !p.Changed {
				continue
			}
			text := p.String()
			if p.Field == "connection" {
				text = "connection: " + p.Note // each has ports of its own
			}
			if paths[text] == nil {
				order = append(order, text)
			}
			if id := reference(&r.Findings[i], r.Findings); !slices.Contains(paths[text], id) {
				paths[text] = append(paths[text], id)
			}
		}
	}
	var out []string
	for _, text := range order {
		out = append(out, fmt.Sprintf("changed on the way: %s (%s)", text, few(paths[text])))
	}
	return out
}

// proofs are the evidence behind a finding that only the details show.
func proofs(f *client.Finding) []string {
	var out []string
	var said, same []string
	for _, p := range f.Passage {
		if p.Sent == p.Arrived && p.Note == "" {
			field := p.Field
			if p.Back {
				field += " of the reflector"
			}
			if !slices.Contains(same, field) {
				same = append(same, field)
			}
			continue
		}
		said = append(said, p.String())
	}
	if len(same) > 0 {
		said = append(said, strings.Join(same, ", ")+" as sent")
	}
	if len(said) > 0 {
		out = append(out, "headers: "+strings.Join(said, "; "))
	}
	for i := range f.Evidence.Near {
		o := &f.Evidence.Near[i]
		of := ""
		if len(f.Evidence.Near) > 1 {
			of = fmt.Sprintf(" of %s port %s", o.Target, o.Ports)
		}
		if text := handshake(o.TLS); text != "" {
			out = append(out, "TLS"+of+": "+text)
		}
		for _, c := range o.Controls {
			out = append(out, "compared"+of+": "+compared(&c))
		}
	}
	return out
}

// handshake is the near end's view of TLS.
func handshake(s *wire.TLSSeen) string {
	if s == nil {
		return ""
	}
	var names []string
	for _, c := range s.Chain {
		names = append(names, fmt.Sprintf("%q (%.12s)", c.Subject, c.Digest))
	}
	said := []string{}
	add := func(what, value string) {
		if value != "" {
			said = append(said, what+" "+value)
		}
	}
	add("asked for", s.ServerName)
	add("offered", strings.Join(s.Offered, ", "))
	add("agreed on", join(" and ", s.Version, s.ALPN))
	add("chain", strings.Join(names, ", "))
	add("ClientHello", fmt.Sprintf("%.12s", s.HelloDigest))
	return strings.Join(said, "; ")
}

// compared is one comparison: what was changed, and how it fared.
func compared(c *client.Comparison) string {
	what := map[string]string{
		client.OtherName:     "with the name " + c.ServerName,
		client.NoALPN:        "without ALPN",
		client.OtherPort:     "the same",
		client.NoTLS:         "without TLS",
		client.OtherProtocol: "wallprobe's own messages",
	}[c.What]
	if what == "" {
		what = c.What
	}
	fared := "passes"
	if c.Fault != "" {
		fared = "stage " + c.Stage + ": " + c.Fault
	}
	return fmt.Sprintf("%s on port %d: %s", what, c.Port, fared)
}
