package protocol

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// A trouble is what an end gets in place of what the other end would say.
type trouble struct {
	name   string
	deaf   bool // what the end says is not taken either
	make   func(victim *side, p []byte)
	faults string // what it may be called: a regular expression
}

// No end may bear with a trouble for tooLong, or take tooMuch of it.
const (
	tooLong = 4 * time.Hour
	tooMuch = 8 << 20
)

// badTLS is what is wrong with what came in place of TLS, as its library says.
const badTLS = `tls: (first record does not look|received record with version|unexpected message)|tls: bad record MAC|tls: handshake failure`

// troubles have their faults as seen before the exchange is done. What a peer
// says slowly is what it would say quickly, again and again, so that it may make
// sense in the end.
var troubles = []trouble{
	{"nothing more", false, func(*side, []byte) { time.Sleep(tooLong) }, "timeout"},
	{"a half-open connection", true, func(*side, []byte) { time.Sleep(tooLong) }, "timeout"},
	{"one byte a second", false, drip, `timeout|foreign|altered|more than \d+ commands|PASV, EPSV, PORT or EPRT comes first|` + badTLS},
	{"an endless line", false, func(v *side, _ []byte) { flood(v, []byte(strings.Repeat("A", 4<<10))) }, `foreign|altered|(line|head) longer than \d+ bytes|` + badTLS},
	{"endless rubbish", false, func(v *side, _ []byte) { flood(v, noise(4<<10)) }, `foreign|altered|line longer than \d+ bytes|` + badTLS},
	{"rubbish, then nothing", false, func(v *side, _ []byte) { v.Write(noise(200)); time.Sleep(tooLong) }, `timeout|foreign|altered|` + badTLS},
	{"an alert, then the end", false, func(v *side, _ []byte) { v.raw.Write(alert); v.raw.out.close() }, `eof|foreign|altered|` + badTLS},
	{"half of a message, then the end", false, func(v *side, p []byte) { v.Write(p[:len(p)/2]); v.closeWrite() }, "eof"},
	{"half of a message, then a cut", false, func(v *side, p []byte) { v.Write(p[:len(p)/2]); v.raw.out.close() }, "eof"},
}

// drip says one byte a second.
func drip(v *side, p []byte) {
	for range int(tooLong/time.Second)/len(p) + 1 {
		for _, b := range p {
			if _, err := v.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
}

// flood says the same without an end.
func flood(w io.Writer, b []byte) {
	for n := 0; n < tooMuch; n += len(b) {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// An ordeal is one trouble for one end at one place.
type ordeal struct {
	p       spoken
	toFar   bool
	at      int // pieces of the other end that come before it
	trouble trouble
}

func (o ordeal) String() string {
	end := "near"
	if o.toFar {
		end = "far"
	}
	return fmt.Sprintf("%s, %s end, %s after %d pieces", o.p, end, o.trouble.name, o.at)
}

// An outcome is how the end took it.
type outcome struct {
	befell bool // the place was reached
	inside bool // and was in TLS
	ends   []mailEnd
	proven bool          // the far end had a token's proof
	took   time.Duration // from the trouble on
	taken  int64         // bytes in all
	left   []string      // goroutines that outlived both ends
}

// ordealStall is that of the near end.
const ordealStall = 10 * time.Second

// bytes is how many the near end asks for. A half-open connection has no room
// for all of them.
func (o ordeal) bytes() uint32 {
	if o.trouble.deaf {
		return 3 * room
	}
	return 3000
}

// stage tells one inside TLS from one outside.
func (out outcome) stage() string {
	if out.inside {
		return out.ends[0].Stage + " inside TLS"
	}
	return out.ends[0].Stage
}

// undergo runs it inside a bubble.
func (o ordeal) undergo(t *testing.T) (out outcome) {
	f := newFar()
	x := f.exchange()
	x.Variant, x.Bytes, x.Stall = o.p.variant, o.bytes(), ordealStall
	f.mem = &memoryNet{}
	x.Listen = f.mem.listen
	client, server := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:443")
	x.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return f.mem.dial(ctx, netip.AddrPortFrom(client.Addr(), 0), to)
	}
	near, toNear := remembered(client, server)
	toFar, far := remembered(client, server)
	m := &meddler{near: newSide(toNear), far: newSide(toFar), toFar: o.toFar, at: o.at, trouble: o.trouble, gone: make(chan struct{})}
	victim := m.near
	var ended time.Time
	over := func() { ended = time.Now(); close(m.gone) }
	var wg sync.WaitGroup
	wg.Go(m.run)
	wg.Go(func() {
		r := o.p.TCP.Probe(t.Context(), near, x)
		if !o.toFar {
			out.ends = []mailEnd{{r.Stage, r.Fault}}
			over()
		}
		near.Close()
	})
	wg.Go(func() {
		events := f.serve(t.Context(), o.p.Protocol, far)
		if o.toFar {
			for _, e := range events {
				out.ends = append(out.ends, mailEnd{e.Stage, e.Fault})
			}
			out.proven = slices.ContainsFunc(events, func(e wire.Event) bool { return e.Answered })
			over()
			victim = m.far
		}
		far.Close()
	})
	wg.Wait()
	out.befell, out.inside, out.took, out.taken, out.left = !m.onset.IsZero(), m.inside, ended.Sub(m.onset), victim.raw.out.taken, leftBehind()
	return out
}

// leftBehind lists the goroutines of a bubble but the one that asks, once all
// of them stand still.
func leftBehind() (list []string) {
	synctest.Wait()
	self := bubble.Find(stacks(false))
	for routine := range strings.SplitSeq(string(stacks(true)), "\n\n") {
		if self != nil && bytes.Equal(bubble.Find([]byte(routine)), self) && !itself.MatchString(routine) {
			list = append(list, routine)
		}
	}
	return list
}

var (
	bubble = regexp.MustCompile(`synctest bubble \d+`)
	itself = regexp.MustCompile(`protocol\.leftBehind\(|internal/synctest\.Run\(|testing/synctest\.testingSynctestTest\(`)
)

// stacks are those of all goroutines, or of the one that asks.
func stacks(all bool) []byte {
	for n := 64 << 10; ; n *= 4 {
		b := make([]byte, n)
		if got := runtime.Stack(b, all); got < n {
			return b[:got]
		}
	}
}

// patience is the longest that an end may bear with a trouble. Silence costs
// one stall, at the far end more where the peer may be somebody else's program
// that has proven itself, such as a file browser.
func (o ordeal) patience(out outcome) time.Duration {
	mute := o.trouble.faults == "timeout"
	switch {
	case !o.toFar && mute:
		return ordealStall + drain(o.bytes())
	case !o.toFar:
		return 4 * ordealStall
	case mute && !out.proven:
		return farStall
	case mute:
		return httpQuiet + time.Second // in which HTTP/2 says goodbye
	}
	return max(unprovenTime, o.p.Patience) + time.Duration(2*o.bytes()/minRate)*time.Second
}

// judge says what is wrong with an outcome. stages are those that the end goes
// through, by the place in which nothing more came.
func (o ordeal) judge(out outcome, stages []string) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if len(out.ends) != 1 {
		say("it told of %d exchanges: %v", len(out.ends), out.ends)
		return wrong
	}
	// Where a library writes from several goroutines, this run may be a piece
	// behind the one that gave stages, and have more pieces, all of the last stage.
	place := max(0, min(o.at, len(stages))-1)
	before, after := stages[:place], stages[place:]
	switch end := out.ends[0]; {
	case !slices.Contains(allStages, end.Stage):
		say("stage %q", end.Stage)
	case !o.trouble.deaf && slices.Contains(before, out.stage()) && !slices.Contains(after, out.stage()):
		say("stage %q, which was over: %q", end.Stage, stages)
	case end.Stage == StageDone && end.Fault != "":
		say("done, with the fault %q", end.Fault)
	case end.Stage != StageDone && !regexp.MustCompile("^(.*: |)("+o.trouble.faults+")( .*|)$").MatchString(end.Fault):
		say("stage %s, fault %q", end.Stage, end.Fault)
	}
	if limit := o.patience(out); out.took > limit {
		say("it took %v, at most %v", out.took, limit)
	}
	if limit := int64(2 * room); out.taken > limit && !o.trouble.deaf {
		say("it took %d bytes, at most %d", out.taken, limit)
	}
	for _, routine := range out.left {
		say("left behind:\n%s", routine)
	}
	return wrong
}

var allStages = []string{StageConnect, StageBanner, StageSTARTTLS, StageTLS, StageKex, StageLogin, StageToken, StageData, StageDone}

// resumed tells whether a stage that was over began again.
func resumed(stages []string) bool {
	once := slices.Compact(slices.Clone(stages))
	return len(once) != len(slices.Compact(slices.Sorted(slices.Values(once))))
}

// places is how many are tried; an exchange without bulk has fewer.
func places(t trouble) int {
	if t.deaf {
		return 8
	}
	return 24
}

// Whatever a peer does, and wherever in the exchange it begins to, an end gives
// up in its time with the stage and what was wrong, having taken little, and
// nothing of it goes on.
func TestEveryTroubleAnywhereEndsEveryProtocolInItsTime(t *testing.T) {
	for _, p := range every(t) {
		for _, toFar := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/far=%v", p, toFar), func(t *testing.T) {
				t.Parallel()
				var stages []string // in which nothing more came, by the place
				for _, trouble := range troubles {
					for at := range places(trouble) {
						o := ordeal{p, toFar, at, trouble}
						var out outcome
						synctest.Test(t, func(t *testing.T) { out = o.undergo(t) })
						if !out.befell {
							if at == 0 {
								t.Errorf("%s: it never came to that", o)
							}
							break
						}
						if trouble.name == troubles[0].name && len(out.ends) == 1 {
							stages = append(stages, out.stage())
						}
						for _, wrong := range o.judge(out, stages) {
							t.Errorf("%s: %s", o, wrong)
						}
					}
				}
				if len(stages) < 2 || resumed(stages) {
					t.Errorf("it went through the stages %q", stages)
				}
			})
		}
	}
}
