package expect

import (
	_ "embed" // for the source of the types
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// SchemaID is the value of the key schema in files of expectations.
const SchemaID = "wallprobe/expect/1"

// A File says what is expected of runs.
type File struct {
	Schema string `yaml:"schema" form:"schema"`
	Runs   []Run  `yaml:"runs"` // one for each scenario and near end

	name   string
	parsed *scenarios.Parsed
}

// A Run is what is expected of one scenario from one near end.
type Run struct {
	Scenario string    `yaml:"scenario" form:"name"`
	Version  int       `yaml:"version" limit:"1-1000000"`      // of the scenario
	Role     string    `yaml:"role,omitempty" form:"name"`     // near end; by default the scenario's first
	Family   Family    `yaml:"family,omitempty"`               // by default both
	Firewall string    `yaml:"firewall,omitempty" form:"line"` // only behind this one of several
	Others   Others    `yaml:"others,omitempty"`               // what holds for outcomes that are not mentioned; by default ignored
	Paths    []Path    `yaml:"paths,omitempty"`
	Outcomes []Outcome `yaml:"outcomes,omitempty"`
}

// A Family is a family of addresses.
type Family string

// The families, as in results.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Others says what is expected of outcomes that a Run does not mention.
type Others string

// The choices. Paths that are not mentioned never count by themselves.
const (
	Ignored    Others = "ignored"     // nothing
	AsScenario Others = "as-scenario" // that they work, unless optional: as without any expectation
)

// A Path is what is acceptable on one path, or on some of its ports.
type Path struct {
	Path      string              `yaml:"path" form:"id"`               // id in the scenario
	Transport scenarios.Transport `yaml:"transport,omitempty"`          // by default all that the path has
	Ports     scenarios.PortSet   `yaml:"ports,omitempty"`              // by default all; of a path that limits its own ports, those
	Target    string              `yaml:"target,omitempty" form:"line"` // name or address, where the path has several
	Verdicts  []client.Verdict    `yaml:"verdicts"`                     // each port must have one of them
}

// An Outcome is what is expected of one outcome.
type Outcome struct {
	Outcome string `yaml:"outcome" form:"name"` // id in the scenario
	Works   bool   `yaml:"works"`
	Way     int    `yaml:"way,omitempty" limit:"1-1000"` // the number of the way that must win, or one before it
}

// typesSource is read for the comments of the fields, which become the help
// texts of editors.
//
//go:embed file.go
var typesSource []byte

var format = &scenarios.Format{
	What: "a file of expectations", ID: SchemaID, Source: typesSource,
	Enums: map[reflect.Type][]string{
		reflect.TypeFor[client.Verdict](): acceptable(),
		reflect.TypeFor[Family]():         {string(IPv4), string(IPv6)},
		reflect.TypeFor[Others]():         {string(Ignored), string(AsScenario)},
	},
}

// acceptable are the verdicts that prove something about a port.
func acceptable() []string {
	var out []string
	for _, v := range client.Verdicts {
		if !unsure(v) && v != client.Partial {
			out = append(out, string(v))
		}
	}
	return out
}

// Schema returns the JSON Schema of files of expectations, for editors.
func Schema() ([]byte, error) { return format.Schema(reflect.TypeFor[File]()) }

// Load reads a file of expectations. The error is of type scenarios.Errors if
// it was read but is not valid.
func Load(name string) (*File, error) {
	data, err := scenarios.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("expectations: %w", err)
	}
	return Parse(name, data)
}

// Parse reads expectations strictly. name is only the name in messages.
func Parse(name string, data []byte) (*File, error) {
	f := &File{name: name}
	f.parsed = format.Parse(name, data, f)
	if f.parsed.Read() {
		f.check()
	}
	err := f.parsed.Err()
	if errs, ok := errors.AsType[scenarios.Errors](err); ok && f.Schema == "" && f.parsed.Has("schema") {
		return nil, f.foreign(errs)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// foreign is what is wrong with a file of another kind: nothing but that.
func (f *File) foreign(errs scenarios.Errors) error {
	line := f.parsed.Line("schema")
	at := slices.IndexFunc(errs, func(p scenarios.Problem) bool { return p.Line == line && strings.HasPrefix(p.Message, `"schema"`) })
	if at < 0 {
		return errs
	}
	p := errs[at]
	if strings.Contains(p.Message, strconv.Quote(client.ResultSchema)) {
		p.Message += "; make one from this result: wallprobe expect " + f.name + " >FILE"
	}
	return scenarios.Errors{p}
}

func place(run int, rest ...string) string {
	return strings.Join(append([]string{"runs", strconv.Itoa(run)}, rest...), "/")
}

func pathPlace(run, path int, rest ...string) string {
	return place(run, append([]string{"paths", strconv.Itoa(path)}, rest...)...)
}

func outcomePlace(run, outcome int, rest ...string) string {
	return place(run, append([]string{"outcomes", strconv.Itoa(outcome)}, rest...)...)
}

// check notes what is wrong between values that are right by themselves.
func (f *File) check() {
	for i, r := range f.Runs {
		if !f.parsed.Has(place(i, "paths")) && !f.parsed.Has(place(i, "outcomes")) && r.Scenario != "" {
			f.parsed.Problem(place(i), "nothing is expected of this run; give it paths or outcomes")
		}
		if r.denies() && !slices.ContainsFunc(r.Paths, Path.allows) && r.readWell() {
			f.parsed.Problem(place(i), "only what does not pass is expected here, which a cable that is out would fulfil: add a path that is expected open, as a positive control")
		}
		f.checkOverlaps(i, r)
		for j, o := range r.Outcomes {
			if o.Way > 0 && !o.Works {
				f.parsed.Problem(outcomePlace(i, j, "way"), "\"way\" is only for an outcome that works")
			}
		}
	}
}

// readWell tells whether every path's verdicts could be read.
func (r Run) readWell() bool {
	return !slices.ContainsFunc(r.Paths, func(p Path) bool { return len(p.Verdicts) == 0 || slices.Contains(p.Verdicts, "") })
}

// denies tells whether anything is expected that does not pass.
func (r Run) denies() bool {
	return slices.ContainsFunc(r.Paths, Path.denies) || slices.ContainsFunc(r.Outcomes, func(o Outcome) bool { return !o.Works })
}

// allows tells whether a path is expected to pass, whatever else is acceptable.
func (p Path) allows() bool { return slices.ContainsFunc(p.Verdicts, client.Verdict.Passes) }

// denies tells whether a path is expected not to pass.
func (p Path) denies() bool { return len(p.Verdicts) > 0 && !p.allows() }

// checkOverlaps notes ports of which a run speaks twice.
func (f *File) checkOverlaps(run int, r Run) {
	type key struct{ path, target string }
	seen := make(map[key][]int)
	for j, p := range r.Paths {
		k := key{p.Path, p.Target}
		for _, i := range seen[k] {
			q := r.Paths[i]
			if p.Transport != "" && q.Transport != "" && p.Transport != q.Transport {
				continue
			}
			if shared := p.Ports.Intersect(q.Ports); len(shared) > 0 || p.Ports == nil || q.Ports == nil {
				what := ""
				if len(shared) > 0 {
					what = " ports " + shared.String()
				}
				f.parsed.Problem(pathPlace(run, j), "path %s%s was spoken of on line %d already", p.Path, what, f.parsed.Line(pathPlace(run, i)))
				break
			}
		}
		seen[k] = append(seen[k], j)
	}
	outcomes := make(map[string]int)
	for j, o := range r.Outcomes {
		if i, twice := outcomes[o.Outcome]; twice {
			f.parsed.Problem(outcomePlace(run, j), "outcome %s was spoken of on line %d already", o.Outcome, f.parsed.Line(outcomePlace(run, i)))
			continue
		}
		outcomes[o.Outcome] = j
	}
}

// Fit checks a file against the scenarios that are measured, before anything
// is: every run must be of one of them, of its version, and every path, port
// and outcome must exist. The error is of type scenarios.Errors.
func (f *File) Fit(known []*scenarios.Scenario) error {
	var names []string
	for _, s := range known {
		names = append(names, s.Name)
	}
	for i, r := range f.Runs {
		at := slices.IndexFunc(known, func(s *scenarios.Scenario) bool { return s.Name == r.Scenario })
		if at < 0 {
			f.parsed.Problem(place(i, "scenario"), "scenario %q is not measured here%s", r.Scenario, scenarios.Suggest(r.Scenario, names))
			continue
		}
		s := known[at]
		if s.Version != r.Version {
			f.parsed.Problem(place(i, "version"), "this was written for version %d of scenario %s, which is at version %d: look through it with wallprobe scenario show %s, then write %d here", r.Version, s.Name, s.Version, shown(s), s.Version)
			continue
		}
		f.fitRun(i, r, s)
	}
	return f.parsed.Err()
}

// shown is how a person names a scenario on a command line.
func shown(s *scenarios.Scenario) string {
	if s.File == "" || strings.HasPrefix(s.File, "builtin:") {
		return s.Name
	}
	return s.File
}

func (f *File) fitRun(run int, r Run, s *scenarios.Scenario) {
	role := r.near(s)
	paths := s.PathsFor(role)
	if len(paths) == 0 {
		f.parsed.Problem(place(run, "role"), "scenario %s has no near end %q%s", s.Name, role, scenarios.Suggest(role, s.NearRoles()))
		return
	}
	var ids []string
	for _, p := range paths {
		ids = append(ids, p.ID)
	}
	for j, e := range r.Paths {
		at := slices.IndexFunc(paths, func(p scenarios.Path) bool { return p.ID == e.Path })
		if at < 0 {
			f.noPath(pathPlace(run, j, "path"), e.Path, role, s, ids)
			continue
		}
		f.fitPath(run, j, e, paths[at])
	}
	for j, e := range r.Outcomes {
		f.fitOutcome(run, j, e, role, s)
	}
}

// near is the near end of which a run speaks.
func (r Run) near(s *scenarios.Scenario) string {
	if r.Role == "" {
		return s.NearRoles()[0]
	}
	return r.Role
}

func (f *File) noPath(at, id, role string, s *scenarios.Scenario, ids []string) {
	if slices.ContainsFunc(s.Paths, func(p scenarios.Path) bool { return p.ID == id }) {
		f.parsed.Problem(at, "path %s of scenario %s is not measured from role %s", id, s.Name, role)
		return
	}
	f.parsed.Problem(at, "scenario %s has no path %q%s", s.Name, id, scenarios.Suggest(id, ids))
}

func (f *File) fitPath(run, path int, e Path, p scenarios.Path) {
	all := p.Ports
	if len(p.LocalPorts) > 0 {
		all = p.LocalPorts
	}
	switch beyond := e.Ports.Without(all); {
	case p.Unmeasured != "":
		f.parsed.Problem(pathPlace(run, path), "path %s can never be measured, so that nothing can be expected of it: %s", p.ID, p.Unmeasured)
	case e.Transport != "" && !slices.Contains(p.Transport, e.Transport):
		f.parsed.Problem(pathPlace(run, path, "transport"), "path %s is not over %s", p.ID, e.Transport)
	case len(beyond) > 0:
		f.parsed.Problem(pathPlace(run, path, "ports"), "path %s does not have %s; it has %s", p.ID, beyond, all)
	}
}

func (f *File) fitOutcome(run, outcome int, e Outcome, role string, s *scenarios.Scenario) {
	var ids []string
	for _, o := range s.Outcomes {
		if !slices.Contains(o.Roles, role) {
			continue
		}
		if o.ID != e.Outcome {
			ids = append(ids, o.ID)
			continue
		}
		if e.Way > len(o.Ways) {
			f.parsed.Problem(outcomePlace(run, outcome, "way"), "outcome %s has no way %d; it has %d", o.ID, e.Way, len(o.Ways))
		}
		return
	}
	f.parsed.Problem(outcomePlace(run, outcome, "outcome"), "role %s of scenario %s has no outcome %q%s", role, s.Name, e.Outcome, scenarios.Suggest(e.Outcome, ids))
}
