package protocol

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun"

	"github.com/wallprobe/wallprobe/wire"
)

// A script is a stream that says what was written for it and takes everything.
type script struct {
	net.Conn // nil: what is not used must not be called
	said     io.Reader
	wrote    bytes.Buffer
	deadline []time.Time // for writes, in order
}

func (s *script) Read(p []byte) (int, error)      { return s.said.Read(p) }
func (s *script) Write(p []byte) (int, error)     { return s.wrote.Write(p) }
func (s *script) SetReadDeadline(time.Time) error { return nil }
func (s *script) SetWriteDeadline(at time.Time) error {
	s.deadline = append(s.deadline, at)
	return nil
}

func reading(b ...byte) *Relay { return &Relay{Conn: &script{said: bytes.NewReader(b)}} }

func TestRelayedDataIsFoundBetweenWhatIsNot(t *testing.T) {
	data := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodData, stun.ClassIndication),
		xorPeer(netip.MustParseAddrPort("192.0.2.1:7")), stun.RawAttribute{Type: stun.AttrData, Value: []byte("indicated")}).Raw
	other := stun.MustBuild(stun.TransactionID, stun.BindingSuccess).Raw
	r := reading(bytes.Join([][]byte{other, {0x40, 1, 0, 3, 'o', 'd', 'd', 0}, data, other, {0x7f, 0xff, 0, 4, 'e', 'v', 'e', 'n'}}, nil)...)
	type heard struct {
		channel uint16
		data    string
	}
	var got []heard
	for {
		channel, b, err := r.Receive(time.Time{})
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		got = append(got, heard{channel, string(b)})
	}
	want := []heard{{0x4001, "odd"}, {0, "indicated"}, {0x7fff, "even"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(heard{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A bulk phase lasts longer than any one message may take.
func TestEveryMessageToARelayHasTimeOfItsOwn(t *testing.T) {
	c := &script{said: bytes.NewReader(nil)}
	r := &Relay{Conn: c, Stall: time.Hour}
	began := time.Now()
	for range 3 {
		if err := errors.Join(r.Send(channelNumber, []byte("x")), r.Indicate(netip.MustParseAddrPort("192.0.2.1:7"), []byte("x"))); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.deadline) != 6 {
		t.Fatalf("%d deadlines for 6 messages", len(c.deadline))
	}
	for _, at := range c.deadline {
		if at.Before(began.Add(time.Hour)) {
			t.Errorf("a message has %v", at.Sub(began))
		}
	}
}

func TestRelayStreamsThatAreNoneEnd(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"text":             {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), errRelayFrame},
		"too long":         {[]byte{0x40, 1, 0xff, 0xff}, errRelayFrame},
		"cut in its head":  {[]byte{0x40, 1}, io.ErrUnexpectedEOF},
		"cut in its data":  {[]byte{0x40, 1, 0, 8, 1, 2}, io.ErrUnexpectedEOF},
		"nothing":          {nil, io.EOF},
		"endless messages": {bytes.Repeat(stun.MustBuild(stun.TransactionID, stun.BindingSuccess).Raw, 2*maxPassed), ErrForeign},
	} {
		if _, _, err := reading(c.b...).Receive(time.Time{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// A server that refuses everything, or challenges for ever, is asked
// twice and no more.
func TestRefusalsOfARelayAreNamedAndEnd(t *testing.T) {
	for _, c := range []struct {
		code stun.ErrorCode
		text string
		want string
	}{
		{486, "", "the relay refuses with 486 Allocation Quota Reached"},
		{403, "not you", "the relay refuses with 403 not you"},
		{401, "", "the relay refuses with 401 Unauthorized"},
		{438, "", "the relay does not know the nonce that it has just given: bytes altered on the way"},
	} {
		near, far := net.Pipe()
		asked := make(chan int)
		go func() {
			n := 0
			defer func() { asked <- n }()
			buf := make([]byte, 2048)
			for {
				size, err := far.Read(buf)
				if err != nil {
					return
				}
				n++
				q := new(stun.Message)
				if stun.Decode(buf[:size], q) != nil {
					return
				}
				answer := stun.MustBuild(stun.NewTransactionIDSetter(q.TransactionID), stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse),
					stun.ErrorCodeAttribute{Code: c.code, Reason: []byte(c.text)}, stun.NewRealm("r"), stun.NewNonce("n"))
				if _, err := far.Write(answer.Raw); err != nil {
					return
				}
			}
		}()
		err := (&Relay{Conn: near, Username: "u", Password: "p", Stall: 5 * time.Second}).Allocate()
		near.Close()
		if n := <-asked; err == nil || err.Error() != c.want || n > 2 {
			t.Errorf("%d: %v after %d requests, want %q", c.code, err, n, c.want)
		}
	}
}

func TestEchoAnswersRequestsAlone(t *testing.T) {
	k := wire.Derive(wire.Key{1}, wire.SessionID{2}, wire.Nonce{})
	from, now := netip.MustParseAddrPort("192.0.2.1:50000"), time.UnixMicro(1_800_000_000_000_000)
	other := wire.Derive(wire.Key{2}, wire.SessionID{2}, wire.Nonce{})
	for kind, want := range map[wire.Kind]bool{wire.Request: true, wire.Reply: false, wire.Late: false, wire.Done: false, wire.Call: false} {
		m := wire.Message{Kind: kind, Session: k.ID, Probe: 3, Size: 200, Time: now}
		p := m.Append(nil, &k)
		got := Echo(p, &k, from, now)
		if (got != nil) != want || len(got) > len(p) {
			t.Errorf("kind %d: %d bytes", kind, len(got))
		}
		if Echo(p, &other, from, now) != nil {
			t.Errorf("kind %d made with another key is answered", kind)
		}
		if got != nil && Echo(got, &k, from, now) != nil {
			t.Error("an answer is answered")
		}
	}
}

func FuzzRelay(f *testing.F) {
	f.Add([]byte{0x40, 1, 0, 3, 'o', 'd', 'd', 0})
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse), stun.CodeUnauthorized, stun.NewRealm("r"), stun.NewNonce("n")).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodData, stun.ClassIndication), stun.RawAttribute{Type: stun.AttrData, Value: []byte("x")}).Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, data, err := reading(b...).Receive(time.Time{})
		if err == nil && len(data) > len(b) {
			t.Errorf("%d bytes of data in %d", len(data), len(b))
		}
		if len(b) < 20 || b[0] > 3 {
			return
		}
		// The same as the answer to a request, whatever its transaction is.
		r := reading(b...)
		if _, err := r.answer([stun.TransactionIDSize]byte(b[8:20]), time.Time{}); err == nil && !strings.Contains(string(b), string(b[8:20])) {
			t.Error("an answer from nowhere")
		}
		m := new(stun.Message)
		if stun.Decode(b, m) == nil {
			_, _ = addressIn(m, stun.AttrXORRelayedAddress)
			_ = r.learn(m)
		}
	})
}
