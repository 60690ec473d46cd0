package scenarios

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

func TestCommittedSchemaIsThatOfTheTypes(t *testing.T) {
	got, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("schema.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(read(t, "schema.json"), string(got)); diff != "" {
		t.Errorf("schema.json is old; go test ./scenarios -update rewrites it (-committed +types):\n%s", diff)
	}
}

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// validate is what an editor does with the file.
func validate(schema *jsonschema.Schema, data string) error {
	var v any
	if err := yaml.Unmarshal([]byte(data), &v); err != nil {
		return err
	}
	return schema.Validate(v)
}

func TestSchemaAcceptsTheBuiltinFiles(t *testing.T) {
	schema := compiled(t)
	for _, name := range Names() {
		if err := validate(schema, read(t, name+".yaml")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validate(schema, read(t, testdata+"valid.yaml")); err != nil {
		t.Error(err)
	}
}

func TestSchemaRefusesWhatOnePlaceShows(t *testing.T) {
	schema := compiled(t)
	valid := read(t, testdata+"valid.yaml")
	for _, c := range invalid {
		err := validate(schema, strings.Replace(valid, c.old, c.new, 1))
		if seen := err != nil; seen == c.unseen {
			t.Errorf("%q: %v, and Parse says %s", c.new, err, c.want)
		}
	}
}
