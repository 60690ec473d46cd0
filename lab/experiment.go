package lab

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/wallprobe/wallprobe/scenarios"
)

//go:embed experiments/*.yaml
var experimentFiles embed.FS

// A Book is one file of experiments with one scenario.
type Book struct {
	Scenario    string       `yaml:"scenario"`
	Role        string       `yaml:"role"`
	Experiments []Experiment `yaml:"experiments"`
	Disputes    []Dispute    `yaml:"disputes"`
}

// An Experiment is a row of the catalogue: a firewall, and what the document
// says happens behind it.
type Experiment struct {
	ID       string        `yaml:"id"`
	Source   string        `yaml:"source"`
	Document string        `yaml:"document"`
	Quote    string        `yaml:"quote"`
	Firewall string        `yaml:"firewall"` // or variants
	Variants []Variant     `yaml:"variants"`
	Expect   []Expectation `yaml:"expect"`
	Apart    bool          `yaml:"apart"`  // run on the paths that are expected or shown alone
	Bytes    int64         `yaml:"bytes"`  // that a transfer has by the document; 0 says nothing of it
	Report   []string      `yaml:"report"` // outcomes to tell of beyond those expected
	Tell     []string      `yaml:"tell"`   // paths of which to tell what was measured
	Show     []string      `yaml:"show"`   // paths whose findings are the evidence
	Beyond   string        `yaml:"beyond"` // what of the statement is not measured
}

// A Variant is the same experiment behind another reading of its rule, or from
// another end.
type Variant struct {
	Name     string        `yaml:"name"`
	Firewall string        `yaml:"firewall"`
	Role     string        `yaml:"role"`   // empty is the book's
	Quote    string        `yaml:"quote"`  // empty is the experiment's
	Expect   []Expectation `yaml:"expect"` // none are the experiment's
}

// An Expectation is what a document says, in one of three forms: of an outcome
// ("works"), of a path or a part of one ("passes"), or of the delay on some
// paths, compared with that behind another firewall.
type Expectation struct {
	Outcome string `yaml:"outcome"`
	Works   *bool  `yaml:"works"`

	Path   string `yaml:"path"`
	Part   string `yaml:"part"` // a protocol's variant; empty is the whole path
	Passes *bool  `yaml:"passes"`

	Slower []string `yaml:"slower"` // paths
	Than   string   `yaml:"than"`   // firewall
}

// A Dispute is two statements about one state that cannot both hold.
type Dispute struct {
	Title       string   `yaml:"title"`
	Experiments []string `yaml:"experiments"`
	Firewall    string   `yaml:"firewall"`
	Sides       []Side   `yaml:"sides"`
	Note        string   `yaml:"note"`
}

// A Side is one of the statements.
type Side struct {
	Source string        `yaml:"source"`
	Says   string        `yaml:"says"`
	Expect []Expectation `yaml:"expect"`
}

// Status is how a measurement compares with a document.
type Status string

// The statuses.
const (
	Confirmed    Status = "confirmed"
	Contradicted Status = "contradicted"
	Unmeasured   Status = "unmeasured"
)

// Books reads all experiments and checks them against scenarios and firewalls.
func Books() ([]Book, error) {
	files, err := fs.Glob(experimentFiles, "experiments/*.yaml")
	if err != nil {
		return nil, err
	}
	var out []Book
	for _, name := range files {
		b, err := experimentFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var book Book
		d := yaml.NewDecoder(bytes.NewReader(b))
		d.KnownFields(true)
		if err := d.Decode(&book); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := book.check(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, book)
	}
	return out, nil
}

func (b *Book) check() error {
	s, err := scenarios.Load(b.Scenario)
	if err != nil {
		return err
	}
	for _, f := range b.firewalls() {
		if _, err := OpenFirewall(f); err != nil {
			return err
		}
	}
	for _, x := range b.Experiments {
		for _, v := range x.All() {
			if err := known(s, cmp.Or(v.Role, b.Role), x.Expected(v)); err != nil {
				return fmt.Errorf("experiment %s: %w", x.ID, err)
			}
			for _, e := range x.Expected(v) {
				if e.Than != "" && e.Than != x.Against(v) {
					return fmt.Errorf("experiment %s: compares with %s and with %s", x.ID, x.Against(v), e.Than)
				}
			}
		}
		for _, id := range append(slices.Clone(x.Tell), x.Show...) {
			if !hasPath(s, id) {
				return fmt.Errorf("experiment %s: scenario %s has no path %s", x.ID, s.Name, id)
			}
		}
	}
	for _, d := range b.Disputes {
		for _, side := range d.Sides {
			if err := known(s, b.Role, side.Expect); err != nil {
				return fmt.Errorf("dispute %q: %w", d.Title, err)
			}
		}
	}
	return nil
}

func hasPath(s *scenarios.Scenario, id string) bool {
	return slices.ContainsFunc(s.Paths, func(p scenarios.Path) bool { return p.ID == id })
}

// known checks expectations against a scenario and the near end that measures.
func known(s *scenarios.Scenario, role string, list []Expectation) error {
	if !slices.Contains(s.NearRoles(), role) {
		return fmt.Errorf("scenario %s has no near end %q", s.Name, role)
	}
	for _, e := range list {
		if err := e.check(); err != nil {
			return err
		}
		if e.Outcome != "" && !slices.ContainsFunc(s.Outcomes, func(o scenarios.Outcome) bool {
			return o.ID == e.Outcome && slices.Contains(o.Roles, role)
		}) {
			return fmt.Errorf("scenario %s has no outcome %s for %s", s.Name, e.Outcome, role)
		}
		for _, id := range e.paths() {
			if !slices.ContainsFunc(s.PathsFor(role), func(p scenarios.Path) bool { return p.ID == id }) {
				return fmt.Errorf("scenario %s has no path %s from %s", s.Name, id, role)
			}
		}
	}
	return nil
}

// check refuses an expectation that is not of exactly one form.
func (e Expectation) check() error {
	outcome := e.Outcome != "" && e.Works != nil
	path := e.Path != "" && e.Passes != nil
	slower := len(e.Slower) > 0 && e.Than != ""
	begun := []bool{e.Outcome != "" || e.Works != nil, e.Path != "" || e.Passes != nil || e.Part != "", len(e.Slower) > 0 || e.Than != ""}
	if !slices.Equal(begun, []bool{outcome, path, slower}) || len(slices.DeleteFunc(begun, func(b bool) bool { return !b })) != 1 {
		return errors.New("an expectation has an outcome and works, or a path and passes, or slower and than")
	}
	return nil
}

// paths are those that the expectation is about.
func (e Expectation) paths() []string {
	if e.Path != "" {
		return []string{e.Path}
	}
	return e.Slower
}

func (b *Book) firewalls() []string {
	var out []string
	for _, x := range b.Experiments {
		for _, v := range x.All() {
			if out = append(out, v.Firewall); x.Against(v) != "" {
				out = append(out, x.Against(v))
			}
		}
	}
	for _, d := range b.Disputes {
		out = append(out, d.Firewall)
	}
	return out
}

// All are the experiment's variants; one without a name when it has none.
func (x Experiment) All() []Variant {
	if len(x.Variants) > 0 {
		return x.Variants
	}
	return []Variant{{Firewall: x.Firewall}}
}

// Expected is what the document says of a variant.
func (x Experiment) Expected(v Variant) []Expectation {
	if len(v.Expect) > 0 {
		return v.Expect
	}
	return x.Expect
}

// Alone are the paths of an experiment that is run on nothing else, lest other
// paths be in the way, as of those about speed or size; none are all of them.
func (x Experiment) Alone(v Variant) []string {
	var out []string
	for _, e := range x.Expected(v) {
		if x.Apart || x.Bytes > 0 || len(e.Slower) > 0 {
			out = append(out, e.paths()...)
		}
	}
	if x.Apart {
		out = append(out, x.Show...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Against is the firewall with which a variant's measurement is compared, "" when
// there is none.
func (x Experiment) Against(v Variant) string {
	for _, e := range x.Expected(v) {
		if e.Than != "" {
			return e.Than
		}
	}
	return ""
}

// Match tells whether an id is meant by one of the patterns, as a shell would; no pattern means all.
func Match(patterns []string, id string) (bool, error) {
	for _, p := range patterns {
		ok, err := path.Match(p, id)
		if err != nil {
			return false, fmt.Errorf("pattern %q: %w", p, err)
		}
		if ok {
			return true, nil
		}
	}
	return len(patterns) == 0, nil
}
