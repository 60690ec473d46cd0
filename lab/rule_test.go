package lab

import (
	"strings"
	"testing"
)

// What nft lists is read without harm, and every rule has its place.
func FuzzParseRules(f *testing.F) {
	f.Add(`{"nftables":[{"rule":{"family":"inet","table":"t","chain":"c","handle":5,"expr":[{"counter":{"packets":1,"bytes":2}},{"accept":null}]}}]}`,
		"table inet t {\n\tchain c { # handle 1\n\t\tcounter packets 1 bytes 2 accept # handle 5\n\t}\n}\n")
	f.Add(`{"nftables":[{"counter":{"family":"ip","table":"t","name":"n","packets":3}},{"rule":{"family":"ip","table":"t","chain":"c","expr":[{"counter":"n"}]}}]}`, "")
	f.Add(`{"nftables":[{"rule":{"expr":[{"counter":[]}]}}]}`, "chain { {\n # handle 99999999999999999999")
	f.Add(`{"nftables":null}`, "\x00")
	f.Fuzz(func(t *testing.T, list, text string) {
		set, err := parseRules([]byte(list), []byte(text))
		if err != nil {
			return
		}
		last := map[[3]string]int{}
		for _, r := range set.rules {
			chain := [3]string{r.Family, r.Table, r.Chain}
			if last[chain]++; r.Index != last[chain] {
				t.Errorf("%+v is rule %d of its chain", r, last[chain])
			}
			if !r.Counted && r.Packets+r.Bytes != 0 || strings.Contains(r.Text, "\n") {
				t.Errorf("%+v", r)
			}
		}
	})
}
