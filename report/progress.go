package report

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/wallprobe/wallprobe/client"
)

// perUpdate is the shortest time between two states of a progress line.
const perUpdate = 100 * time.Millisecond

// A ProgressLine is one line of a terminal that is written over and over. A
// nil ProgressLine and one without a writer show nothing. Its methods may be
// called from several goroutines.
type ProgressLine struct {
	W     io.Writer        // a terminal, or nil
	Width int              // in cells; 0 is DefaultWidth
	Now   func() time.Time // nil is time.Now

	mu    sync.Mutex
	last  time.Time
	shown int // cells that hold text
}

// NewProgressLine shows progress on f if it is a terminal, and else nothing.
func NewProgressLine(f *os.File) *ProgressLine {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return &ProgressLine{}
	}
	return &ProgressLine{W: f, Width: width}
}

// Show replaces the line, at most ten times a second: texts in between are
// left out. An error of the terminal is no reason to stop measuring.
func (p *ProgressLine) Show(text string) {
	if p == nil || p.W == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	if t := now(); t.Sub(p.last) >= perUpdate {
		p.last = t
		p.write(text)
	}
}

// write pads with blanks what was there before. The last cell stays empty,
// where some terminals would begin a new line.
func (p *ProgressLine) write(text string) {
	most := (&Table{Width: p.Width}).width() - 1
	text = shorten(clean(text), most)
	n := textWidth(text)
	fmt.Fprint(p.W, "\r"+text+strings.Repeat(" ", max(0, p.shown-n)))
	p.shown = n
}

// Clear empties the line and goes back to its beginning, for other output.
func (p *ProgressLine) Clear() {
	if p == nil || p.W == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown > 0 {
		p.write("")
		fmt.Fprint(p.W, "\r")
	}
	p.last = time.Time{}
}

// ProgressText says how far a run is.
func ProgressText(p client.Progress) string {
	text := fmt.Sprintf("%s of %s", Group(p.Done), count(p.Total, "port"))
	if p.Total > 0 {
		text += fmt.Sprintf(", %d %%", 100*p.Done/p.Total)
	}
	return join(": ", text, p.Doing)
}
