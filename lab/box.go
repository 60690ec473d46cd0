package lab

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A Box is a middlebox on the firewall host that a file of rules asks for in a
// comment, since no rule can do what it does:
//
//	# wallprobe: intercept 443/tcp
//
// It takes the connections that come in from the inside. Package middlebox has
// the boxes themselves.
type Box struct {
	Kind  string            // a key of BoxKinds
	Ports scenarios.PortSet // of the servers, TCP
	Line  int               // of the file, from 1
}

// The kinds of boxes.
const (
	BoxIntercept = "intercept"
	BoxInspect   = "inspect"
)

// BoxKinds are the boxes that a firewall's file can ask for, with what they do.
var BoxKinds = map[string]string{
	BoxIntercept: "speaks TLS to both ends with a certificate of its own; what is not TLS passes",
	BoxInspect:   "a real inspecting proxy does so, squid with ssl-bump, which reads the HTTP inside",
}

var boxComment = regexp.MustCompile(`^\s*#+\s*wallprobe\s*:(.*)$`)

// parseBoxes finds the boxes that a file of rules asks for. Errors begin with
// the line.
func parseBoxes(text []byte) ([]Box, error) {
	var out []Box
	var errs []error
	number := 0
	for line := range bytes.Lines(text) {
		number++
		m := boxComment.FindSubmatch(bytes.TrimRight(line, "\r\n"))
		if m == nil {
			continue
		}
		b, err := parseBox(string(m[1]))
		if err == nil {
			err = b.alone(out)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%d: %s: %w", number, strings.TrimSpace(string(line)), err))
			continue
		}
		b.Line = number
		out = append(out, b)
	}
	return out, errors.Join(errs...)
}

// parseBox reads "intercept 443/tcp".
func parseBox(text string) (Box, error) {
	const example = "write for example: # wallprobe: intercept 443/tcp"
	words := strings.Fields(text)
	if len(words) == 0 {
		return Box{}, errors.New("no box is named; " + example)
	}
	if BoxKinds[words[0]] == "" {
		return Box{}, fmt.Errorf("no box is called %q; there are %s", words[0], strings.Join(slices.Sorted(maps.Keys(BoxKinds)), " and "))
	}
	if len(words) != 2 {
		return Box{}, fmt.Errorf("%s wants ports and nothing else; %s", words[0], example)
	}
	list, transport, _ := strings.Cut(words[1], "/")
	if transport != string(scenarios.TCP) {
		return Box{}, fmt.Errorf("%s works on tcp only, not on %q; %s", words[0], words[1], example)
	}
	ports, err := scenarios.ParsePortSet(list)
	if err != nil {
		return Box{}, fmt.Errorf("%w; %s", err, example)
	}
	return Box{Kind: words[0], Ports: ports}, nil
}

// alone refuses two boxes for one port, and two inspecting proxies.
func (b Box) alone(others []Box) error {
	for _, o := range others {
		both := scenarios.Union(o.Ports, b.Ports)
		if both.Len() < o.Ports.Len()+b.Ports.Len() {
			return fmt.Errorf("line %d has a box for the same port already; keep one of them", o.Line)
		}
		if b.Kind == BoxInspect && o.Kind == BoxInspect {
			return fmt.Errorf("line %d has the one proxy there is; add the ports there: 443,8443/tcp", o.Line)
		}
	}
	return nil
}
