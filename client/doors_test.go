package client

import (
	"io"
	"net"
	"testing"

	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// Probes that await calls at one port share its door, and each counts its own.
func TestProbesShareADoor(t *testing.T) {
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	keys := wire.Derive(wire.Key{1}, wire.SessionID{1}, wire.Nonce{2})
	at := doorway{scenarios.TCP, port, false}
	var d doors
	ask := func(probe uint32) error {
		c, err := net.Dial("tcp4", (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)}).String())
		if err != nil {
			return err
		}
		defer c.Close()
		m := wire.Message{Kind: wire.Call, Port: port, Session: wire.SessionID{1}, Probe: probe, Size: wire.MessageSize}
		if _, err := c.Write(m.Append(nil, &keys)); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, wire.MessageSize))
		return err
	}
	for range 2 {
		if err := d.enter(at, &keys); err != nil {
			t.Fatal(err)
		}
	}
	for _, probe := range []uint32{1, 2, 2} {
		if err := ask(probe); err != nil {
			t.Errorf("call for probe %d: %v", probe, err)
		}
	}
	d.leave(at)
	if err := ask(3); err != nil {
		t.Errorf("one is still there: %v", err)
	}
	d.leave(at)
	if err := ask(4); err == nil {
		t.Error("answered after all have left")
	}
	for probe, want := range map[uint32]int{1: 1, 2: 2, 3: 1, 4: 0} {
		if got := d.arrived(probe, port); got != want {
			t.Errorf("probe %d: %d arrived, want %d", probe, got, want)
		}
	}
}
