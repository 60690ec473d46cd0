package protocol

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/wire"
)

// WebRTC's rtc_base/socket_adapters.cc: 72 and 79 bytes.
func TestPseudoTLSHasItsTwoHellos(t *testing.T) {
	if len(pseudoTLS.up) != 72 || len(pseudoTLS.down) != 79 {
		t.Fatalf("%d and %d bytes", len(pseudoTLS.up), len(pseudoTLS.down))
	}
	if n := int(pseudoTLS.up[0]&0x7f)<<8 + int(pseudoTLS.up[1]); n != len(pseudoTLS.up)-2 {
		t.Errorf("the client's hello gives its length as %d", n)
	}
	if n := int(pseudoTLS.down[3])<<8 + int(pseudoTLS.down[4]); n != len(pseudoTLS.down)-5 {
		t.Errorf("the server's hello gives its length as %d", n)
	}
}

// preludes are the protocols that begin with one.
var preludes = map[string]prelude{"ssltcp": pseudoTLS, "4d": fourDFrame,
	"automate-relay": {up: []byte("ATM\x02\x00\x00\x00\x01"), down: []byte("ATM\x02\x00\x00\x00\x02"), stage: StageBanner}}

func TestPreludeTellsWhatStrangersSayAtBothEnds(t *testing.T) {
	for name, p := range preludes {
		changed := bytes.Clone(p.up)
		changed[5] ^= 1
		for what, c := range map[string]struct {
			send, want string
		}{
			"half":                  {string(p.up[:5]), FaultEOF},
			"changed":               {string(changed), FaultAltered},
			"then nothing":          {string(p.up), FaultEOF},
			"then an endless line":  {string(p.up) + strings.Repeat("A", 1<<16), FaultForeign},
			"then half of a token":  {string(p.up) + "\xb7wp\x01123", FaultEOF},
			"the first four, twice": {string(p.up[:4]) + strings.Repeat(string(p.up[:4]), 40), FaultAltered},
		} {
			_, events := say(t, protocols[name], newFar(), []byte(c.send))
			if len(events) != 1 || events[0].Fault != c.want || events[0].Answered {
				t.Errorf("%s, %s: %+v", name, what, events)
			}
		}
		reply := bytes.Clone(p.down)
		reply[5] ^= 1
		for what, c := range map[string]struct {
			answer, fault string
		}{
			"nothing":       {"", FaultEOF},
			"half":          {string(p.down[:5]), FaultEOF},
			"changed":       {string(reply), FaultForeign},
			"itself":        {string(p.up), FaultForeign},
			"a banner":      {"SSH-2.0-OpenSSH_9.2\r\n", FaultForeign},
			"a TLS alert":   {string(alert), FaultForeign},
			"a short alert": {string(alert[:3]), FaultForeign},
		} {
			if bytes.HasPrefix(p.down, []byte(c.answer)) && c.answer != "" && len(c.answer) < len(p.down) {
				c.fault = FaultEOF // a beginning of the right thing
			}
			got := answeredWith(t, protocols[name], c.answer)
			if got.Stage != p.stage || got.Fault != c.fault || got.Fault == FaultForeign && len(got.Sample) == 0 {
				t.Errorf("%s answered with %s: %+v", name, what, got)
			}
		}
	}
}

// answeredWith is what a near end says of an answer to whatever it sends.
func answeredWith(t *testing.T, p *Protocol, answer string) Result {
	t.Helper()
	near, far := pair(t)
	go func() {
		io.WriteString(far, answer)
		far.CloseWrite()
		io.Copy(io.Discard, far)
	}()
	got := p.TCP.Probe(t.Context(), near, newFar().exchange())
	near.Close()
	return got
}

// The first bytes of each protocol are claimed by it alone.
func TestClaimsOfStreamsDoNotOverlap(t *testing.T) {
	type first struct {
		b     []byte
		inTLS bool
	}
	streams := map[string]first{
		"plain":               {[]byte{0xb7, 'w', 'p', 1}, false},
		"tls":                 {[]byte{0x16, 3, 1, 0, 200, 1}, false},
		"ssltcp":              {pseudoTLS.up, false},
		"mcs":                 {[]byte{41, 2, 100}, true},
		"4d":                  {[]byte("001 LOGIN\r\n"), false},
		"4d-tls":              {fourDFrame.up, true},
		"screenconnect-relay": {screenConnectToken, false},
		"automate-relay":      {[]byte{'A', 'T', 'M', 2}, false},
		"automate-redirector": {[]byte{'A', 'T', 'M', 3}, false},
	}
	for name, s := range streams {
		peek := func(n int) []byte { return s.b[:min(n, len(s.b))] }
		var claimed []string
		for other, p := range protocols {
			if p.Claims != nil && p.Claims(peek, s.inTLS) {
				claimed = append(claimed, other)
			}
		}
		if !slices.Equal(claimed, []string{name}) {
			t.Errorf("%s is claimed by %v", name, claimed)
		}
	}
}

func TestRelayHeadIsReadToItsEndAndNoFurther(t *testing.T) {
	for _, h := range []relayHead{{4, 1, "relay.example"}, {4, 2, ""}, {6, 1, "a"}, {6, 2, strings.Repeat("a", maxHost)}} {
		r := bytes.NewReader(append(h.Append(nil), "rest"...))
		got, read, err := readRelayHead(r)
		if err != nil || got != h || r.Len() != 4 || !bytes.Equal(read, h.Append(nil)) {
			t.Errorf("%+v: %+v, %v, %d left", h, got, err, r.Len())
		}
		if at := bytes.Index(read, []byte(h.Host)); h.Host != "" && at-4 != map[byte]int{4: 7, 6: 9}[h.Kind] {
			t.Errorf("%+v: the name begins %d bytes after the kind", h, at-4)
		}
	}
}

func TestScreenConnectTellsWhatStrangersSay(t *testing.T) {
	f := newFar()
	m := f.exchange().message(wire.Request)
	token := string(m.Append(nil, &f.keys))
	head := string(relayHead{4, 1, "a.example"}.Append(nil))
	for name, c := range map[string]struct{ send, fault string }{
		"half a head":          {head[:8], FaultEOF},
		"a name without end":   {head[:15] + strings.Repeat("a", 1000), FaultAltered},
		"another kind":         {strings.Replace(head, "\x04", "\x05", 1), FaultAltered},
		"rubbish before":       {strings.Replace(head, "\x00", "x", 1), FaultAltered},
		"rubbish in the name":  {strings.Replace(head, "a", "\xff", 1), FaultAltered},
		"a head alone":         {head, FaultEOF},
		"a head, half a token": {head + token[:50], FaultEOF},
		"a changed token":      {head + strings.Replace(token, "\x07", "\x08", 1), FaultAltered},
		"a head and a line":    {head + strings.Repeat("A", 84), FaultForeign},
	} {
		_, events := say(t, screenConnect, f, []byte(c.send))
		if len(events) != 1 || events[0].Fault != c.fault || events[0].Answered {
			t.Errorf("%s: %+v", name, events)
		}
	}
	for name, c := range map[string]struct{ answer, fault string }{
		"nothing":          {"", FaultEOF},
		"half a token":     {"SC", FaultEOF},
		"a banner":         {"SSH-2.0-OpenSSH_9.2\r\n", FaultForeign},
		"another kind":     {"SCR\x01\x06", FaultForeign},
		"then nothing":     {"SCR\x01\x04", FaultEOF},
		"its own message":  {"SCR\x01\x04" + token, FaultForeign},
		"then other bytes": {"SCR\x01\x04" + strings.Repeat("A", 84), FaultForeign},
	} {
		if got := answeredWith(t, screenConnect, c.answer); got.Stage != StageToken || got.Fault != c.fault {
			t.Errorf("answered with %s: %+v", name, got)
		}
	}
}

// A connection without a server name shows the address it goes to.
func TestScreenConnectWithoutANameShowsTheAddress(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.ServerName = ""
	_, _, events := play(t, loopback, spoken{name: "screenconnect-relay", Protocol: screenConnect}, f, x, box{})
	if len(events) != 1 || len(events[0].Said.Heard) != 1 || events[0].Said.Heard[0] != "relay 4 127.0.0.1 1" {
		t.Errorf("%+v", events)
	}
	if got := hostOf(&net.UnixAddr{Name: "x"}); got != "" {
		t.Errorf("%q", got)
	}
}

func FuzzRelayHead(f *testing.F) {
	f.Add(relayHead{4, 1, "relay.example"}.Append(nil))
	f.Add(relayHead{6, 2, ""}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, read, err := readRelayHead(bytes.NewReader(b))
		if err == nil && (!bytes.Equal(h.Append(nil), read) || !bytes.HasPrefix(b, read) || len(h.Host) > maxHost) {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}
