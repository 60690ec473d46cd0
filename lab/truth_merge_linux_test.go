package lab_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/report"
)

// silences are rows in which control has no way: what the client alone can
// say, and what both ends' evidence says together.
func silences() []row {
	const dropControl = "\t\tiifname \"lan0\" tcp dport 443 counter drop comment \"CONTROL\"\n"
	const dropTCP = "\t\tiifname \"wan0\" meta l4proto tcp counter drop comment \"all tcp\"\n"
	return []row{
		{name: "everything dropped on the way out", rules: firewall(dropControl + out("counter drop", singles...)),
			want: both(requestLost.and("as lost"), synLost.and("as lost"))},
		{name: "everything dropped on the way back", rules: firewall(dropControl + back("counter drop", singles...)),
			want: both(replyLost.and("as unanswered"), synAckLost.and("as unanswered"))},
		{name: "datagrams dropped on the way out, answers to SYNs on the way back", rules: firewall(out("counter drop", datagrams...) + dropTCP),
			want: both(requestLost.and("as lost"), synAckLost)},
		{name: "ranges dropped on the way out", scenario: "ranges", rules: firewall(dropControl + out("counter drop", ranges...)),
			want: all(fact{Verdict: client.RequestLost, Ports: "request-lost"}, ranges...)},
		{name: "ranges dropped on the way back", scenario: "ranges", rules: firewall(dropControl + back("counter drop", ranges...)),
			want: all(fact{Verdict: client.ReplyLost, Ports: "reply-lost"}, ranges...)},
	}
}

func silentRows(t *testing.T, program string) {
	for _, r := range silences() {
		for _, family := range r.families() {
			t.Run(r.name+"/"+family, func(t *testing.T) {
				t.Parallel()
				r.mergesTo(t, program, family)
			})
		}
	}
}

// mergesTo measures without a way for control and joins the journal, once by
// the library and once by the command.
func (r *row) mergesTo(t *testing.T, program, family string) {
	dir := t.TempDir()
	result, journal := filepath.Join(dir, "result.json"), filepath.Join(dir, "journal")
	w, s := r.stand(t)
	m := r.measurement(s, program, family)
	m.Reflector = []string{"--journal", journal}
	m.Read = func(in io.Reader) ([]*client.Result, error) {
		text, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(result, text, 0o600); err != nil {
			return nil, err
		}
		return report.ReadJSON(bytes.NewReader(text))
	}
	results, err := w.Measure(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	alone := results[0]
	for _, f := range alone.Findings {
		if _, ok := r.want[f.Path]; ok && f.Verdict != client.Silent {
			t.Errorf("%s without a ledger: %s (%s), want silent", f.Path, f.Verdict, f.Why)
		}
	}
	merged := mergeCommand(t, program, r.load(t).File, result, journal)
	merged.Firewall = alone.Firewall // the command knows of none
	if diff := r.mismatch(merged); diff != "" {
		t.Errorf("by the command (-want +got):\n%s", diff)
		r.explain(t, merged)
	}
	file, err := os.Open(journal)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	j, err := client.ReadJournal(file)
	if err != nil {
		t.Fatal(err)
	}
	l, err := j.For(alone)
	if err != nil {
		t.Fatal(err)
	}
	alone.Attach(client.WhereFar, l)
	client.Conclude(alone, s)
	if diff := cmp.Diff(facts(merged), facts(alone)); diff != "" {
		t.Errorf("command and library differ (-command +library):\n%s", diff)
	}
}

// facts are everything that is known of every path.
func facts(res *client.Result) map[string]fact {
	m := make(map[string]fact)
	for i := range res.Findings {
		m[res.Findings[i].Path] = found(res, &res.Findings[i])
	}
	return m
}

// mergeCommand runs wallprobe merge.
func mergeCommand(t *testing.T, program, scenario, result, journal string) *client.Result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "merge", "--scenario", scenario, "--json", "-", result, journal)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	text, err := cmd.Output()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	results, err := report.ReadJSON(bytes.NewReader(text))
	if err != nil || len(results) != 1 {
		t.Fatalf("wallprobe merge gave %d results, %v: %s", len(results), err, complaints.String())
	}
	return results[0]
}

// redRows: with the rule for one path removed from the firewall's file, the
// comparison fails for exactly this path, and for no path otherwise.
func redRows(t *testing.T, program string) {
	rows := append(table(t), silences()[0])
	family := 0
	for _, name := range []string{"dropped on the way out", "dropped on the way back", "rejected with a reset", "rejected with icmp admin-prohibited, ipv4",
		"rejected with icmpv6 policy-fail, ipv6", "ranges dropped on the way out", "redirected to an echo", "mtu black hole", "half of the answers lost"} {
		r := rowNamed(t, rows, name)
		for id := range r.want {
			if r.want[id].Verdict == client.Open {
				continue
			}
			family++
			f := r.families()[family%len(r.families())]
			t.Run(name+" but for "+id+"/"+f, func(t *testing.T) {
				t.Parallel()
				changed := *r
				changed.rules = without(t, r.rules, id)
				res := changed.play(t, program, f)
				if got := r.wrong(res); !cmp.Equal(got, []string{id}) {
					t.Errorf("without the rules for %s the table is wrong about %v", id, got)
					r.explain(t, res)
				}
			})
		}
	}
	t.Run("built-in firewall without its rule", func(t *testing.T) {
		t.Parallel()
		r := rowNamed(t, rows, "built-in firewall no-udp-replies")
		changed := *r
		changed.rules = without(t, r.rules, "no udp in, replies neither")
		if got := r.wrong(changed.play(t, program, "ipv4")); !cmp.Equal(got, []string{"STUN", "UDP"}) {
			t.Errorf("the table is wrong about %v, want STUN and UDP", got)
		}
	})
}

func rowNamed(t *testing.T, rows []row, name string) *row {
	t.Helper()
	for i := range rows {
		if rows[i].name == name {
			return &rows[i]
		}
	}
	t.Fatalf("there is no row %q", name)
	return nil
}
