package protocol

import (
	"net"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wallprobe/wallprobe/wire"
)

// Nothing lies between the ends of a loopback: what one says of the handshake
// is what the other says of it.
func TestBothEndsTellOfTheSameHandshake(t *testing.T) {
	saving := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1) })
	}}
	saving.SetMultipathTCP(false)
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := saving.Listen(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		near, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		sent, got := SentSYN(near), GotSYN(far)
		if sent == nil || got == nil {
			t.Fatalf("%s: sent %+v, got %+v", at, sent, got)
		}
		if late := int32(sent.Timestamp - got.Timestamp); sent.Timestamp == 0 || late < -10 || late > 10_000 {
			t.Errorf("%s: the clock of the SYN was %d, then %d", at, got.Timestamp, sent.Timestamp)
		}
		want := *got
		want.Timestamp, want.AtLeast = sent.Timestamp, sent.AtLeast
		if sent.AtLeast {
			want.Back = sent.Back
		}
		if diff := cmp.Diff(&want, sent); diff != "" || sent.MSS < 536 || sent.TTL == 0 {
			t.Errorf("%s (-far +near):\n%s", at, diff)
		}
		if again := GotSYN(far); again != nil {
			t.Errorf("%s: the SYN came twice: %+v", at, again)
		}
	}
}

func TestConnectionWithoutASocketHasNoSYN(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if diff := cmp.Diff([]*wire.TCPSeen{nil, nil}, []*wire.TCPSeen{SentSYN(a), GotSYN(b)}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
