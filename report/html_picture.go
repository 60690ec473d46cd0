package report

import (
	"fmt"
	"html/template"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A picture is the two ends with the firewall between them, or two ends with
// none, and a lane for each path.
type (
	picture struct {
		Title, Near, Wall, Far string
		Lanes                  []lane
	}
	lane struct{ ID, Path, Title, Where, Verdict, Class, Track string }
)

// draw makes the pictures: across the firewall in either direction, and inside.
func (p *pageResult) draw(r *client.Result, s *scenarios.Scenario, rows []string) {
	near, wall, far := r.Role, "the firewall", "reflector"
	if r.Firewall != nil && r.Firewall.Name != "" {
		wall = r.Firewall.Name
	}
	if s != nil {
		for _, role := range s.Roles {
			if role.Name == r.Role {
				near = join(", ", role.Name, role.Title)
			}
		}
	}
	if r.Reflector.IsValid() {
		far += " " + r.Reflector.String()
	}
	out := &picture{Title: "From inside out, across the firewall", Near: near, Wall: wall, Far: far}
	in := &picture{Title: "From outside in, across the firewall: the reflector calls", Near: near, Wall: wall, Far: far}
	inside := &picture{Title: "Inside, not across the firewall", Near: near, Far: "its neighbours and itself"}
	var unmeasured []string
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Verdict == client.Unmeasured {
			unmeasured = append(unmeasured, reference(f, r.Findings))
			continue
		}
		to := out
		switch f.Direction {
		case scenarios.In:
			to = in
		case scenarios.LAN, scenarios.Loop:
			to = inside
		}
		to.Lanes = append(to.Lanes, lane{rows[i], reference(f, r.Findings), f.Title, Where(f), string(f.Verdict), classOf(f.Verdict), trackOf(f.Verdict, f.Direction)})
	}
	for _, pic := range []*picture{out, in, inside} {
		if len(pic.Lanes) > 0 {
			p.Pictures = append(p.Pictures, pic)
		}
	}
	p.Unmeasured = strings.Join(unmeasured, ", ")
	p.Caption = caption(r)
}

// stops says where the lines of each verdict go, for those who do not see them.
var stops = map[client.Verdict]string{
	client.Open:        "there and back",
	client.Degraded:    "there and back, but badly",
	client.Partial:     "passing in part",
	client.Cut:         "broken off on the way",
	client.Altered:     "changed on the way",
	client.ReplyLost:   "stopped on the way back",
	client.RequestLost: "stopped on the way there",
	client.Rejected:    "turned back on the way",
	client.Refused:     "turned back by the far host",
	client.Impostor:    "answered by somebody in between",
	client.Silent:      "without an answer, and nobody knows where they stop",
}

// caption is the picture in words.
func caption(r *client.Result) string {
	var said []string
	for _, v := range client.Verdicts {
		n := 0
		for i := range r.Findings {
			if r.Findings[i].Verdict == v {
				n++
			}
		}
		if n > 0 && stops[v] != "" {
			said = append(said, fmt.Sprintf("%s %s", Group(n), stops[v]))
		}
	}
	return strings.Join(said, "; ") + ". The upper line of a path is the request, the lower one the answer; dots are where nothing came."
}

// trackOf names the drawing of a verdict in a direction. Of what is no verdict
// nothing is known.
func trackOf(v client.Verdict, d scenarios.Direction) string {
	if !slices.Contains(client.Verdicts, v) {
		v = client.Unmeasured
	}
	if d == scenarios.In {
		return "t-" + string(v) + "-in"
	}
	return "t-" + string(v) + "-out"
}

func tracksOf(results []*pageResult) []string {
	var out []string
	for _, r := range results {
		for _, pic := range r.Pictures {
			for _, l := range pic.Lanes {
				out = append(out, l.Track)
			}
		}
	}
	return out
}

// symbolsOf are the drawings that a page uses, each once, and the icons.
func symbolsOf(tracks []string) template.HTML {
	var b strings.Builder
	b.WriteString(icons)
	for _, v := range client.Verdicts {
		for _, d := range []scenarios.Direction{scenarios.Out, scenarios.In} {
			if name := trackOf(v, d); slices.Contains(tracks, name) {
				fmt.Fprintf(&b, `<symbol id="%s">%s</symbol>`, name, pen{mirror: d == scenarios.In}.track(v))
			}
		}
	}
	return template.HTML(b.String()) // of constants alone
}

// icons are the signs beside words, and the logo. Their shapes differ, so that
// nobody needs colours.
const icons = `<symbol id="logo" viewBox="0 0 32 20"><g fill="none" stroke="currentColor" stroke-width="2.4"><path d="M1 6h11M20 6h11M31 14H20"/><path d="M16 0v20" stroke-width="5"/></g></symbol>` +
	`<symbol id="i-pass" viewBox="0 0 16 16"><circle cx="8" cy="8" r="8" fill="currentColor"/><path d="M4 8.3l2.8 2.8L12 5.4" fill="none" stroke="var(--card)" stroke-width="2"/></symbol>` +
	`<symbol id="i-warn" viewBox="0 0 16 16"><path d="M8 .6L16 15H0z" fill="currentColor"/><path d="M8 5.4v4.8M8 11.6v2" stroke="var(--card)" stroke-width="1.8"/></symbol>` +
	`<symbol id="i-fail" viewBox="0 0 16 16"><path d="M4.7 0h6.6L16 4.7v6.6L11.3 16H4.7L0 11.3V4.7z" fill="currentColor"/><path d="M4.9 4.9l6.2 6.2M11.1 4.9l-6.2 6.2" stroke="var(--card)" stroke-width="2"/></symbol>` +
	`<symbol id="i-doubt" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="none" stroke="currentColor" stroke-width="2"/><path d="M5.8 6.4a2.2 2.2 0 1 1 3.2 2q-1 .5-1 1.6M8 11.2v1.6" fill="none" stroke="currentColor" stroke-width="1.7"/></symbol>` +
	`<symbol id="i-none" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="none" stroke="currentColor" stroke-width="1.6" stroke-dasharray="3 2.5"/><path d="M5 8h6" stroke="currentColor" stroke-width="1.8"/></symbol>`

// A pen draws a lane from the caller at 0 % to the called end at 100 %, the
// firewall at 50 %; mirrored, the caller is at the right. Places are a share of
// the width and an offset in pixels, so that lines stretch and signs do not.
type pen struct{ mirror bool }

// Heights of the lines.
const (
	upper  = 10
	lower  = 20
	middle = 15
)

func (p pen) at(percent, offset int) (int, int) {
	if p.mirror {
		return 100 - percent, -offset
	}
	return percent, offset
}

// line from x1 to x2; both are moved by the offset, and what leaves the lane at
// an end is not seen.
func (p pen) line(x1, x2, y, offset int, class string) string {
	x1, o := p.at(x1, offset)
	x2, _ = p.at(x2, offset)
	move := ""
	if o != 0 {
		move = fmt.Sprintf(` transform="translate(%d)"`, o)
	}
	if class != "" {
		class = fmt.Sprintf(` class="%s"`, class)
	}
	return fmt.Sprintf(`<line x1="%d%%" x2="%d%%" y1="%d" y2="%d"%s%s/>`, x1, x2, y, y, move, class)
}

// sign is a path at a place; mirrored, it is turned around too.
func (p pen) sign(percent, offset, y int, d, class string) string {
	x, o := p.at(percent, offset)
	turn := ""
	if p.mirror {
		turn = ` scale(-1 1)`
	}
	if class != "" {
		class = fmt.Sprintf(` class="%s"`, class)
	}
	return fmt.Sprintf(`<svg x="%d%%" overflow="visible"><path transform="translate(%d %d)%s" d="%s"%s/></svg>`, x, o, y, turn, d, class)
}

func (p pen) arrow(y int) string { return p.sign(100, -1, y, "M-9-5L0 0-9 5z", "head") }
func (p pen) back(y int) string  { return p.sign(0, 1, y, "M9-5L0 0 9 5z", "head") }
func (p pen) cross(percent, offset, y int) string {
	return p.sign(percent, offset, y, "M-5-5L5 5M5-5L-5 5", "")
}

// track draws a verdict.
func (p pen) track(v client.Verdict) string {
	const wall = 24 // from the firewall's middle to where its side is clear
	passing := p.line(0, 100, upper, 0, "") + p.arrow(upper)
	answered := p.line(100, 0, lower, 0, "") + p.back(lower)
	switch v {
	case client.Open:
		return passing + answered
	case client.Degraded:
		return p.line(0, 50, upper, 0, "") + p.line(50, 100, upper, 0, "dash") + p.arrow(upper) + p.line(0, 100, lower, 0, "dash") + p.back(lower)
	case client.Altered:
		bent := p.line(0, 50, upper, -wall, "") + p.sign(50, 0, 0, "M-24 10H-14L14 4H24", "") + p.line(50, 100, 4, wall, "") + p.sign(100, -1, 4, "M-9-4L0 0-9 4z", "head")
		return bent + p.line(100, 50, 26, wall, "") + p.sign(50, 0, 0, "M24 26H14L-14 20H-24", "") + p.line(50, 0, lower, -wall, "") + p.back(lower)
	case client.Partial:
		return p.line(0, 50, middle, -wall, "") + p.sign(50, 0, 0, "M-24 15Q-12 15-6 10T14 6H24", "") + p.line(50, 100, 6, wall, "") + p.sign(100, -1, 6, "M-9-5L0 0-9 5z", "head") +
			p.sign(50, 0, 0, "M-24 15Q-14 15-6 22", "dash") + p.cross(50, 0, 23)
	case client.Cut:
		zigzag := "M-3-6L3-1-3 1 3 6"
		return p.line(0, 50, upper, -8, "") + p.line(50, 100, upper, 8, "dash") + p.arrow(upper) + p.sign(50, 0, upper, zigzag, "") +
			p.line(100, 50, lower, 8, "dash") + p.line(50, 0, lower, -8, "") + p.back(lower) + p.sign(50, 0, lower, zigzag, "")
	case client.ReplyLost:
		return passing + p.line(100, 50, lower, wall+6, "") + p.cross(50, wall, lower) + p.line(50, 0, lower, -wall, "ghost")
	case client.RequestLost:
		return p.line(0, 50, middle, -wall-6, "") + p.cross(50, -wall, middle) + p.line(50, 100, middle, wall, "ghost")
	case client.Rejected:
		return p.line(0, 50, upper, -wall, "") + p.sign(50, -wall, upper, "M0 0H4a5 5 0 0 1 0 10H0", "") + p.line(50, 0, lower, -wall, "") + p.back(lower) + p.line(50, 100, middle, wall, "ghost")
	case client.Refused:
		return p.line(0, 100, upper, -12, "") + p.sign(100, -12, upper, "M0 0H4a5 5 0 0 1 0 10H0", "") + p.line(100, 0, lower, -12, "") + p.back(lower)
	case client.Impostor:
		mask := "M-11-9H11V0Q11 9 0 11-11 9-11 0zM-7-3H-3M3-3H7"
		return p.line(0, 50, upper, -12, "") + p.line(50, 0, lower, -12, "") + p.back(lower) + p.sign(50, 0, middle, mask, "halo") + p.line(50, 100, middle, wall, "ghost")
	case client.Silent:
		return p.line(0, 50, middle, -wall-10, "dash") + p.sign(50, -wall, middle, "M-4-4a4 4 0 1 1 5 4q-1 1-1 3M0 6v2", "") + p.line(50, 100, middle, wall, "ghost")
	}
	return p.line(0, 100, middle, 0, "ghost")
}
