package protocol

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// maxLine is the longest line of a dialogue, its end included: twice what RFC
// 5321 section 4.5.3.1 allows, because tokens are long.
const maxLine = 1024

// errLongLine ends a dialogue with a peer that sends lines without an end.
var errLongLine = errors.New("line longer than 1024 bytes")

// A dialogue speaks lines over a connection and records both directions, what
// goes out before it does. Each line has a deadline as a whole, so that a peer
// that sends one byte now and then gains nothing.
type dialogue struct {
	net.Conn // writes go here; what is left to read is in r
	r        *bufio.Reader
	said     *wire.Transcript
	stall    time.Duration
}

func newDialogue(c net.Conn, stall time.Duration) *dialogue {
	return &dialogue{Conn: c, r: bufio.NewReaderSize(c, maxLine), said: new(wire.Transcript), stall: stall}
}

// Read reads on after the last line that was heard.
func (d *dialogue) Read(b []byte) (int, error) { return d.r.Read(b) }

// over goes on with another connection, such as TLS on top of this one. It fails
// as early does.
func (d *dialogue) over(c net.Conn) error {
	if err := d.early(); err != nil {
		return err
	}
	d.Conn = c
	d.r.Reset(c)
	return nil
}

// early fails where bytes came before TLS began, which would be taken for
// protected ones (CVE-2011-0411, of the near end CVE-2021-38371). They are
// recorded, so that both ends' records show who put them in.
func (d *dialogue) early() error {
	b, _ := d.r.Peek(d.r.Buffered())
	if len(b) == 0 {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		d.said.Hear(asHeard(line))
	}
	return fmt.Errorf("%d bytes came before TLS began: %w", len(b), errAltered)
}

// say sends one line.
func (d *dialogue) say(format string, args ...any) error {
	return d.sayWith("\r\n", d.stall, fmt.Sprintf(format, args...))
}

// sayWith sends lines at one time, as answers of several lines are sent, each
// with its end.
func (d *dialogue) sayWith(end string, within time.Duration, lines ...string) error {
	for _, line := range lines {
		d.said.Say(line)
	}
	d.SetWriteDeadline(time.Now().Add(within))
	_, err := d.Write([]byte(strings.Join(lines, end) + end))
	return err
}

// hear reads one line, without its end. What came of an unfinished line is
// recorded as well.
func (d *dialogue) hear() (string, error) { return d.hearBy(time.Now().Add(d.stall)) }

func (d *dialogue) hearBy(at time.Time) (string, error) {
	d.SetReadDeadline(at)
	b, err := d.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		err = errLongLine
	}
	if len(b) > 0 {
		d.said.Hear(asHeard(string(b)))
	}
	return strings.TrimRight(string(b), "\r\n"), err
}

// asHeard is a line as it is recorded: without the end that our lines have. One
// that came with another end is recorded with that, so that the ends' records
// differ where somebody changed it.
func asHeard(b string) string {
	if line, ok := strings.CutSuffix(b, "\r\n"); ok {
		return line
	}
	if strings.HasSuffix(b, "\n") {
		return b
	}
	return strings.TrimRight(b, "\r") // its end may be under way
}

// foreign says that a line is not what the other end says at this point. The
// judge finds out from both ends' records whether it was rewritten.
func foreign(wanted, line string) error {
	return fmt.Errorf("%q where %s belongs: %w", line[:min(len(line), 80)], wanted, ErrForeign)
}

// saying gives the event of a connection what was said on it. There is none
// while a panic is on its way out.
func saying(events []wire.Event, said *wire.Said) {
	if len(events) > 0 {
		events[0].Said = said
	}
}
