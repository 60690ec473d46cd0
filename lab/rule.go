package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A Rule is one rule of the firewall with what it has counted so far.
type Rule struct {
	Family, Table, Chain string
	Handle               int    // nft's number for the rule
	Index                int    // its place in the chain, from 1
	Text                 string // as nft prints it, without the figures of the counter
	Comment              string
	Counted              bool   // whether the rule has a counter; without one the figures are 0
	Packets, Bytes       uint64 // since the rules were loaded
	File                 string // where it stands, empty when that is not certain
	Line                 int    // in File, from 1

	// Verdict is what the rule does with a packet that matches: accept, drop,
	// reject, jump, goto, return, queue, continue, snat, dnat, masquerade,
	// redirect, tproxy, or empty if it only looks on.
	Verdict string
}

// Stops tells whether packets that match the rule go no further.
func (r Rule) Stops() bool { return r.Verdict == "drop" || r.Verdict == "reject" }

// verdicts are the names nft's JSON gives to statements that decide a packet's
// way (libnftables-json(5)).
var verdicts = map[string]bool{
	"accept": true, "drop": true, "reject": true, "jump": true, "goto": true,
	"return": true, "queue": true, "continue": true, "snat": true, "dnat": true,
	"masquerade": true, "redirect": true, "tproxy": true,
}

// The part of nft's JSON that is of interest (libnftables-json(5)).
type listing struct {
	Nftables []struct {
		Chain   *chainJSON    `json:"chain"`
		Counter *namedCounter `json:"counter"`
		Rule    *ruleJSON     `json:"rule"`
	} `json:"nftables"`
}

type chainJSON struct {
	Family, Table, Name, Type, Hook, Policy string
}

type namedCounter struct {
	Family, Table, Name string
	Packets, Bytes      uint64
}

type ruleJSON struct {
	Family, Table, Chain, Comment string
	Handle                        int
	Expr                          []map[string]json.RawMessage
}

// parseRules joins what `nft -j -a list ruleset` says about the rules to their
// text from `nft -a list ruleset`.
func parseRules(list, text []byte) (*ruleset, error) {
	var set listing
	if err := json.Unmarshal(list, &set); err != nil {
		return nil, fmt.Errorf("nft list ruleset: %w", err)
	}
	named := map[[3]string]namedCounter{}
	for _, o := range set.Nftables {
		if c := o.Counter; c != nil {
			named[[3]string{c.Family, c.Table, c.Name}] = *c
		}
	}
	texts := ruleTexts(text)
	index := map[[3]string]int{}
	out := &ruleset{text: text}
	for _, o := range set.Nftables {
		if c := o.Chain; c != nil {
			out.chains = append(out.chains, Chain{Family: c.Family, Table: c.Table, Name: c.Name, Type: c.Type, Hook: c.Hook, Policy: c.Policy})
		}
		if o.Rule == nil {
			continue
		}
		r, err := o.Rule.rule(named)
		if err != nil {
			return nil, err
		}
		chain := [3]string{r.Family, r.Table, r.Chain}
		index[chain]++
		r.Index = index[chain]
		r.Text = texts[ruleKey{chain, r.Handle}]
		out.rules, out.scopes = append(out.rules, r), append(out.scopes, scopeOf(o.Rule.Expr))
	}
	return out, nil
}

// locate says where rules and policies stand. A policy that the file does not
// set, accept, stands nowhere.
func (s *ruleset) locate(in *source) {
	count := map[chainID]int{}
	for _, r := range s.rules {
		count[chainID{r.Family, r.Table, r.Chain}]++
	}
	for i := range s.rules {
		r := &s.rules[i]
		id := chainID{r.Family, r.Table, r.Chain}
		p, _ := in.statement(id, r.Index, count[id], r.Verdict)
		r.File, r.Line = p.File, p.Line
	}
	for i := range s.chains {
		c := &s.chains[i]
		p, _ := in.policy(chainID{c.Family, c.Table, c.Name})
		c.File, c.Line = p.File, p.Line
	}
}

func (j *ruleJSON) rule(named map[[3]string]namedCounter) (Rule, error) {
	r := Rule{Family: j.Family, Table: j.Table, Chain: j.Chain, Handle: j.Handle, Comment: j.Comment}
	for _, statement := range j.Expr {
		for kind, value := range statement {
			if verdicts[kind] {
				r.Verdict = kind
			}
			if kind != "counter" {
				continue
			}
			c, err := counter(value, j, named)
			if err != nil {
				return Rule{}, fmt.Errorf("counter of rule %d in chain %s: %w", j.Handle, j.Chain, err)
			}
			r.Counted, r.Packets, r.Bytes = true, c.Packets, c.Bytes
		}
	}
	return r, nil
}

// counter reads a counter statement: its figures or the name of a counter
// that rules share.
func counter(value json.RawMessage, j *ruleJSON, named map[[3]string]namedCounter) (namedCounter, error) {
	var c namedCounter
	if bytes.HasPrefix(value, []byte(`"`)) {
		err := json.Unmarshal(value, &c.Name)
		return named[[3]string{j.Family, j.Table, c.Name}], err
	}
	err := json.Unmarshal(value, &c)
	return c, err
}

type ruleKey struct {
	chain  [3]string // family, table, chain
	handle int
}

var (
	handlePattern  = regexp.MustCompile(` # handle (\d+)$`)
	figuresPattern = regexp.MustCompile(`counter packets \d+ bytes \d+`)
)

// ruleTexts finds the rules in nft's listing. A rule may run over several
// lines; its handle ends it.
func ruleTexts(listing []byte) map[ruleKey]string {
	texts := map[ruleKey]string{}
	var chain [3]string
	var pending []string
	for line := range strings.Lines(string(listing)) {
		line = strings.TrimSpace(line)
		handle := handlePattern.FindStringSubmatch(line)
		body := handlePattern.ReplaceAllString(line, "")
		words := strings.Fields(body)
		switch {
		case len(words) == 4 && words[0] == "table" && words[3] == "{":
			chain, pending = [3]string{words[1], words[2]}, nil
		case len(words) == 3 && words[2] == "{":
			// A chain, or a set, map or counter, whose lines have no handle.
			chain[2], pending = words[1], nil
		case handle != nil:
			n, _ := strconv.Atoi(handle[1])
			rule := strings.Join(append(pending, body), " ")
			texts[ruleKey{chain, n}] = figuresPattern.ReplaceAllString(rule, "counter")
			pending = nil
		case strings.HasSuffix(body, ";") || body == "}":
			pending = nil
		default:
			pending = append(pending, body)
		}
	}
	return texts
}
