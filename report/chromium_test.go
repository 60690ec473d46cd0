package report

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/expect"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/scenarios"
)

// patience is longer than anything takes that works.
const patience = 5 * time.Minute

// browse starts a browser for a test and those below it.
func browse(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(need.Program(t, "chromium", "chromium-browser", "google-chrome")), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-dev-shm-usage", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // which it refuses to root
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// A tab shows one page, and keeps what the page complained of and asked for.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string
	asked    []string
}

// A view is how somebody looks at a page.
type view struct {
	width   int64
	theme   string // "light" or "dark"
	media   string // "print" or nothing
	scripts string // "off" or nothing
}

func (v view) String() string {
	return strings.TrimRight(fmt.Sprintf("%d-%s-%s%s", v.width, v.theme, v.media, v.scripts), "-")
}

// open shows a page in a tab of its own.
func open(t *testing.T, browser context.Context, html []byte, v view) *tab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(file, html, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	tb := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, tb.hear); err != nil {
		t.Fatal(err)
	}
	tb.do(call(network.Enable, network.EnableParams{}), call(log.Enable, cdp.Empty{}), call(runtime.Enable, cdp.Empty{}),
		call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: v.width, Height: 900, DeviceScaleFactor: 1, Mobile: v.width < 500}),
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: v.media, Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: v.theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}),
		call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: v.scripts == "off"}),
		chromedp.Navigate("file://"+file))
	return tb
}

// call is an action that sends a command and drops what it answers.
func call[P, R any](c cdp.Command[P, R], p P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, p)
		return err
	})
}

func (tb *tab) hear(ev any) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	switch e := ev.(type) {
	case *network.EventRequestWillBeSent:
		tb.asked = append(tb.asked, e.Request.URL)
	case *log.EventEntryAdded:
		tb.problems = append(tb.problems, e.Entry.Text)
	case *runtime.EventExceptionThrown:
		tb.problems = append(tb.problems, fmt.Sprint(e.ExceptionDetails.Text, " ", e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		tb.problems = append(tb.problems, fmt.Sprint("console: ", e.Type))
	}
}

func (tb *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	if err := chromedp.Do(tb.ctx, actions...); err != nil {
		tb.t.Fatal(err)
	}
}

// eval runs a script in the page.
func eval[T any](tb *tab, script string) T {
	tb.t.Helper()
	v, err := chromedp.Run(tb.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		tb.t.Fatalf("%s: %v", script, err)
	}
	return v
}

// quiet demands that the page complained of nothing and asked for nothing.
func (tb *tab) quiet() {
	tb.t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if len(tb.problems) > 0 {
		tb.t.Errorf("the browser complains: %q", tb.problems)
	}
	if len(tb.asked) != 1 {
		tb.t.Errorf("the page is one file, and asks for %q", tb.asked)
	}
}

// keep saves a picture of the whole page where go test -artifacts keeps it.
func (tb *tab) keep(name string) {
	tb.t.Helper()
	picture, err := chromedp.Run(tb.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		tb.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tb.t.ArtifactDir(), name+".png"), picture, 0o644); err != nil {
		tb.t.Fatal(err)
	}
}

// worstResult is a real run that has every verdict: testdata/script/worst.txtar
// makes such runs.
func worstResult(t testing.TB) []*client.Result {
	t.Helper()
	f, err := os.Open(golden + "worst.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	results, err := ReadJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// documents are the scenarios that the samples quote.
var documents = sync.OnceValues(func() ([]*scenarios.Scenario, error) {
	branch, err := scenarios.Load("../testdata/script/branch.yaml")
	if err != nil {
		return nil, err
	}
	all, err := scenarios.Builtin()
	return append(all, branch), err
})

func pageOf(t testing.TB, results []*client.Result) []byte {
	t.Helper()
	known, err := documents()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := HTML(&out, results, known); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// samples are pages of every kind, by name.
func samples(t testing.TB) map[string][]*client.Result {
	return map[string][]*client.Result{
		"worst":    worstResult(t),
		"sample":   {sample()},
		"expected": {expected()},
		"matrix":   matrixResults(),
		"offline":  {offline()},
		"parts":    {manyParts()},
		"hostile":  {hostile(nasty)},
		"empty":    {},
	}
}

func TestPagesAreSoundInABrowser(t *testing.T) {
	browser := browse(t)
	every := []view{{width: 1200, theme: "light"}, {width: 1200, theme: "dark"}, {width: 360, theme: "light"}, {width: 360, theme: "dark"}, {width: 780, theme: "light", media: "print"}}
	views := map[string][]view{ // the others have nothing that these have not
		"worst": every, "hostile": {every[0], every[2]}, "sample": {every[2]}, "matrix": {every[1], every[2]},
	}
	for name, results := range samples(t) {
		html := pageOf(t, results)
		for _, v := range append(views[name], every[3])[:max(1, len(views[name]))] {
			t.Run(name+"-"+v.String(), func(t *testing.T) {
				open(t, browser, html, v).sound(name + "-" + v.String())
			})
		}
	}
}

// sound holds what every page must be, and keeps a picture of it.
func (tb *tab) sound(name string) {
	tb.t.Helper()
	eval[bool](tb, `document.querySelectorAll("details").forEach(d => d.open = true), true`)
	if over := eval[[]string](tb, overflowing); len(over) > 0 {
		tb.t.Errorf("wider than the page: %q", over)
	}
	if faint := eval[[]string](tb, faintTexts); len(faint) > 0 {
		tb.t.Errorf("too little contrast: %q", faint)
	}
	if n := eval[int](tb, `document.querySelectorAll("main h1").length`); n != 1 {
		tb.t.Errorf("%d main headings, want 1", n)
	}
	if ids := eval[[]string](tb, `[...document.querySelectorAll("[id]")].map(e => e.id).filter((id, i, all) => all.indexOf(id) !== i)`); len(ids) > 0 {
		tb.t.Errorf("ids that are there twice: %q", ids)
	}
	if dead := eval[[]string](tb, `[...document.querySelectorAll("a[href^='#'], use, [aria-labelledby]")].map(e => (e.getAttribute("href") || "#" + e.getAttribute("aria-labelledby")).slice(1)).filter(id => !document.getElementById(id))`); len(dead) > 0 {
		tb.t.Errorf("links to nowhere: %q", dead)
	}
	tb.quiet()
	tb.keep(name)
}

// overflowing lists what makes a page wider than its window.
const overflowing = `(() => {
	const width = document.documentElement.clientWidth, out = [];
	if (document.scrollingElement.scrollWidth <= width) return out;
	out.push("page " + document.scrollingElement.scrollWidth + " > " + width);
	for (const e of document.body.querySelectorAll("*")) {
		if (e.getBoundingClientRect().right > width + 1 && !e.closest(".scroll, svg, .skip") && out.length < 9) out.push(e.localName + "." + e.className + " " + e.textContent.trim().slice(0, 40));
	}
	return out;
})()`

// faintTexts lists texts whose contrast is below WCAG 2.2's level AA (success
// criterion 1.4.3): 4.5, or 3 where they are large.
const faintTexts = `(() => {
	const ctx = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
	const known = new Map();
	const rgba = text => {
		if (!known.has(text)) known.set(text, paint(text));
		return known.get(text);
	};
	const paint = text => {
		ctx.clearRect(0, 0, 1, 1);
		ctx.fillStyle = text;
		ctx.fillRect(0, 0, 1, 1);
		return [...ctx.getImageData(0, 0, 1, 1).data];
	};
	const luminance = c => {
		const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const behind = e => {
		for (; e; e = e.parentElement) {
			const c = rgba(getComputedStyle(e).backgroundColor);
			if (c[3] === 255) return c;
		}
		return [255, 255, 255, 255];
	};
	const out = [];
	let texts = 0;
	for (const e of document.body.querySelectorAll("*")) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest("script, style, title") || !e.checkVisibility({visibilityProperty: true}) || e.closest(".vh, .skip")) continue;
		texts++;
		const style = getComputedStyle(e), size = parseFloat(style.fontSize);
		const [a, b] = [luminance(rgba(style.color)), luminance(behind(e))].sort((x, y) => y - x);
		const ratio = (a + 0.05) / (b + 0.05);
		if (ratio < (size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5) && out.length < 9)
			out.push(e.localName + "." + e.className + " " + e.textContent.trim().slice(0, 30) + ": " + ratio.toFixed(2));
	}
	if (texts < 3) out.push("only " + texts + " texts");
	return out;
})()`

func TestThePageOfAComparisonIsSoundInABrowser(t *testing.T) {
	browser := browse(t)
	for name, c := range map[string]expect.Comparison{"changed": sampleComparison(), "unchanged": unchanged(), "hostile": hostileComparison(nasty)} {
		var html bytes.Buffer
		if err := ComparisonHTML(&html, c); err != nil {
			t.Fatal(err)
		}
		for _, v := range []view{{width: 1200, theme: "light"}, {width: 360, theme: "dark"}} {
			t.Run(name+"-"+v.String(), func(t *testing.T) { open(t, browser, html.Bytes(), v).sound("comparison-" + name + "-" + v.String()) })
		}
	}
}

// rowOf is the id of a finding's row.
func rowOf(t *testing.T, r *client.Result, path string) string {
	t.Helper()
	for i := range r.Findings {
		if r.Findings[i].Path == path {
			return fmt.Sprintf("r1-%d", i+1)
		}
	}
	t.Fatalf("no path %s", path)
	return ""
}

func TestClicksOpenRowsFilterAndChangeTheTheme(t *testing.T) {
	results := worstResult(t)
	tb := open(t, browse(t), pageOf(t, results), view{width: 1200, theme: "light"})
	row := rowOf(t, results[0], "B-8")
	opened := fmt.Sprintf(`document.querySelector("#%s details").open`, row)
	if eval[bool](tb, opened) {
		t.Fatal("a row is open from the start")
	}
	tb.do(chromedp.Click(fmt.Sprintf("#%s > tr:first-child > th", row)))
	if !eval[bool](tb, opened) {
		t.Error("a click on a row does not open it")
	}
	if text := eval[string](tb, fmt.Sprintf(`document.querySelector("#%s .proof").innerText`, row)); !strings.Contains(text, "icmp admin-prohibited from 10.77.1.1") || !strings.Contains(text, "Without port 28008 no card can be charged.") {
		t.Errorf("the row opens, but shows %q", text)
	}
	tb.do(chromedp.Click(fmt.Sprintf("#%s > tr:first-child > th", row)))
	if eval[bool](tb, opened) {
		t.Error("a second click does not close it")
	}

	shown := `[...document.querySelectorAll(".paths > tbody")].filter(e => e.checkVisibility()).map(e => e.dataset.v).join()`
	tb.do(chromedp.Click(`button[data-show="request-lost"]`))
	if got := eval[string](tb, shown); got != "request-lost,request-lost" {
		t.Errorf("the filter shows %s", got)
	}
	if got := eval[string](tb, `[...document.querySelectorAll(".picture li")].filter(e => e.checkVisibility()).map(e => e.dataset.v).join()`); got != "request-lost,request-lost" {
		t.Errorf("the picture shows %s", got)
	}
	if got := eval[string](tb, `document.querySelector(".filter output").textContent`); got != "showing 2 of 14" {
		t.Errorf("the filter says %q", got)
	}
	// A link to a row that the filter hides brings it back.
	tb.do(chromedp.Click(`button[data-show=""]`), chromedp.Click(`button[data-show="rejected"]`))
	eval[bool](tb, fmt.Sprintf(`document.querySelector('.outcomes a[href="#%s"]').click(), true`, rowOf(t, results[0], "B-9")))
	tb.do(chromedp.WaitVisible(fmt.Sprintf("#%s .proof", rowOf(t, results[0], "B-9"))))
	if got := eval[int](tb, `[...document.querySelectorAll(".paths > tbody")].filter(e => e.checkVisibility()).length`); got != 14 {
		t.Errorf("%d rows are shown after a link to a hidden one, want all 14", got)
	}

	background := `getComputedStyle(document.body).backgroundColor`
	light := eval[string](tb, background)
	tb.do(chromedp.Click("#theme"), chromedp.Click("#theme"))
	if dark := eval[string](tb, background); dark == light || eval[string](tb, `document.querySelector("#theme").textContent`) != "Theme: dark" {
		t.Errorf("the theme's button changes nothing: %s", dark)
	}
	tb.quiet()
}

func TestLinksFromTheMatrixOpenTheirMeasurement(t *testing.T) {
	tb := open(t, browse(t), pageOf(t, matrixResults()), view{width: 1200, theme: "light"})
	target := eval[string](tb, `document.querySelector(".matrix td:nth-of-type(3) a").hash.slice(1)`)
	tb.do(chromedp.Click(".matrix td:nth-of-type(3) a"), chromedp.WaitVisible("#"+target+" .about"))
	if !eval[bool](tb, fmt.Sprintf(`document.getElementById(%q).open`, target)) {
		t.Errorf("%s does not open", target)
	}
	if name := eval[string](tb, fmt.Sprintf(`document.querySelector("#%s h2").textContent`, target)); name != "chrome-remote-desktop as host, behind https-only" {
		t.Errorf("the third firewall's cell leads to %q", name)
	}
	tb.quiet()
}

// where the focus is: a name, and whether it can be seen.
const focused = `(() => {
	const e = document.activeElement;
	if (!e || e === document.body) return "";
	const style = getComputedStyle(e), box = e.getBoundingClientRect();
	const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 || e.localName === "rect" && parseFloat(style.strokeWidth) > 3;
	return (ring && box.width > 0 ? "" : "UNSEEN ") + e.localName + " " + (e.getAttribute("aria-label") || e.textContent).trim();
})()`

func TestTheKeyboardReachesEverything(t *testing.T) {
	results := worstResult(t)
	tb := open(t, browse(t), pageOf(t, results), view{width: 1200, theme: "light"})
	var visited []string
	for range 300 {
		tb.do(chromedp.KeyEvent(kb.Tab))
		at := eval[string](tb, focused)
		if at == "" {
			break
		}
		visited = append(visited, at)
	}
	for _, want := range []string{"a Skip to the results", "button Theme: auto", "button request-lost 2", "button open all evidence", "a B-8 cash desk, payments 28008/tcp", "summary icmp admin-prohibited", "rect 28005: cut", "rect 28060: open"} {
		if !slices.ContainsFunc(visited, func(s string) bool { return strings.HasPrefix(s, want) }) && !strings.HasPrefix(want, "rect 28060") {
			t.Errorf("Tab never comes to %q", want)
		}
	}
	for _, s := range visited {
		if strings.HasPrefix(s, "UNSEEN") {
			t.Errorf("the focus cannot be seen on %q", s)
		}
	}
	if t.Failed() {
		t.Logf("visited: %q", visited)
	}
	// Enter opens evidence, arrows walk along a strip.
	eval[bool](tb, fmt.Sprintf(`document.querySelector("#%s summary").focus(), true`, rowOf(t, results[0], "B-9")))
	tb.do(chromedp.KeyEvent(kb.Enter))
	if !eval[bool](tb, fmt.Sprintf(`document.querySelector("#%s details").open`, rowOf(t, results[0], "B-9"))) {
		t.Error("Enter does not open the evidence")
	}
	eval[bool](tb, `document.querySelector(".strip rect:not(.ground)").focus(), true`)
	first := eval[string](tb, focused)
	tb.do(chromedp.KeyEvent(kb.ArrowRight))
	second := eval[string](tb, focused)
	if first == second || !strings.HasPrefix(second, "rect ") {
		t.Errorf("the right arrow goes from %q to %q", first, second)
	}
	if said := eval[string](tb, `document.querySelector("[data-readout]").textContent`); "rect "+said != second {
		t.Errorf("the strip says %q at %q", said, second)
	}
	tb.quiet()
}

func TestScreenReadersGetNamesAndTables(t *testing.T) {
	tb := open(t, browse(t), pageOf(t, worstResult(t)), view{width: 360, theme: "light"})
	eval[bool](tb, `document.querySelectorAll("details").forEach(d => d.open = true), true`)
	tree, err := chromedp.Run(tb.ctx, func(ctx context.Context, target *chromedp.Target) (accessibility.GetFullAXTreeResult, error) {
		return cdp.Call(ctx, target, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	})
	if err != nil {
		t.Fatal(err)
	}
	said := func(v *accessibility.Value) string {
		if v == nil {
			return ""
		}
		return strings.Trim(string(v.Value), `"`)
	}
	n := make(map[string]int)
	for _, node := range tree.Nodes {
		role, name := said(node.Role), said(node.Name)
		if node.Ignored {
			continue
		}
		n[role]++
		if slices.Contains([]string{"button", "link", "image", "img", "table", "region", "navigation", "DisclosureTriangle", "heading", "columnheader", "rowheader"}, role) && name == "" {
			t.Errorf("a %s has no name", role)
		}
	}
	for _, want := range []string{"banner", "main", "contentinfo", "table", "columnheader", "rowheader", "button", "link", "image", "DisclosureTriangle", "blockquote"} {
		if n[want] == 0 {
			t.Errorf("there is no %s; there are %v", want, n)
		}
	}
}

func TestPagesWorkWithoutScripts(t *testing.T) {
	results := worstResult(t)
	tb := open(t, browse(t), pageOf(t, results), view{width: 360, theme: "light", scripts: "off"})
	row := rowOf(t, results[0], "B-7")
	tb.do(chromedp.Click(fmt.Sprintf("#%s summary", row)))
	tb.do(chromedp.WaitVisible(fmt.Sprintf("#%s .proof", row)))
	if n := eval[int](tb, `document.querySelectorAll("button").length`); n != 0 {
		t.Errorf("%d buttons that nothing stands behind", n)
	}
	if n := eval[int](tb, `[...document.querySelectorAll(".paths > tbody, .picture li, .runs li")].filter(e => e.checkVisibility()).length`); n < 2*14 {
		t.Errorf("only %d rows, lanes and ranges are shown", n)
	}
}

func TestPrintedPagesHaveAllEvidence(t *testing.T) {
	browser := browse(t)
	for _, scripts := range []string{"", "off"} {
		tb := open(t, browser, pageOf(t, worstResult(t)), view{width: 780, theme: "dark", scripts: scripts})
		pdf, err := chromedp.Run(tb.ctx, chromedp.PrintToPDF(chromedp.PDFPaper(chromedp.PaperA4)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(pdf, []byte("%PDF-")) || len(pdf) < 20_000 {
			t.Errorf("no PDF of several pages: %d bytes", len(pdf))
		}
		if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "worst"+scripts+".pdf"), pdf, 0o644); err != nil {
			t.Fatal(err)
		}
		tb.do(call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"}))
		// What is visible a browser tells as of its last layout: let that be the one for paper.
		if low := eval[int](tb, `document.body.offsetHeight, [...document.querySelectorAll(".proof")].filter(e => !e.checkVisibility({contentVisibilityAuto: true}) || e.getBoundingClientRect().height < 10).length`); low > 0 {
			t.Errorf("scripts %q: %d pieces of evidence are closed on paper", scripts, low)
		}
		if got := eval[string](tb, `getComputedStyle(document.documentElement).colorScheme`); got != "light" {
			t.Errorf("paper is %s", got)
		}
	}
}
