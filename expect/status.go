package expect

import (
	"fmt"
	"slices"
	"strings"
)

// A FailOn says which changes count as a failure beside what is required and broke.
type FailOn string

// The choices. FailOnBroke is always on.
const (
	FailOnBroke  FailOn = "broke"  // something required broke
	FailOnWorse  FailOn = "worse"  // anything broke or got worse, required or not
	FailOnOpened FailOn = "opened" // something is open that was not
	FailOnChange FailOn = "change" // any change
)

// FailOns lists the choices, mildest first.
var FailOns = []FailOn{FailOnBroke, FailOnWorse, FailOnOpened, FailOnChange}

// counts tells whether a change is a failure by one of the choices.
func (f FailOn) counts(k Kind, required bool) bool {
	switch f {
	case FailOnBroke:
		return k == Broke && required
	case FailOnWorse:
		return k == Broke || k == Worse
	case FailOnOpened:
		return k == Opened
	}
	return k != Untold
}

// Fails tells whether something changed that counts by one of the choices, or
// something required broke.
func (c Comparison) Fails(on ...FailOn) bool {
	counts := func(k Kind, required bool) bool {
		return slices.ContainsFunc(slices.Concat(on, []FailOn{FailOnBroke}), func(f FailOn) bool { return f.counts(k, required) })
	}
	for _, p := range c.Pairs {
		if slices.ContainsFunc(p.Changes, func(x Change) bool { return counts(x.Kind, x.Required) }) ||
			slices.ContainsFunc(p.Outcomes, func(x OutcomeChange) bool { return counts(x.Kind, x.Required) }) {
			return true
		}
	}
	return false
}

// Same tells whether nothing changed, as far as it could be told.
func (c Comparison) Same() bool {
	return !slices.ContainsFunc(c.Pairs, func(p Pair) bool { return len(p.Changes)+len(p.Outcomes) > 0 })
}

// Void tells whether nothing at all is proved.
func (c Comparison) Void() bool {
	return slices.ContainsFunc(c.Pairs, func(p Pair) bool { return len(p.Doubts) > 0 })
}

// Doubts says in sentences why the comparison proves nothing, or not all that
// it should. None: it stands.
func (c Comparison) Doubts() []string {
	var out []string
	for _, s := range c.OldOnly {
		out = append(out, fmt.Sprintf("%s was measured before and is not in the new results", s))
	}
	for _, p := range c.Pairs {
		out = append(out, p.Doubts...)
		if lost := p.lost(); len(lost) > 0 {
			out = append(out, fmt.Sprintf("%s as %s: what is required could be told before and cannot be told now: %s", p.Scenario, p.Role, strings.Join(lost, ", ")))
		}
	}
	return out
}

// lost names what is required and was known before, and is not known now.
func (p Pair) lost() []string {
	var out []string
	for _, c := range p.Changes {
		if c.Kind == Untold && c.Required && !unsure(c.Old.Verdict) && !slices.Contains(out, c.Path) {
			out = append(out, c.Path)
		}
	}
	for _, o := range p.Outcomes {
		if o.Kind == Untold && o.Required && !o.Old.Unknown {
			out = append(out, o.ID)
		}
	}
	return out
}
