package scenarios

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite schema.json and the golden files")

const testdata = "../testdata/scenarios/"

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// problems is the text of what Parse says of the file f.
func problems(t *testing.T, data string) string {
	t.Helper()
	_, err := Parse("f", []byte(data))
	if err == nil {
		return ""
	}
	if _, ok := errors.AsType[Errors](err); !ok {
		t.Fatalf("the error is a %T, not Errors: %v", err, err)
	}
	return err.Error()
}

// invalid are single edits of valid.yaml and exactly what they are told.
var invalid = []struct {
	old, new string
	want     string
	unseen   bool // by the JSON Schema, which can only look at one place
}{
	// Keys.
	{old: "    protocol: https", new: "    protocoll: https", want: `f:19:5: unknown key "protocoll"; did you mean "protocol"?`},
	{old: "version: 1", new: "version: 1\nzzzzzz: 1", want: `f:5:1: unknown key "zzzzzz"; known are schema, name, title, version, description, sources, roles, paths, outcomes, conflicts`},
	{old: "    title: web", new: "    title: web\n    title: more", want: `f:14:5: key "title" is given twice; the first is on line 13`},
	{old: "    title: web\n", new: "", want: `f:12:5: key "title" is missing`},
	{old: "version: 1\n", new: "", want: `f:1:1: key "version" is missing`},
	{old: "title: web", new: "title:", want: `f:13:11: "title" has no value`},
	{old: "title: web", new: "<<: {title: web}\n    title: x", want: `f:13:5: unknown key "<<"; known are id, title, from, to, direction, transport, ports, localPorts, protocol, names, addresses, need, order, when, pick, basis, inferred, quote, source, note, unmeasured, bytes, datagram, idle, maxLoss`, unseen: true},

	// Types.
	{old: "title: web", new: "title: 443", want: `f:13:12: "title" must be text, not the number 443; write "443" in quotes`},
	{old: "title: web", new: "title: [web]", want: `f:13:12: "title" must be text, not a list`},
	{old: "title: web", new: `title: " "`, want: `f:13:12: "title" is empty`, unseen: true},
	{old: "title: web", new: `title: "a\nb"`, want: `f:13:12: "title": "a\nb" is not one line of text without control characters`},
	{old: "quote: Port 443", new: `quote: "a\e[2J"`, want: `f:24:12: "quote": "a\x1b[2J" is not text without control characters`},
	{old: "version: 1", new: `version: "1"`, want: `f:4:10: "version" must be a whole number, not the text "1"`},
	{old: "version: 1", new: "version: 1.5", want: `f:4:10: "version" must be a whole number, not the number 1.5`},
	{old: "version: 1", new: "version: 0", want: `f:4:10: "version" must be 1 to 1000000, not 0`},
	{old: "optional: true", new: "optional: 1", want: `f:68:15: "optional" must be true or false, not the number 1`},
	{old: "maxLoss: 0.1", new: "maxLoss: 2", want: `f:41:14: "maxLoss" must be 0 to 1, not 2`},
	{old: "maxLoss: 0.1", new: "maxLoss: .nan", want: `f:41:14: "maxLoss" must be a number, not the number .nan`},
	{old: "maxLoss: 0.1", new: "maxLoss: few", want: `f:41:14: "maxLoss" must be a number, not the text "few"`},
	{old: "datagram: 1200", new: "datagram: 65508", want: `f:40:15: "datagram" must be 1 to 65507, not 65508`},
	{old: "idle: 50s", new: "idle: 50", want: `f:26:11: "idle": "50" is not a time above zero such as 50s or 5m`},
	{old: "idle: 50s", new: "idle: -5s", want: `f:26:11: "idle": "-5s" is not a time above zero such as 50s or 5m`},
	{old: "from: [host]\n    to: [server]", new: "from: host\n    to: [server]", want: `f:14:11: "from" must be a list, not the text "host"; write [host]`},
	{old: "to: [server]", new: "to: []", want: `f:15:9: "to" is an empty list`},
	{old: "to: [server]", new: "to: [server, server]", want: `f:15:18: "server" is listed twice`},
	{old: "  - {title: UDP, paths: [A-2]}", new: "  - A-2", want: `f:70:9: an item of "ways" must be a mapping of keys to values, not the text "A-2"`},
	{old: "title: web", new: "title: 2024-01-02", want: `f:13:12: "title" must be text, not the date 2024-01-02; write "2024-01-02" in quotes`},
	{old: "title: web", new: "title: !x web", want: `f:13:12: "title" must be text, not !x "web"; write "web" in quotes`, unseen: true},

	// Values with a form.
	{old: "scenario/1", new: "scenario/9", want: `f:1:9: "schema": "wallprobe/scenario/9" is not the schema that this program reads: wallprobe/scenario/1`},
	{old: "name: sample", new: "name: Sample 1", want: `f:2:7: "name": "Sample 1" is not a name: lower-case letters, digits and single hyphens`},
	{old: "protocol: https", new: "protocol: HTTPS", want: `f:19:15: "protocol": "HTTPS" is not a name: lower-case letters, digits and single hyphens`},
	{old: "id: A-4", new: "id: A/4", want: `f:51:9: "id": "A/4" is not an id: letters, digits, hyphens and dots`},
	{old: "file: doc.txt", new: "file: a/doc.txt", want: `f:6:20: "file": "a/doc.txt" is not the name of a file without its folder`},
	{old: "language: de", new: "language: German", want: `f:6:58: "language": "German" is not a language tag such as de or pt-BR`},
	{old: "*.example.com", new: "a..example.com", want: `f:20:13: "names": "a..example.com" is not a DNS name: lower-case labels joined by dots, with "*." only in front`},
	{old: "*.example.com", new: "a.*.example.com", want: `f:20:13: "names": "a.*.example.com" is not a DNS name: lower-case labels joined by dots, with "*." only in front`},
	{old: "*.example.com", new: "192.0.2.1", want: `f:20:13: "names": "192.0.2.1" is not a DNS name: lower-case labels joined by dots, with "*." only in front`},
	{old: "*.example.com", new: "-a.example.com", want: `f:20:13: "names": "-a.example.com" is not a DNS name: lower-case labels joined by dots, with "*." only in front`},
	{old: "*.example.com", new: strings.Repeat("a.", 126) + "com", want: `f:20:13: "names" is longer than 253 characters`},
	{old: "direction: lan", new: "direction: sideways", want: `f:46:16: "direction" must be one of out, in, lan, loop, p2p, not "sideways"`},
	{old: "transport: [tcp]", new: "transport: [sctp]", want: `f:17:17: "transport" must be one of tcp, udp, not "sctp"`},
	{old: "need: req", new: "need: maybe", want: `f:22:11: "need" must be one of req, opt, cond, fb, neg, not "maybe"`},
	{old: "basis: inferred", new: "basis: guess", want: `f:38:12: "basis" must be one of stated, inferred, external, not "guess"`},
	{old: "pick: one", new: "pick: [one]", want: `f:37:11: "pick" must be one of all, any, one, not a list`},

	// Ports.
	{old: "ports: 443", new: "ports: 0", want: `f:18:12: "ports": port 0 does not exist: ports are 1 to 65535`},
	{old: "ports: 443", new: "ports: 65536", want: `f:18:12: "ports": port 65536 does not exist: ports are 1 to 65535`},
	{old: "ports: 443", new: "ports: 32768-65536", want: `f:18:12: "ports": port 65536 does not exist: ports are 1 to 65535`, unseen: true},
	{old: "ports: 443", new: "ports: 41000-40000", want: `f:18:12: "ports": range 41000-40000 is backwards; write 40000-41000`, unseen: true},
	{old: "ports: 443", new: `ports: "80,79-81"`, want: `f:18:12: "ports": ranges 79-81 and 80 overlap`, unseen: true},
	{old: "ports: 443", new: `ports: "0, 9-8, x"`, want: "f:18:12: \"ports\": port 0 does not exist: ports are 1 to 65535\nf:18:12: \"ports\": range 9-8 is backwards; write 8-9\nf:18:12: \"ports\": \"x\" is not a port number"},
	{old: "ports: 443", new: "ports: 40.000-41.000", want: "f:18:12: \"ports\": \"40.000\" is not a port number"},
	{old: "ports: 443", new: "ports: 0x1BB", want: "f:18:12: \"ports\": \"0x1BB\" is not a port number", unseen: true},
	{old: "ports: 443", new: "ports: [443]", want: `f:18:12: "ports" must be ports such as 443 or 40000-41000, not a list`},
	{old: "localPorts: 40000-65535", new: "localPorts: 40000-65536", want: `f:34:17: "localPorts": port 65536 does not exist: ports are 1 to 65535`, unseen: true},

	// Addresses.
	{old: "192.0.2.0/24", new: "192.0.2.9/24", want: `f:21:17: "addresses": 192.0.2.9/24 has host bits set; write 192.0.2.0/24`, unseen: true},
	{old: "192.0.2.0/24", new: `"2001:db8::1/32"`, want: `f:21:17: "addresses": 2001:db8::1/32 has host bits set; write 2001:db8::/32`, unseen: true},
	{old: "192.0.2.0/24", new: "192.0.2.9", want: `f:21:17: "addresses": 192.0.2.9 lacks its length; write 192.0.2.9/32 for this one address`},
	{old: "192.0.2.0/24", new: "192.0.2.0/33", want: `f:21:17: "addresses": "192.0.2.0/33" is not an address range such as 192.0.2.0/24`, unseen: true},

	// Names that are defined and referred to.
	{old: "id: A-2", new: "id: A-1", want: "f:27:9: path \"A-1\" is already defined on line 12\nf:70:30: unknown path \"A-2\"; did you mean \"A-1\"?", unseen: true},
	{old: "id: voice", new: "id: web", want: `f:65:9: outcome "web" is already defined on line 59`, unseen: true},
	{old: "name: peer", new: "name: host", want: "f:9:12: role \"host\" is already defined on line 8\nf:29:18: unknown role \"peer\"; known are host, server\nf:45:10: unknown role \"peer\"; known are host, server\nf:67:19: unknown role \"peer\"; known are host, server", unseen: true},
	{old: "language: de}", new: "language: de}\n  - {id: D1, file: b.txt, title: B, language: de}", want: `f:7:10: source "D1" is already defined on line 6`, unseen: true},
	{old: "from: [host]\n    to: [server]", new: "from: [hots]\n    to: [server]", want: "f:14:12: unknown role \"hots\"; did you mean \"host\"?", unseen: true},
	{old: "source: D1", new: "source: D7", want: `f:23:13: unknown source "D7"; did you mean "D1"?`, unseen: true},
	{old: "paths: [A-1]", new: "paths: [B-77777]", want: `f:63:33: unknown path "B-77777"; known are A-1, A-2, A-3, A-4`, unseen: true},
	{old: "paths: [A-1]", new: "paths: [A-1/udp]", want: `f:63:33: path A-1 has no transport "udp"; it has tcp`, unseen: true},
	{old: "A-3/udp", new: "A-3/sctp", want: `f:64:32: path A-3 has no transport "sctp"; it has tcp and udp`, unseen: true},
	{old: "paths: [A-2]", new: "paths: [A-3]", want: `f:70:30: path A-3 is not one of role peer, for which this outcome is asked`, unseen: true},
	{old: "paths: [A-3/udp]", new: "paths: [A-4]", want: `f:64:32: path A-4 is unmeasured, so this way could never be seen to work`, unseen: true},

	// Keys that go together.
	{old: "    order: 1\n", new: "", want: `f:27:5: need fb demands the key "order"`},
	{old: "    when: there are neighbours\n", new: "", want: `f:42:5: need cond demands the key "when"`},
	{old: "need: req", new: "need: req\n    order: 1", want: `f:23:12: "order" is only for need fb, and this path has need req`},
	{old: "    ports: 443\n", new: "", want: `f:12:5: key "ports" is missing; without it the key "unmeasured" must say why the path cannot be probed`},
	{old: "    unmeasured: The document names no port.\n", new: "", want: "f:51:5: key \"transport\" is missing; without it the key \"unmeasured\" must say why the path cannot be probed\nf:51:5: key \"ports\" is missing; without it the key \"unmeasured\" must say why the path cannot be probed"},
	{old: "    source: D1\n", new: "", want: `f:23:12: a quote demands the key "source"`},
	{old: "inferred: [pick]", new: "inferred: [port]", want: `f:39:16: "port" is not a key of a path; did you mean "ports"?`},
	{old: "inferred: [pick]", new: "inferred: [protocol]", want: `f:39:16: "protocol" is called inferred, but the path does not have it`, unseen: true},
	{old: "idle: 50s", new: "datagram: 9", want: `f:26:15: "datagram" is only for udp, and this path has tcp`},
	{old: "datagram: 1200", new: "bytes: 9", want: `f:40:12: "bytes" is only for tcp, and this path has udp`},

	// Directions and sites.
	{old: "    to: [peer]", new: "    to: [peer, server]", want: `f:46:16: direction lan stays within one site, but host is at home and server at internet`, unseen: true},
	{old: "direction: lan", new: "direction: loop", want: `f:46:16: direction loop stays within one machine, but "from" and "to" name different roles`, unseen: true},
	{old: "direction: lan", new: "direction: out", want: `f:46:16: direction out crosses a site's border, but host and peer are both at home`, unseen: true},

	// Anchors.
	{old: "title: web", new: "title: &t web", want: `f:13:12: anchors are not read; remove &t`, unseen: true},
	{old: "title: web\n    from: [host]", new: "title: &t web\n    from: [*t]", want: "f:13:12: anchors are not read; remove &t\nf:14:12: aliases are not read; write out what *t stands for", unseen: true},
}

func TestInvalidFilesAreToldExactly(t *testing.T) {
	valid := read(t, testdata+"valid.yaml")
	if got := problems(t, valid); got != "" {
		t.Fatal(got)
	}
	for _, c := range invalid {
		data := strings.Replace(valid, c.old, c.new, 1)
		if data == valid {
			t.Errorf("%q is not in valid.yaml", c.old)
		}
		if diff := cmp.Diff(c.want, problems(t, data)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.new, diff)
		}
	}
}

func TestUnreadableFilesAreToldExactly(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{"", "f:1:1: the file is empty"},
		{"# only a comment\n", "f:1:1: the file is empty"},
		{"---\n", "f:1:1: the file is empty"},
		{"~", "f:1:1: the file is empty"},
		{"- a\n", "f:1:1: a scenario must be a mapping of keys to values, not a list"},
		{"hello", `f:1:1: a scenario must be a mapping of keys to values, not the text "hello"`},
		{strings.Repeat("#", MaxSize+1), "f:1:1: the file is larger than 1 MiB"},
		{"a:\n\tb: 1\n", "f:2:1: not YAML: a tab in the indentation; YAML indents with spaces"},
		{"a: [1,\n", "f:1:1: not YAML: did not find expected node content"},
		{"a: b: c\n", "f:1:1: not YAML: mapping values are not allowed in this context"},
		{"a: *nothing\n", "f:1:1: not YAML: unknown anchor 'nothing' referenced"},
		{"a: 1\nb: \x00\n", "f:2:4: the control character U+0000 is not allowed"},
		{"ä: \xff\n", "f:1:4: the file is not UTF-8 text here"},
		{"\xff\xfea\x00", "f:1:1: the file is not UTF-8 text here"},
	} {
		if diff := cmp.Diff(c.want, problems(t, c.data)); diff != "" {
			t.Errorf("%.20q (-want +got):\n%s", c.data, diff)
		}
	}
}

func TestSeveralDocumentsAreRefused(t *testing.T) {
	valid := read(t, testdata+"valid.yaml")
	for data, want := range map[string]string{
		valid + "---\n" + valid: "f:73:1: a second document begins here; a file holds one scenario",
		valid + "---\n":         "f:73:1: a second document begins here; a file holds one scenario",
		valid + "---\n\ta: 1\n": "f:74:1: not YAML: a tab in the indentation; YAML indents with spaces",
	} {
		if diff := cmp.Diff(want, problems(t, data)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestAliasBombIsRefusedAtOnce(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'z'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+", ", 9) + "*" + string(c-1) + "]\n"
	}
	began := time.Now()
	if got := problems(t, "paths: &p [*p]\n"); !strings.Contains(got, "f:1:8: anchors are not read; remove &p") {
		t.Errorf("an anchor that holds itself: %s", got)
	}
	if got := problems(t, bomb); got == "" {
		t.Error("the bomb was accepted")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("refusing took %v", took)
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	golden := testdata + "everything.golden"
	_, err := Parse("everything.yaml", []byte(read(t, testdata+"everything.yaml")))
	if err == nil {
		t.Fatal("accepted")
	}
	got := err.Error() + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(read(t, golden), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestByteOrderMarkAndCarriageReturnsAreTolerated(t *testing.T) {
	valid := read(t, testdata+"valid.yaml")
	want, err := Parse("f", []byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	windows := "\uFEFF" + strings.ReplaceAll(valid, "\n", "\r\n")
	got, err := Parse("f", []byte(windows))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpPrefix); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	edited := strings.Replace(windows, "ports: 443", "ports: 0", 1)
	const place = `f:18:12: "ports": port 0 does not exist: ports are 1 to 65535`
	if diff := cmp.Diff(place, problems(t, edited)); diff != "" {
		t.Errorf("place of a problem (-want +got):\n%s", diff)
	}
	first := strings.Replace(windows, "schema:", "schemo:", 1)
	if got, want := problems(t, first), "f:1:1: unknown key \"schemo\"; did you mean \"schema\"?\nf:1:1: key \"schema\" is missing"; got != want {
		t.Errorf("after the byte order mark: %s", got)
	}
}

var cmpPrefix = cmpopts.EquateComparable(netip.Prefix{})

func FuzzParse(f *testing.F) {
	valid := read(f, testdata+"valid.yaml")
	f.Add([]byte(valid))
	f.Add([]byte(read(f, testdata+"everything.yaml")))
	for _, c := range invalid {
		f.Add([]byte(strings.Replace(valid, c.old, c.new, 1)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f", data)
		if err != nil {
			list, ok := errors.AsType[Errors](err)
			if !ok || len(list) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			for _, p := range list {
				if p.Line < 1 || p.Column < 1 || p.Message == "" || strings.Contains(p.Message, "\n") {
					t.Errorf("%+v", p)
				}
			}
			return
		}
		text, err := yaml.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("f", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(s, again, cmpPrefix); diff != "" {
			t.Errorf("written and read again (-before +after):\n%s", diff)
		}
	})
}
