package steer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// marking answers what begins with an x with marks, and all else without.
type marking struct{ echo }

func (marking) Datagrams(batch []Datagram, reply func([]Datagram)) {
	out := make([]Datagram, len(batch))
	for i, d := range batch {
		out[i] = Datagram{Local: d.Local, Remote: d.Remote, Payload: d.Payload}
		if d.Payload[0] == 'x' {
			out[i].TTL, out[i].TOS = 78, 0xba
		}
	}
	reply(out)
}

// Answers have the header fields that they are given by whichever way they
// leave, large ones that a raw socket does not take included; others beside them
// have the usual ones.
func TestAnswersLeaveWithTheMarksThatTheyAreGiven(t *testing.T) {
	eachMode(t, all, func(t *testing.T, m Mode) {
		w := newWorld(t)
		serve(t, Config{UDP: ports("40000-40100"), Mode: m}, marking{})
		for _, a := range targets {
			c, to := w.packetConn(a.Is4()), netip.AddrPortFrom(a, 40077)
			tell(t, c, a.Is4())
			for _, size := range []int{1, 1200, 4001} {
				for letter, want := range map[string]string{"y": "TTL 64, TOS 0x0", "x": "TTL 78, TOS 0xba"} {
					if _, err := c.WriteToUDPAddrPort(bytes.Repeat([]byte(letter), size), to); err != nil {
						t.Fatal(err)
					}
					if got := told(t, c); got != want {
						t.Errorf("%s, %d bytes of %q: %s, want %s", a, size, letter, got, want)
					}
				}
			}
		}
	})
}

// tell lets a socket tell of the header fields of what it gets.
func tell(t *testing.T, c *net.UDPConn, v4 bool) {
	t.Helper()
	opts := []sockOpt{{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1}, {unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1}}
	if v4 {
		opts = []sockOpt{{unix.IPPROTO_IP, unix.IP_RECVTTL, 1}, {unix.IPPROTO_IP, unix.IP_RECVTOS, 1}}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range opts {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
	}
}

func told(t *testing.T, c *net.UDPConn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	oob := make([]byte, 256)
	_, n, _, _, err := c.ReadMsgUDPAddrPort(make([]byte, 1<<16), oob)
	if err != nil {
		return err.Error()
	}
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err.Error()
	}
	var ttl, tos uint32
	for _, m := range list {
		switch {
		case m.Header.Type == unix.IP_TTL && m.Header.Level == unix.IPPROTO_IP, m.Header.Type == unix.IPV6_HOPLIMIT && m.Header.Level == unix.IPPROTO_IPV6:
			ttl = binary.NativeEndian.Uint32(m.Data)
		case m.Header.Type == unix.IP_TOS && m.Header.Level == unix.IPPROTO_IP:
			tos = uint32(m.Data[0])
		case m.Header.Type == unix.IPV6_TCLASS && m.Header.Level == unix.IPPROTO_IPV6:
			tos = binary.NativeEndian.Uint32(m.Data)
		}
	}
	return fmt.Sprintf("TTL %d, TOS %#x", ttl, tos)
}
