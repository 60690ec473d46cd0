package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/wire"
)

// rewritten compares what each end of a dialogue said with what the other one
// heard. changed tells of the first line that somebody in the middle rewrote;
// helped of one that a helper rewrote because that is its task, as FTP's does
// with addresses.
func (e *portEvidence) rewritten() (changed, helped string) {
	near := e.near.Said
	if near == nil {
		return "", ""
	}
	var harmless func(sent, heard string) bool
	if p := protocol.Named(e.speak); p != nil {
		harmless = p.Harmless
	}
	first := true
	for _, ev := range e.own() {
		if ev.Said == nil {
			continue
		}
		c, h := differences(near, ev.Said, harmless)
		if c == "" {
			return "", h // one of what may be several connections fits
		}
		if first {
			changed, helped, first = c, h, false
		}
	}
	return changed, helped
}

// differences tells the first line of either direction that arrived as another.
func differences(near, far *wire.Said, harmless func(sent, heard string) bool) (changed, helped string) {
	for _, way := range []struct {
		sent, heard []string
		to          string
	}{{far.Sent, near.Heard, "here"}, {near.Sent, far.Heard, "at the reflector"}} {
		for i := range min(len(way.sent), len(way.heard)) {
			sent, heard := way.sent[i], way.heard[i]
			unfinished := i == len(way.heard)-1 && heard != "" && strings.HasPrefix(sent, heard)
			if sent == heard || unfinished {
				continue
			}
			said := fmt.Sprintf("%s was sent, %s arrived %s", quoted(sent), quoted(heard), way.to)
			if harmless != nil && harmless(sent, heard) {
				if helped == "" {
					helped = said
				}
				continue
			}
			if rest := block(way.sent[i+1:]); slices.Contains(rest, heard) {
				said = fmt.Sprintf("%s was sent and taken away", quoted(sent))
			} else if slices.Contains(block(way.heard[i+1:]), sent) {
				said = fmt.Sprintf("%s was put in before it arrived %s", quoted(heard), way.to)
			}
			return said, helped
		}
	}
	return "", helped
}

// block gives the lines up to an empty one, which ends the head of a message:
// what comes after that belongs to another.
func block(lines []string) []string {
	if i := slices.Index(lines, ""); i >= 0 {
		return lines[:i+1]
	}
	return lines
}

// quoted shows a line, cut where it is long.
func quoted(line string) string {
	if len(line) > 60 {
		line = line[:57] + "..."
	}
	return fmt.Sprintf("%q", line)
}
