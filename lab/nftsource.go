package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A position is a line of a file of rules.
type position struct {
	File string
	Line int // from 1
}

// chainID names a chain: family, table and name.
type chainID [3]string

// A statement is a rule as it is written.
type statement struct {
	position
	words []string
}

// A source says where the rules of a file, and of those that it includes, stand.
// The n-th rule that nft lists in a chain is the n-th statement here, as long as
// there are as many of both; nothing else of nft's language is understood.
type source struct {
	rules    map[chainID][]statement
	policies map[chainID]position
	unsure   map[chainID]bool // changed by commands that go by nft's own numbers
	lost     bool             // files are missing, or there are too many of them
}

// Bounds of what is read. nft itself gives up at the same depth.
const (
	maxIncludeDepth = 16
	maxIncludes     = 1000
)

// readSource finds the rules of a firewall. Its includes are looked for as nft
// does in World.Load.
func readSource(f Firewall) *source {
	name, dir := f.Name+".nft", "."
	if f.Path != "" {
		name, dir = f.Path, filepath.Dir(f.Path)
	}
	return scanSource(name, f.Text, func(pattern string) []textFile { return included(dir, pattern) })
}

// A textFile is a file that was read.
type textFile struct {
	name string
	text []byte
}

// included reads the files that a pattern means, nil if there are none. nft
// looks in /etc before it looks where -I says.
func included(dir, pattern string) []textFile {
	candidates := []string{pattern}
	switch {
	case filepath.IsAbs(pattern):
	case strings.HasPrefix(pattern, "./"), strings.HasPrefix(pattern, "../"):
		candidates = []string{filepath.Join(dir, pattern)}
	default:
		candidates = []string{filepath.Join("/etc", pattern), filepath.Join(dir, pattern)}
	}
	for _, c := range candidates {
		names, err := filepath.Glob(c) // in the order of the alphabet, as nft's
		if err != nil || len(names) == 0 {
			continue
		}
		files := make([]textFile, 0, len(names))
		for _, n := range names {
			text, err := os.ReadFile(n)
			if err != nil {
				return nil
			}
			files = append(files, textFile{n, text})
		}
		return files
	}
	return nil
}

// scanSource reads rules; include gives the files that a pattern means.
func scanSource(name string, text []byte, include func(pattern string) []textFile) *source {
	s := &sourceScanner{
		include: include,
		out:     &source{rules: map[chainID][]statement{}, policies: map[chainID]position{}, unsure: map[chainID]bool{}},
	}
	s.files = []*nftLexer{{file: name, text: text, line: 1}}
	for s.peek().kind != tokenEnd {
		s.command()
	}
	return s.out
}

// statement is the n-th rule of a chain, from 1, which must have as many rules
// as nft lists, and do what nft says it does.
func (s *source) statement(id chainID, n, listed int, verdict string) (position, bool) {
	rules := s.rules[id]
	if s.lost || s.unsure[id] || len(rules) != listed || n < 1 || n > listed {
		return position{}, false
	}
	r := rules[n-1]
	says := func(w string) bool { return w == verdict || strings.HasPrefix(w, "$") }
	if verdict != "" && !slices.ContainsFunc(r.words, says) {
		return position{}, false
	}
	return r.position, true
}

// policy is where the policy of a chain is set.
func (s *source) policy(id chainID) (position, bool) {
	p, ok := s.policies[id]
	return p, ok && !s.lost && !s.unsure[id]
}

// placePolicies says where dumps set the policies of chains: in ":FORWARD DROP".
func placePolicies(chains []Chain, dumps []Dump) {
	for _, d := range dumps {
		table, n := "", 0
		for line := range bytes.Lines(d.Text) {
			n++
			words := strings.Fields(string(line))
			switch {
			case len(words) == 1 && words[0][0] == '*':
				table = words[0][1:]
			case len(words) > 1 && words[0][0] == ':':
				for i := range chains {
					if c := &chains[i]; c.Family == d.family() && c.Table == table && c.Name == words[0][1:] {
						c.File, c.Line = d.Path, n
					}
				}
			}
		}
	}
}

// The kinds of tokens. Whatever is not one of the others is a word.
const (
	tokenEnd    = 0
	tokenWord   = 'w'
	tokenString = '"'
	tokenLine   = '\n' // also for a semicolon
	tokenOpen   = '{'
	tokenClose  = '}'
)

type nftToken struct {
	kind byte
	text string // without quotes
	position
}

// An nftLexer splits one file into tokens.
type nftLexer struct {
	file string
	text []byte
	at   int
	line int
}

func (l *nftLexer) next() nftToken {
	l.skipBlanks()
	t := nftToken{position: position{l.file, l.line}}
	if l.at >= len(l.text) {
		return t
	}
	start := l.at
	c := l.text[l.at]
	l.at++
	switch c {
	case '\n':
		l.line++
		t.kind = tokenLine
	case ';':
		t.kind = tokenLine
	case '{', '}':
		t.kind = c
	case '"':
		t.kind, t.text = tokenString, l.quoted()
	default:
		for l.at < len(l.text) && !strings.ContainsRune(" \t\r\n;{}\"#,\\", rune(l.text[l.at])) {
			l.at++
		}
		t.kind, t.text = tokenWord, string(l.text[start:l.at])
	}
	return t
}

// skipBlanks passes over blanks, comments and ends of lines behind a backslash.
func (l *nftLexer) skipBlanks() {
	for l.at < len(l.text) {
		switch c := l.text[l.at]; {
		case c == ' ' || c == '\t' || c == '\r':
			l.at++
		case c == '#':
			for l.at < len(l.text) && l.text[l.at] != '\n' {
				l.at++
			}
		case c == '\\' && l.at+1 < len(l.text) && l.text[l.at+1] == '\n':
			l.at += 2
			l.line++
		default:
			return
		}
	}
}

// quoted reads on to the closing quote.
func (l *nftLexer) quoted() string {
	start := l.at
	for ; l.at < len(l.text); l.at++ {
		switch l.text[l.at] {
		case '\n':
			l.line++
		case '"':
			l.at++
			return string(l.text[start : l.at-1])
		}
	}
	return string(l.text[start:])
}

// A sourceScanner reads commands from a file and from those that it includes,
// as if they stood in the place of the command.
type sourceScanner struct {
	files    []*nftLexer // the innermost last
	ahead    *nftToken
	include  func(pattern string) []textFile
	includes int
	out      *source
}

func (s *sourceScanner) peek() nftToken {
	if s.ahead == nil {
		t := s.files[len(s.files)-1].next()
		for t.kind == tokenEnd && len(s.files) > 1 {
			s.files = s.files[:len(s.files)-1]
			t = s.files[len(s.files)-1].next()
		}
		s.ahead = &t
	}
	return *s.ahead
}

func (s *sourceScanner) take() nftToken {
	t := s.peek()
	if t.kind != tokenEnd {
		s.ahead = nil
	}
	return t
}

// accept takes the next token if it is of a kind.
func (s *sourceScanner) accept(kind byte) bool {
	if s.peek().kind != kind {
		return false
	}
	s.take()
	return true
}

// word takes the next word or string, "" if there is none.
func (s *sourceScanner) word() string {
	if k := s.peek().kind; k != tokenWord && k != tokenString {
		return ""
	}
	return s.take().text
}

// rest takes what is left of a statement and gives its words. Braces may go
// over several lines.
func (s *sourceScanner) rest() (words []string) {
	for depth := 0; ; {
		t := s.peek()
		switch {
		case t.kind == tokenEnd, t.kind == tokenClose && depth == 0:
			return words
		case t.kind == tokenOpen:
			depth++
		case t.kind == tokenClose:
			depth--
		case t.kind == tokenLine && depth == 0:
			s.take()
			return words
		case t.kind == tokenWord:
			words = append(words, t.text)
		}
		s.take()
	}
}

var families = map[string]bool{"ip": true, "ip6": true, "inet": true, "arp": true, "bridge": true, "netdev": true}

// tableName reads a table's name with its family, which is ip if none is named.
func (s *sourceScanner) tableName() chainID {
	first := s.word()
	if !families[first] {
		return chainID{"ip", first}
	}
	return chainID{first, s.word()}
}

func (s *sourceScanner) chainName() chainID {
	id := s.tableName()
	id[2] = s.word()
	return id
}

// common takes what may stand anywhere: an empty statement, definitions and
// includes.
func (s *sourceScanner) common() bool {
	switch t := s.peek(); {
	case t.kind == tokenLine:
		s.take()
	case t.kind != tokenWord:
		return false
	case t.text == "include":
		s.take()
		pattern := s.word()
		s.rest()
		s.push(pattern)
	case t.text == "define" || t.text == "redefine" || t.text == "undefine":
		s.rest()
	default:
		return false
	}
	return true
}

// push goes on with the files that a pattern means. A pattern with wildcards may
// mean none.
func (s *sourceScanner) push(pattern string) {
	files := s.include(pattern)
	s.includes += len(files)
	if len(files) == 0 && !strings.ContainsAny(pattern, "*?[") || s.includes > maxIncludes || len(s.files) > maxIncludeDepth {
		s.out.lost = true
		return
	}
	for _, f := range slices.Backward(files) {
		s.files = append(s.files, &nftLexer{file: f.name, text: f.text, line: 1})
	}
}

// command reads one command of the top level (nft(8)); "add" may be left out.
func (s *sourceScanner) command() {
	if s.common() {
		return
	}
	t := s.peek()
	if t.kind != tokenWord {
		if t.kind == tokenString { // an unusual name; nothing here is certain any more
			s.out.lost = true
		}
		s.take()
		return
	}
	verb := "add"
	switch t.text {
	case "add", "create", "insert", "delete", "destroy", "flush", "replace", "rename":
		verb = s.take().text
	case "list", "reset", "monitor", "describe", "export", "import":
		s.rest()
		return
	}
	s.object(verb)
}

// object reads what a command is about.
func (s *sourceScanner) object(verb string) {
	adds := verb == "add" || verb == "create" || verb == "insert"
	t := s.peek()
	switch t.text {
	case "ruleset":
		s.take()
		s.forget(chainID{s.word()})
	case "table":
		s.take()
		id := s.tableName()
		switch {
		case adds && s.accept(tokenOpen):
			s.table(id)
			return
		case !adds:
			s.forget(id)
		}
	case "chain":
		s.take()
		id := s.chainName()
		switch {
		case adds && s.accept(tokenOpen):
			s.chain(id)
			return
		case verb == "flush":
			s.out.rules[id] = nil
		case !adds: // deleted or renamed
			s.forget(id)
			s.out.unsure[id] = verb == "rename"
		}
	case "rule":
		s.take()
		s.rule(verb, t.position)
		return
	case "set", "map", "element", "counter", "quota", "limit", "flowtable", "ct", "meter", "secmark", "synproxy", "tables", "chains":
	default:
		s.rule(verb, t.position)
		return
	}
	s.rest()
}

// forget drops what is known of all chains that a name covers: a part of it
// that is empty stands for all.
func (s *sourceScanner) forget(what chainID) {
	for id := range s.out.rules {
		if covers(what, id) {
			delete(s.out.rules, id)
			delete(s.out.policies, id)
		}
	}
}

func covers(what, id chainID) bool {
	for i, name := range what {
		if name != "" && name != id[i] {
			return false
		}
	}
	return true
}

// rule reads a rule that names its chain. A position is a number of nft's own.
func (s *sourceScanner) rule(verb string, at position) {
	id := s.chainName()
	words := s.rest()
	positioned := len(words) > 0 && slices.Contains([]string{"position", "handle", "index"}, words[0])
	switch {
	case positioned || verb != "add" && verb != "insert":
		s.out.unsure[id] = true
	case verb == "insert":
		s.out.rules[id] = slices.Insert(s.out.rules[id], 0, statement{at, words})
	default:
		s.out.rules[id] = append(s.out.rules[id], statement{at, words})
	}
}

// table reads a table's block.
func (s *sourceScanner) table(id chainID) {
	for s.peek().kind != tokenEnd && !s.accept(tokenClose) {
		if s.common() {
			continue
		}
		if s.peek().kind == tokenOpen {
			s.take()
			continue
		}
		if s.peek().text != "chain" {
			s.rest()
			continue
		}
		s.take()
		id[2] = s.word()
		if s.accept(tokenOpen) {
			s.chain(id)
		}
	}
}

// chain reads a chain's block: what describes it, and its rules.
func (s *sourceScanner) chain(id chainID) {
	if s.out.rules[id] == nil {
		s.out.rules[id] = []statement{}
	}
	for s.peek().kind != tokenEnd && !s.accept(tokenClose) {
		if s.common() {
			continue
		}
		switch t := s.peek(); t.text {
		case "policy":
			s.rest()
			s.out.policies[id] = t.position
		case "type", "flags", "device", "devices", "comment":
			s.rest()
		default:
			if t.kind == tokenOpen {
				s.take()
				s.out.unsure[id] = true
			}
			s.out.rules[id] = append(s.out.rules[id], statement{t.position, s.rest()})
		}
	}
}
