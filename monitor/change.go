package monitor

import (
	"fmt"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// Changes tells in lines how a result differs from the one before of the same
// scenario and role: verdicts of the ports that changed, and outcomes with their
// ways, and expectations, but no times. Where old is nil, it tells all that does not pass or work.
func Changes(old, now *client.Result) []string {
	if old == nil {
		return failing(now)
	}
	// A reflector may have moved between rounds, which is no doubt about it.
	c, err := expect.Compare([]*client.Result{old}, []*client.Result{now}, expect.Options{AnyReflector: true})
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, p := range c.Pairs {
		for _, change := range p.Changes {
			out = append(out, report.ChangeLine(change))
		}
		for _, o := range p.Outcomes {
			out = append(out, fmt.Sprintf("%s: %s -> %s", o.Title, o.Old, o.New))
		}
	}
	return append(out, expectations(old, now)...)
}

// expectations tells which lines of a file of expectations fare otherwise than
// before.
func expectations(old, now *client.Result) (out []string) {
	before := make(map[string]client.State)
	for i := range old.Expectations {
		before[expected(&old.Expectations[i])] = old.Expectations[i].State
	}
	for i := range now.Expectations {
		x := &now.Expectations[i]
		if was, known := before[expected(x)]; known && was != x.State {
			out = append(out, fmt.Sprintf("%s: %s -> %s", expected(x), was, x.State))
		}
	}
	return out
}

// expected names what a line of a file expects something of: "office.yaml:6
// expects O-1 443/tcp open".
func expected(x *client.Expectation) string {
	of := x.Title
	if x.Path != "" {
		of = strings.TrimSpace(x.Path + " " + report.Where(&client.Finding{Ports: x.Ports, Transport: x.Transport}))
	}
	return fmt.Sprintf("%s:%d expects %s %s", x.File, x.Line, of, strings.Join(x.Expected, " or "))
}

// failing lists what does not pass or work. What cannot be measured from this
// end at all is not among it: run without --watch tells that.
func failing(r *client.Result) []string {
	var out []string
	for i := range r.Findings {
		f := &r.Findings[i]
		wanted := f.Need != scenarios.Negative || f.Verdict == client.Silent
		if !f.Survives() && wanted && f.Verdict != client.Unmeasured {
			out = append(out, fmt.Sprintf("%s: %s", strings.TrimSpace(f.Path+" "+report.Where(f)), f.Sentence()))
		}
	}
	for _, o := range r.Outcomes {
		switch {
		case o.Unknown && !o.Works:
			out = append(out, o.Title+": unknown")
		case !o.Works:
			out = append(out, o.Title+": fails")
		}
	}
	for i := range r.Expectations {
		if x := &r.Expectations[i]; x.State != client.Holds {
			out = append(out, fmt.Sprintf("%s: %s", expected(x), x.State))
		}
	}
	return out
}
