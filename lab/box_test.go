package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func TestBoxesAreReadFromComments(t *testing.T) {
	text := "# title: t\n# wallprobe: intercept 443/tcp\ntable inet t {\n}\n\t#wallprobe:inspect 80,8000-8080/tcp\r\n" +
		"# what wallprobe: means is told elsewhere\nadd rule t c tcp dport 1 # wallprobe: not alone on its line\n"
	got, err := parseBoxes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Box{
		{Kind: BoxIntercept, Ports: scenarios.PortSet{{First: 443, Last: 443}}, Line: 2},
		{Kind: BoxInspect, Ports: scenarios.PortSet{{First: 80, Last: 80}, {First: 8000, Last: 8080}}, Line: 5},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWrongBoxesAreRefusedWithLineAndRemedy(t *testing.T) {
	const example = "; write for example: # wallprobe: intercept 443/tcp"
	cases := map[string]string{
		"# wallprobe:":                       "# wallprobe:: no box is named" + example,
		"# wallprobe: intercpt 443/tcp":      `# wallprobe: intercpt 443/tcp: no box is called "intercpt"; there are inspect and intercept`,
		"# wallprobe: intercept":             "# wallprobe: intercept: intercept wants ports and nothing else" + example,
		"# wallprobe: intercept 443/tcp now": "# wallprobe: intercept 443/tcp now: intercept wants ports and nothing else" + example,
		"# wallprobe: intercept 443":         `# wallprobe: intercept 443: intercept works on tcp only, not on "443"` + example,
		"# wallprobe: intercept 443/udp":     `# wallprobe: intercept 443/udp: intercept works on tcp only, not on "443/udp"` + example,
		"# wallprobe: intercept 65536/tcp":   "# wallprobe: intercept 65536/tcp: port 65536 does not exist: ports are 1 to 65535" + example,
		"# wallprobe: intercept 9-8/tcp":     "# wallprobe: intercept 9-8/tcp: range 9-8 is backwards; write 8-9" + example,
		"# wallprobe: inspect 40-50/tcp":     "# wallprobe: inspect 40-50/tcp: line 1 has a box for the same port already; keep one of them",
		"# wallprobe: intercept 45/tcp":      "# wallprobe: intercept 45/tcp: line 1 has a box for the same port already; keep one of them",
		"# wallprobe: inspect 60/tcp":        "# wallprobe: inspect 60/tcp: line 1 has the one proxy there is; add the ports there: 443,8443/tcp",
	}
	for line, want := range cases {
		file := filepath.Join(t.TempDir(), "own.nft")
		if err := os.WriteFile(file, []byte("# wallprobe: inspect 40-50/tcp\n\n"+line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := OpenFirewall(file)
		if got := strings.TrimPrefix(errorText(err), "firewall "+file+":3: "); got != want {
			t.Errorf("%s\n got %v\nwant %s", line, err, want)
		}
	}
	_, err := parseBoxes([]byte("# wallprobe: a\n# wallprobe: b\n"))
	if got := strings.Count(errorText(err), "no box is called"); got != 2 {
		t.Errorf("%d of two mistakes are told: %v", got, err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// FuzzBoxes: what is taken for boxes has ports, and none twice.
func FuzzBoxes(f *testing.F) {
	f.Add([]byte("# wallprobe: intercept 443/tcp\n# wallprobe: inspect 80-90,8080/tcp\n"))
	f.Add([]byte("##wallprobe:intercept 0/tcp"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseBoxes(text)
		if err != nil {
			return
		}
		var sets []scenarios.PortSet
		ports := 0
		for _, b := range all {
			if b.Ports.Len() == 0 || b.Line < 1 || BoxKinds[b.Kind] == "" {
				t.Errorf("%+v", b)
			}
			sets, ports = append(sets, b.Ports), ports+b.Ports.Len()
		}
		if scenarios.Union(sets...).Len() != ports {
			t.Errorf("%+v share ports", all)
		}
	})
}
