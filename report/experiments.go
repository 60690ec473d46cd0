package report

import (
	"bytes"
	"fmt"
	"io"

	"github.com/wallprobe/wallprobe/client"
)

// The states of an experiment.
const (
	Confirmed    = "confirmed"
	Contradicted = "contradicted"
	NotMeasured  = string(client.Unmeasured)
)

// An ExperimentRow compares what a document says with what was measured.
type ExperimentRow struct {
	ID       string   `json:"id"`                // catalogue id, for example "CRD-E6"
	Variant  string   `json:"variant,omitempty"` // where the document leaves something open
	Firewall string   `json:"firewall"`
	Document string   `json:"document"`        // what it says happens
	Quote    string   `json:"quote"`           // the sentence, in the document's language
	Source   string   `json:"source"`          // the document's file
	Bytes    int64    `json:"bytes,omitempty"` // of a transfer, each way
	Measured string   `json:"measured"`
	Status   string   `json:"status"`  // Confirmed, Contradicted or NotMeasured
	Reason   string   `json:"reason"`  // the evidence against the document, or why it was not measured
	Seconds  float64  `json:"seconds"` // that the measurement took
	Findings []string `json:"findings,omitempty"`
}

// Experiments prints what documents say beside what was measured, then totals.
func Experiments(w io.Writer, rows []ExperimentRow, o Options) error {
	var out bytes.Buffer
	t := &Table{Width: o.Width, Columns: []Column{{Max: 14}, {Flex: 2}, {Flex: 3}, {Flex: 3}, {}}}
	t.Row("", "firewall", "the document says", "measured", "")
	totals := make(map[string]int)
	seconds := 0.0
	before := "" // told under the last row
	for _, r := range rows {
		totals[r.Status]++
		seconds += r.Seconds
		t.add(cell{text: r.ID + " " + r.Variant}, cell{text: r.Firewall}, cell{text: r.Document}, cell{text: r.Measured}, o.status(r.Status))
		if r.Reason != "" && r.Reason != before {
			t.Note(2, r.Reason)
		}
		before = r.Reason
		if !o.Details {
			continue
		}
		for _, f := range r.Findings {
			t.Note(2, f)
		}
		if r.Quote != "" {
			t.Note(2, fmt.Sprintf("“%s” (%s)", r.Quote, r.Source))
		}
	}
	out.Write(t.render().Bytes())
	out.WriteByte('\n')
	sentence := count(len(rows), "experiment") + ":"
	for i, s := range []string{Confirmed, Contradicted, NotMeasured} {
		if i > 0 {
			sentence += ","
		}
		sentence += fmt.Sprintf(" %d %s", totals[s], s)
	}
	for _, line := range pack([]string{sentence + ".", took(seconds)}, "   ", o.width()) {
		out.WriteString(line + "\n")
	}
	_, err := out.WriteTo(w)
	return err
}

func (o Options) status(s string) cell {
	switch s {
	case Confirmed:
		return o.word(s, green)
	case NotMeasured:
		return o.word(s, yellow)
	}
	return o.word(s, red)
}

// ExperimentsJSON writes experiments as a list.
func ExperimentsJSON(w io.Writer, rows []ExperimentRow) error {
	return encode(w, append([]ExperimentRow{}, rows...))
}
