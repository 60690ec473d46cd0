package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/wallprobe/wallprobe/wire"
)

// negotiation is a server's answer to a packet of an unknown version.
func negotiation(packet []byte) []byte {
	b := append([]byte{0x80, 0, 0, 0, 0}, packet[14:23]...)
	b = append(b, packet[5:14]...)
	return append(b, 0, 0, 0, 1)
}

// What passes beside a handshake that does not is what tells a filter for QUIC
// from one for the port, and one for sizes from both.
func TestWhatPassesBesideQUICIsNamed(t *testing.T) {
	for want, passes := range map[string]func(p []byte) bool{
		"nothing else passes on the port either":                                                                  func([]byte) bool { return false },
		"datagrams of 84 bytes, datagrams of 1200 bytes, QUIC of an unknown version pass on the same port":        func([]byte) bool { return true },
		"datagrams of 84 bytes pass on the same port, datagrams of 1200 bytes, QUIC of an unknown version do not": func(p []byte) bool { return len(p) < 1000 },
		"datagrams of 84 bytes, datagrams of 1200 bytes pass on the same port, QUIC of an unknown version do not": wire.IsMessage,
		"QUIC of an unknown version pass on the same port, datagrams of 84 bytes, datagrams of 1200 bytes do not": func(p []byte) bool { return !wire.IsMessage(p) },
	} {
		t.Run(want, func(t *testing.T) {
			f := newFar()
			near, far := udpPair(t)
			initials := 0
			serveUDP(t, far, func(_ int, p []byte) [][]byte {
				m, err := wire.Parse(p, &f.keys)
				switch {
				case err == nil && passes(p):
					m.Kind = wire.Reply
					return [][]byte{m.Append(nil, &f.keys)}
				case err != nil && p[4] == 0x4a && passes(p):
					return [][]byte{negotiation(p)}
				case err != nil && p[4] == 1:
					initials++
				}
				return nil
			})
			x := f.exchange()
			x.Stall = 600 * time.Millisecond
			began := time.Now()
			r := probeQUIC(t.Context(), near, x)
			if r.Stage != StageTLS || r.Fault != FaultTimeout || r.Err == nil || r.Err.Error() != want || r.Heard != 0 || r.Sent < 1 {
				t.Errorf("%+v", r)
			}
			if d := time.Since(began); d > x.Stall+300*time.Millisecond {
				t.Errorf("it took %v", d)
			}
		})
	}
}

func TestCancelledQUICProbeStopsAtOnce(t *testing.T) {
	near, _ := udpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	x := newFar().exchange()
	began := time.Now()
	if r := probeQUIC(ctx, near, x); r.Stage != StageTLS || r.Fault == "" || time.Since(began) > x.Stall/4 {
		t.Errorf("%+v after %v", r, time.Since(began))
	}
}

func TestForgedVersionNegotiationIsTold(t *testing.T) {
	f := newFar()
	near, far := udpPair(t)
	serveUDP(t, far, func(_ int, p []byte) [][]byte {
		b := []byte{0x80, 0, 0, 0, 0} // both connection ids the other way round
		dcid := p[5 : 6+int(p[5])]
		scid := p[5+len(dcid):]
		b = append(append(b, scid[:1+int(scid[0])]...), dcid...)
		return [][]byte{append(b, 0xff, 0, 0, 29)}
	})
	x := f.exchange()
	x.Stall = 2 * time.Second
	r := probeQUIC(t.Context(), near, x)
	if r.Stage != StageTLS || r.Fault != FaultForeign || !strings.Contains(r.Err.Error(), "does not speak QUIC version 1") {
		t.Errorf("%+v", r)
	}
}

func TestErrorsOfQUICAreFaults(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{&quic.IdleTimeoutError{}, FaultTimeout},
		{&quic.ApplicationError{ErrorCode: 0x10c}, FaultTimeout},
		{&quic.ApplicationError{Remote: true, ErrorCode: 0x100}, FaultEOF},
		{&quic.StatelessResetError{}, FaultForeign},
		{&quic.TransportError{Remote: true, ErrorCode: quic.ConnectionRefused}, "CONNECTION_REFUSED (remote)"},
	} {
		if got := faultOf(quicErr(c.err)); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
	if quicErr(io.EOF) != io.EOF || !errors.Is(quicErr(net.ErrClosed), net.ErrClosed) {
		t.Error("other errors are not as they were")
	}
}

func FuzzVersionNegotiation(f *testing.F) {
	packet, ids := unknownVersion()
	f.Add(negotiation(packet))
	f.Add(packet)
	f.Fuzz(func(t *testing.T, b []byte) {
		if isVersionNegotiation(b, ids) && (len(b) < 27 || b[0] < 0x80) {
			t.Errorf("%x", b)
		}
	})
}

// A comparison asks nothing beside: its answers would be of another part of the probe.
func TestQUICAloneAsksNothingBeside(t *testing.T) {
	for _, alone := range []bool{true, false} {
		f := newFar()
		near, far := udpPair(t)
		var asked atomic.Int32
		serveUDP(t, far, func(_ int, p []byte) [][]byte {
			if wire.IsMessage(p) {
				asked.Add(1)
			}
			return nil
		})
		x := f.exchange()
		x.Stall, x.Alone = 400*time.Millisecond, alone
		r := probeQUIC(t.Context(), near, x)
		if r.Stage != StageTLS || r.Fault != FaultTimeout || (asked.Load() == 0) != alone {
			t.Errorf("alone %t: %d messages beside, %+v", alone, asked.Load(), r)
		}
		if r.Flow == nil || r.Flow.Sent.N < 2 || r.TLS.HelloDigest == "" || r.TLS.HelloName != x.ServerName {
			t.Errorf("alone %t: flow %+v, %+v", alone, r.Flow, r.TLS)
		}
	}
}
