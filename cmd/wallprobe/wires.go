package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
)

// wiresOf says how real it is what goes over the wire on a path, and what it
// is, a line for each transport unless they are alike.
func wiresOf(p scenarios.Path) (kind string, lines []string) {
	if p.Unmeasured != "" {
		return "unmeasured", nil
	}
	bare := client.Probe{Speak: p.Protocol, Ports: p.Ports, LocalPorts: p.LocalPorts}.Sweeps()
	var kinds []string
	for _, t := range p.Transport {
		w := protocol.Spoken(p.Protocol, t, bare)
		kinds = append(kinds, w.Kind)
		lines = append(lines, wireOf(p, w, bare))
	}
	return strings.Join(alike(kinds, p.Transport), ", "), alike(lines, p.Transport)
}

// alike is the one text where all are the same, else each with its transport.
func alike(texts []string, transports []scenarios.Transport) []string {
	if same := slices.Compact(slices.Clone(texts)); len(same) == 1 {
		return same
	}
	var out []string
	for i, text := range texts {
		out = append(out, string(transports[i])+" "+text)
	}
	return out
}

// wireOf puts it into words.
func wireOf(p scenarios.Path, w protocol.Wire, bare bool) string {
	if bare {
		return "wire: a bare message of wallprobe's own to every port of the range"
	}
	text := "wire: "
	if w.Kind == protocol.StoodFor {
		text += fmt.Sprintf("in place of %s: ", p.Protocol)
	}
	text += w.Doc
	if len(w.Variants) > 0 {
		text += fmt.Sprintf("; %s, each by itself", strings.Join(w.Variants, ", "))
	}
	if w.Kind == protocol.Imitated {
		text += "; imitation: " + w.Imitation
	}
	return text
}
