package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/wallprobe/wallprobe/client"
)

// A token is one brace, bracket, key or scalar of a JSON text.
type token struct {
	start, end int  // bytes
	kind       byte // its first byte
	depth      int  // objects and lists around it
	key        bool
}

// place is an error at a byte of data.
func place(data []byte, offset int, format string, args ...any) error {
	before := data[:min(max(offset, 0), len(data))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Errorf("line %d, column %d: %s", line, column, fmt.Sprintf(format, args...))
}

// scan takes a JSON text apart. The tokens are never empty.
func scan(data []byte) ([]token, error) {
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		offset := len(data)
		if strings.HasPrefix(err.Error(), "unexpected end") {
			return nil, place(data, offset, "not JSON: %v; the file was cut off half-way", err)
		}
		if s, ok := errors.AsType[*json.SyntaxError](err); ok {
			offset = int(s.Offset) - 1
		}
		if text := bytes.TrimSpace(data); len(text) > 0 && text[0] != '{' && text[0] != '[' {
			return nil, place(data, offset, "not JSON: %v; a result is a file that --json wrote", err)
		}
		return nil, place(data, offset, "not JSON: %v", err)
	}
	type level struct{ object, key bool }
	var tokens []token
	levels := []level{{}}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	for end := 0; ; {
		start := end
		t, err := dec.Token()
		if err != nil {
			return tokens, nil // the end: the syntax was checked above
		}
		end = int(dec.InputOffset())
		start += len(data[start:end]) - len(bytes.TrimLeft(data[start:end], " \t\r\n,:"))
		top := &levels[len(levels)-1]
		if t == json.Delim('}') || t == json.Delim(']') {
			levels = levels[:len(levels)-1]
			continue
		}
		tokens = append(tokens, token{start, end, data[start], len(levels) - 1, top.object && top.key})
		top.key = !top.key
		if t == json.Delim('{') || t == json.Delim('[') {
			levels = append(levels, level{object: t == json.Delim('{'), key: true})
		}
	}
}

// checkSchemas demands of every result that it names its schema.
func checkSchemas(data []byte, tokens []token) error {
	depth := 0
	if tokens[0].kind == '[' {
		depth = 1
	}
	for i, t := range tokens {
		if t.depth != depth {
			continue
		}
		if t.kind != '{' {
			return place(data, t.start, "a result is an object, between braces")
		}
		if err := checkSchema(data, tokens[i:]); err != nil {
			return err
		}
	}
	return nil
}

// checkSchema looks at the object that tokens begin with.
func checkSchema(data []byte, tokens []token) error {
	for i, t := range tokens[1:] {
		if t.depth <= tokens[0].depth {
			break
		}
		if t.depth != tokens[0].depth+1 || !t.key || string(data[t.start:t.end]) != `"schema"` {
			continue
		}
		value := tokens[i+2]
		var name string
		if json.Unmarshal(data[value.start:value.end], &name) != nil {
			return place(data, value.start, "\"schema\" must be text; a result has %q", client.ResultSchema)
		}
		return schemaNamed(data, value.start, name)
	}
	return place(data, tokens[0].start, "key \"schema\" is missing: this is no result of wallprobe, which begins with %q", client.ResultSchema)
}

func schemaNamed(data []byte, offset int, name string) error {
	if name == client.ResultSchema {
		return nil
	}
	family, own, _ := cutLast(client.ResultSchema)
	if f, n, ok := cutLast(name); ok && f == family && n > own {
		return place(data, offset, "schema %q is newer than this program, which reads %q; use a newer wallprobe", name, client.ResultSchema)
	}
	return place(data, offset, "schema %q is not a result; a result has %q", name, client.ResultSchema)
}

// cutLast splits "wallprobe/result/1" into its family and number.
func cutLast(schema string) (family string, number int, ok bool) {
	i := strings.LastIndexByte(schema, '/')
	if i < 0 {
		return schema, 0, false
	}
	n, err := strconv.Atoi(schema[i+1:])
	return schema[:i], n, err == nil
}

// decode is json.Unmarshal whose errors say where.
func decode(data []byte, tokens []token, v any) error {
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		i := sort.Search(len(tokens), func(i int) bool { return tokens[i].end >= int(e.Offset) })
		return place(data, tokens[min(i, len(tokens)-1)].start, "key %q cannot be %s", lastOf(e.Field), kind(e.Value))
	}
	return place(data, culprit(data, tokens, reflect.TypeOf(v).Elem(), err), "%v", err)
}

// kind says in words what encoding/json calls a value.
func kind(value string) string {
	word, _, _ := strings.Cut(value, " ")
	switch word {
	case "object":
		return "an object"
	case "array":
		return "a list"
	case "string":
		return "text"
	case "bool":
		return "true or false"
	}
	return "the " + value
}

// lastOf is the last key of a path of keys.
func lastOf(field string) string { return field[strings.LastIndexByte(field, '.')+1:] }

// culprit finds the text that its type did not accept, since encoding/json
// does not say where it stood: null is accepted by every type, so the error
// changes as soon as that text is among those that null replaces.
func culprit(data []byte, tokens []token, t reflect.Type, want error) int {
	var texts []token
	for _, tok := range tokens {
		if tok.kind == '"' && !tok.key {
			texts = append(texts, tok)
		}
	}
	i := sort.Search(len(texts), func(i int) bool {
		var changed []byte
		from := 0
		for _, tok := range texts[:i+1] {
			changed = append(append(changed, data[from:tok.start]...), "null"...)
			from = tok.end
		}
		changed = append(changed, data[from:]...)
		err := json.Unmarshal(changed, reflect.New(t).Interface())
		return err == nil || err.Error() != want.Error()
	})
	if i == len(texts) {
		return 0
	}
	return texts[i].start
}
