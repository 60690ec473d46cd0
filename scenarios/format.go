package scenarios

import (
	"reflect"
	"regexp"
	"strings"
)

// A Format is a kind of YAML file that is read into a Go type by its struct
// tags, as strictly as a scenario is: unknown keys, wrong values and what is
// missing are problems with line and column.
type Format struct {
	What   string                    // in messages: "a scenario"
	ID     string                    // the value of its key schema
	Source []byte                    // Go source of the type: its comments explain the keys in the JSON Schema
	Enums  map[reflect.Type][]string // closed lists beside those of scenarios
}

var scenarioFormat = &Format{What: "a scenario", ID: SchemaID, Source: typesSource}

func (f *Format) enum(t reflect.Type) ([]string, bool) {
	if values, ok := f.Enums[t]; ok {
		return values, true
	}
	values, ok := enums[t]
	return values, ok
}

// form is the shape of a text that the struct tag form names.
func (f *Format) form(name string) form {
	if name == "schema" {
		return form{regexp.MustCompile("^" + f.ID + "$"), 0, "the schema that this program reads: " + f.ID}
	}
	return forms[name]
}

// Parse reads data into v, a pointer to a struct. What is wrong is in Parsed.
func (f *Format) Parse(file string, data []byte, v any) *Parsed {
	x := &Parsed{d: newDecoder(f, file)}
	if root := x.d.document(data); root != nil {
		x.d.value(root, reflect.ValueOf(v).Elem(), field{}, "")
		x.read = true
	}
	return x
}

// Parsed is a file that was read, for further checks. Places in it are written
// like "paths/3/from/0"; "" is the whole file.
type Parsed struct {
	d    *decoder
	read bool
}

// Read tells whether there is a document at all, perhaps with problems.
func (x *Parsed) Read() bool { return x.read }

// Line is the line of a place, from 1, or of what it stands in where the file
// does not mention it.
func (x *Parsed) Line(place string) int {
	for {
		if n := x.d.nodes[place]; n != nil {
			return n.Line
		}
		if place == "" {
			return 1
		}
		place = place[:max(0, strings.LastIndexByte(place, '/'))]
	}
}

// Has tells whether the file mentions a place.
func (x *Parsed) Has(place string) bool { return x.d.nodes[place] != nil }

// Problem notes what is wrong at a place that the file mentions, or at the
// nearest one around it.
func (x *Parsed) Problem(place, format string, args ...any) {
	for x.d.nodes[place] == nil && place != "" {
		place = place[:max(0, strings.LastIndexByte(place, '/'))]
	}
	if n := x.d.nodes[place]; n != nil {
		x.d.problem(n, format, args...)
	}
}

// Err is everything that is wrong, of type Errors, or nil.
func (x *Parsed) Err() error {
	if len(x.d.problems) == 0 {
		return nil
	}
	return x.d.problems.sorted()
}
