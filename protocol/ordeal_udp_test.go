package protocol

import (
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A gale is what a near end gets over UDP in place of the far end's answers.
type gale struct {
	answer  func(p []byte) [][]byte // to each datagram
	drips   []byte                  // comes once a second, whatever is sent
	refuses bool                    // the port is closed
	faults  string                  // what it may be called: a regular expression
}

// gales are by their names. Where anybody can have sent what came, it may be
// passed over, and what counts is that no answer did.
var gales = map[string]gale{
	"nothing":                 {faults: "timeout"},
	"a refusal":               {refuses: true, faults: "refused"},
	"rubbish":                 {answer: func([]byte) [][]byte { return rubbish() }, faults: "foreign|timeout"},
	"rubbish once a second":   {drips: noise(300), faults: "foreign|timeout"},
	"its own words":           {answer: func(p []byte) [][]byte { return [][]byte{p} }, faults: "foreign|altered|timeout|.*INVALID_TOKEN.*|.*PROTOCOL_VIOLATION.*"},
	"half of its own words":   {answer: func(p []byte) [][]byte { return [][]byte{p[:len(p)/2]} }, faults: "foreign|altered|timeout"},
	"empty datagrams":         {answer: func([]byte) [][]byte { return [][]byte{{}, {}} }, faults: "foreign|timeout"},
	"a letter, over and over": {answer: func([]byte) [][]byte { return [][]byte{[]byte(strings.Repeat("A", 1400))} }, faults: "foreign|timeout"},
}

func rubbish() (list [][]byte) {
	b := noise(1500)
	for i := range 200 {
		list = append(list, b[i:len(b)-i*7%1200])
	}
	return list
}

// undergo lets the near end of a protocol meet it inside a bubble.
func (g gale) undergo(t *testing.T, p *Protocol) (r Result, took time.Duration, left []string) {
	over := make(chan struct{})
	l := newLane(func(_ int, b []byte) [][]byte {
		if g.answer == nil {
			return nil
		}
		return g.answer(b)
	})
	l.refuse = g.refuses
	var wg sync.WaitGroup
	wg.Go(func() {
		for g.drips != nil {
			select {
			case <-over:
				return
			case <-time.After(time.Second):
				l.came <- g.drips
			}
		}
	})
	x := newFar().exchange()
	x.Stall = ordealStall
	began := time.Now()
	r = p.UDP.Probe(t.Context(), l, x)
	took = time.Since(began)
	close(over)
	l.Close()
	wg.Wait()
	return r, took, leftBehind()
}

// Whatever comes back over UDP, a near end gives up in its time and is never
// taken in; nothing of it goes on.
func TestEveryTroubleOverUDPEndsEveryNearEndInItsTime(t *testing.T) {
	met := 0
	for name, p := range protocols {
		if p.UDP == nil {
			continue
		}
		for weather, g := range gales {
			synctest.Test(t, func(t *testing.T) {
				r, took, left := g.undergo(t, p)
				if r.Stage == StageDone || r.Heard > 0 && !p.UDP.Stream || !regexp.MustCompile("^("+g.faults+")$").MatchString(r.Fault) {
					t.Errorf("%s, %s: stage %s, fault %q, %d heard", name, weather, r.Stage, r.Fault, r.Heard)
				}
				if took > ordealStall {
					t.Errorf("%s, %s: it took %v", name, weather, took)
				}
				if len(left) > 0 {
					t.Errorf("%s, %s: left behind:\n%s", name, weather, strings.Join(left, "\n\n"))
				}
				met++
			})
		}
	}
	if met < 5*len(gales) {
		t.Errorf("%d were tried", met)
	}
}
