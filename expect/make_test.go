package expect

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
)

// sources are several runs, each in a file: a.json, b.json and so on.
func sources(runs ...*client.Result) []Source {
	var out []Source
	for i, r := range runs {
		out = append(out, Source{Name: string(rune('a'+i)) + ".json", Results: []*client.Result{r}})
	}
	return out
}

func written(t *testing.T, runs ...*client.Result) string {
	t.Helper()
	data, err := Write(sources(runs...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(string(data), header)
}

// Each line says what was seen, to the port, and how often where runs differ.
func TestSeveralRunsMakeOneFile(t *testing.T) {
	media := func(parts string) string { return "O-2 udp 40000-40010 req: " + parts }
	dead := ownResult(webOpen, media("request-lost"), noTelnet)
	dead.Outcomes[0].Works = false
	got := written(t,
		ownResult(webOpen, media("open 40000-40004, request-lost 40005-40010"), noTelnet, "O-4 tcp 25 opt: silent"),
		ownResult(webOpen, media("open 40000-40005, request-lost 40006-40010"), noTelnet, "O-4 tcp 25 opt: unmeasured"),
		dead,
		ownResult(webOpen, media("open"), "O-3 tcp 23 neg: silent", "O-4 tcp 25 opt: silent"))
	want := `schema: wallprobe/expect/1
runs:
  - # made from 4 runs, which do not agree in 4 of the lines below: "differs" says in which,
    # and how often each verdict was seen. All of them are acceptable: take out what must not be
    # not measured: O-4: silent in 2 of 4 runs, unmeasured in 1, not there in 1
    # nothing is expected of outcome sign-in, which differs: works in 3 of 4 runs, fails in 1
    scenario: own
    version: 1
    role: app
    family: ipv4
    paths:
      - {path: O-1, transport: tcp, verdicts: [open]} # path O-1
      - {path: O-2, transport: udp, ports: 40000-40004, verdicts: [open, request-lost]} # path O-2; differs: open in 3 of 4 runs, request-lost in 1
      - {path: O-2, transport: udp, ports: "40005", verdicts: [open, request-lost]} # path O-2; differs: open in 2 of 4 runs, request-lost in 2
      - {path: O-2, transport: udp, ports: 40006-40010, verdicts: [open, request-lost]} # path O-2; differs: open in 1 of 4 runs, request-lost in 3
      - {path: O-3, transport: tcp, verdicts: [rejected]} # path O-3; rejected in 3 of 4 runs, silent in 1
    outcomes:
      - {outcome: call, works: true, way: 2} # call; differs: works by way 1 in 1 of 4 runs, works by way 2 in 3
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	alike := written(t, ownResult(webOpen, mediaPart, noTelnet), ownResult(webOpen, mediaPart, noTelnet))
	single := written(t, ownResult(webOpen, mediaPart, noTelnet))
	want = strings.Replace(single, "  - scenario", "  - # made from 2 runs, which agree in every line below\n    scenario", 1)
	if diff := cmp.Diff(want, alike); diff != "" {
		t.Errorf("of two that agree (-want +got):\n%s", diff)
	}
}

// Whatever the runs were, the file holds for each of them, and for none with a
// verdict that no run had.
func TestFileOfSeveralRunsHoldsForEachOfThem(t *testing.T) {
	verdicts := []client.Verdict{client.Open, client.Degraded, client.RequestLost, client.Rejected, client.Cut, client.Silent}
	random := rand.New(rand.NewPCG(1, 2))
	part := func(ports string, of []client.Verdict, targets ...string) (parts []string) {
		for _, at := range append(targets, "") {
			if (at == "") == (len(targets) == 0) {
				parts = append(parts, strings.Replace(fmt.Sprintf("%s@%s %s", of[random.IntN(len(of))], at, ports), "@ ", " ", 1))
			}
		}
		return parts
	}
	for range 200 {
		var runs []*client.Result
		seen := verdicts[:2+random.IntN(len(verdicts)-1)]
		for range 1 + random.IntN(4) {
			edge := 40001 + random.IntN(9)
			targets := [][]string{nil, nil, {"x", "y"}}[random.IntN(3)]
			parts := append(part(fmt.Sprintf("40000-%d", edge), seen, targets...), part(fmt.Sprintf("%d-40010", edge+1), seen, targets...)...)
			runs = append(runs, ownResult(webOpen, "O-2 udp 40000-40010 req: "+strings.Join(parts, ", "), noTelnet))
		}
		text := written(t, runs...)
		f := parse(t, text)
		if strings.Contains(text, "made from 1") || strings.Contains(text, "made from") != (len(runs) > 1) {
			t.Errorf("of %d runs:\n%s", len(runs), text)
		}
		for _, r := range runs {
			for _, x := range f.Check(r) {
				if x.State == client.Fails {
					t.Errorf("%s fails in a run of its own:\n%s", x.Path, text)
				}
			}
			other := again(t, r)
			other.Findings[0].Verdict = client.Altered
			if !fails(f.Check(other)) {
				t.Errorf("what no run had goes unseen:\n%s", text)
			}
		}
	}
}

func TestRunsThatAreNotOfTheSameAreToldApart(t *testing.T) {
	run := func(change func(*client.Result)) *client.Result {
		r := ownResult(webOpen, mediaPart)
		change(r)
		return r
	}
	same := func() *client.Result { return run(func(*client.Result) {}) }
	for _, tt := range []struct {
		sources []Source
		want    string
	}{
		{sources(same(), run(func(r *client.Result) { r.Scenario = "other" })), "a.json has own as app over ipv4 and b.json has not: expectations are made from several runs of the same, or from one"},
		{sources(same(), run(func(r *client.Result) { r.Role = "far" })), "a.json has own as app over ipv4 and b.json has not: expectations are made from several runs of the same, or from one"},
		{sources(same(), run(func(r *client.Result) { r.Family = "ipv6" })), "a.json has own as app over ipv4 and b.json has not: expectations are made from several runs of the same, or from one"},
		{sources(behind("x", webOpen), behind("y", webOpen)), "a.json has own as app over ipv4 behind x and b.json has not: expectations are made from several runs of the same, or from one"},
		{[]Source{{"a.json", []*client.Result{behind("x", webOpen)}}, {"b.json", []*client.Result{behind("x", webOpen), behind("y", webOpen)}}},
			"b.json has own as app over ipv4 behind y and a.json has not: expectations are made from several runs of the same, or from one"},
		{[]Source{{"a.json", []*client.Result{same()}}, {"b.json", []*client.Result{same(), same()}}}, "b.json has own as app over ipv4 twice: give each run in a file of its own"},
		{sources(same(), run(func(r *client.Result) { r.Version = 2 })), "a.json was measured with version 1 of scenario own and b.json with version 2: their paths may mean different things; measure again"},
		{sources(same(), run(func(r *client.Result) { r.Reflector = netip.MustParseAddr("192.0.2.9") })), "a.json was measured against reflector 198.51.100.10 and b.json against 192.0.2.9: what differs may be theirs and not the firewall's"},
		{sources(run(func(r *client.Result) { r.Session[0] = 1 }), same(), run(func(r *client.Result) { r.Session[0] = 1 })), "a.json and c.json have the same run of own as app over ipv4, which would count twice"},
		{sources(same(), ownResult("O-1 tcp 443 req: request-lost")), "the result of own as app over ipv4 in b.json is nothing to expect again: nothing passed in it, so that what was closed proves nothing"},
		{sources(same(), same()), "<nil>"},
	} {
		if _, err := Write(tt.sources); fmt.Sprint(err) != tt.want {
			t.Errorf("%v; want %s", err, tt.want)
		}
	}
}
