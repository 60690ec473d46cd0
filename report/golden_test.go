package report

import (
	"bytes"
	"flag"
	"html"
	"io"
	"maps"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const golden = "../testdata/report/"

// goldens is what is printed, by the name of the file that holds it.
var goldens = map[string]func(io.Writer) error{
	"text":               text(sample(), Options{}),
	"text-color":         text(sample(), Options{Color: true}),
	"text-details":       text(sample(), Options{Details: true, Width: 120}),
	"text-narrow":        text(sample(), Options{Width: 72}),
	"text-offline":       text(offline(), Options{}),
	"text-parts":         text(manyParts(), Options{}),
	"matrix":             func(w io.Writer) error { return Matrix(w, matrixResults(), Options{Width: 120}) },
	"matrix-narrow":      func(w io.Writer) error { return Matrix(w, matrixResults(), Options{Width: 80}) },
	"experiments":        func(w io.Writer) error { return Experiments(w, sampleRows(), Options{}) },
	"experiments-detail": func(w io.Writer) error { return Experiments(w, sampleRows(), Options{Details: true, Width: 80}) },
	"result-json":        func(w io.Writer) error { return JSON(w, []*client.Result{sample()}) },
	"expectations":       func(w io.Writer) error { return Expectations(w, expected(), Options{}) },
	"expectations-wide":  func(w io.Writer) error { return Expectations(w, expected(), Options{Details: true, Width: 130}) },
	"text-decided":       text(decidedResult(), Options{}),
	"text-decided-whole": text(decidedResult(), Options{Details: true}),
	"comparison-decided": func(w io.Writer) error { return Comparison(w, decidedComparison(), Options{}) },
	"comparison":         func(w io.Writer) error { return Comparison(w, sampleComparison(), Options{}) },
	"comparison-narrow":  func(w io.Writer) error { return Comparison(w, sampleComparison(), Options{Width: 76, Details: true}) },
	"comparison-none":    func(w io.Writer) error { return Comparison(w, unchanged(), Options{}) },
	"comparison-json":    func(w io.Writer) error { return ComparisonJSON(w, sampleComparison()) },
	"comparison-junit":   func(w io.Writer) error { return ComparisonJUnit(w, sampleComparison(), expect.FailOnWorse) },
	"experiments-json":   func(w io.Writer) error { return ExperimentsJSON(w, sampleRows()) },
}

// worstGoldens are the reports of the run that has every verdict, and those of
// comparisons; a page is without its style and script.
func worstGoldens(t *testing.T) map[string]func(io.Writer) error {
	worst := worstResult(t)
	return map[string]func(io.Writer) error{
		"worst-markdown":      func(w io.Writer) error { return Markdown(w, worst) },
		"worst-junit":         func(w io.Writer) error { return JUnit(w, worst) },
		"worst-html":          func(w io.Writer) error { return bare(w, pageOf(t, worst)) },
		"expected-markdown":   func(w io.Writer) error { return Markdown(w, []*client.Result{expected()}) },
		"expected-junit":      func(w io.Writer) error { return JUnit(w, []*client.Result{expected()}) },
		"matrix-markdown":     func(w io.Writer) error { return Markdown(w, matrixResults()) },
		"comparison-markdown": func(w io.Writer) error { return ComparisonMarkdown(w, sampleComparison()) },
		"comparison-html": func(w io.Writer) error {
			var b bytes.Buffer
			if err := ComparisonHTML(&b, sampleComparison()); err != nil {
				return err
			}
			return bare(w, b.Bytes())
		},
	}
}

func bare(w io.Writer, page []byte) error {
	for _, own := range []string{pageCSS, pageJS} {
		page = bytes.Replace(page, []byte(own), []byte("…"), 1)
	}
	page = bytes.Replace(page, []byte(html.EscapeString(policy())), []byte("…"), 1)
	_, err := w.Write(page)
	return err
}

func text(r *client.Result, o Options) func(io.Writer) error {
	return func(w io.Writer) error { return Text(w, r, o) }
}

func TestOutputIsExactlyTheGoldenFile(t *testing.T) {
	all := maps.Clone(goldens)
	maps.Copy(all, worstGoldens(t))
	for name, print := range all {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := print(&out); err != nil {
				t.Fatal(err)
			}
			file := golden + name + ".golden"
			if *update {
				if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("differs from %s (-want +got):\n%s", file, diff)
			}
		})
	}
}
