package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A strip shows what is known of all ports of a transport in a direction.
type (
	strip struct {
		Title, Note string
		Scales      []scale
		Chips       []chip
		More        string
	}
	scale struct {
		Label string
		Ticks []string
		Runs  []mark
	}
	mark struct {
		Class, Label string
		X, W         string    // in hundredths of the width
		Text         *markText // where there is room
	}
	markText struct{ X, Text string }
	chip     struct{ Class, Ports, Verdict, Paths string }
)

// A stretch is a run of ports that fared alike.
type stretch struct {
	scenarios.PortRange
	verdict client.Verdict
	differs bool // by path or destination
	paths   []string
}

func (s stretch) word() string {
	if s.differs {
		return "differs by path or destination"
	}
	return string(s.verdict)
}

// The kinds of strips, in their order.
var stripKinds = []struct {
	title     string
	transport scenarios.Transport
	in, own   bool
}{
	{"TCP, outwards", scenarios.TCP, false, false},
	{"UDP, outwards", scenarios.UDP, false, false},
	{"UDP, outwards, by own port", scenarios.UDP, false, true},
	{"TCP, outwards, by own port", scenarios.TCP, false, true},
	{"TCP, inwards", scenarios.TCP, true, false},
	{"UDP, inwards", scenarios.UDP, true, false},
}

const (
	maxChips = 40
	maxRuns  = 400
	near     = 400  // ports apart at the most, and a neighbourhood is enlarged
	maxNear  = 3    // neighbourhoods
	roomy    = 0.11 // share of the width in which a range can be written
)

// stripsOf has a strip for each kind that the paths across the firewall use.
func stripsOf(r *client.Result) []strip {
	var out []strip
	for _, k := range stripKinds {
		var list []*client.Finding
		for i := range r.Findings {
			f := &r.Findings[i]
			across := f.Direction != scenarios.LAN && f.Direction != scenarios.Loop
			if across && f.Transport == k.transport && (f.Direction == scenarios.In) == k.in && (len(f.LocalPorts) > 0) == k.own && f.Verdict != client.Unmeasured {
				list = append(list, f)
			}
		}
		if runs := stretches(list, r.Findings); len(runs) > 0 {
			out = append(out, newStrip(k.title, runs))
		}
	}
	return out
}

// stretches puts findings on the line of ports.
func stretches(list []*client.Finding, all []client.Finding) []stretch {
	const mixed = math.MaxUint8
	var at [1 << 16]uint8 // of each port: 0 nothing, else 1 and the place of its verdict, or mixed
	lay := func(ports scenarios.PortSet, v client.Verdict) {
		place := uint8(1 + slices.Index(client.Verdicts, v))
		for port := range ports.All {
			if old := at[port]; old != 0 && old != place {
				at[port] = mixed
				continue
			}
			at[port] = place
		}
	}
	for _, f := range list {
		whole := f.Ports
		if len(f.LocalPorts) > 0 {
			whole = f.LocalPorts
		}
		if len(f.Parts) == 0 {
			lay(whole, f.Verdict)
		}
		for _, p := range f.Parts {
			lay(p.Ports, p.Verdict)
		}
	}
	var out []stretch
	for port := 1; port < 1<<16; port++ {
		switch place := at[port]; {
		case place == 0:
		case place == at[port-1]:
			out[len(out)-1].Last++
		default:
			run := stretch{PortRange: scenarios.PortRange{First: uint16(port), Last: uint16(port)}, differs: place == mixed}
			if !run.differs {
				run.verdict = client.Verdicts[place-1]
			}
			out = append(out, run)
		}
	}
	for i := range out {
		out[i].paths = touching(list, all, out[i].PortRange)
	}
	return out
}

// touching names the findings that have ports in a range.
func touching(list []*client.Finding, all []client.Finding, r scenarios.PortRange) []string {
	var out []string
	for _, f := range list {
		whole := f.Ports
		if len(f.LocalPorts) > 0 {
			whole = f.LocalPorts
		}
		if slices.ContainsFunc(whole, func(x scenarios.PortRange) bool { return x.First <= r.Last && r.First <= x.Last }) {
			out = append(out, reference(f, all))
		}
	}
	return out
}

func newStrip(title string, runs []stretch) strip {
	s := strip{Title: title}
	asked := 0
	for _, r := range runs {
		asked += int(r.Last) - int(r.First) + 1
	}
	s.Note = fmt.Sprintf("%s of paths that were tried; where the strip is grey, no path was", count(asked, "port"))
	if asked == 1<<16-1 {
		s.Note = "every port is one of a path that was tried"
	}
	s.Scales = append(s.Scales, newScale(runs, 1, 1<<16-1, title))
	for _, n := range neighbourhoods(runs) {
		s.Scales = append(s.Scales, newScale(runs, int(n.First), int(n.Last), fmt.Sprintf("%s, %s enlarged", title, n)))
	}
	for i, r := range runs {
		if i == maxChips {
			s.More = fmt.Sprintf("and %s more; the JSON result has them", count(len(runs)-i, "range"))
			break
		}
		s.Chips = append(s.Chips, chip{r.class(), r.String(), r.word(), few(r.paths)})
	}
	return s
}

// neighbourhoods are ranges with several runs that are hard to tell apart on the
// strip as a whole.
func neighbourhoods(runs []stretch) []scenarios.PortRange {
	var out []scenarios.PortRange
	for i := 0; i < len(runs); {
		j := i
		for j+1 < len(runs) && int(runs[j+1].First)-int(runs[j].Last) <= near && int(runs[j+1].Last)-int(runs[i].First) < 1<<12 {
			j++
		}
		if j > i && len(out) < maxNear {
			out = append(out, scenarios.PortRange{First: runs[i].First, Last: runs[j].Last})
		}
		i = j + 1
	}
	return out
}

func (s stretch) class() string {
	if s.differs {
		return "warn"
	}
	return classOf(s.verdict)
}

// newScale draws the runs between two ports.
func newScale(runs []stretch, first, last int, title string) scale {
	width := float64(last - first + 1)
	s := scale{}
	var said []string
	s.Ticks = ticks(first, last)
	for _, r := range coarse(runs, maxRuns) {
		from, to := max(int(r.First), first), min(int(r.Last), last)
		if from > to {
			continue
		}
		label := fmt.Sprintf("%s: %s (%s)", r, r.word(), few(r.paths))
		at, share := float64(from-first)/width, float64(to-from+1)/width
		m := mark{Class: r.class(), Label: label, X: percent(at), W: percent(share)}
		if share >= roomy {
			m.Text = &markText{percent(at + share/2), r.String()}
		}
		s.Runs = append(s.Runs, m)
		if len(said) < maxParts {
			said = append(said, fmt.Sprintf("%s %s", r, r.word()))
		}
	}
	s.Label = title + ": " + strings.Join(said, ", ")
	if more := len(s.Runs) - len(said); more > 0 {
		s.Label += fmt.Sprintf(", and %s more", count(more, "range"))
	}
	return s
}

// ticks are ports at quarters of a scale, or its ends where it is short.
func ticks(first, last int) []string {
	out := []string{Group(first)}
	if last-first >= 100 {
		for i := 1; i < 4; i++ {
			out = append(out, Group(first-1+i*(last-first+1)/4))
		}
	}
	return append(out, Group(last))
}

func percent(share float64) string { return strings.TrimSuffix(fmt.Sprintf("%.3f", 100*share), ".000") }

// coarse joins neighbours until there are no more runs than can be told apart.
func coarse(runs []stretch, most int) []stretch {
	out := runs
	for gap := 16; len(out) > most; gap *= 2 {
		var joined []stretch
		for _, r := range out {
			if n := len(joined); n > 0 && int(r.First)/gap == int(joined[n-1].First)/gap {
				last := &joined[n-1]
				last.differs = last.differs || r.differs || last.verdict != r.verdict
				last.Last = r.Last
				continue
			}
			joined = append(joined, r)
		}
		out = joined
	}
	return out
}
