package scenarios

import (
	"bytes"
	_ "embed" // for the source of the types
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"strings"
)

// typesSource is read for the comments of the fields, which become the help
// texts of editors.
//
//go:embed scenario.go
var typesSource []byte

// Schema returns the JSON Schema (draft 2020-12) of a scenario file, for
// editors. It is made from the same types and tables as Parse, but cannot say
// everything that Parse checks: references between parts of the file, for one.
func Schema() ([]byte, error) { return scenarioFormat.Schema(reflect.TypeFor[Scenario]()) }

// Schema returns the JSON Schema (draft 2020-12) of the files that are read into t.
func (f *Format) Schema(t reflect.Type) ([]byte, error) {
	help, err := comments(f.Source)
	if err != nil {
		return nil, err
	}
	g := schemaMaker{format: f, help: help, defs: map[string]any{}}
	root := g.object(t)
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = f.ID
	root["$defs"] = g.defs
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		return nil, fmt.Errorf("schema %s: %w", f.ID, err)
	}
	return out.Bytes(), nil
}

type schemaMaker struct {
	format *Format
	help   map[string]string // "Path.Ports": comment
	defs   map[string]any    // by the name of the type
}

// object is the schema of a struct, with what check demands of its keys.
func (g schemaMaker) object(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, f := range fieldsOf(t) {
		p := g.value(t.Field(f.index).Type, f)
		if text := g.help[t.Name()+"."+f.name]; text != "" {
			p["description"] = text
		}
		properties[f.key] = p
		if f.required {
			required = append(required, f.key)
		}
	}
	o := map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	if properties["quote"] != nil {
		o["dependentRequired"] = map[string]any{"quote": []string{"source"}}
	}
	if t == reflect.TypeFor[Path]() {
		o["allOf"], o["dependentSchemas"] = pathRules()
		properties["inferred"].(map[string]any)["items"] = map[string]any{"enum": keysOf(fieldsOf(t))}
	}
	return o
}

// pathRules are needKeys, measurableKeys and transportKeys as a schema.
func pathRules() (allOf []any, dependent map[string]any) {
	for _, k := range needKeys {
		allOf = append(allOf, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"need": map[string]any{"const": k.need}}},
			"then": map[string]any{"required": []string{k.key}},
			"else": map[string]any{"properties": map[string]any{k.key: false}},
		})
	}
	allOf = append(allOf, map[string]any{
		"if":   map[string]any{"not": map[string]any{"required": []string{"unmeasured"}}},
		"then": map[string]any{"required": measurableKeys},
	})
	dependent = map[string]any{}
	for _, k := range transportKeys {
		contains := map[string]any{"contains": map[string]any{"const": k.transport}}
		dependent[k.key] = map[string]any{"properties": map[string]any{"transport": contains}}
	}
	return allOf, dependent
}

func (g schemaMaker) value(t reflect.Type, f field) map[string]any {
	if l, ok := leaves[t]; ok {
		return maps.Clone(l.json)
	}
	if values, ok := g.format.enum(t); ok {
		return map[string]any{"type": "string", "enum": values}
	}
	switch t.Kind() {
	case reflect.Struct:
		if g.defs[t.Name()] == nil {
			g.defs[t.Name()] = g.object(t)
		}
		return map[string]any{"$ref": "#/$defs/" + t.Name()}
	case reflect.Slice:
		list := map[string]any{"type": "array", "minItems": 1, "items": g.value(t.Elem(), f)}
		if t.Elem().Kind() != reflect.Struct || leaves[t.Elem()].parse != nil {
			list["uniqueItems"] = true
		}
		return list
	case reflect.String:
		shape := g.format.form(f.form)
		s := map[string]any{"type": "string", "pattern": shape.pattern.String()}
		if n := shape.max; n > 0 {
			s["maxLength"] = n
		}
		return s
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	}
	number := map[string]any{"type": "number"}
	if t.Kind() != reflect.Float64 {
		number["type"] = "integer"
	}
	if f.limited {
		number["minimum"], number["maximum"] = f.min, f.max
	}
	return number
}

// comments returns the comment of every field of the structs in a Go file.
func comments(source []byte) (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "scenario.go", source, parser.ParseComments)
	if err != nil {
		return nil, fmt.Errorf("scenario schema: %w", err)
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok {
			for _, f := range s.Fields.List {
				for _, name := range f.Names {
					out[spec.Name.Name+"."+name.Name] = strings.TrimSpace(f.Comment.Text())
				}
			}
		}
		return false
	})
	return out, nil
}
