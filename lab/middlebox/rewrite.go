package middlebox

import (
	"bytes"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// A Side is one end of a flow: the client is the one that began it.
type Side int

// The two ends of a flow.
const (
	Client Side = iota
	Server
)

func (s Side) String() string {
	if s == Server {
		return "server"
	}
	return "client"
}

// A Rewrite is a change to the bytes that one side sends.
type Rewrite struct {
	From     Side
	Old, New string // wherever Old occurs it becomes New
	At       int64  // without Old: the byte at this offset, from 0, has all its bits flipped
}

// An editor applies rewrites to the bytes of one side. A stream is given to it
// piece by piece, in whatever pieces it arrives.
type editor struct {
	rules  []Rewrite
	offset int64  // of the next byte in the stream
	held   []byte // the beginning of what may be an Old
}

func newEditor(rules []Rewrite, from Side) *editor {
	e := &editor{}
	for _, r := range rules {
		if r.From == from {
			e.rules = append(e.rules, r)
		}
	}
	return e
}

// edit returns what may be sent on. What may be the beginning of an Old stays
// behind unless this is the last piece.
func (e *editor) edit(piece []byte, last bool) []byte {
	data := append(e.held, piece...)
	for _, r := range e.rules {
		if i := r.At - e.offset; r.Old == "" && i >= 0 && i < int64(len(piece)) {
			data[len(e.held)+int(i)] ^= 0xff
		}
	}
	e.offset += int64(len(piece))
	e.held = nil
	if !slices.ContainsFunc(e.rules, func(r Rewrite) bool { return r.Old != "" }) {
		return data
	}
	var out []byte
	for len(data) > 0 {
		rule := e.match(data)
		switch {
		case rule != nil:
			out = append(out, rule.New...)
			data = data[len(rule.Old):]
		case !last && e.mayMatch(data):
			e.held = bytes.Clone(data)
			return out
		default:
			out = append(out, data[0])
			data = data[1:]
		}
	}
	return out
}

// holdTime is how long the beginning of an Old waits for the rest of it.
const holdTime = 200 * time.Millisecond

// read gives the next piece of a connection as it is to be sent on. What stayed
// behind and turns out to be the last that is said for now comes alone.
func (e *editor) read(from net.Conn, buf []byte) ([]byte, error) {
	if len(e.held) > 0 {
		_ = from.SetReadDeadline(time.Now().Add(holdTime))
		defer from.SetReadDeadline(time.Time{})
	}
	n, err := from.Read(buf)
	if len(e.held) > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		return e.edit(buf[:n], true), nil
	}
	return e.edit(buf[:n], err != nil), err
}

func (e *editor) match(data []byte) *Rewrite {
	for i, r := range e.rules {
		if r.Old != "" && bytes.HasPrefix(data, []byte(r.Old)) {
			return &e.rules[i]
		}
	}
	return nil
}

func (e *editor) mayMatch(data []byte) bool {
	for _, r := range e.rules {
		if len(data) < len(r.Old) && strings.HasPrefix(r.Old, string(data)) {
			return true
		}
	}
	return false
}
