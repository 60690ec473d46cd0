package report

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// print is what Text writes.
func print(t *testing.T, r *client.Result, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := Text(&b, r, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// random makes a result that no run would give but a file may hold.
func random(rng *rand.Rand) *client.Result {
	words := []string{"sign-in", "データ", "a", "session", "株式会社", "198.51.100.10", "the", "1,023", "\x1b[31m", "49152-65535", strings.Repeat("x", 60), "§4", "5 %"}
	text := func() string {
		var out []string
		for range rng.IntN(12) {
			out = append(out, words[rng.IntN(len(words))])
		}
		return strings.Join(out, " ")
	}
	r := sample()
	r.Why, r.Complete = text(), rng.IntN(2) == 0
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Title, f.Why, f.Note = text(), text(), text()
		f.Verdict = client.Verdicts[rng.IntN(len(client.Verdicts))]
		for j := range f.Parts {
			f.Parts[j].Why, f.Parts[j].Target = text(), []string{"", "2001:db8:1234:5678:9abc:def0:1234:5678"}[rng.IntN(2)]
		}
	}
	for i := range r.Outcomes {
		r.Outcomes[i].Title, r.Outcomes[i].Via = text(), text()
	}
	for i := range r.Firewall.Rules {
		r.Firewall.Rules[i].Text = text()
	}
	return r
}

func TestNoLineIsWiderThanAskedFor(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 150 {
		r, width := random(rng), 76+rng.IntN(80)
		out := print(t, r, Options{Width: width, Details: i%2 == 0})
		for line := range strings.Lines(out) {
			if n := textWidth(strings.TrimSuffix(line, "\n")); n > width {
				t.Fatalf("%d cells where %d are allowed:\n%s", n, width, line)
			}
		}
	}
}

func TestEveryFindingAppearsInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 100 {
		r := random(rng)
		for j := range r.Findings {
			r.Findings[j].Path = fmt.Sprintf("PATH-%02d", j)
		}
		details := i%2 == 0
		measured, folded, _ := strings.Cut(print(t, r, Options{Details: details}), "not measured: ")
		at := 0
		for _, f := range r.Findings {
			if f.Verdict == client.Unmeasured && len(f.Parts) == 0 && !details {
				if !strings.Contains(folded, f.Path) {
					t.Fatalf("%s is not among the unmeasured:\n%s", f.Path, folded)
				}
				continue
			}
			row := strings.Index(measured[at:], "\n  "+f.Path+" ")
			if row < 0 {
				t.Fatalf("no row for %s after byte %d of:\n%s", f.Path, at, measured)
			}
			at += row + 1
			if line, _, _ := strings.Cut(measured[at:], "\n"); !strings.Contains(line, " "+string(f.Verdict)) {
				t.Fatalf("the row of %s does not say %s: %q", f.Path, f.Verdict, line)
			}
		}
	}
}

func TestNothingFromAResultControlsTheTerminal(t *testing.T) {
	r := sample()
	r.Scenario, r.Role, r.Why, r.Complete = "\x1b]0;x\x07", "\r", "\x1b[2J", false
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Path, f.Title, f.Why, f.Note, f.Protocol = "\x1b[1mP", "a\nb", "c\u202ed\x1b[0m", "e\x00", "g\x9b"
		f.Verdict += "\x1b[5m"
	}
	for i := range r.Outcomes {
		r.Outcomes[i].Title, r.Outcomes[i].Via = "\x1b[31m", "\x08"
		r.Outcomes[i].Ways[0].Title = "\x7f"
	}
	r.Firewall.Name, r.Firewall.Rules[1].Text = "\x1bc", "\x1b[3m"
	rows := []ExperimentRow{{ID: "\x1b[1m", Document: "\x1b", Measured: "\t", Status: "\x1b[5m", Reason: "\x07"}}
	var b bytes.Buffer
	if err := errors.Join(Text(&b, r, Options{Details: true}), Matrix(&b, []*client.Result{r}, Options{}), Experiments(&b, rows, Options{})); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(b.String(), func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r == '\u202e' }); i >= 0 {
		t.Errorf("a control character at byte %d: %q", i, b.String()[max(0, i-20):i+20])
	}
}

func TestColourOnlyAddsToTheText(t *testing.T) {
	colored := print(t, sample(), Options{Color: true})
	for _, code := range []string{"\x1b[31m", "\x1b[32m", "\x1b[33m"} {
		if !strings.Contains(colored, code) {
			t.Errorf("colour %q is not used", code)
		}
		colored = strings.ReplaceAll(colored, code, "")
	}
	if diff := cmp.Diff(print(t, sample(), Options{}), strings.ReplaceAll(colored, "\x1b[0m", "")); diff != "" {
		t.Errorf("without its colours the text differs (-want +got):\n%s", diff)
	}
}

func TestACompleteResultWithALedgerHasNoNotice(t *testing.T) {
	if n := notices(sample(), Options{}); n != nil {
		t.Errorf("notices of a complete result: %q", n)
	}
	if n := notices(offline(), Options{}); len(n) != 2 || !strings.Contains(n[1], "wallprobe merge") {
		t.Errorf("notices of an incomplete result without a ledger: %q", n)
	}
	blind := sample()
	blind.Ledgers[client.WhereFar].Witness = ""
	if n := notices(blind, Options{}); len(n) != 1 || !strings.Contains(n[0], "cannot see SYNs") {
		t.Errorf("notices where SYNs are not seen: %q", n)
	}
}

func TestRulesAreNamedOnlyWhereAPathIsLost(t *testing.T) {
	r := sample()
	want := []string{
		`firewall: rule 3 in forward dropped 25,535 packets: ` + r.Firewall.Rules[1].Text,
		`firewall: rule 4 in forward rejected 1 packet: tcp dport 5228 reject with tcp reset`,
	}
	if diff := cmp.Diff(want, dropped(r, Options{Width: 200})); diff != "" {
		t.Error(diff)
	}
	r.Findings = r.Findings[:3]
	if got := dropped(r, Options{}); got != nil {
		t.Errorf("all paths are open, yet rules are named: %q", got)
	}
}

func TestEvidenceSaysWhatBothEndsCounted(t *testing.T) {
	udp := client.Finding{Transport: scenarios.UDP, Ports: set("3478"), Verdict: client.RequestLost, Why: "the reflector saw nothing", Attempts: tries(3, 0, 0)}
	inward, silent := udp, udp
	inward.Direction, inward.Why = scenarios.In, "the reflector called; nothing arrived here"
	silent.Verdict, silent.Why = client.Silent, "no ledger"
	degraded := udp
	degraded.Verdict, degraded.Why, degraded.Attempts = client.Degraded, "lossy", tries(30, 20, 18)
	tcp := client.Finding{Transport: scenarios.TCP, Ports: set("5222"), Protocol: "xmpp", Spoken: "plain", Verdict: client.Open, Attempts: tries(1, 1, 1)}
	for _, c := range []struct {
		f      client.Finding
		ledger bool
		want   string
	}{
		{udp, true, "3 sent, 0 seen"},
		{inward, true, "the reflector called; nothing arrived here"},
		{silent, false, "3 sent, none answered"},
		{degraded, true, "30 sent, 20 seen, 18 answered; lossy"},
		{degraded, false, "30 sent, 18 answered; lossy"},
		{tcp, true, "plain exchange in place of xmpp"},
	} {
		if got := evidence(&c.f, c.ledger); got != c.want {
			t.Errorf("evidence of %s with ledger %v: %q, want %q", c.f.Verdict, c.ledger, got, c.want)
		}
	}
}

func TestMatrixOfSevenFirewallsFitsInOneTableOf120(t *testing.T) {
	var b bytes.Buffer
	if err := Matrix(&b, matrixResults(), Options{Width: 120}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "session inside the LAN"); n != 1 {
		t.Errorf("an outcome has %d rows, want 1:\n%s", n, b.String())
	}
	for line := range strings.Lines(b.String()) {
		if textWidth(line)-1 > 120 {
			t.Errorf("a line of %d cells: %s", textWidth(line)-1, line)
		}
	}
}

func TestMatrixTellsFamiliesApart(t *testing.T) {
	four, six := sample(), sample()
	six.Family = "ipv6"
	six.Outcomes[0].Works = false
	m := newMatrix([]*client.Result{four, six}, Options{})
	want := []string{"drop-udp-remote-40001 IPv4", "drop-udp-remote-40001 IPv6"}
	if diff := cmp.Diff(want, m.columns); diff != "" {
		t.Error(diff)
	}
	cells := m.groups[0].rows[0].cells
	if cells[want[0]].text != "works" || cells[want[1]].text != "fails" {
		t.Errorf("cells %v", cells)
	}
}

func TestJSONRoundTrips(t *testing.T) {
	for n := range 3 {
		results := slices.Repeat([]*client.Result{sample()}, n)
		var b bytes.Buffer
		if err := JSON(&b, results); err != nil {
			t.Fatal(err)
		}
		if isList := b.Bytes()[0] == '['; isList != (n != 1) {
			t.Errorf("%d results begin with %q", n, b.Bytes()[0])
		}
		got, err := ReadJSON(&b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(results, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
			t.Errorf("%d results (-want +got):\n%s", n, diff)
		}
	}
}

func TestUnreadableResultsAreToldWithLineAndColumn(t *testing.T) {
	const head = "{\n  \"schema\": \"wallprobe/result/1\",\n"
	for _, c := range []struct{ in, want string }{
		{"", `line 1, column 1: there is nothing; a result belongs here, as --json FILE writes it`},
		{" \n", `line 1, column 1: there is nothing; a result belongs here, as --json FILE writes it`},
		{"{\n  \"schema\": ,\n}", `line 2, column 13: not JSON: invalid character ',' looking for beginning of value`},
		{head, `line 3, column 1: not JSON: unexpected end of JSON input; the file was cut off half-way`},
		{head + `"role": "host"}{`, `line 3, column 16: not JSON: invalid character '{' after top-level value`},
		{`"x"`, `line 1, column 1: a result is an object, between braces`},
		{"[" + head + `"role": ""},` + "\n 7]", `line 4, column 2: a result is an object, between braces`},
		{"{}", `line 1, column 1: key "schema" is missing: this is no result of wallprobe, which begins with "wallprobe/result/1"`},
		{`{"findings": [{"schema": "wallprobe/result/1"}]}`, `line 1, column 1: key "schema" is missing: this is no result of wallprobe, which begins with "wallprobe/result/1"`},
		{`{"schema": 1}`, `line 1, column 12: "schema" must be text; a result has "wallprobe/result/1"`},
		{`{"schema": "wallprobe/result/2", "findings": 7}`, `line 1, column 12: schema "wallprobe/result/2" is newer than this program, which reads "wallprobe/result/1"; use a newer wallprobe`},
		{`{"schema": "wallprobe/scenario/1"}`, `line 1, column 12: schema "wallprobe/scenario/1" is not a result; a result has "wallprobe/result/1"`},
		{head + `  "ロール": 1, "role": 7}`, `line 3, column 21: key "role" cannot be the number`},
		{head + `  "findings": {}}`, `line 3, column 15: key "findings" cannot be an object`},
		{head + `  "role": "", "findings": [{"path": "A"}, {"path": "B", "ports": "0"}]}`, `line 3, column 66: port 0 does not exist: ports are 1 to 65535`},
		{head + `  "reflector": "x"}`, `line 3, column 16: ParseAddr("x"): unable to parse IP`},
	} {
		got, err := ReadJSON(strings.NewReader(c.in))
		if err == nil || err.Error() != c.want {
			t.Errorf("%s\n got %v, %v\nwant %s", c.in, got, err, c.want)
		}
	}
}

func TestUnknownKeysOfResultsArePassedOver(t *testing.T) {
	got, err := ReadJSON(strings.NewReader(`[{"new": {"schema": 7}, "schema": "wallprobe/result/1", "role": "host"}]`))
	if err != nil || len(got) != 1 || got[0].Role != "host" {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzReadJSON(f *testing.F) {
	var b bytes.Buffer
	if err := JSON(&b, []*client.Result{offline()}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`[{"schema": "wallprobe/result/1", "reflector": "x", "role": ""}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		results, err := ReadJSON(bytes.NewReader(data))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") {
				t.Errorf("an error without a place: %v", err)
			}
			return
		}
		for _, r := range results {
			if r == nil {
				t.Fatal("a result is nil")
			}
			if err := Text(&bytes.Buffer{}, r, Options{Details: true}); err != nil {
				t.Error(err)
			}
		}
		if err := Matrix(&bytes.Buffer{}, results, Options{}); err != nil {
			t.Error(err)
		}
	})
}

func TestProgressLineIsWrittenTenTimesASecondAtMost(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := &ProgressLine{W: &b, Width: 12, Now: func() time.Time { return now }}
	for i := range 25 {
		p.Show(fmt.Sprintf("%d of 24 ports", i))
		now = now.Add(10 * time.Millisecond)
	}
	p.Show("短い")
	p.Clear()
	p.Clear()
	want := "\r0 of 24 po…" + "\r10 of 24 p…" + "\r20 of 24 p…"
	want += "\r" + strings.Repeat(" ", 11) + "\r"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	p.Show("long one")
	now = now.Add(time.Second)
	p.Show("短い")
	if want := "\rlong one\r短い    "; b.String() != want {
		t.Errorf("a shorter text leaves something behind: %q, want %q", b.String(), want)
	}
}

func TestProgressIsNotShownBesideATerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var none *ProgressLine
	for _, p := range []*ProgressLine{none, {}, NewProgressLine(f)} {
		p.Show("text")
		p.Clear()
	}
	if st, err := f.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("a file holds %v bytes of progress, %v", st.Size(), err)
	}
}

func TestProgressTextSaysHowFar(t *testing.T) {
	for want, p := range map[string]client.Progress{
		"16,384 of 65,535 ports, 25 %: udp": {Done: 16384, Total: 65535, Doing: "udp"},
		"0 of 1 port, 0 %":                  {Total: 1},
		"0 of 0 ports":                      {},
	} {
		if got := ProgressText(p); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTextIsWrappedByCells(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want []string
	}{
		{"", 5, []string{""}},
		{"one two three", 7, []string{"one two", "three"}},
		{"drop-udp-remote-40001", 9, []string{"drop-udp-", "remote-", "40001"}},
		{"20-22,80,443,49152-65535/tcp", 16, []string{"20-22,80,443,", "49152-65535/tcp"}},
		{"loses 20 % of 1,023", 9, []string{"loses", "20 % of", "1,023"}},
		{"ポート 3478 を、塞ぐ。", 9, []string{"ポート", "3478 を、", "塞ぐ。"}},
		{"e\u0301e\u0301", 2, []string{"e\u0301e\u0301"}},
		{"abc", 1, []string{"a", "b", "c"}},
		{"語", 1, []string{"語"}},
	} {
		if diff := cmp.Diff(c.want, wrap(c.text, c.n)); diff != "" {
			t.Errorf("%q in %d cells (-want +got):\n%s", c.text, c.n, diff)
		}
	}
}

func TestGroupPutsCommasBetweenThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 65535: "65,535", 1234567: "1,234,567", -1: "-1", -100: "-100", -1000: "-1,000"} {
		if got := Group(n); got != want {
			t.Errorf("Group(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestTableAlignsWideCharacters(t *testing.T) {
	tb := Table{Columns: []Column{{}, {Right: true}}}
	tb.Row("株式会社", "7")
	tb.Row("a", "1,000")
	tb.Note(1, "note")
	var b bytes.Buffer
	if _, err := tb.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("株式会社      7\na         1,000\n          note\n", b.String()); diff != "" {
		t.Error(diff)
	}
}

// How much of a range is open says nothing of what an interrupted run left out.
func TestShareTellsHowMuchWasNotMeasured(t *testing.T) {
	part := func(ports string, v client.Verdict) client.Part { return client.Part{Ports: set(ports), Verdict: v} }
	for want, parts := range map[string][]client.Part{
		"10 of 30 ports open, 15 unmeasured": {part("1-10", client.Open), part("11-15", client.RequestLost), part("16-30", client.Unmeasured)},
		"10 of 30 ports open":                {part("1-10", client.Open), part("11-30", client.RequestLost)},
	} {
		if got := share(&client.Finding{Parts: parts}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
