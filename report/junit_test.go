package report

import (
	"bytes"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
)

func junitOf(t testing.TB, results []*client.Result) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := JUnit(&out, results); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// validate holds a document against the schema with the validator of libxml2.
func validate(t testing.TB, xmllint string, doc []byte) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(file, doc, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(xmllint, "--noout", "--nonet", "--schema", "../testdata/junit/junit.xsd", file).CombinedOutput()
	if err != nil {
		return &invalid{string(out)}
	}
	return nil
}

type invalid struct{ said string }

func (e *invalid) Error() string { return e.said }

func TestJUnitIsValidByTheCommonSchema(t *testing.T) {
	xmllint := need.Program(t, "xmllint")
	for name, results := range samples(t) {
		if err := validate(t, xmllint, junitOf(t, results)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The schema does refuse.
	good := string(junitOf(t, worstResult(t)))
	for _, bad := range []string{
		strings.Replace(good, `hostname="localhost"`, "", 1),
		strings.Replace(good, `type="rejected"`, "", 1),
		strings.Replace(good, "<system-err></system-err>", "", 1),
		strings.Replace(good, `time="0"`, `time="1e3"`, 1),
	} {
		if bad == good {
			t.Fatal("nothing was broken")
		}
		if validate(t, xmllint, []byte(bad)) == nil {
			t.Error("the schema takes what is broken")
		}
	}
}

func TestJUnitTellsEveryStandingFromTheOthers(t *testing.T) {
	var doc junitSuites
	if err := xml.Unmarshal(junitOf(t, worstResult(t)), &doc); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, c := range doc.Suites[0].Cases {
		path, _, _ := strings.Cut(c.Name, " ")
		if path == "outcome" {
			path = strings.Fields(c.Name)[1]
		}
		switch {
		case c.Failure != nil:
			got[path] = "failure " + c.Failure.Type
		case c.Error != nil:
			got[path] = "error " + c.Error.Type
		case c.Skipped != nil:
			got[path] = "skipped " + c.Skipped.Type
		default:
			got[path] = "passed"
		}
	}
	want := map[string]string{
		"B-1/tcp": "passed", "B-2/udp": "passed", "B-3/udp": "passed", "B-4/udp": "passed", "B-5/tcp": "failure cut", "B-6/tcp": "failure refused",
		"B-7/udp": "failure altered", "B-8/tcp": "failure rejected", "B-9/udp": "failure reply-lost", "B-10/udp": "failure request-lost",
		"B-11/tcp": "failure impostor", "B-12/tcp": "failure request-lost", "B-14/tcp": "skipped unmeasured", "B-13/tcp": "error silent",
		"sign-in": "passed", "telephone": "passed", "support": "failure fails", "payments": "failure fails", "receipts": "failure fails",
		"guests": "skipped fails", "updates": "failure fails", "printing": "error unknown",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("cases (-want +got):\n%s", d)
	}
	for _, c := range doc.Suites[0].Cases {
		if strings.HasPrefix(c.Name, "B-8/") {
			if want := "B-8 28008/tcp rejected: icmp admin-prohibited from 10.77.1.1"; c.Failure.Message != want {
				t.Errorf("message %q, want %q", c.Failure.Message, want)
			}
			for _, end := range []string{"near end: 1 sent, 0 answered; icmp admin-prohibited from 10.77.1.1", "far end: 0 seen"} {
				if !strings.Contains(c.Failure.XML, end) {
					t.Errorf("%q is not in %q", end, c.Failure.XML)
				}
			}
		}
	}
}

func TestAnUnfinishedRunIsAnErrorInJUnit(t *testing.T) {
	var doc junitSuites
	if err := xml.Unmarshal(junitOf(t, []*client.Result{offline()}), &doc); err != nil {
		t.Fatal(err)
	}
	cases := doc.Suites[0].Cases
	if last := cases[len(cases)-1]; last.Error == nil || last.Error.Message != "it did not: stopped: interrupt" {
		t.Errorf("the last case is %+v", last)
	}
}
