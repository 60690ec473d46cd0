package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/scenarios"
)

// maxTries is how often what is doubtful is measured before it is told.
const maxTries = 3

// surely measures, behind one firewall or side by side behind several, and again
// the paths of what is doubtful, with more time: a busy machine loses packets of
// its own. What is doubtful hangs on the results and on how often they were tried,
// and so does whether anything of it is hidden: of what a firewall may have done,
// nothing must be doubtful.
func surely(
	ctx context.Context, m lab.Measurement,
	measure func(context.Context, lab.Measurement) ([][]*client.Result, error),
	doubtful func(results [][]*client.Result, try int) ([]string, error),
	replaces func(client.Finding) bool,
	tell func(string),
) ([][]*client.Result, error) {
	results, err := measure(ctx, m)
	for try := 1; err == nil && try < maxTries; try++ {
		paths, wrong := doubtful(results, try)
		if wrong != nil || len(paths) == 0 {
			return results, wrong
		}
		tell(fmt.Sprintf("measuring %s again, to be sure", strings.Join(paths, ", ")))
		again := m
		again.Timeout, again.Paths = 2*m.Timeout, slices.Concat(paths, carriers(m.Scenarios, paths))
		if again.Scenarios, err = confined(m.Scenarios, again.Paths); err != nil {
			return results, err
		}
		var more [][]*client.Result
		if more, err = measure(ctx, again); err != nil {
			return results, err
		}
		for i := range results {
			for _, r := range results[i] {
				replace(m.Scenarios, r, more[i], try, func(f client.Finding) bool { return slices.Contains(paths, f.Path) && replaces(f) })
			}
		}
	}
	return results, err
}

// carriers are paths over which the two ends can speak with each other: a call
// from outside has to be asked for. There are none where no path needs that.
func carriers(list []*scenarios.Scenario, paths []string) (ids []string) {
	for _, s := range list {
		called := slices.ContainsFunc(s.Paths, func(p scenarios.Path) bool {
			return p.Direction == scenarios.In && slices.Contains(paths, p.ID)
		})
		for _, p := range s.Paths {
			if called && p.Direction == scenarios.Out && slices.Contains(p.Transport, scenarios.TCP) && p.Ports.Len() == 1 {
				ids = append(ids, p.ID)
			}
		}
	}
	return ids
}

// replace puts findings that were measured again in the place of the first ones,
// unless they say less.
func replace(list []*scenarios.Scenario, r *client.Result, again []*client.Result, round int, which func(client.Finding) bool) {
	for _, a := range again {
		if a.Scenario != r.Scenario || a.Role != r.Role || !a.Complete {
			continue
		}
		r.Seconds += a.Seconds
		for _, f := range a.Findings {
			at := slices.IndexFunc(r.Findings, func(o client.Finding) bool { return o.Path == f.Path && o.Transport == f.Transport })
			if at >= 0 && which(r.Findings[at]) && (told(f) || !told(r.Findings[at])) {
				r.Replace(at, f, a, round)
			}
		}
	}
	for _, s := range list {
		if s.Name == r.Scenario {
			r.Outcomes = client.Outcomes(s, r.Role, r.Findings)
		}
	}
}

// told tells whether a finding says how its path fares.
func told(f client.Finding) bool {
	return f.Verdict != client.Unmeasured && f.Verdict != client.Silent
}

// unexplained are the paths that are not open although no rule of the lab's
// firewall can have stopped them, and those that nobody could be asked to call.
func unexplained(results []*client.Result) (ids []string) {
	for _, r := range results {
		for _, f := range r.Findings {
			if r.Complete && (isUnexplained(f) || uncalled(r, f)) && !slices.Contains(ids, f.Path) {
				ids = append(ids, f.Path)
			}
		}
	}
	return ids
}

// uncalled tells whether a call from outside was not asked for, since control came
// when the probes were under way already, as on a busy machine.
func uncalled(r *client.Result, f client.Finding) bool {
	return r.Offline && r.Control.Via != "" && f.Direction == scenarios.In && f.Verdict == client.Unmeasured
}

func isUnexplained(f client.Finding) bool {
	return f.Unexplained || slices.ContainsFunc(f.Parts, func(p client.Part) bool { return p.Unexplained })
}

// measureSurely measures behind a firewall, and again what no rule of it explains
// and what nobody could be asked to call. If that cannot be done, what was measured
// first stands.
func measureSurely(ctx context.Context, m lab.Measurement, measure func(context.Context, lab.Measurement) ([]*client.Result, error)) ([]*client.Result, error) {
	if len(m.Client) > 0 { // large transfers and long silences take their time
		return measure(ctx, m)
	}
	first := true
	results, err := surely(ctx, m, func(ctx context.Context, m lab.Measurement) ([][]*client.Result, error) {
		results, err := measure(ctx, m)
		if !first && err != nil {
			return [][]*client.Result{nil}, ctx.Err()
		}
		first = false
		return [][]*client.Result{results}, err
	}, func(results [][]*client.Result, _ int) ([]string, error) { return unexplained(results[0]), nil },
		func(f client.Finding) bool { return isUnexplained(f) || !told(f) }, func(string) {})
	return results[0], err
}
