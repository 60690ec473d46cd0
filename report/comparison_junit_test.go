package report

import (
	"bytes"
	"encoding/xml"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/internal/need"
)

func comparisonJUnit(t testing.TB, c expect.Comparison, on ...expect.FailOn) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := ComparisonJUnit(&out, c, on...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestComparisonsAreJUnitByTheCommonSchema(t *testing.T) {
	xmllint := need.Program(t, "xmllint")
	for name, c := range map[string]expect.Comparison{"changes": sampleComparison(), "none": unchanged(), "nothing": {}} {
		if err := validate(t, xmllint, comparisonJUnit(t, c)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyWhatCountsFailsInJUnit(t *testing.T) {
	for _, tt := range []struct {
		on   []expect.FailOn
		want string // of each case, in their order
	}{
		{nil, "failure skipped failure skipped skipped failure skipped error passed"},
		{[]expect.FailOn{expect.FailOnWorse}, "failure skipped failure skipped skipped failure failure error passed"},
		{[]expect.FailOn{expect.FailOnOpened}, "failure skipped failure skipped failure failure skipped error passed"},
		{[]expect.FailOn{expect.FailOnChange}, "failure failure failure skipped failure failure failure error passed"},
	} {
		var doc junitSuites
		if err := xml.Unmarshal(comparisonJUnit(t, sampleComparison(), tt.on...), &doc); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range doc.Suites[0].Cases {
			switch {
			case c.Failure != nil:
				got = append(got, "failure")
			case c.Error != nil:
				got = append(got, "error")
			case c.Skipped != nil:
				got = append(got, "skipped")
			default:
				got = append(got, "passed")
			}
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%v: %s", tt.on, diff)
		}
	}
}
