// Package expect holds results against what was expected of them: Compare
// against earlier results, Check against a file that somebody wrote. Both are
// pure: strict in verdicts, blind to times unless asked.
package expect

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// ComparisonSchema names the JSON form of a Comparison. It only ever grows.
const ComparisonSchema = "wallprobe/comparison/1"

// A Comparison is what changed from old results to new ones.
type Comparison struct {
	Schema  string    `json:"schema"`
	Pairs   []Pair    `json:"pairs"`             // what was measured in both, in the order of the new
	OldOnly []Subject `json:"oldOnly,omitempty"` // measured before and no longer
	NewOnly []Subject `json:"newOnly,omitempty"` // not measured before
}

// A Subject is what one result is about.
type Subject struct {
	Scenario string `json:"scenario"`
	Role     string `json:"role"`
	Family   string `json:"family"`
	Firewall string `json:"firewall,omitempty"` // where the program made it itself
}

// String is the subject in words.
func (s Subject) String() string {
	text := fmt.Sprintf("%s as %s over %s", s.Scenario, s.Role, s.Family)
	if s.Firewall != "" {
		text += " behind " + s.Firewall
	}
	return text
}

// A Pair is one scenario from one near end, measured twice.
type Pair struct {
	Scenario string          `json:"scenario"`
	Version  int             `json:"version"` // of the scenario
	Role     string          `json:"role"`
	Family   string          `json:"family"`
	Old      Measured        `json:"old"`
	New      Measured        `json:"new"`
	Paths    int             `json:"paths"` // compared; a path over two transports counts twice
	Ports    int             `json:"ports"` // compared, over all paths
	Changes  []Change        `json:"changes,omitempty"`
	Outcomes []OutcomeChange `json:"outcomes,omitempty"`
	Doubts   []string        `json:"doubts,omitempty"` // why it proves nothing, in sentences
}

// Measured tells one side of a pair from the other.
type Measured struct {
	Firewall  string     `json:"firewall,omitempty"`
	Reflector netip.Addr `json:"reflector,omitzero"`
	Started   time.Time  `json:"started,omitzero"`
}

// A Kind says which way something changed.
type Kind string

// The kinds. Only those that are told of both sides say anything of a firewall.
const (
	Broke     Kind = "broke"     // passed or worked, and no longer does
	Worse     Kind = "worse"     // still passes or works, but less well
	Opened    Kind = "opened"    // did not pass or work, and does now
	Better    Kind = "better"    // passes or works better than before, or is closed as its document wants it
	Different Kind = "different" // passed neither time, stopped another way

	// Rejection: rejected both times, but by another kind of rejection. A reset
	// ends an attempt at once, and some programs wait on after an ICMP error; but
	// nothing gets through either way, so it is not Worse, and a failure only for
	// those whom any change concerns.
	Rejection Kind = "rejection"
	Untold    Kind = "untold" // could not be told one of the two times
)

// A Change is the ports of one path and transport that changed alike.
type Change struct {
	Kind      Kind                `json:"kind"`
	Required  bool                `json:"required"` // by the path's need; of what broke, only where the path as a whole does not survive
	Path      string              `json:"path"`
	Title     string              `json:"title"`
	Need      scenarios.Need      `json:"need"`
	Direction scenarios.Direction `json:"direction"`
	Transport scenarios.Transport `json:"transport,omitempty"`
	Ports     scenarios.PortSet   `json:"ports,omitempty"`   // exactly those that changed
	Own       bool                `json:"own,omitempty"`     // they are the near end's own ports
	Targets   []string            `json:"targets,omitempty"` // where not all of the path's changed alike
	Old       State               `json:"old"`
	New       State               `json:"new"`
}

// A State is how ports fared on one side. An empty verdict: not in the result.
type State struct {
	Verdict   client.Verdict    `json:"verdict,omitempty"`
	Why       string            `json:"why,omitempty"`       // where all of the ports have the same
	Rejection string            `json:"rejection,omitempty"` // "tcp reset", "icmp admin-prohibited"; where that is what changed
	DecidedBy []client.Decision `json:"decidedBy,omitempty"`
}

// An OutcomeChange is an outcome that no longer fares as it did.
type OutcomeChange struct {
	Kind     Kind         `json:"kind"`
	Required bool         `json:"required"` // not optional
	ID       string       `json:"id"`
	Title    string       `json:"title"`
	Old      OutcomeState `json:"old"`
	New      OutcomeState `json:"new"`
}

// An OutcomeState is how an outcome fared on one side.
type OutcomeState struct {
	Works   bool   `json:"works"`
	Unknown bool   `json:"unknown,omitempty"`
	Way     int    `json:"way,omitempty"` // that won, from 1, where there are several
	Via     string `json:"via,omitempty"` // its title
	Why     string `json:"why,omitempty"` // what stops the ways before it, or all
}

// String is the state in words: "works by way 2, relayed", "fails".
func (s OutcomeState) String() string {
	if s.Works && s.Way > 0 {
		return s.Short() + ", " + s.Via
	}
	return s.Short()
}

// Short is the state without the way's title.
func (s OutcomeState) Short() string {
	switch {
	case s.Works && s.Way > 0:
		return fmt.Sprintf("works by way %d", s.Way)
	case s.Works:
		return "works"
	case s.Unknown:
		return "unknown"
	}
	return "fails"
}

// Options say what counts as a change. The zero value is strict in verdicts
// and blind to times.
type Options struct {
	Slower       time.Duration // a round trip that grew by more is worse; 0: never
	AnyReflector bool          // two far ends are no reason for doubt
}

// LossTolerance is by how much the shares of lost datagrams must differ, 0 to
// 1, for open and degraded to count as different: near a limit, chance alone
// decides between the two.
const LossTolerance = 0.10

// Compare tells what changed. Results are paired by scenario, role and address
// family; where one side has several of those, by the name of the firewall. The
// error says why the two cannot be compared at all: nothing in common, or other
// versions of a scenario.
func Compare(old, new []*client.Result, o Options) (Comparison, error) {
	c := Comparison{Schema: ComparisonSchema, Pairs: []Pair{}}
	var errs []error
	pairs, oldOnly, newOnly := pairUp(old, new)
	for _, p := range pairs {
		if p.old.Version != p.new.Version {
			errs = append(errs, fmt.Errorf("scenario %s: version %d in the old result, %d in the new: their paths may mean different things; measure the old side again", p.new.Scenario, p.old.Version, p.new.Version))
			continue
		}
		c.Pairs = append(c.Pairs, comparePair(p.old, p.new, o))
	}
	for _, r := range oldOnly {
		c.OldOnly = append(c.OldOnly, SubjectOf(r))
	}
	for _, r := range newOnly {
		c.NewOnly = append(c.NewOnly, SubjectOf(r))
	}
	if len(pairs) == 0 {
		errs = append(errs, fmt.Errorf("nothing was measured both times: old %s; new %s", list(c.OldOnly), list(c.NewOnly)))
	}
	return c, errors.Join(errs...)
}

func list(subjects []Subject) string {
	if len(subjects) == 0 {
		return "has no results"
	}
	var out []string
	for _, s := range subjects {
		out = append(out, s.String())
	}
	return "has " + strings.Join(out, ", ")
}

// SubjectOf is what a result is about.
func SubjectOf(r *client.Result) Subject {
	s := Subject{Scenario: r.Scenario, Role: r.Role, Family: r.Family}
	if r.Firewall != nil {
		s.Firewall = r.Firewall.Name
	}
	return s
}

type pair struct{ old, new *client.Result }

// pairUp finds the old result for each new one: behind the firewall of the same
// name, or else the only one that is left.
func pairUp(old, new []*client.Result) (pairs []pair, oldOnly, newOnly []*client.Result) {
	taken := make(map[*client.Result]bool)
	partner := make(map[*client.Result]*client.Result)
	match := func(r *client.Result, same func(Subject) Subject) {
		var found []*client.Result
		for _, o := range old {
			if !taken[o] && same(SubjectOf(o)) == same(SubjectOf(r)) {
				found = append(found, o)
			}
		}
		if len(found) > 0 {
			partner[r], taken[found[0]] = found[0], true
		}
	}
	whole := func(s Subject) Subject { return s }
	nameless := func(s Subject) Subject { s.Firewall = ""; return s }
	for _, r := range new {
		match(r, whole)
	}
	for _, r := range new {
		if partner[r] == nil && alone(r, new, partner, nameless) {
			match(r, nameless)
		}
		if partner[r] == nil {
			newOnly = append(newOnly, r)
			continue
		}
		pairs = append(pairs, pair{partner[r], r})
	}
	for _, o := range old {
		if !taken[o] {
			oldOnly = append(oldOnly, o)
		}
	}
	return pairs, oldOnly, newOnly
}

// alone tells whether no other result without a partner is about the same.
func alone(r *client.Result, all []*client.Result, partner map[*client.Result]*client.Result, same func(Subject) Subject) bool {
	return !slices.ContainsFunc(all, func(x *client.Result) bool {
		return x != r && partner[x] == nil && same(SubjectOf(x)) == same(SubjectOf(r))
	})
}

func comparePair(old, new *client.Result, o Options) Pair {
	p := Pair{Scenario: new.Scenario, Version: new.Version, Role: new.Role, Family: new.Family, Old: measured(old), New: measured(new)}
	for _, f := range both(old.Findings, new.Findings) {
		changes, ports := compareFinding(f.old, f.new, o)
		p.Changes = append(p.Changes, changes...)
		p.Paths++
		p.Ports += ports
	}
	for i := range new.Outcomes {
		x := &new.Outcomes[i]
		at := slices.IndexFunc(old.Outcomes, func(y client.Outcome) bool { return y.ID == x.ID })
		if at < 0 {
			continue // not asked before
		}
		if c, changed := compareOutcome(&old.Outcomes[at], x); changed {
			p.Outcomes = append(p.Outcomes, c)
		}
	}
	p.Doubts = doubts(old, new, o)
	return p
}

func measured(r *client.Result) Measured {
	return Measured{Firewall: SubjectOf(r).Firewall, Reflector: r.Reflector, Started: r.Started}
}

// doubts say why a pair proves nothing.
func doubts(old, new *client.Result, o Options) []string {
	var out []string
	for _, side := range []struct {
		name string
		r    *client.Result
	}{{"old", old}, {"new", new}} {
		if why := Void(side.r); why != "" {
			out = append(out, fmt.Sprintf("the %s result of %s proves nothing: %s", side.name, SubjectOf(side.r), why))
		}
	}
	if old.Reflector != new.Reflector && !o.AnyReflector {
		out = append(out, fmt.Sprintf("%s was measured against two reflectors, %s and %s: what differs may be theirs and not the firewall's", SubjectOf(new), old.Reflector, new.Reflector))
	}
	return out
}

// Void says why a result proves nothing, or is empty: it was cut off half-way,
// or the two ends never spoke with each other.
func Void(r *client.Result) string {
	switch {
	case !r.Complete:
		return "it was cut off half-way (" + cmp.Or(r.Why, "no reason is given") + "); measure again"
	case r.Control.Via == "" && len(r.Ledgers) == 0:
		return "the reflector was not reached, so that silence may mean anything; join the reflector's journal with wallprobe merge, or measure again"
	}
	return ""
}

type findings struct{ old, new *client.Finding }

// both lays findings of one path and transport side by side, in the order of
// the new; one of them may be nil.
func both(old, new []client.Finding) []findings {
	type key struct {
		path      string
		transport scenarios.Transport
	}
	at := make(map[key]*client.Finding)
	for i := range old {
		at[key{old[i].Path, old[i].Transport}] = &old[i]
	}
	var out []findings
	for i := range new {
		k := key{new[i].Path, new[i].Transport}
		out = append(out, findings{at[k], &new[i]})
		delete(at, k)
	}
	for i := range old {
		if at[key{old[i].Path, old[i].Transport}] == &old[i] {
			out = append(out, findings{&old[i], nil})
		}
	}
	return out
}

func compareOutcome(old, new *client.Outcome) (OutcomeChange, bool) {
	c := OutcomeChange{Required: !new.Optional, ID: new.ID, Title: new.Title, Old: outcomeState(old), New: outcomeState(new)}
	switch {
	case old.Unknown != new.Unknown:
		c.Kind = Untold
	case old.Works && !new.Works:
		c.Kind = Broke
	case !old.Works && new.Works:
		c.Kind = Opened
	case c.Old.Way < c.New.Way:
		c.Kind = Worse
	case c.Old.Way > c.New.Way:
		c.Kind = Better
	}
	return c, c.Kind != ""
}

func outcomeState(o *client.Outcome) OutcomeState {
	s := OutcomeState{Works: o.Works, Unknown: o.Unknown, Via: o.Via, Why: o.Why}
	if o.Works && len(o.Ways) > 1 {
		s.Way = 1 + slices.IndexFunc(o.Ways, func(w client.Way) bool { return w.Title == o.Via })
	}
	return s
}
