package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func books(t *testing.T) []Book {
	t.Helper()
	all, err := Books()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no experiments")
	}
	return all
}

// The rows that a firewall and this lab can decide, of sections 3 to 6 of the
// catalogue.
func TestExperimentsOfTheCatalogueAreThere(t *testing.T) {
	want := strings.Fields(`
		CRD-E1 CRD-E2 CRD-E3 CRD-E4 CRD-E5 CRD-E6 CRD-E7 CRD-E8 CRD-E9 CRD-E10 CRD-E17 CRD-E18 CRD-E20 CRD-E21 CRD-E22 CRD-E23 CRD-E24
		CWA-E1 CWA-E2 SC-E1 SC-E2 SC-E3 TS-E1 TS-E2 TS-E3 TS-E4 TS-E5 TS-E6 TS-E7 GT-D-E1 GT-D-E2`)
	var got []string
	for _, b := range books(t) {
		for _, x := range b.Experiments {
			got = append(got, x.ID)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-catalogue +experiments):\n%s", diff)
	}
}

func TestEveryExperimentSaysWhoSaysWhat(t *testing.T) {
	for _, b := range books(t) {
		for _, x := range b.Experiments {
			if x.Source == "" || x.Document == "" || x.Quote == "" {
				t.Errorf("%s: source %q, document %q, quote %q", x.ID, x.Source, x.Document, x.Quote)
			}
			for _, v := range x.All() {
				if v.Firewall == "" || len(x.All()) > 1 && v.Name == "" {
					t.Errorf("%s: variant %+v has no firewall or no name", x.ID, v)
				}
				if len(x.Expected(v)) == 0 && x.Beyond == "" {
					t.Errorf("%s %s expects nothing and does not say why", x.ID, v.Name)
				}
			}
		}
	}
}

// TestQuotesOfExperimentsAreInTheirSources needs the documents, which are not
// the project's to publish: WALLPROBE_SOURCES names the folder that has them.
func TestQuotesOfExperimentsAreInTheirSources(t *testing.T) {
	folder := os.Getenv("WALLPROBE_SOURCES")
	if folder == "" {
		t.Skip("WALLPROBE_SOURCES does not name the folder of the documents")
	}
	collapse := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	for _, b := range books(t) {
		s, err := scenarios.Load(b.Scenario)
		if err != nil {
			t.Fatal(err)
		}
		texts := make(map[string]string)
		for _, src := range s.Sources {
			text, err := os.ReadFile(filepath.Join(folder, src.File))
			if err != nil {
				t.Fatal(err)
			}
			texts[src.ID] = collapse(string(text))
		}
		for _, x := range b.Experiments {
			for _, v := range append(x.All(), Variant{Quote: x.Quote}) {
				if !strings.Contains(texts[x.Source], collapse(v.Quote)) {
					t.Errorf("%s %s: %q is not in %s", x.ID, v.Name, v.Quote, x.Source)
				}
			}
		}
	}
}

func TestExperimentsThatCannotBeRunAreRefused(t *testing.T) {
	ask := func(e Expectation) Book {
		return Book{Scenario: "screenconnect", Role: "machine", Experiments: []Experiment{{ID: "X", Firewall: "open", Expect: []Expectation{e}}}}
	}
	role := ask(holds[0])
	role.Role = "visitor"
	from := ask(Expectation{Outcome: "remote-control", Works: new(true)})
	from.Experiments[0].Variants = []Variant{{Firewall: "open", Role: "server"}}
	wall := ask(Expectation{Slower: []string{"SC-3"}, Than: "shut"})
	two := ask(Expectation{Slower: []string{"SC-3"}, Than: "open"})
	two.Experiments[0].Expect = append(two.Experiments[0].Expect, Expectation{Slower: []string{"SC-3"}, Than: "stateful"})
	show := ask(Expectation{Outcome: "remote-control", Works: new(true)})
	show.Experiments[0].Show = []string{"SC-9"}
	cases := map[string]Book{
		`experiment X: scenario screenconnect has no near end "visitor"`:                                  role,
		"experiment X: scenario screenconnect has no outcome remote-control for server":                   from,
		"experiment X: scenario screenconnect has no outcome fly for machine":                             ask(Expectation{Outcome: "fly", Works: new(true)}),
		"experiment X: scenario screenconnect has no path SC-1 from machine":                              ask(Expectation{Path: "SC-1", Passes: new(true)}),
		"experiment X: scenario screenconnect has no path SC-9":                                           show,
		"experiment X: an expectation has an outcome and works, or a path and passes, or slower and than": ask(Expectation{Outcome: "remote-control"}),
		"experiment X: compares with open and with stateful":                                              two,
		`no firewall "shut": neither a file nor one of ` + strings.Join(FirewallNames(), ", "):            wall,
	}
	for want, book := range cases {
		if err := book.check(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	good := ask(Expectation{Outcome: "remote-control", Works: new(true)})
	if err := good.check(); err != nil {
		t.Error(err)
	}
}
