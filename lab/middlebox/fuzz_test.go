package middlebox

import (
	"bytes"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A record is what a stream begins with, as far as it came, and what follows it
// stays in the stream: the box sends both on.
func FuzzReadRecord(f *testing.F) {
	for _, s := range []string{"\x16\x03\x01\x00\x02\x01\x00rest", "\x16\x03\x01\x00\x09cut", "\x16\x03\x01\x00", "\x16\x03", "\x15\x03\x03\x00\x02\x02\x28",
		"GET / HTTP/1.1\r\n", "\x16\x03\x03\x00\x00", "\x16\x03\x03\xff\xff", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		record, err := readRecord(r)
		rest, _ := io.ReadAll(r)
		if whole := slices.Concat(record, rest); !bytes.Equal(whole, b) {
			t.Errorf("%x became %x", b, whole)
		}
		switch isTLS := len(b) >= 2 && b[0] == 22 && b[1] == 3; {
		case err != nil:
			if len(rest) > 0 {
				t.Errorf("%x: %v, and %x goes on", b, err, rest)
			}
		case !isTLS:
			if len(record) != 3 {
				t.Errorf("%d bytes were waited for, though %x is no record", len(record), b)
			}
		case len(record) != 5+int(record[3])<<8+int(record[4]):
			t.Errorf("%x is a record of %d bytes", record, len(record))
		}
	})
}

// In whatever pieces a stream comes, it is rewritten as if it came whole.
func FuzzEditor(f *testing.F) {
	f.Add("250-STARTTLS\r\n250 8BITMIME\r\n", "250-STARTTLS\r\n", "", uint8(0))
	f.Add("aaab aab ab", "aab", "XX", uint8(1))
	f.Add("ababab", "abab", "ab", uint8(2))
	f.Add("Host: a\r\n", "Host: ", "Via: 1.1 box\r\nHost: ", uint8(200))
	f.Fuzz(func(t *testing.T, text, old, new string, size uint8) {
		if old == "" {
			return // changes one byte at an offset instead
		}
		e := newEditor([]Rewrite{{From: Client, Old: old, New: new}, {From: Server, Old: text, New: "other"}}, Client)
		var got []byte
		for piece := range slices.Chunk([]byte(text), int(size)+1) {
			got = append(got, e.edit(piece, false)...)
			if len(e.held) >= len(old) {
				t.Errorf("%q is held back, though it cannot become %q", e.held, old)
			}
		}
		got = append(got, e.edit(nil, true)...)
		if want := strings.ReplaceAll(text, old, new); string(got) != want {
			t.Errorf("%q for %q in %q, in pieces of %d: %q, want %q", new, old, text, int(size)+1, got, want)
		}
	})
}

// What servers answer names the addresses given, and all else passes as it is.
func FuzzDNSAnswers(f *testing.F) {
	var m dns.Msg
	m.SetQuestion("www.example.", dns.TypeA)
	question, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{"www.example. 60 IN A 192.0.2.1", "www.example. 60 IN AAAA 2001:db8::1", "www.example. 60 IN CNAME other.example."} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	answer, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(question)
	f.Add(answer)
	f.Add(answer[:len(answer)-3])
	f.Add([]byte("no DNS"))
	v4, v6 := netip.MustParseAddr("198.51.100.66"), netip.MustParseAddr("2001:db8::66")
	edit := DNSAnswers(v4, v6)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := edit(Client, b); !bytes.Equal(got, b) {
			t.Errorf("a question %x became %x", b, got)
		}
		got := edit(Server, bytes.Clone(b))
		var m dns.Msg
		if m.Unpack(got) != nil {
			if !bytes.Equal(got, b) {
				t.Errorf("%x became %x, which is no DNS", b, got)
			}
			return
		}
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok && !a.A.Equal(v4.AsSlice()) {
				t.Errorf("%x still answers %v", b, a)
			}
			if a, ok := rr.(*dns.AAAA); ok && !a.AAAA.Equal(v6.AsSlice()) {
				t.Errorf("%x still answers %v", b, a)
			}
		}
	})
}
