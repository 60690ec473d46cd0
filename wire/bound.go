package wire

import "strings"

// The bounds of what a peer can make long in an event, in bytes and entries.
const (
	maxName    = 255 // of a host (RFC 1035 section 2.3.4)
	maxALPN    = 255 // of a protocol (RFC 7301 section 3.1)
	maxOffered = 16
	maxText    = 512 // of an error, a certificate's names
)

// Bound cuts what a peer made longer than its bound. It leaves what e shares
// with other events as it is.
func (e *Event) Bound() {
	e.Stage, e.Fault = cut(e.Stage, maxName), cut(e.Fault, maxText)
	if t := e.TLS; t != nil {
		b := *t
		b.ServerName, b.HelloName = cut(t.ServerName, maxName), cut(t.HelloName, maxName)
		b.ALPN, b.Issuer = cut(t.ALPN, maxALPN), cut(t.Issuer, maxText)
		b.Offered, b.Versions = cutAll(t.Offered, maxALPN), cutAll(t.Versions, maxALPN)
		b.Chain = nil
		for _, c := range t.Chain[:min(len(t.Chain), MaxChain)] {
			b.Chain = append(b.Chain, Certificate{c.Digest, cut(c.Subject, maxText), cut(c.Issuer, maxText)})
		}
		e.TLS = &b
	}
}

// cut copies what it keeps of a longer text, which is then let go.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.Clone(s[:n])
}

func cutAll(list []string, n int) []string {
	var out []string
	for _, s := range list[:min(len(list), maxOffered)] {
		out = append(out, cut(s, n))
	}
	return out
}

// Size is about the memory that an event takes, in bytes.
func (e *Event) Size() int {
	const bare, text = 400, 16 // an event, a string beside its bytes
	n := bare + len(e.Stage) + len(e.Fault) + len(e.Digest)
	texts := func(list []string) {
		for _, s := range list {
			n += text + len(s)
		}
	}
	if t := e.TLS; t != nil {
		n += 200 + len(t.ServerName) + len(t.HelloName) + len(t.ALPN) + len(t.Issuer) + len(t.Certificate) + len(t.HelloDigest)
		texts(t.Offered)
		texts(t.Versions)
		for _, c := range t.Chain {
			n += 3*text + len(c.Digest) + len(c.Subject) + len(c.Issuer)
		}
	}
	if s := e.Said; s != nil {
		texts(s.Sent)
		texts(s.Heard)
	}
	return n
}

// Bare takes away what makes an event large: its dialogue and its handshake.
func (e *Event) Bare() { e.Said, e.TLS = nil, nil }
