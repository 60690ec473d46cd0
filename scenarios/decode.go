package scenarios

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A decoder turns YAML nodes into the types by their struct tags, and notes
// every problem with its place instead of stopping at the first.
type decoder struct {
	format   *Format
	file     string
	problems Errors
	nodes    map[string]*yaml.Node            // by place: "paths/3/from/0"; absent where the file says nothing
	defs     map[string]map[string]*yaml.Node // kind, name: where it is defined
	refs     []reference
	tables   map[reflect.Type][]field
}

// A reference is the use of a name that the file must define.
type reference struct {
	kind string
	node *yaml.Node
}

func newDecoder(format *Format, file string) *decoder {
	return &decoder{format: format, file: file, nodes: map[string]*yaml.Node{}, defs: map[string]map[string]*yaml.Node{}, tables: map[reflect.Type][]field{}}
}

// fieldsOf reads the tags of each type only once: they take longer than the values.
func (d *decoder) fieldsOf(t reflect.Type) []field {
	if d.tables[t] == nil {
		d.tables[t] = fieldsOf(t)
	}
	return d.tables[t]
}

func (d *decoder) problem(n *yaml.Node, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, n.Line, n.Column, fmt.Sprintf(format, args...)})
}

// value decodes n into v. The place is where n stands, f says what the tags
// of the field demand; for an item of a list they are those of the list.
func (d *decoder) value(n *yaml.Node, v reflect.Value, f field, place string) {
	d.nodes[place] = n
	if !d.plain(n) {
		return
	}
	if n.ShortTag() == "!!null" {
		d.problem(n, "%q has no value", f.key)
		return
	}
	if l, ok := leaves[v.Type()]; ok {
		d.leaf(n, v, f, l)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, f, place)
	case reflect.Slice:
		d.list(n, v, f, place)
	case reflect.String:
		d.text(n, v, f)
	default:
		d.scalar(n, v, f)
	}
}

// plain tells whether n stands for itself. Anchors and aliases are refused:
// a scenario needs none, and a few lines of them unfold to gigabytes.
func (d *decoder) plain(n *yaml.Node) bool {
	if n.Anchor != "" {
		d.problem(n, "anchors are not read; remove &%s", n.Anchor)
	}
	if n.Kind == yaml.AliasNode {
		d.problem(n, "aliases are not read; write out what *%s stands for", n.Value)
		return false
	}
	return true
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, f field, place string) {
	if n.Kind != yaml.MappingNode {
		d.problem(n, "%s must be a mapping of keys to values, not %s", d.subject(f), kindOf(n))
		return
	}
	fields := d.fieldsOf(v.Type())
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.plain(key) {
			continue
		}
		if first, ok := seen[key.Value]; ok {
			d.problem(key, "key %q is given twice; the first is on line %d", key.Value, first.Line)
			continue
		}
		seen[key.Value] = key
		kf, ok := fieldNamed(fields, key.Value)
		if !ok || key.Kind != yaml.ScalarNode {
			d.problem(key, "unknown key %q%s", key.Value, Suggest(key.Value, keysOf(fields)))
			continue
		}
		d.value(value, v.Field(kf.index), kf, strings.TrimPrefix(place+"/"+kf.key, "/"))
	}
	for _, kf := range fields {
		if kf.required && seen[kf.key] == nil {
			d.problem(n, "key %q is missing", kf.key)
		}
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, f field, place string) {
	if n.Kind != yaml.SequenceNode {
		hint := ""
		if n.Kind == yaml.ScalarNode {
			hint = fmt.Sprintf("; write [%s]", n.Value)
		}
		d.problem(n, "%q must be a list, not %s%s", f.key, kindOf(n), hint)
		return
	}
	if len(n.Content) == 0 {
		d.problem(n, "%q is an empty list", f.key)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	seen := map[string]bool{}
	for i, item := range n.Content {
		if item.Kind == yaml.ScalarNode && seen[item.Value] {
			d.problem(item, "%q is listed twice", item.Value)
		}
		seen[item.Value] = true
		d.value(item, v.Index(i), f, place+"/"+strconv.Itoa(i))
	}
}

func (d *decoder) leaf(n *yaml.Node, v reflect.Value, f field, l leaf) {
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		d.problem(n, "%q must be %s, not %s", f.key, l.what, kindOf(n))
		return
	}
	got, err := l.parse(n.Value)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			d.problem(n, "%q: %s", f.key, line)
		}
		return
	}
	v.Set(reflect.ValueOf(got))
}

func (d *decoder) text(n *yaml.Node, v reflect.Value, f field) {
	if allowed, ok := d.format.enum(v.Type()); ok {
		if !slices.Contains(allowed, n.Value) || n.Kind != yaml.ScalarNode {
			d.problem(n, "%q must be one of %s, not %s", f.key, strings.Join(allowed, ", "), valueOf(n))
			return
		}
		v.SetString(n.Value)
		return
	}
	if n.ShortTag() != "!!str" {
		hint := ""
		if n.Kind == yaml.ScalarNode {
			hint = fmt.Sprintf("; write \"%s\" in quotes", n.Value)
		}
		d.problem(n, "%q must be text, not %s%s", f.key, kindOf(n), hint)
		return
	}
	shape := d.format.form(f.form)
	switch {
	case strings.TrimSpace(n.Value) == "":
		d.problem(n, "%q is empty", f.key)
	case shape.max > 0 && utf8.RuneCountInString(n.Value) > shape.max:
		d.problem(n, "%q is longer than %d characters", f.key, shape.max)
	case !shape.pattern.MatchString(n.Value):
		d.problem(n, "%q: %q is not %s", f.key, n.Value, shape.what)
	default:
		v.SetString(n.Value)
		d.name(n, f)
	}
}

// name notes a name that n defines or refers to.
func (d *decoder) name(n *yaml.Node, f field) {
	if f.ref != "" {
		d.refs = append(d.refs, reference{f.ref, n})
	}
	if f.def == "" {
		return
	}
	if d.defs[f.def] == nil {
		d.defs[f.def] = map[string]*yaml.Node{}
	}
	if first := d.defs[f.def][n.Value]; first != nil {
		d.problem(n, "%s %q is already defined on line %d", f.def, n.Value, first.Line)
		return
	}
	d.defs[f.def][n.Value] = n
}

// scalar decodes numbers and booleans.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, f field) {
	tag := n.ShortTag()
	switch v.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || tag != "!!bool" {
			d.problem(n, "%q must be true or false, not %s", f.key, kindOf(n))
			return
		}
		v.SetBool(b)
	case reflect.Float64:
		x, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || tag != "!!int" && tag != "!!float" {
			d.problem(n, "%q must be a number, not %s", f.key, kindOf(n))
			return
		}
		v.SetFloat(x)
		d.limit(n, f, x >= float64(f.min) && x <= float64(f.max))
	default:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil || tag != "!!int" {
			d.problem(n, "%q must be a whole number, not %s", f.key, kindOf(n))
			return
		}
		v.SetInt(i)
		d.limit(n, f, i >= f.min && i <= f.max)
	}
}

func (d *decoder) limit(n *yaml.Node, f field, within bool) {
	if f.limited && !within {
		d.problem(n, "%q must be %d to %d, not %s", f.key, f.min, f.max, n.Value)
	}
}

// subject names a mapping: the whole file, which has no key, or an item of a list.
func (d *decoder) subject(f field) string {
	if f.key == "" {
		return d.format.What
	}
	return "an item of " + strconv.Quote(f.key)
}

// kindOf names the kind of a node in plain words.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch tag := n.ShortTag(); tag {
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!bool":
		return n.Value
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "the date " + n.Value
	case "!!str":
		return fmt.Sprintf("the text %q", n.Value)
	default:
		return fmt.Sprintf("%s %q", tag, n.Value)
	}
}

// valueOf is the node as a person wrote it where that is short.
func valueOf(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return strconv.Quote(n.Value)
	}
	return kindOf(n)
}

// Suggest completes a sentence about an unknown word: with the nearest of the
// known ones, or else with all of them if they fit into a sentence.
func Suggest(word string, known []string) string {
	if near := Nearest(word, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	if len(known) == 0 || len(known) > 30 {
		return ""
	}
	return "; known are " + strings.Join(known, ", ")
}
