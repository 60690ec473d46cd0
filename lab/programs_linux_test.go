package lab_test

import (
	"sync"
	"testing"

	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// startReflector runs a reflector on the server until stop or the end of the
// test, and gives its key.
func startReflector(t *testing.T, w *lab.World, s *scenarios.Scenario, args ...string) (key wire.Key, stop func()) {
	t.Helper()
	key, stop, err := w.StartReflector(t.Context(), lab.Measurement{Scenarios: []*scenarios.Scenario{s}, Program: programFor(t), Reflector: args})
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(stop)
	t.Cleanup(stop)
	return key, stop
}

// standWith builds a world with a reflector that serves a scenario of
// testdata/truth, behind a firewall that keeps state.
func standWith(t *testing.T, scenario string) (*lab.World, wire.Key) {
	t.Helper()
	r := row{name: "peers", scenario: scenario, rules: builtinFirewall(t, "stateful")}
	w, s := r.stand(t)
	key, _ := startReflector(t, w, s)
	return w, key
}
