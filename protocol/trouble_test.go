package protocol

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// splice carries bytes both ways until both have ended.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		io.Copy(to, from)
		if w, ok := to.(interface{ CloseWrite() error }); ok {
			w.CloseWrite()
		}
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}

// say is a near end that sends bytes, ends its half, and hears the far end out.
func say(t *testing.T, p *Protocol, f *testFar, b []byte) (wire.Event, []wire.Event) {
	t.Helper()
	near, far := pair(t)
	go func() {
		near.Write(b)
		near.CloseWrite()
		io.Copy(io.Discard, near)
		near.Close()
	}()
	events := p.TCP.Serve(t.Context(), far, f)
	far.Close()
	return Arrived(far, farClock), events
}

var alert = []byte{21, 3, 3, 0, 2, 2, 40}

func TestFarEndTellsWhatStrangersSend(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	x := f.exchange()
	message := func(k wire.Kind, keys *wire.Keys) []byte { m := x.message(k); return m.Append(nil, keys) }
	good := message(wire.Request, &f.keys)
	for name, c := range map[string]struct {
		send   []byte
		fault  string
		named  bool // the message says whose it is
		bytes  int64
		digest string
	}{
		"nothing":             {nil, FaultEOF, false, 0, ""},
		"one byte":            {good[:1], FaultEOF, false, 1, digest(good[:1])},
		"a truncated token":   {good[:40], FaultEOF, false, 40, digest(good[:40])},
		"all but one byte":    {good[:83], FaultEOF, false, 83, digest(good[:83])},
		"a TLS alert":         {alert, FaultEOF, false, 7, digest(alert)},
		"an endless line":     {[]byte(strings.Repeat("A", 1<<16)), FaultForeign, false, 0, digest([]byte(strings.Repeat("A", 84)))},
		"zeros":               {make([]byte, 84), FaultForeign, false, 0, digest(make([]byte, 84))},
		"another key's token": {message(wire.Request, &other.keys), FaultAltered, true, 0, digest(message(wire.Request, &other.keys))},
		"a reply":             {message(wire.Reply, &f.keys), FaultAltered, true, 0, digest(message(wire.Reply, &f.keys))},
		"a late message":      {message(wire.Late, &f.keys), FaultAltered, true, 0, digest(message(wire.Late, &f.keys))},
		"a call":              {message(wire.Call, &f.keys), FaultAltered, true, 0, digest(message(wire.Call, &f.keys))},
	} {
		want, events := say(t, protocols["plain"], f, c.send)
		want.Stage, want.Fault, want.BytesIn, want.Digest = StageToken, c.fault, c.bytes, c.digest
		if c.named {
			want.Session, want.Probe, want.Attempt = f.keys.ID, x.Probe, x.Attempt
		}
		if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestFarEndOfTLSTellsWhatStrangersSend(t *testing.T) {
	for name, c := range map[string]struct {
		send  []byte
		fault string
	}{
		"nothing":      {nil, FaultEOF},
		"an alert":     {alert, "remote error: tls: handshake failure"},
		"a line":       {[]byte("GET / HTTP/1.1\r\n"), "tls: first record does not look like a TLS handshake"},
		"half a hello": {[]byte{22, 3, 1, 2, 0, 1, 0}, FaultEOF},
	} {
		want, events := say(t, protocols["tls"], newFar(), c.send)
		want.Stage, want.Fault, want.TLS = StageTLS, c.fault, &wire.TLSSeen{HelloDigest: digest(firstRecord(c.send))}
		if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestNearEndTellsWhatStrangersAnswer(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	x := f.exchange()
	message := func(k wire.Kind, keys *wire.Keys) []byte { m := x.message(k); return m.Append(nil, keys) }
	banner := []byte("220 mail.example ESMTP\r\n")
	line := []byte(strings.Repeat("A", 84))
	for name, c := range map[string]struct {
		answer []byte
		want   Result
	}{
		"nothing":                {nil, Result{Fault: FaultEOF, Err: io.EOF}},
		"one byte":               {[]byte("x"), Result{Fault: FaultEOF, Err: io.ErrUnexpectedEOF, Sample: []byte("x")}},
		"a banner":               {banner, Result{Fault: FaultForeign, Err: ErrForeign, Sample: banner}},
		"an endless line":        {[]byte(strings.Repeat("A", 1<<16)), Result{Fault: FaultForeign, Err: ErrForeign, Sample: line}},
		"a TLS alert":            {alert, Result{Fault: FaultForeign, Err: ErrForeign, Sample: alert}},
		"half of a reply":        {message(wire.Reply, &f.keys)[:50], Result{Fault: FaultEOF, Err: io.ErrUnexpectedEOF, Sample: message(wire.Reply, &f.keys)[:50]}},
		"another key's reply":    {message(wire.Reply, &other.keys), Result{Fault: FaultAltered, Err: errAltered, Sample: message(wire.Reply, &other.keys)}},
		"its own request":        {message(wire.Request, &f.keys), Result{Fault: FaultForeign, Err: ErrForeign, Sample: message(wire.Request, &f.keys)}},
		"a late message so soon": {message(wire.Late, &f.keys), Result{Fault: FaultForeign, Err: ErrForeign, Sample: message(wire.Late, &f.keys)}},
	} {
		near, far := pair(t)
		go func() {
			io.ReadFull(far, make([]byte, wire.MessageSize))
			far.Write(c.answer)
			far.CloseWrite()
		}()
		got := untimed(t, probePlain(t.Context(), near, x))
		near.Close()
		c.want.Stage = StageToken
		if c.want.Fault != "" {
			got.Seen = wire.Message{} // what does not verify may be read, never believed
		}
		if diff := cmp.Diff(c.want, got, same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestNearEndOfTLSTellsAnAnswerWithoutTLS(t *testing.T) {
	f := newFar()
	near, far := pair(t)
	page := []byte("HTTP/1.0 400 Bad Request\r\n\r\n")
	go func() {
		far.Read(make([]byte, 4096))
		far.Write(page)
		far.CloseWrite()
	}()
	got := untimed(t, probeTLS(t.Context(), near, f.exchange()))
	if _, ok := errors.AsType[tls.RecordHeaderError](got.Err); !ok || got.TLS == nil || got.TLS.HelloDigest == "" {
		t.Fatalf("%+v", got)
	}
	want := Result{Stage: StageTLS, Fault: FaultForeign, Err: got.Err, Sample: page[:5], TLS: &wire.TLSSeen{ServerName: "a.example", HelloDigest: got.TLS.HelloDigest,
		Versions: []string{"TLS 1.3", "TLS 1.2"}, HelloName: "a.example"}}
	if len(got.Sample) > 5 {
		want.Sample = page[:len(got.Sample)]
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

var overPlain = spoken{name: "plain", Protocol: plain}

const bulk = 40_000

// offsets are bytes of a data phase around everything that has an edge.
var offsets = []int64{0, 1, chunk - 1, chunk, chunk + 1, bulk - 1}

func TestByteChangedOnTheWayBackIsNamedExactly(t *testing.T) {
	for _, k := range offsets {
		f := newFar()
		x := f.exchange()
		x.Bytes = bulk
		got, base, _ := play(t, loopback, overPlain, f, x, box{down: flip(wire.MessageSize + k)})
		want, _ := whole(f, x, base, Result{})
		want.Stage, want.Fault, want.Down, want.Err = StageData, FaultAltered, k, errAltered
		if text := fmt.Sprintf("byte %d: bytes altered on the way", k); got.Err == nil || got.Err.Error() != text {
			t.Errorf("byte %d: error %v, want %s", k, got.Err, text)
		}
		got.Up = want.Up // as far as it came by then
		if diff := cmp.Diff(want, untimed(t, got), same); diff != "" {
			t.Errorf("byte %d (-want +got):\n%s", k, diff)
		}
	}
}

func TestByteChangedOnTheWayOutIsNamedExactly(t *testing.T) {
	for _, k := range offsets {
		f := newFar()
		x := f.exchange()
		x.Bytes = bulk
		got, base, events := play(t, loopback, overPlain, f, x, box{up: flip(wire.MessageSize + k)})
		_, want := whole(f, x, base, Result{})
		want.Stage, want.Fault, want.BytesIn = StageData, FaultAltered, k
		if len(events) == 1 {
			want.BytesOut = events[0].BytesOut // as far as it came by then
		}
		if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
			t.Errorf("byte %d (-want +got):\n%s", k, diff)
		}
		if got.Stage != StageData || got.Fault != FaultEOF && got.Fault != FaultReset {
			t.Errorf("byte %d: the near end says %s, %s", k, got.Stage, got.Fault)
		}
	}
}

func TestChangedClosingMessageIsSeen(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Bytes = bulk
	got, base, _ := play(t, loopback, overPlain, f, x, box{down: flip(wire.MessageSize + bulk + 20)})
	want, _ := whole(f, x, base, Result{})
	want.Stage, want.Fault, want.Err = StageData, FaultAltered, errAltered
	if got.Up = want.Up; !errors.Is(got.Err, errAltered) {
		t.Errorf("error %v", got.Err)
	}
	if diff := cmp.Diff(want, untimed(t, got), same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestExchangeCutAfterSomeBytesIsCountedExactly(t *testing.T) {
	for _, k := range offsets {
		f := newFar()
		x := f.exchange()
		x.Bytes = bulk
		back, base, _ := play(t, loopback, overPlain, f, x, box{down: cutAfter(wire.MessageSize + k)})
		want, _ := whole(f, x, base, Result{})
		want.Stage, want.Fault, want.Err, want.Down = StageData, FaultEOF, io.EOF, k
		back.Up = want.Up
		if diff := cmp.Diff(want, untimed(t, back), same); diff != "" {
			t.Errorf("cut after %d bytes back, near end (-want +got):\n%s", k, diff)
		}
		_, base, events := play(t, loopback, overPlain, f, x, box{up: cutAfter(wire.MessageSize + k)})
		_, wantEvent := whole(f, x, base, Result{})
		wantEvent.Stage, wantEvent.Fault, wantEvent.BytesIn = StageData, FaultEOF, k
		if len(events) == 1 {
			wantEvent.BytesOut = events[0].BytesOut
		}
		if diff := cmp.Diff([]wire.Event{wantEvent}, events, same); diff != "" {
			t.Errorf("cut after %d bytes out, far end (-want +got):\n%s", k, diff)
		}
	}
}

// Both ends send and receive at one time; whichever meets the reset first takes
// it from the socket, and the other half sees only an end.
func TestResetInTheDataPhaseIsCalledAReset(t *testing.T) {
	for range 30 {
		f := newFar()
		x := f.exchange()
		x.Bytes = 8 << 20 // more than the buffers on the way hold
		got, base, events := play(t, loopback, overPlain, f, x, box{down: cutAfter(wire.MessageSize + 5000), ending: resets})
		if got.Stage != StageData || got.Fault != FaultReset || got.Down > 5000 {
			t.Errorf("near end: %+v", got)
		}
		_, want := whole(f, x, base, Result{})
		want.Stage, want.Fault = StageData, FaultReset
		if len(events) == 1 {
			want.BytesIn, want.BytesOut = events[0].BytesIn, events[0].BytesOut
		}
		if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
			t.Errorf("far end (-want +got):\n%s", diff)
		}
		if t.Failed() {
			return
		}
	}
}

func TestTooLongASilenceIsRefused(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Idle = MaxIdle + time.Second
	m := x.message(wire.Request)
	want, events := say(t, plain, f, m.Append(nil, &f.keys))
	want.Session, want.Probe, want.Attempt, want.Answered = f.keys.ID, x.Probe, x.Attempt, true
	want.Stage, want.Fault = StageToken, "asked for 1h0m1s of idling; at most 1h0m0s"
	if diff := cmp.Diff([]wire.Event{want}, events, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
