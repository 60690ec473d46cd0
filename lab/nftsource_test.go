package lab

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRulesAreFoundWhereTheyStand holds the places of rules against what a
// person would count.
func TestRulesAreFoundWhereTheyStand(t *testing.T) {
	files := map[string]string{
		"one.nft":  "udp dport 1 drop\n",
		"more.nft": "\n\nudp dport 2 drop\n",
		"self.nft": "include \"self.nft\"\n",
	}
	include := func(pattern string) []textFile {
		if pattern == "*.d" {
			return []textFile{{"more.nft", []byte(files["more.nft"])}, {"one.nft", []byte(files["one.nft"])}}
		}
		if text, ok := files[pattern]; ok {
			return []textFile{{pattern, []byte(text)}}
		}
		return nil
	}
	for _, x := range []struct {
		name, text string
		want       string // place of each rule of chain c, in the order of nft's listing
		policy     string
	}{
		{"a block", "table inet t {\n\tchain c {\n\t\ttype filter hook forward priority filter; policy drop;\n\n\t\t# accept\n\t\tudp dport 1 accept # drop\n\t\tudp dport 2 drop\n\t}\n}\n", "f:6 f:7", "f:3"},
		{"several on a line", "table inet t {\nchain c { type filter hook forward priority 0\npolicy accept\nudp dport 1 drop; udp dport 2 drop; }\n}\n", "f:4 f:4", "f:3"},
		{"the same chain twice", "table inet t {\nchain c {\nudp dport 1 drop\n}\n}\ntable inet t {\nchain c {\nudp dport 2 drop\n}\n}\n", "f:3 f:8", ""},
		{"sets over several lines", "define ports = {\n1,\n2\n}\ntable inet t {\nset s {\ntype inet_service\nelements = { 1,\n2 }\n}\nchain c {\nudp dport {\n1, 2, # 3\n4 } drop\nudp dport $ports drop\n}\n}\n", "f:12 f:15", ""},
		{"a backslash", "table inet t {\nchain c {\nudp dport 1 \\\n  drop\nudp dport 2 drop\n}\n}\n", "f:3 f:5", ""},
		{"strings", "table inet t {\nchain c {\nudp dport 1 log prefix \"} # ; {\" drop comment \"x; y\"\nudp dport 2 drop\n}\n}\n", "f:3 f:4", ""},
		{"commands", "add table inet t\nadd chain inet t c { type filter hook forward priority 0; policy drop; }\nadd rule inet t c udp dport 1 drop\ninsert rule inet t c udp dport 2 drop\nrule inet t c udp dport 3 drop\ninet t c udp dport 4 drop\n", "f:4 f:3 f:5 f:6", "f:2"},
		{"the family that need not be named", "table t {\nchain c {\nudp dport 1 drop\n}\n}\nadd rule t c udp dport 2 drop\n", "f:3 f:6", ""},
		{"includes", "table inet t {\nchain c {\ninclude \"one.nft\"\nudp dport 3 drop\ninclude \"*.d\"\nudp dport 4 drop\n}\n}\n", "one.nft:1 f:4 more.nft:3 one.nft:1 f:6", ""},
		{"wildcards that mean nothing", "table inet t {\nchain c {\ninclude \"nothing*\"\nudp dport 3 drop\n}\n}\n", "f:4", ""},
		{"what was flushed", "table inet t {\nchain c {\nudp dport 1 drop\n}\n}\nflush ruleset\ntable inet t {\nchain c {\nudp dport 2 drop\n}\n}\nflush chain inet t c\nadd rule inet t c udp dport 3 drop\n", "f:13", ""},
		{"another table's", "table ip t {\nchain c {\nudp dport 1 drop\n}\n}\ntable inet t {\nchain d {\nudp dport 1 drop\n}\nchain c {\njump d\n}\n}\n", "f:11", ""},
		{"a file that is missing", "include \"nowhere\"\ntable inet t {\nchain c {\nudp dport 1 drop\n}\n}\n", "", ""},
		{"a file that includes itself", "include \"self.nft\"\ntable inet t {\nchain c {\nudp dport 1 drop\n}\n}\n", "", ""},
		{"a rule at nft's own number", "table inet t {\nchain c {\nudp dport 1 drop\n}\n}\nadd rule inet t c handle 2 udp dport 2 drop\n", "", ""},
		{"a rule taken away", "table inet t {\nchain c {\nudp dport 1 drop\n}\n}\ndelete rule inet t c handle 2\n", "", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			id := chainID{"inet", "t", "c"}
			if strings.HasPrefix(x.text, "table t") {
				id[0] = "ip"
			}
			s := scanSource("f", []byte(x.text), include)
			var got []string
			for n := range s.rules[id] {
				if p, ok := s.statement(id, n+1, len(s.rules[id]), ""); ok {
					got = append(got, fmt.Sprintf("%s:%d", p.File, p.Line))
				}
			}
			if diff := cmp.Diff(x.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
			policy := ""
			if p, ok := s.policy(id); ok {
				policy = fmt.Sprintf("%s:%d", p.File, p.Line)
			}
			if policy != x.policy {
				t.Errorf("policy at %q, want %q", policy, x.policy)
			}
		})
	}
}

// A chain of which nft lists another number of rules, or a rule that does not
// say what nft says it does, has no lines.
func TestNoLineIsBetterThanAWrongOne(t *testing.T) {
	id := chainID{"inet", "t", "c"}
	s := scanSource("f", []byte("table inet t {\nchain c {\nudp dport 1 drop\nudp dport 2 $what\n}\n}\n"), nil)
	for _, x := range []struct {
		n, listed int
		verdict   string
		line      int
	}{{1, 2, "drop", 3}, {2, 2, "drop", 4}, {1, 3, "drop", 0}, {1, 2, "accept", 0}, {0, 2, "", 0}, {3, 2, "", 0}} {
		if p, _ := s.statement(id, x.n, x.listed, x.verdict); p.Line != x.line {
			t.Errorf("rule %d of %d, %q: line %d, want %d", x.n, x.listed, x.verdict, p.Line, x.line)
		}
	}
}

// Whatever stands in a file, scanning ends, and every rule has a line that there is.
func FuzzScanSource(f *testing.F) {
	f.Add("table inet t {\n\tchain c {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\tudp dport { 1, 2 } drop\n\t}\n}\n")
	f.Add("include \"f\"\ninclude \"f\"\nadd rule t c \\\n accept; insert rule t c \"x\n")
	f.Add("table t { } } { chain chain c { { } ; include")
	f.Add("flush ruleset; delete chain inet t c\nrename chain a b c\n$x {")
	f.Fuzz(func(t *testing.T, text string) {
		lines := 1 + strings.Count(text, "\n")
		s := scanSource("f", []byte(text), func(string) []textFile { return []textFile{{"f", []byte(text)}} })
		for id, rules := range s.rules {
			for _, r := range rules {
				if r.Line < 1 || r.Line > lines {
					t.Errorf("%v: a rule at line %d of %d", id, r.Line, lines)
				}
			}
		}
	})
}
