package protocol

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/wallprobe/wallprobe/wire"
)

// sshPacket is one in clear (RFC 4253 section 6).
func sshPacket(number byte, content ...byte) []byte {
	const padding = 4
	head := ssh.Marshal(struct {
		Length          uint32
		Padding, Number byte
	}{uint32(2 + len(content) + padding), padding, number})
	return slices.Concat(head, content, make([]byte, padding))
}

// kexPacket is KEXINIT with these lists (RFC 4253 section 7.1).
func kexPacket(lists ...string) []byte {
	content := make([]byte, 16)               // the cookie
	for _, l := range append(lists, "", "") { // and no languages
		content = append(content, ssh.Marshal(struct{ S string }{l})...)
	}
	return sshPacket(sshKexInit, append(content, 0, 0, 0, 0, 0)...)
}

// undigested leaves out what only a digest tells.
func undigested(lines []string) (kept []string) {
	for _, line := range lines {
		if line, _, digest := strings.Cut(line, " SHA256:"); digest {
			kept = append(kept, line+" whole")
		} else {
			kept = append(kept, line)
		}
	}
	return kept
}

func TestOpeningOfSSHIsSaidInLines(t *testing.T) {
	lists := []string{"curve25519-sha256,ext-info-c", "ssh-ed25519", "aes128-ctr", "aes256-ctr", "hmac-sha2-256", "hmac-sha2-512", "none", "zlib"}
	packet := string(kexPacket(lists...))
	keyed := string(sshPacket(30, 1, 2, 3)) + string(sshPacket(sshNewKeys))
	const version = "SSH-2.0-x\r\n"
	said := []string{"SSH-2.0-x", fmt.Sprintf("packet 20 of %d bytes", len(packet)-4)}
	for i, l := range lists {
		said = append(said, sshOffers[i]+": "+l)
	}
	said = append(said, "packet 20 whole", "packet 30 of 9 bytes", "packet 30 whole", "packet 21 of 6 bytes", "packet 21 whole")
	for name, c := range map[string]struct {
		begins string
		lines  []string
		whole  bool
	}{
		"nothing":               {"", nil, false},
		"half a line":           {"SSH-2", []string{"SSH-2"}, false},
		"a line alone":          {version, said[:1], false},
		"half of KEXINIT":       {version + packet[:len(packet)/2], said[:2], false},
		"KEXINIT":               {version + packet, said[:11], false},
		"half of the next":      {version + packet + keyed[:6], said[:12], false},
		"all in clear":          {version + packet + keyed, said, true},
		"and what follows":      {version + packet + keyed + "\x00\x00\x00\x20 more", said, true},
		"lists that are none":   {version + "\x00\x00\x00\x16\x04\x14" + strings.Repeat("\xff", 20), []string{"SSH-2.0-x", "packet 20 of 22 bytes", "packet 20 whole"}, false},
		"a packet of no length": {version + "\x00\x00\x00\x00\x04\x14", []string{"SSH-2.0-x", "packet 20 of 0 bytes", "packet 20 whole"}, false},
		"no SSH":                {"220 hello\r\n" + packet, []string{"220 hello"}, false},
	} {
		var o sshOpening
		var recorded []string
		o.take([]byte(c.begins), func(line string) { recorded = append(recorded, line) })
		lines, whole := o.said()
		if ended := strings.Contains(c.begins, "\n"); ended && !cmp.Equal(recorded, lines) || !ended && recorded != nil {
			t.Errorf("%s: recorded %q of %q", name, recorded, lines)
		}
		if diff := cmp.Diff(c.lines, undigested(lines)); diff != "" || whole != c.whole {
			t.Errorf("%s: whole %v (-want +got):\n%s", name, whole, diff)
		}
	}
}

// misheard tells whether an end heard a line that is not the one which the other
// end sent in its place.
func misheard(near, far *wire.Said) bool {
	for _, way := range [][2][]string{{near.Sent, far.Heard}, {far.Sent, near.Heard}} {
		for i, line := range way[1] {
			if i >= len(way[0]) || !strings.HasPrefix(way[0][i], line) {
				return true
			}
		}
	}
	return false
}

// Whatever byte is changed of what comes in clear, padding too, both ends'
// records show it, without a word of the library's.
func TestEveryByteOfSSHInClearIsInBothRecords(t *testing.T) {
	sftp := spoken{"sftp", "", sftp}
	newKeys := []byte{0, 0, 0, 12, 10, sshNewKeys} // as it begins, and 10 bytes of padding after it
	var clear [2]int64                             // bytes, up and down
	record := func(which int, o *sshOpening) func(int64, []byte) ([]byte, bool) {
		return func(_ int64, b []byte) ([]byte, bool) {
			o.take(b, func(string) {})
			clear[which] = int64(bytes.LastIndex(o.b, newKeys) + len(newKeys) + 10)
			return b, true
		}
	}
	f := newFar()
	if res, _, _ := play(t, loopback, sftp, f, f.exchange(), box{up: record(0, new(sshOpening)), down: record(1, new(sshOpening))}); res.Stage != StageDone || clear[0] < 100 || clear[1] < 100 {
		t.Fatalf("%+v, in clear %d", res, clear)
	}
	for which, n := range clear {
		for at := int64(0); at < n; at += 13 {
			t.Run(fmt.Sprintf("%d/%d", which, at), func(t *testing.T) {
				t.Parallel()
				f := newFar()
				x := f.exchange()
				x.Stall = 2 * time.Second // where a length became longer
				b := box{up: flip(at)}
				if which == 1 {
					b = box{down: flip(at)}
				}
				res, _, events := play(t, loopback, sftp, f, x, b)
				if len(events) != 1 || !misheard(res.Said, events[0].Said) {
					t.Errorf("nobody saw it: %+v, %+v", res, events)
				}
			})
		}
	}
}

func FuzzSSHOpening(f *testing.F) {
	whole := slices.Concat([]byte("SSH-2.0-x\r\n"), kexPacket("a", "b", "c", "d", "e", "f", "g", "h"), sshPacket(30, 1), sshPacket(sshNewKeys))
	f.Add(whole, uint16(100))
	f.Add([]byte("SSH-2.0-x\n\x00\x00\x00\x02\xff\x14"), uint16(12))
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"), uint16(3))
	f.Add(append(bytes.Repeat([]byte("a"), maxOpening), '\n'), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		at = min(at, uint16(min(len(b), maxOpening)))
		var pieces, once sshOpening
		var first, second []string
		pieces.take(b[:at], func(line string) { first = append(first, line) })
		half, _ := pieces.said()
		pieces.take(b[at:], func(line string) { first = append(first, line) })
		once.take(b, func(line string) { second = append(second, line) })
		if !cmp.Equal(first, second) {
			t.Errorf("recorded %q, in pieces %q", second, first)
		}
		all, _ := once.said()
		if got, _ := pieces.said(); !cmp.Equal(all, got) || len(once.b) > maxOpening || len(all) > wire.MaxSaid+len(sshOffers)+1 {
			t.Errorf("%d bytes say %q, in pieces %q", len(once.b), all, got)
		}
		// What came so far is the beginning of what comes in the end.
		if misheard(&wire.Said{Sent: all}, &wire.Said{Heard: half}) {
			t.Errorf("half of it says %q, all of it %q", half, all)
		}
	})
}
