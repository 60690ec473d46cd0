package protocol

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
)

// kexPacket is a first packet: KEXINIT with these lists (RFC 4253 section 7.1).
func kexPacket(lists ...string) []byte {
	m := struct {
		Number byte
		Cookie [16]byte
		Lists  []byte `ssh:"rest"`
	}{Number: 20}
	for _, l := range append(lists, "", "") { // and no languages
		m.Lists = append(m.Lists, ssh.Marshal(struct{ S string }{l})...)
	}
	m.Lists = append(m.Lists, 0, 0, 0, 0, 0)
	payload := ssh.Marshal(m)
	const padding = 4
	packet := ssh.Marshal(struct {
		Length  uint32
		Padding byte
	}{uint32(1 + len(payload) + padding), padding})
	return slices.Concat(packet, payload, make([]byte, padding))
}

func TestOpeningOfSSHIsSaidInLines(t *testing.T) {
	lists := []string{"curve25519-sha256,ext-info-c", "ssh-ed25519", "aes128-ctr", "aes256-ctr", "hmac-sha2-256", "hmac-sha2-512", "none", "zlib"}
	packet := kexPacket(lists...)
	const version = "SSH-2.0-x\r\n"
	whole := []string{"SSH-2.0-x"}
	for i, l := range lists {
		whole = append(whole, sshOffers[i]+": "+l)
	}
	for name, c := range map[string]struct {
		begins string
		lines  []string // but for the digest
		digest bool
	}{
		"nothing":             {"", nil, false},
		"half a line":         {"SSH-2", []string{"SSH-2"}, false},
		"a line alone":        {version, whole[:1], false},
		"all of it":           {version + string(packet), whole, true},
		"and what follows":    {version + string(packet) + "more", whole, true},
		"half of a packet":    {version + string(packet[:len(packet)/2]), whole[:1], false},
		"another packet":      {version + "\x00\x00\x00\x0c\x04\x15" + strings.Repeat("a", 20), whole[:1], false},
		"lists cut short":     {version + "\x00\x00\x00\x10\x04\x14" + strings.Repeat("\xff", 20), whole[:1], false},
		"more padding than b": {version + "\x00\x00\x00\x02\xff\x14" + strings.Repeat("a", 20), whole[:1], false},
		"no SSH":              {"220 hello\r\n" + string(packet), []string{"220 hello"}, false},
	} {
		var o sshOpening
		var recorded []string
		o.take([]byte(c.begins), func(line string) { recorded = append(recorded, line) })
		got := o.said()
		if whole := strings.Contains(c.begins, "\n"); whole && !cmp.Equal(recorded, got) || !whole && recorded != nil {
			t.Errorf("%s: recorded %q of %q", name, recorded, got)
		}
		if c.digest {
			last := got[len(got)-1]
			if got = got[:len(got)-1]; !strings.HasPrefix(last, "KEXINIT SHA256:") {
				t.Errorf("%s ends with %q", name, last)
			}
		}
		if diff := cmp.Diff(c.lines, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// A byte of KEXINIT that no list shows, such as one of its cookie, is in the digest.
func TestEveryByteOfKEXINITIsInItsLines(t *testing.T) {
	begins := append([]byte("SSH-2.0-x\r\n"), kexPacket("a", "b", "c", "d", "e", "f", "g", "h")...)
	first := len("SSH-2.0-x\r\n") + 5
	opening := func(b []byte) *sshOpening { return &sshOpening{b: b} }
	want := opening(begins).said()
	for at := first; at < len(begins)-4; at++ {
		changed := bytes.Clone(begins)
		changed[at] ^= 1
		if cmp.Equal(want, opening(changed).said()) {
			t.Errorf("nothing tells that byte %d is another", at)
		}
	}
}

func FuzzSSHOpening(f *testing.F) {
	f.Add([]byte("SSH-2.0-x\r\n"), kexPacket("a", "b", "c", "d", "e", "f", "g", "h"))
	f.Add([]byte("SSH-2.0-x\n"), []byte("\x00\x00\x00\x02\xff\x14"))
	f.Add([]byte("HTTP/1.1 "), []byte("200 OK\r\n\r\n"))
	f.Add(bytes.Repeat([]byte("a"), maxOpening), []byte("\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var pieces, once sshOpening
		var first, second []string
		pieces.take(a, func(line string) { first = append(first, line) })
		pieces.take(b, func(line string) { first = append(first, line) })
		once.take(slices.Concat(a, b), func(line string) { second = append(second, line) })
		if diff := cmp.Diff(second, first); diff != "" {
			t.Errorf("in pieces it is recorded as another (-once +pieces):\n%s", diff)
		}
		got := once.said()
		if diff := cmp.Diff(got, pieces.said()); diff != "" {
			t.Errorf("in pieces it reads as another (-once +pieces):\n%s", diff)
		}
		if n := len(got); len(once.b) > maxOpening || n > 1 && n != len(sshOffers)+2 {
			t.Errorf("%d lines of %d bytes", n, len(once.b))
		}
	})
}
