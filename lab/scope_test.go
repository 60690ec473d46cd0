package lab

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func TestScopesOfRules(t *testing.T) {
	const counter, drop = `{"counter": {"packets": 0, "bytes": 0}}`, `{"drop": null}`
	tcp587 := `{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 587}}`
	at587 := scope{transports: []string{"tcp"}, to: portSet(t, "587")}
	with := func(s scope, deep, exact bool) scope { s.deep, s.exact = deep, exact; return s }
	for rule, want := range map[string]scope{
		tcp587 + "," + counter + "," + drop: with(at587, false, true),
		tcp587 + `,{"match": {"op": ">", "left": {"ct": {"key": "bytes"}}, "right": 100000}},` + counter + "," + drop:                        with(at587, true, true),
		counter + "," + tcp587 + `,{"match": {"op": "==", "left": {"payload": {"base": "ih", "offset": 0, "len": 32}}, "right": 1}},` + drop: with(at587, true, false),
		tcp587 + `,{"quota": {"val": 1, "val_unit": "mbytes", "inv": true}},` + counter + "," + drop:                                         with(at587, true, true),
		tcp587 + "," + counter + `,{"limit": {"rate": 10, "burst": 5, "per": "second", "inv": true}},` + drop:                                with(at587, true, false),
		tcp587 + `,{"xt": {"type": "match", "name": "string"}},` + counter + "," + drop:                                                      with(at587, true, true),
		tcp587 + `,{"xt": {"type": "match", "name": "comment"}},` + counter + `,{"xt": {"type": "target", "name": "REJECT"}}`:                with(at587, false, true),
		tcp587 + `,{"counter": "shared"},` + drop: with(at587, false, false),
		`{"match": {"op": "==", "left": {"numgen": {"mode": "random", "mod": 2, "offset": 0}}, "right": 0}},` + drop:                                                                                       {deep: true},
		`{"match": {"op": ">", "left": {"meta": {"key": "length"}}, "right": 120}},` + drop:                                                                                                                {deep: true},
		`{"set": {"op": "add", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "set": "@m"}},` + drop:                                                                                           {deep: true},
		`{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}]]}}}`:                                                                                                      {},
		`{"vmap": {"key": {"numgen": {"mode": "inc", "mod": 2}}, "data": {"set": [[0, {"drop": null}]]}}}`:                                                                                                 {deep: true},
		`{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lan0"}},{"accept": null}`:                                                                                                  {in: "lan0"},
		`{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "ppp*"}},{"accept": null}`:                                                                                                  {},
		`{"match": {"op": "!=", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 587}},{"accept": null}`:                                                                               {},
		`{"match": {"op": "==", "left": {"payload": {"protocol": "th", "field": "dport"}}, "right": "@s"}},{"accept": null}`:                                                                               {},
		`{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": ["tcp", "udp"]}}},{"accept": null}`:                                                                                 {transports: []string{"tcp", "udp"}},
		`{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "sport"}}, "right": {"set": [53, {"range": [100, 200]}]}}},{"accept": null}`:                                              {transports: []string{"udp"}, from: portSet(t, "53,100-200")},
		`{"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]}, "right": "syn"}},{"mangle": {"key": {"tcp option": {"name": "maxseg"}}, "value": 1}}`: {},
		`{"something": {"new": 1}},` + drop: {deep: true},
	} {
		var statements []map[string]json.RawMessage
		if err := json.Unmarshal([]byte("["+rule+"]"), &statements); err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
		got := scopeOf(statements)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(scope{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", rule, diff)
		}
	}
}

// A scope says yes in doubt, and no only where no such packet can match.
func TestScopesTellWhatTheyMayMatch(t *testing.T) {
	request := packets{transport: scenarios.TCP, from: ownPorts, to: portSet(t, "587")}
	inward := packets{transport: scenarios.TCP, from: ownPorts, to: portSet(t, "587"), inward: true}
	for _, tt := range []struct {
		scope      scope
		packets    packets
		translated bool
		want       bool
	}{
		{scope{}, request, false, true},
		{scope{to: portSet(t, "500-600")}, request, false, true},
		{scope{to: portSet(t, "588")}, request, false, false},
		{scope{to: portSet(t, "588")}, request, true, true},
		{scope{to: portSet(t, "587")}, request.back(), false, false},
		{scope{to: portSet(t, "30000-40000")}, request.back(), false, true},
		{scope{from: portSet(t, "587")}, request.back(), false, true},
		{scope{transports: []string{"udp"}}, request, false, false},
		{scope{transports: []string{"udp"}}, packets{}, false, true},
		{scope{in: "lan0"}, request, false, true},
		{scope{in: "wan0"}, request, false, false},
		{scope{in: "dmz"}, request, false, true},
		{scope{out: "wan0"}, request.back(), false, false},
		{scope{in: "lan0"}, inward, false, false},
		{scope{in: "wan0"}, inward, false, true},
	} {
		if got := tt.scope.may(tt.packets, "lan0", "wan0", tt.translated); got != tt.want {
			t.Errorf("%+v, %+v: %v", tt.scope, tt.packets, got)
		}
	}
}
