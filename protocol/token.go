package protocol

import (
	"encoding/base64"
	"net"
	"strings"
	"time"

	"github.com/wallprobe/wallprobe/wire"
)

// A token is a Message as text, for protocols that have a place for a name, a
// password or a path: base64 for URLs (RFC 4648 section 5), 112 characters. It
// is made of letters, digits, "-" and "_" alone.
const tokenText = 112

func textOf(m *wire.Message, k *wire.Keys) string {
	return base64.RawURLEncoding.EncodeToString(m.Append(nil, k))
}

// Token is the exchange's request as text.
func (x Exchange) Token() string {
	m := x.message(wire.Request)
	return textOf(&m, x.Keys)
}

// CheckToken reads the far end's answer to Token out of a text that contains it
// as a word of its own, and keeps it in r. The errors are ErrForeign when there
// is none and errAltered when it does not verify.
func (x Exchange) CheckToken(text string, r *Result) error {
	m, err := messageIn(text, func(p []byte) (wire.Message, error) { return wire.Parse(p, x.Keys) })
	if err != nil {
		return err
	}
	if m.Kind != wire.Reply || m.Probe != x.Probe {
		return ErrForeign
	}
	r.Seen = m
	return nil
}

// ProveToken is the far end's look at a token in a text.
func ProveToken(text string, from net.Addr, far Far) (m wire.Message, k *wire.Keys, err error) {
	m, err = messageIn(text, func(p []byte) (m wire.Message, err error) {
		m, k, err = far.Prove(p, from)
		return m, err
	})
	if err == nil && m.Kind != wire.Request {
		err = wire.ErrAltered
	}
	return m, k, err
}

// AnswerToken is the answer to a proven token, as text.
func AnswerToken(m wire.Message, k *wire.Keys, from net.Addr, far Far) string {
	reply := replyTo(m, from, far.Now())
	return textOf(&reply, k)
}

// replyTo is the answer to a request over TCP.
func replyTo(m wire.Message, from net.Addr, now time.Time) wire.Message {
	m.Kind, m.Seen, m.Time = wire.Reply, AddrPort(from), now
	return m
}

// messageIn finds the first word of a text that is a message and proves it.
func messageIn(text string, prove func([]byte) (wire.Message, error)) (wire.Message, error) {
	for _, word := range strings.FieldsFunc(text, notToken) {
		if len(word) != tokenText {
			continue
		}
		if p, err := base64.RawURLEncoding.DecodeString(word); err == nil && wire.IsMessage(p) {
			return prove(p)
		}
	}
	return wire.Message{}, ErrForeign
}

func notToken(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
}
