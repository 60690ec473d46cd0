package scenarios

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// enums lists the values of each type that has a closed list of them.
var enums = map[reflect.Type][]string{
	reflect.TypeFor[Direction](): texts(Out, In, LAN, Loop, P2P),
	reflect.TypeFor[Transport](): texts(TCP, UDP),
	reflect.TypeFor[Need]():      texts(Required, Optional, Conditional, Fallback, Negative),
	reflect.TypeFor[Basis]():     texts(Stated, Inferred, External),
	reflect.TypeFor[Pick]():      texts(PickAll, PickAny, PickOne),
}

func texts[T ~string](values ...T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// needKeys names the key of a path that each need demands and no other allows.
var needKeys = []struct {
	need Need
	key  string
}{
	{Conditional, "when"},
	{Fallback, "order"},
}

// measurableKeys are demanded of a path that does not say why it is unmeasured.
var measurableKeys = []string{"transport", "ports"}

// A form is the shape of a text. Its pattern is also valid in ECMAScript, for
// the JSON Schema.
type form struct {
	pattern *regexp.Regexp
	max     int    // characters; 0 is no limit
	what    string // completes the sentence `"x" is not ...`
}

const label = `[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?`

// forms are the shapes that the struct tag form names; "" is any other text.
// Control characters are kept out because titles and notes reach terminals.
var forms = map[string]form{
	"":         {regexp.MustCompile(`^[^\x00-\x08\x0b-\x1f\x7f-\x9f]+$`), 0, "text without control characters"},
	"line":     {regexp.MustCompile(`^[^\x00-\x1f\x7f-\x9f]+$`), 0, "one line of text without control characters"},
	"name":     {regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`), 64, "a name: lower-case letters, digits and single hyphens"},
	"id":       {regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`), 64, "an id: letters, digits, hyphens and dots"},
	"file":     {regexp.MustCompile(`^[^/\\\x00-\x1f\x7f-\x9f]+$`), 0, "the name of a file without its folder"},
	"language": {regexp.MustCompile(`^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$`), 0, "a language tag such as de or pt-BR"},
	"dns": {regexp.MustCompile(`^(\*\.)?(` + label + `\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`), 253,
		`a DNS name: lower-case labels joined by dots, with "*." only in front`},
}

// A leaf is a type that is written as one scalar of its own form.
type leaf struct {
	what  string // completes the sentence `"ports" must be ...`
	parse func(string) (any, error)
	json  map[string]any // the schema of the scalar
}

var leaves = map[reflect.Type]leaf{
	reflect.TypeFor[PortSet](): {
		what:  "ports such as 443 or 40000-41000",
		parse: parsePorts,
		json: map[string]any{"anyOf": []any{
			map[string]any{"type": "integer", "minimum": 1, "maximum": 65535},
			map[string]any{"type": "string", "pattern": `^ *[0-9]{1,5} *(- *[0-9]{1,5} *)?(, *[0-9]{1,5} *(- *[0-9]{1,5} *)?)*$`},
		}},
	},
	reflect.TypeFor[netip.Prefix](): {
		what:  "an address range such as 192.0.2.0/24",
		parse: parsePrefix,
		json:  map[string]any{"type": "string", "pattern": `^[0-9A-Fa-f.:]+/[0-9]{1,3}$`},
	},
	reflect.TypeFor[time.Duration](): {
		what:  "a time such as 50s or 5m",
		parse: parseDuration,
		json:  map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`},
	},
}

// parsePorts is ParsePortSet that goes on after the first bad part, so that
// all of them are told at once.
func parsePorts(s string) (any, error) {
	var bad []error
	for part := range strings.SplitSeq(s, ",") {
		if _, err := ParsePortSet(strings.TrimSpace(part)); err != nil {
			bad = append(bad, err)
		}
	}
	if bad != nil {
		return nil, errors.Join(bad...)
	}
	return ParsePortSet(s)
}

func parsePrefix(s string) (any, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return nil, fmt.Errorf("%s lacks its length; write %s for this one address", s, netip.PrefixFrom(a, a.BitLen()))
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not an address range such as 192.0.2.0/24", s)
	}
	if p != p.Masked() {
		return nil, fmt.Errorf("%s has host bits set; write %s", s, p.Masked())
	}
	return p, nil
}

func parseDuration(s string) (any, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return nil, fmt.Errorf("%q is not a time above zero such as 50s or 5m", s)
	}
	return d, nil
}

// A field is what the struct tags say about one key.
type field struct {
	index    int
	key      string
	name     string // in Go
	required bool
	form     string
	def, ref string
	limited  bool
	min, max int64
}

// fieldsOf reads the struct tags of t, in the order of its fields.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		key, options, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if key == "-" || !sf.IsExported() {
			continue
		}
		f := field{index: i, key: key, name: sf.Name, required: options != "omitempty",
			form: sf.Tag.Get("form"), def: sf.Tag.Get("def"), ref: sf.Tag.Get("ref")}
		if low, high, ok := strings.Cut(sf.Tag.Get("limit"), "-"); ok {
			f.limited = true
			f.min, _ = strconv.ParseInt(low, 10, 64)
			f.max, _ = strconv.ParseInt(high, 10, 64)
		}
		out = append(out, f)
	}
	return out
}

func keysOf(fields []field) []string {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	return keys
}

func fieldNamed(fields []field, key string) (field, bool) {
	i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
	if i < 0 {
		return field{}, false
	}
	return fields[i], true
}
