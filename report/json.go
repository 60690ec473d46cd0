package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/wallprobe/wallprobe/client"
)

// JSON writes one result as an object and any other number as a list.
func JSON(w io.Writer, results []*client.Result) error {
	if len(results) == 1 {
		return encode(w, results[0])
	}
	return encode(w, append([]*client.Result{}, results...))
}

// encode is what every JSON of this package looks like.
func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// MaxSize is the size in bytes above which ReadJSON refuses results.
const MaxSize = 1 << 28

// ReadJSON reads what JSON wrote. Keys that it does not know are passed over,
// since a schema only ever grows. What is wrong with the text is told with line
// and column, both from 1; columns are in characters.
func ReadJSON(r io.Reader) ([]*client.Result, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read results: %w", err)
	case len(data) > MaxSize:
		return nil, fmt.Errorf("read results: larger than %d MiB", MaxSize>>20)
	case len(bytes.TrimSpace(data)) == 0:
		return nil, place(data, 0, "there is nothing; a result belongs here, as --json FILE writes it")
	}
	if r := asWritten(data); r != nil {
		return []*client.Result{r}, nil
	}
	tokens, err := scan(data)
	if err != nil {
		return nil, err
	}
	if err := checkSchemas(data, tokens); err != nil {
		return nil, err
	}
	if tokens[0].kind == '{' {
		one := new(client.Result)
		if err := decode(data, tokens, one); err != nil {
			return nil, err
		}
		return []*client.Result{one}, nil
	}
	var many []*client.Result
	if err := decode(data, tokens, &many); err != nil {
		return nil, err
	}
	return many, nil
}

// asWritten reads one result that begins as JSON writes it, nil when it does not
// or has any fault: places are worked out for faults alone, which takes far
// longer than the reading.
func asWritten(data []byte) *client.Result {
	ok := bytes.HasPrefix(data, []byte("{\n  \"schema\": \""+client.ResultSchema+"\""))
	r := new(client.Result)
	if !ok || json.Unmarshal(data, r) != nil {
		return nil
	}
	return r
}
