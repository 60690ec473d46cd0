package lab

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/wallprobe/wallprobe/client"
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
	Report   []string      `yaml:"report"` // outcomes to tell of beyond those expected
	Show     []string      `yaml:"show"`   // paths whose findings are the evidence
	Beyond   string        `yaml:"beyond"` // what of the statement is not measured
}

// A Variant is the same experiment behind another reading of its rule.
type Variant struct {
	Name     string `yaml:"name"`
	Firewall string `yaml:"firewall"`
}

// An Expectation is what a document says of an outcome.
type Expectation struct {
	Outcome string `yaml:"outcome"`
	Works   bool   `yaml:"works"`
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
	known := func(list []Expectation) error {
		for _, e := range list {
			if !slices.ContainsFunc(s.Outcomes, func(o scenarios.Outcome) bool { return o.ID == e.Outcome }) {
				return fmt.Errorf("scenario %s has no outcome %s", s.Name, e.Outcome)
			}
		}
		return nil
	}
	for _, x := range b.Experiments {
		if err := known(x.Expect); err != nil {
			return fmt.Errorf("experiment %s: %w", x.ID, err)
		}
		for _, id := range x.Show {
			if !slices.ContainsFunc(s.Paths, func(p scenarios.Path) bool { return p.ID == id }) {
				return fmt.Errorf("experiment %s: scenario %s has no path %s", x.ID, s.Name, id)
			}
		}
	}
	for _, d := range b.Disputes {
		for _, side := range d.Sides {
			if err := known(side.Expect); err != nil {
				return fmt.Errorf("dispute %q: %w", d.Title, err)
			}
		}
	}
	return nil
}

func (b *Book) firewalls() []string {
	var out []string
	for _, x := range b.Experiments {
		for _, v := range x.All() {
			out = append(out, v.Firewall)
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

// Compare holds what was measured against what the document says.
func (x Experiment) Compare(r *client.Result) (s Status, measured, reason string) {
	s, reason = compare(x.Expect, r)
	var said []string
	for _, e := range x.Expect {
		said = append(said, tell(r, e.Outcome))
	}
	for _, id := range x.Report {
		said = append(said, tell(r, id))
	}
	if x.Beyond != "" {
		if reason != "" {
			reason += "; "
		}
		reason += x.Beyond
	}
	return s, strings.Join(said, "; "), reason
}

// compare judges expectations against outcomes.
func compare(list []Expectation, r *client.Result) (Status, string) {
	if len(list) == 0 {
		return Unmeasured, ""
	}
	status, why := Confirmed, []string(nil)
	for _, e := range list {
		o := outcomeOf(r, e.Outcome)
		switch {
		case !r.Complete:
			return Unmeasured, "the run did not come to its end: " + r.Why
		case o == nil:
			return Unmeasured, "the scenario has no outcome " + e.Outcome
		case o.Unknown:
			return Unmeasured, o.Title + ": " + o.Why
		case o.Works != e.Works:
			status = Contradicted
			why = append(why, strings.TrimSuffix(fmt.Sprintf("%s: %s", o.Title, o.Why), ": "))
		}
	}
	return status, strings.Join(why, "; ")
}

func outcomeOf(r *client.Result, id string) *client.Outcome {
	for i := range r.Outcomes {
		if r.Outcomes[i].ID == id {
			return &r.Outcomes[i]
		}
	}
	return nil
}

// tell says how an outcome came out.
func tell(r *client.Result, id string) string {
	o := outcomeOf(r, id)
	switch {
	case o == nil:
		return id + " was not measured"
	case o.Works:
		return fmt.Sprintf("%s works, by way of %s", o.Title, o.Via)
	case o.Unknown:
		return o.Title + " is unknown"
	}
	return o.Title + " fails"
}

// Supported gives the sides that the measurement supports.
func (d Dispute) Supported(r *client.Result) []Side {
	var out []Side
	for _, s := range d.Sides {
		if status, _ := compare(s.Expect, r); status == Confirmed {
			out = append(out, s)
		}
	}
	return out
}
