package lab_test

import (
	"testing"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/report"
	"github.com/wallprobe/wallprobe/scenarios"
)

// The firewall forgets flows after known times; the run has to find them. That of
// TCP is longer than the 15 s after which Go would probe a silent connection.
func TestTimeoutsOfFlowsAreFound(t *testing.T) {
	lab.NeedLab(t)
	t.Parallel()
	r := row{name: "forgetful", rules: builtinFirewall(t, "stateful"), sysctl: map[string]string{
		"net.netfilter.nf_conntrack_udp_timeout": "2", "net.netfilter.nf_conntrack_udp_timeout_stream": "2",
		"net.netfilter.nf_conntrack_tcp_timeout_established": "17", "net.netfilter.nf_conntrack_tcp_loose": "0",
	}}
	w, s := r.stand(t)
	results, err := w.Measure(t.Context(), lab.Measurement{
		Scenarios: []*scenarios.Scenario{s}, Timeout: truthTimeout, Program: programFor(t), Read: report.ReadJSON,
		Client: []string{"--idle", "1s,5s,16s,20s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	seconds := map[string]float64{"UDP": 2, "TCP": 17, "TLS": 17}
	for _, f := range results[0].Findings {
		want, asked := seconds[f.Path]
		if !asked {
			continue
		}
		delete(seconds, f.Path)
		if got := f.Evidence.Near[0].Silence; f.Verdict != client.Open || got == nil || got.Survived > want || got.Died < want || got.Died-got.Survived > 1 {
			t.Errorf("%s forgets after %v s: %s, %v, %s", f.Path, want, f.Verdict, got, f.Why)
		}
	}
	if len(seconds) > 0 {
		t.Errorf("not measured: %v", seconds)
	}
}
