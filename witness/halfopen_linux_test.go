package witness

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCountersAreReadByTheirNames(t *testing.T) {
	for text, want := range map[string]map[string]uint64{
		"TcpExt: A EmbryonicRsts B\nTcpExt: 1 42 3\nIpExt: EmbryonicRsts\nIpExt: 7\n": {"A": 1, "EmbryonicRsts": 42, "B": 3},
		"IpExt: A\nIpExt: 1\n":         {},
		"TcpExt: A\n":                  {},
		"TcpExt: A B\nTcpExt: 1":       {"A": 1},
		"TcpExt: A B\nTcpExt: x 2 3\n": {"B": 2},
		"":                             {},
	} {
		if diff := cmp.Diff(want, parse(text, "TcpExt:")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	if _, err := Hidden(); err != nil {
		t.Errorf("needs no privilege: %v", err)
	}
}
