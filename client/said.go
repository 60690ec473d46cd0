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
// with addresses. Of several connections that may be the probe's, it is the one
// of which most lines arrived as they were sent; where as many did, one that fits.
func (e *portEvidence) rewritten() (changed, helped string) {
	near := e.near.Said
	switch {
	case near == nil:
		return "", ""
	case e.speak == protocol.TURN || e.speak == protocol.TURNS:
		return e.turnChanged(), ""
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
		if c == "" && e.near.Stage == protocol.StageDone && ev.Stage == protocol.StageDone {
			c = missing(near, ev.Said)
		}
		n := common(near.Sent, ev.Said.Heard) + common(ev.Said.Sent, near.Heard)
		if n > most || n == most && c == "" {
			changed, helped, most = c, h, n
		}
	}
	return changed, helped
}

// missing is the first line at the end of a direction that never arrived,
// though both ends came to the end of their dialogue.
func missing(near, far *wire.Said) string {
	for _, way := range [][2][]string{{far.Sent, near.Heard}, {near.Sent, far.Heard}} {
		if sent, heard := way[0], way[1]; len(sent) > len(heard) && len(sent) < wire.MaxSaid {
			return difference{lineTaken, sent[len(heard)], ""}.words("")
		}
	}
	return ""
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
	sent, heard := apart(d.sent, d.heard)
	return fmt.Sprintf("%s was sent, %s arrived %s", quoted(sent), quoted(heard), to)
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

// shown is how much of a line is shown, bytes.
const shown = 60

// apart cuts from the beginning of two long lines what they have in common, so
// that the difference is shown.
func apart(a, b string) (string, string) {
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	const before = 12 // bytes of context
	if max(len(a), len(b)) <= shown || same <= shown/2 {
		return a, b
	}
	return "..." + a[same-before:], "..." + b[same-before:]
}

// quoted shows a line, cut where it is long.
func quoted(line string) string {
	if len(line) > shown {
		line = line[:shown-3] + "..."
	}
	return fmt.Sprintf("%q", line)
}
