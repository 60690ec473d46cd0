package report

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer/html"
	nethtml "golang.org/x/net/html"

	"github.com/wallprobe/wallprobe/client"
)

// shape is a document without its texts: each element, with the names of its
// attributes.
func shape(t testing.TB, doc []byte) []string {
	t.Helper()
	var out []string
	z := nethtml.NewTokenizer(bytes.NewReader(doc))
	for {
		switch z.Next() {
		case nethtml.ErrorToken:
			if z.Err() != io.EOF {
				t.Fatal(z.Err())
			}
			return out
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			tok := z.Token()
			text := tok.Data
			for _, a := range tok.Attr {
				text += " " + a.Key
				if a.Key == "href" || a.Key == "src" {
					text += "=" + a.Val
				}
			}
			out = append(out, text)
		}
	}
}

// github renders Markdown with everything that GitHub's and GitLab's dialects
// have, HTML included, which both would filter.
func github(t testing.TB, markdown []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	md := goldmark.New(goldmark.WithExtensions(extension.GFM), goldmark.WithRendererOptions(html.WithUnsafe()))
	if err := md.Convert(markdown, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func markdownOf(t testing.TB, results []*client.Result) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Markdown(&out, results); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// FuzzNoTextBreaksOut puts a text everywhere in a result where a text can be:
// the documents keep the shape that they have with a harmless word.
func FuzzNoTextBreaksOut(f *testing.F) {
	for _, s := range []string{nasty, "|", "\n\n", "`", "```\n", "</td>", "]]>", "-->", "<!--", "&#0;", "\\", "*a*", "_a_", "~~a~~", "[a](b)", "![a](b)", "<https://a.b>", "https://a.b", "www.a.b",
		"@a", "#1", "a@b.example", "$a$", ":tada:", "\x00", "\ufffe", "\xff\xfe", "\u202e", "1. a", "- a", "# a", "> a", "+ a", "---", "| --- |", "</details>", "<summary>", "\u2028"} {
		f.Add(s)
	}
	plain := []*client.Result{hostile("harmless")}
	wantHTML, wantMarkdown, wantXML := shape(f, pageOf(f, plain)), shape(f, github(f, markdownOf(f, plain))), elements(f, junitOf(f, plain))
	wantPage, wantComment := shape(f, comparisonPageOf(f, "harmless")), shape(f, github(f, comparisonMarkdownOf(f, "harmless")))
	f.Fuzz(func(t *testing.T, s string) {
		if strings.TrimSpace(flat(s)) == "" || len(s) > 400 {
			t.Skip("a text that is not there has no row, and a long one is cut")
		}
		results := []*client.Result{hostile(s)}
		sameShape(t, "HTML", wantHTML, shape(t, pageOf(t, results)))
		sameShape(t, "JUnit", wantXML, elements(t, junitOf(t, results)))
		if text := markdownOf(t, results); !bytes.Contains(text, []byte("Left out")) {
			sameShape(t, "Markdown", wantMarkdown, shape(t, github(t, text)))
		}
		sameShape(t, "a comparison's page", wantPage, shape(t, comparisonPageOf(t, s)))
		sameShape(t, "a comparison's Markdown", wantComment, shape(t, github(t, comparisonMarkdownOf(t, s))))
		for _, doc := range [][]byte{pageOf(t, results), junitOf(t, results), markdownOf(t, results)} {
			legible(t, doc)
		}
	})
}

func comparisonPageOf(t testing.TB, s string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := ComparisonHTML(&out, hostileComparison(s)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func comparisonMarkdownOf(t testing.TB, s string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := ComparisonMarkdown(&out, hostileComparison(s)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func sameShape(t *testing.T, what string, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Fatalf("%s has another shape at element %d: %q, want %q", what, i, tail(got, i), tail(want, i))
		}
	}
}

func tail(list []string, i int) []string { return list[min(i, len(list)):min(i+3, len(list))] }

// elements is the shape of XML; it must be well-formed.
func elements(t testing.TB, doc []byte) []string {
	t.Helper()
	var out []string
	d := xml.NewDecoder(bytes.NewReader(doc))
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		if e, ok := tok.(xml.StartElement); ok {
			out = append(out, e.Name.Local)
		}
	}
}

// legible demands UTF-8 in which nothing is hidden or turned around.
func legible(t *testing.T, doc []byte) {
	t.Helper()
	if !utf8.Valid(doc) {
		t.Error("not UTF-8")
	}
	for _, r := range string(doc) {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			t.Fatalf("character %U", r)
		}
	}
}

func TestWordsOfClosedListsAreEscapedToo(t *testing.T) {
	plain, odd := []*client.Result{strange("harmless")}, []*client.Result{strange("<img src=x>|`*\"'</td>")}
	sameShape(t, "HTML", shape(t, pageOf(t, plain)), shape(t, pageOf(t, odd)))
	sameShape(t, "Markdown", shape(t, github(t, markdownOf(t, plain))), shape(t, github(t, markdownOf(t, odd))))
	sameShape(t, "JUnit", elements(t, junitOf(t, plain)), elements(t, junitOf(t, odd)))
}

func TestMarkdownShowsTextsAsTheyAre(t *testing.T) {
	for _, s := range []string{"a|b", "*a* _b_ `c`", "<b>x</b> & y", `back\slash`, "[x](https://evil.example)", "@team #12 !3 ~a %b $c", ":tada:", "1. x", "www.evil.example"} {
		var table mdTable
		table.head = []string{"x"}
		table.row(md(s))
		rendered := github(t, []byte(table.String()))
		if got := strings.Join(strings.Fields(textsOfCells(t, rendered)), " "); got != s {
			t.Errorf("%q is shown as %q, from %s", s, got, md(s))
		}
		if strings.Contains(string(rendered), "<a ") {
			t.Errorf("%q becomes a link: %s", s, rendered)
		}
	}
}

// textsOfCells is the text of table cells, without comments.
func textsOfCells(t testing.TB, doc []byte) string {
	t.Helper()
	node, err := nethtml.Parse(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	var walk func(n *nethtml.Node, in bool)
	walk = func(n *nethtml.Node, in bool) {
		in = in || n.Data == "td"
		if n.Type == nethtml.TextNode && in {
			b.WriteString(n.Data)
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c, in)
		}
	}
	walk(node, false)
	return b.String()
}

func TestMentionsAndReferencesAreTornApart(t *testing.T) {
	rendered := string(github(t, []byte(md("@team #12 https://evil.example !3"))))
	for _, live := range []string{"@team", "#12", "https://evil", "!3"} {
		if strings.Contains(rendered, live) {
			t.Errorf("%q is whole in %s, and would be taken for a reference", live, rendered)
		}
	}
}

func TestMarkdownKeepsToTheSizeOfAComment(t *testing.T) {
	var many []*client.Result
	for range 30 {
		many = append(many, matrixResults()...)
	}
	for name, results := range map[string][]*client.Result{"many": many, "hostile": {hostile(strings.Repeat(nasty, 50))}} {
		got := markdownOf(t, results)
		if len(got) > 65_536 {
			t.Errorf("%s: %d bytes", name, len(got))
		}
		if !bytes.Contains(got, []byte("Left out")) {
			t.Errorf("%s: what was left out is not said", name)
		}
	}
}

func TestPagesStaySmallAndSayWhatIsLeftOut(t *testing.T) {
	var many []*client.Result
	for range 10 {
		many = append(many, matrixResults()...)
	}
	small, medium, large := pageOf(t, worstResult(t)), pageOf(t, many[:48]), pageOf(t, many)
	if !bytes.Contains(medium, []byte("So that the page stays small")) || len(medium) > MaxPage || bytes.Count(medium, []byte(" data-result>")) != 48 {
		t.Errorf("a page of 48 results: %d bytes, want all of them in at most %d, and evidence left out", len(medium), MaxPage)
	}
	if bytes.Contains(small, []byte("So that the page stays small")) {
		t.Error("a small page leaves something out")
	}
	if !bytes.Contains(large, []byte("So that the page stays small")) {
		t.Errorf("a page of %d results, %d bytes, does not say what it leaves out", len(many), len(large))
	}
	if most := 2 * MaxPage; len(large) > most {
		t.Errorf("%d bytes, want at most %d", len(large), most)
	}
}

func TestThePolicyAllowsThePagesOwnScriptAlone(t *testing.T) {
	got := string(pageOf(t, worstResult(t)))
	for _, want := range []string{"default-src &#39;none&#39;", "<script>" + pageJS + "</script>", "<style>" + pageCSS + "</style>"} {
		if !strings.Contains(got, want) {
			t.Errorf("the page has no %.40q", want)
		}
	}
	for _, bad := range []string{" style=", " onclick", `src="`, `href="h`, "url(", "@import", "unsafe-inline"} {
		if i := strings.Index(got, bad); i >= 0 {
			t.Errorf("the page has %q: %s", bad, got[i:i+60])
		}
	}
}
