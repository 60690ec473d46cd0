package client

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func TestControlIsTriedInTLSWhereTheProbesSpeakIt(t *testing.T) {
	web := path(t, "X-1", scenarios.TCP, "80")
	web.Protocol = "http"
	secure := path(t, "X-2", scenarios.TCP, "8443")
	secure.Protocol = "https"
	got := controlPorts(planOf(Setting{}, web, secure))
	want := []controlPort{{443, true}, {80, false}, {8443, true}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(controlPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
