package scenarios

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxSize is the size in bytes above which a scenario file is refused.
const MaxSize = 1 << 20

//go:embed *.yaml
var builtin embed.FS

// Names lists the built-in scenarios, sorted.
func Names() []string {
	files, _ := fs.Glob(builtin, "*.yaml") // the pattern is well formed
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, path.Ext(f))
	}
	return files
}

// Builtin reads all built-in scenarios, sorted by name.
func Builtin() ([]*Scenario, error) {
	var all []*Scenario
	for _, name := range Names() {
		s, err := Load(name)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Load reads the built-in scenario of that name, or else the file of that
// name. The error is of type Errors if the file was read but is not valid.
func Load(nameOrFile string) (*Scenario, error) {
	if data, err := builtin.ReadFile(nameOrFile + ".yaml"); err == nil {
		return Parse("builtin:"+nameOrFile+".yaml", data)
	}
	data, err := ReadFile(nameOrFile)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(nameOrFile, `/\`) {
		names := Names()
		hint := ""
		if near := Nearest(nameOrFile, names); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
		return nil, fmt.Errorf("no scenario and no file is named %q: built in are %s%s", nameOrFile, strings.Join(names, ", "), hint)
	}
	if err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	return Parse(nameOrFile, data)
}

// ReadFile reads a file, of one that is larger than MaxSize only so much that
// parsing refuses it.
func ReadFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

// Parse reads a scenario strictly: whatever the types do not know is a
// problem, and all problems are told at once. The error is of type Errors;
// file is only the name in it and in the scenario.
func Parse(file string, data []byte) (*Scenario, error) {
	s := &Scenario{File: file}
	x := scenarioFormat.Parse(file, data, s)
	if x.Read() {
		x.d.check(s)
	}
	if err := x.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

// document returns the root of the only document in data, or nil and a problem.
func (d *decoder) document(data []byte) *yaml.Node {
	start := &yaml.Node{Line: 1, Column: 1}
	if len(data) > MaxSize {
		d.problem(start, "the file is larger than 1 MiB")
		return nil
	}
	if n, what := badCharacter(data); n != nil {
		d.problem(n, "%s", what)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	err := dec.Decode(&first)
	switch {
	case err == io.EOF || err == nil && first.Content[0].ShortTag() == "!!null":
		d.problem(start, "the file is empty")
		return nil
	case err != nil:
		d.syntax(data, err)
		return nil
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		d.problem(&second, "a second document begins here; a file holds %s", strings.Replace(d.format.What, "a ", "one ", 1))
	case err != io.EOF:
		d.syntax(data, err)
	}
	return first.Content[0]
}

var syntaxError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntax notes what the YAML parser could not read. It tells lines at best.
func (d *decoder) syntax(data []byte, err error) {
	n := &yaml.Node{Line: 1, Column: 1}
	m := syntaxError.FindStringSubmatch(strings.SplitN(err.Error(), "\n", 2)[0])
	if m == nil {
		d.problem(n, "not YAML: %v", err)
		return
	}
	if m[1] != "" {
		n.Line, _ = strconv.Atoi(m[1])
	}
	if line, column := tabIndent(data); line != 0 {
		n.Line, n.Column = line, column
		m[2] = "a tab in the indentation; YAML indents with spaces"
	}
	d.problem(n, "not YAML: %s", m[2])
}

// tabIndent is the place of the first tab before the first other character of
// a line, from 1, or zeros.
func tabIndent(data []byte) (line, column int) {
	for i, text := range bytes.Split(data, []byte("\n")) {
		indent := len(text) - len(bytes.TrimLeft(text, " \t"))
		if tab := bytes.IndexByte(text[:indent], '\t'); tab >= 0 {
			return i + 1, tab + 1
		}
	}
	return 0, 0
}

// badCharacter finds the first byte that is not UTF-8 or that YAML does not
// allow (YAML 1.2.2 section 5.1); the parser would not say where it is.
func badCharacter(data []byte) (*yaml.Node, string) {
	n := &yaml.Node{Line: 1, Column: 1}
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size == 1:
			return n, "the file is not UTF-8 text here"
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85, r == 0xfffe, r == 0xffff:
			return n, fmt.Sprintf("the control character U+%04X is not allowed", r)
		case r == '\n':
			n.Line, n.Column = n.Line+1, 0
		case r == '\uFEFF' && n.Line == 1 && n.Column == 1:
			n.Column = 0
		}
		n.Column++
		data = data[size:]
	}
	return nil, ""
}
