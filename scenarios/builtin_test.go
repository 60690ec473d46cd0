package scenarios

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func all(t testing.TB) []*Scenario {
	t.Helper()
	list, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 5 {
		t.Fatalf("%d built-in scenarios, not 5", len(list))
	}
	return list
}

func TestBuiltinScenariosFitTheTables(t *testing.T) {
	for i, s := range all(t) {
		if want := Names()[i]; s.Name != want || s.File != "builtin:"+want+".yaml" {
			t.Errorf("%s is named %s", s.File, s.Name)
		}
		for _, p := range s.Paths {
			if n := utf8.RuneCountInString(p.Title); n > 34 {
				t.Errorf("%s: the title has %d characters, more than 34", p.ID, n)
			}
			if p.Basis != External && (p.Quote == "" || p.Source == "") {
				t.Errorf("%s: no quote or no source", p.ID)
			}
			if p.Unmeasured == "" && p.Protocol == "" && p.ID != "CRD-B13" {
				t.Errorf("%s: no protocol", p.ID)
			}
		}
	}
}

// TestEveryRowOfTheCatalogueIsAPath reads a list that was written by hand.
func TestEveryRowOfTheCatalogueIsAPath(t *testing.T) {
	var want, got []string
	lines := bufio.NewScanner(strings.NewReader(read(t, testdata+"catalogue-ids.txt")))
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
			want = append(want, line)
		}
	}
	for _, s := range all(t) {
		for _, p := range s.Paths {
			got = append(got, p.ID)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-list +scenarios):\n%s", diff)
	}
}

// TestQuotesAreInTheirSources needs the documents, which are not the
// project's to publish: WALLPROBE_SOURCES names the folder that has them.
func TestQuotesAreInTheirSources(t *testing.T) {
	folder := os.Getenv("WALLPROBE_SOURCES")
	if folder == "" {
		t.Skip("WALLPROBE_SOURCES does not name the folder of the documents")
	}
	ellipsis := regexp.MustCompile(`…|\.\.\.`)
	checked := 0
	for _, s := range all(t) {
		texts := map[string]string{}
		for _, src := range s.Sources {
			texts[src.ID] = collapse(read(t, filepath.Join(folder, src.File)))
		}
		check := func(id, source, quote string) {
			rest := texts[source]
			for _, part := range ellipsis.Split(quote, -1) {
				_, after, ok := strings.Cut(rest, collapse(part))
				if !ok {
					t.Errorf("%s: %q is not in %s, or not in this order", id, part, source)
				}
				rest = after
				checked++
			}
		}
		for _, p := range s.Paths {
			if p.Quote != "" {
				check(p.ID, p.Source, p.Quote)
			}
		}
		for _, o := range s.Outcomes {
			if o.Quote != "" {
				check(s.Name+" "+o.ID, o.Source, o.Quote)
			}
		}
	}
	if checked < 150 {
		t.Errorf("only %d quotes were checked", checked)
	}
}

func collapse(s string) string { return strings.Join(strings.Fields(s), " ") }

// TestReflectorPortsHoldTheCatalogue has section 2 of the catalogue in it;
// the blocks under test there are of firewalls, not of paths. 5229 and 5230 are
// the alternates of section 8.
func TestReflectorPortsHoldTheCatalogue(t *testing.T) {
	tcp, udp := Ports(all(t)...)
	want := "20-22,80,443,465,587,993,995,3306,3478,5222,5228-5230,8002,8040-8041,8080,8484,19812-19814,49152-65535"
	if tcp.String() != want {
		t.Errorf("TCP\n got %s\nwant %s", tcp, want)
	}
	// CRD-B1 is all of UDP.
	if udp.String() != "1-65535" {
		t.Errorf("UDP %s", udp)
	}
	var rest []*Scenario
	for _, s := range all(t) {
		if s.Name != "chrome-remote-desktop" {
			rest = append(rest, s)
		}
	}
	_, udp = Ports(rest...)
	if want := "75,1853,8002,8200,40000-41000,42000"; udp.String() != want {
		t.Errorf("UDP without Chrome Remote Desktop\n got %s\nwant %s", udp, want)
	}
}

// The totals are those of section 1.6 of the catalogue.
func TestGoToRangesAreComplete(t *testing.T) {
	s, err := Load("goto-meeting")
	if err != nil {
		t.Fatal(err)
	}
	type total struct{ ranges, addresses int }
	got := map[string]total{}
	sum := func(key string, p Path) {
		n := got[key]
		for _, a := range p.Addresses {
			n.ranges++
			n.addresses += 1 << (32 - a.Bits())
		}
		got[key] = n
	}
	for _, p := range s.Paths {
		if len(p.Addresses) > 0 {
			sum(strings.TrimRight(p.ID, "0123456789"), p)
		}
		if p.ID == "GT-1" || p.ID == "GT-2" {
			sum(p.ID, p)
		}
	}
	delete(got, "GT-")
	want := map[string]total{"GT-T": {10, 45568}, "GT-U": {9, 43520}, "GT-1": {10, 45568}, "GT-2": {9, 43520}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(total{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClientOf365HasNeitherLicenceNorUpdatePorts(t *testing.T) {
	s, err := Load("timesensor-legal")
	if err != nil {
		t.Fatal(err)
	}
	var ports []PortSet
	for _, p := range s.PathsFor("client-365") {
		ports = append(ports, p.Ports)
	}
	if got := Union(ports...).String(); got != "465,587,993,995,19812-19814" {
		t.Errorf("ports %s", got)
	}
}

func TestOutcomesAreAskedOfTheRightRoles(t *testing.T) {
	want := map[string][]string{
		"chrome-remote-desktop": {"host", "client"},
		"connectwise-automate":  {"agent", "technician", "server", "web-server"},
		"goto-meeting":          {"client"},
		"screenconnect":         {"machine", "server"},
		"timesensor-legal":      {"office", "server-365", "client-365"},
	}
	got := map[string][]string{}
	for _, s := range all(t) {
		got[s.Name] = s.NearRoles()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnknownNameListsTheBuiltInOnes(t *testing.T) {
	for name, want := range map[string]string{
		"chrome-remote-desktp": `no scenario and no file is named "chrome-remote-desktp": built in are chrome-remote-desktop, connectwise-automate, goto-meeting, screenconnect, timesensor-legal; did you mean "chrome-remote-desktop"?`,
		"goto":                 `no scenario and no file is named "goto": built in are chrome-remote-desktop, connectwise-automate, goto-meeting, screenconnect, timesensor-legal; did you mean "goto-meeting"?`,
		"zoom":                 `no scenario and no file is named "zoom": built in are chrome-remote-desktop, connectwise-automate, goto-meeting, screenconnect, timesensor-legal`,
		"":                     `no scenario and no file is named "": built in are chrome-remote-desktop, connectwise-automate, goto-meeting, screenconnect, timesensor-legal`,
	} {
		if _, err := Load(name); err == nil || err.Error() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load("nowhere/at-all.yaml"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path: %v", err)
	}
}

func TestOwnFileIsReadLikeABuiltInOne(t *testing.T) {
	want, err := Load("screenconnect")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load("./screenconnect.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got.File != "./screenconnect.yaml" {
		t.Errorf("file %s", got.File)
	}
	got.File = want.File
	if diff := cmp.Diff(want, got, cmpPrefix); diff != "" {
		t.Errorf("(-builtin +file):\n%s", diff)
	}
	large := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(large, make([]byte, MaxSize+10), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(large); err == nil || err.Error() != large+":1:1: the file is larger than 1 MiB" {
		t.Errorf("%v", err)
	}
}

func TestPathsBelongToTheirNearEnd(t *testing.T) {
	s, err := Parse("f", []byte(read(t, testdata+"valid.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, r := range s.Roles {
		for _, p := range s.PathsFor(r.Name) {
			got[r.Name] = append(got[r.Name], p.ID)
		}
	}
	want := map[string][]string{"host": {"A-1", "A-2", "A-3", "A-4"}, "peer": {"A-2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	tcp, udp := Ports(s, s)
	if tcp.String() != "443,42000" || udp.String() != "20-22,80,42000" {
		t.Errorf("ports %s and %s", tcp, udp)
	}
}

func BenchmarkBuiltin(b *testing.B) {
	for b.Loop() {
		all(b)
	}
}
