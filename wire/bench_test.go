package wire

import "testing"

// BenchmarkMessage is what one datagram of a sweep costs an end: one message
// made, one checked.
func BenchmarkMessage(b *testing.B) {
	keys, m := testKeys(), testMessage()
	m.Size = MessageSize
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = m.Append(buf[:0], &keys)
		if _, err := Parse(buf, &keys); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream is what the bytes of a data phase cost, before they are sent
// or compared.
func BenchmarkStream(b *testing.B) {
	keys := testKeys()
	s, p := keys.NewStream(Request, 1, 1), make([]byte, 16<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		s.Read(p)
	}
}
