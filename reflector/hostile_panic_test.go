package reflector

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
)

// A broken connection panics when it is read, as an error in this program might.
type broken struct{ net.Conn }

func (broken) Read([]byte) (int, error) { panic("an error in wallprobe") }

// A panic ends the connection or the datagram that it came with and is told
// loudly; everything else goes on.
func TestPanicEndsOneConnectionAlone(t *testing.T) {
	log := new(buffer)
	b := newBench(t, Config{Log: slog.New(slog.NewTextHandler(log, nil)), Journal: new(buffer)})
	for range 3 * maxStacks {
		_, far := net.Pipe()
		b.Conn(broken{far})
	}
	if n := len(b.conns.n); n != 0 {
		t.Errorf("%d sources are counted still", n)
	}
	if e := b.recent.list; len(e) != 3*maxStacks || e[0].Fault != FaultPanic {
		t.Errorf("events: %+v", e)
	}
	text := log.String()
	if n := strings.Count(text, "level=ERROR"); n != 3*maxStacks {
		t.Errorf("%d lines in the log", n)
	}
	if n := strings.Count(text, "stack="); n != maxStacks || !strings.Contains(text, "an error in wallprobe") {
		t.Errorf("%d stacks in the log:\n%.2000s", n, text)
	}
}

func TestPanicOverADatagramLeavesTheOthersAnswered(t *testing.T) {
	b := newBench(t, Config{Speaks: map[protocol.Port]string{{Transport: scenarios.UDP, Number: local.Port()}: "goto-media"}})
	calls := 0
	now := b.cfg.Now
	b.cfg.Now = func() time.Time {
		if calls++; calls == 1 {
			panic("an error in wallprobe")
		}
		return now()
	}
	if out := b.deliver(near, bytes.Repeat([]byte{0x80}, 200)); len(out) > 0 {
		t.Errorf("%v", out)
	}
	if calls == 0 {
		t.Fatal("nothing panicked")
	}
	if out := b.deliver(near, b.request(testID, nil)); len(out) != 1 {
		t.Errorf("the next one is not answered: %v", out)
	}
}
