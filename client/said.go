package client

import (
	"cmp"
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
	about := protocol.Named(e.speak)
	if about == nil {
		about = new(protocol.Protocol)
	}
	most := -1
	for _, ev := range e.own() {
		if ev.Said == nil {
			continue
		}
		c, h := differences(near, ev.Said, about)
		if c == "" {
			return "", h // one of what may be several connections fits
		}
		if n := common(near.Sent, ev.Said.Heard) + common(ev.Said.Sent, near.Heard); n > most {
			changed, helped, most = c, h, n // else the one that fits best is it
		}
	}
	return changed, helped
}

// common counts the lines that arrived as they were sent, and in their places.
func common(sent, heard []string) (n int) {
	for i := range min(len(sent), len(heard)) {
		if sent[i] == heard[i] {
			n++
		}
	}
	return n
}

// differences tells the first line of either direction that arrived as another,
// or, with what that means, the first that means something to the protocol.
func differences(near, far *wire.Said, about *protocol.Protocol) (changed, helped string) {
	telling := false
	for _, way := range []struct {
		sent, heard []string
		to          string
	}{{far.Sent, near.Heard, "here"}, {near.Sent, far.Heard, "at the reflector"}} {
		for _, d := range compare(way.sent, way.heard) {
			said := d.words(way.to)
			if about.Harmless != nil && d.kind == lineRewritten && about.Harmless(d.sent, d.heard) {
				helped = cmp.Or(helped, said)
				continue
			}
			means := ""
			if about.Means != nil && !telling {
				means = about.Means(d.sent, d.heard)
			}
			switch {
			case means != "":
				changed, telling = said+": "+means, true
			case changed == "":
				changed = said
			}
		}
	}
	return changed, helped
}

// A difference is a line that did not arrive as it was sent. A line that was
// taken away was not heard, one that was put in was not sent.
type difference struct {
	kind        lineKind
	sent, heard string
}

type lineKind int

const (
	lineRewritten lineKind = iota
	lineTaken
	lineAdded
)

func (d difference) words(to string) string {
	switch d.kind {
	case lineTaken:
		return fmt.Sprintf("%s was sent and taken away", quoted(d.sent))
	case lineAdded:
		return fmt.Sprintf("%s was put in before it arrived %s", quoted(d.heard), to)
	}
	return fmt.Sprintf("%s was sent, %s arrived %s", quoted(d.sent), quoted(d.heard), to)
}

// compare lays the lines of one direction side by side. What was sent at the
// end and not heard may be under way; what was heard beyond what was sent is
// somebody else's.
func compare(sent, heard []string) (list []difference) {
	i, j := 0, 0
	for i < len(sent) && j < len(heard) {
		s, h := sent[i], heard[j]
		unfinished := j == len(heard)-1 && h != "" && strings.HasPrefix(s, h)
		switch {
		case s == h || unfinished:
			i, j = i+1, j+1
		case slices.Contains(block(sent[i+1:]), h):
			list = append(list, difference{lineTaken, s, ""})
			i++
		case slices.Contains(block(heard[j+1:]), s):
			list = append(list, difference{lineAdded, "", h})
			j++
		default:
			list = append(list, difference{lineRewritten, s, h})
			i, j = i+1, j+1
		}
	}
	if len(sent) < wire.MaxSaid {
		for _, h := range heard[j:] {
			list = append(list, difference{lineAdded, "", h})
		}
	}
	return list
}

// block gives the lines up to an empty one, which ends the head of a message:
// what comes after that belongs to another.
func block(lines []string) []string {
	if i := slices.Index(lines, ""); i >= 0 {
		return lines[:i+1]
	}
	return lines
}

// lastWords is the line after which a dialogue broke off.
func (e *portEvidence) lastWords() string {
	s := e.near.Said
	if s == nil || len(s.Sent) == 0 || e.near.Stage != protocol.StageSTARTTLS && e.near.Stage != protocol.StageLogin {
		return ""
	}
	return fmt.Sprintf(" after %s was sent", quoted(s.Sent[len(s.Sent)-1]))
}

// quoted shows a line, cut where it is long.
func quoted(line string) string {
	if len(line) > 60 {
		line = line[:57] + "..."
	}
	return fmt.Sprintf("%q", line)
}
