package protocol

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/wire"
)

// probeDNSStream is the near end over TCP. What the exchange carries beside is
// queries and answers with a NULL record (RFC 1035 section 3.3.10).
func probeDNSStream(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	step := r.steps()
	var said wire.Transcript
	defer func() { r.Said = said.Said() }()
	if step(StageToken, x.askDNSStream(c, &said, &r)) {
		x.carry(newDNSFrames(c, false), &r, step)
	}
	return r
}

func (x Exchange) askDNSStream(c net.Conn, said *wire.Transcript, r *Result) error {
	q, b, err := x.dnsRequest(queryType(c.RemoteAddr()))
	if err != nil {
		return err
	}
	said.Say(dnsLine("query", q, ""))
	sent := time.Now()
	c.SetDeadline(sent.Add(x.Stall))
	if err := writeDNS(c, b); err != nil {
		return err
	}
	a, err := readDNS(c)
	r.RTT = time.Since(sent)
	if err != nil {
		r.Sample = a
		return err
	}
	if len(a) < 2 || a[0] != b[0] || a[1] != b[1] {
		r.Sample = a[:min(len(a), 64)]
		return fmt.Errorf("an answer to another query: %w", ErrForeign)
	}
	line, err := x.checkDNS(q, a, r)
	said.Hear(line)
	return err
}

// writeDNS sends a message with its length before it (RFC 1035 section 4.2.2).
func writeDNS(c net.Conn, b []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// readDNS reads a message of at most maxDNS bytes. What came of one that is
// longer or shorter than its length says is given with the error.
func readDNS(c net.Conn) ([]byte, error) {
	head := make([]byte, 2)
	if n, err := io.ReadFull(c, head); err != nil {
		return head[:n], err
	}
	n := int(binary.BigEndian.Uint16(head))
	if n > maxDNS {
		rest := make([]byte, 62)
		k, _ := c.Read(rest)
		return append(head, rest[:k]...), fmt.Errorf("no DNS message is %d bytes long: %w", n, ErrForeign)
	}
	b := make([]byte, n)
	k, err := io.ReadFull(c, b)
	if err != nil {
		return append(head, b[:k]...), err
	}
	return b, nil
}

// maxQueries is how many queries without a token one connection may send.
const maxQueries = 16

// serveDNSStream is the far end over TCP. Queries without a token get a small
// answer, the first one with a token the whole exchange.
func serveDNSStream(ctx context.Context, c net.Conn, far Far) (events []wire.Event) {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	e := Arrived(c, far.Now())
	e.Stage = StageToken
	said := new(wire.Transcript)
	far.Tell(said)
	defer func() { saying(events, said.Said()) }()
	for range maxQueries {
		c.SetDeadline(time.Now().Add(farStall))
		p, err := readDNS(c)
		if err == nil {
			var keys *wire.Keys
			var m wire.Message
			if m, keys, err = serveQuery(c, p, far, said, &e); keys != nil {
				serveCarry(newDNSFrames(c, true), keys, replyTo(m, c.RemoteAddr(), far.Now()), &e)
				return []wire.Event{e}
			}
		} else if len(p) == 0 && len(said.Said().Heard) > 0 && faultOf(err) == FaultEOF {
			break // who only looked has seen enough
		}
		if err != nil {
			e.Digest = digest(p)
			return failed(e, err)
		}
	}
	return failed(e, ErrForeign)
}

// serveQuery answers one query; keys are nil when it proved nothing.
func serveQuery(c net.Conn, p []byte, far Far, said *wire.Transcript, e *wire.Event) (wire.Message, *wire.Keys, error) {
	q, err := unpackQuery(p)
	if err != nil {
		return wire.Message{}, nil, err
	}
	said.Hear(dnsLine("query", q, ""))
	a, m, keys, err := answerQuery(q, c.RemoteAddr(), far)
	e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	if faultOf(err) == FaultForeign {
		a, err = strangerReply(q, true), nil
	}
	if err != nil {
		return m, nil, err
	}
	said.Say(dnsLine("answer", a, dnsToken(a)))
	b, err := a.Pack()
	if err == nil {
		err = writeDNS(c, b)
	}
	if err != nil {
		return m, nil, err
	}
	return m, keys, nil
}

// dnsFrames carries a stream in DNS messages over TCP: queries one way, answers
// the other, each with the next bytes in a NULL record at its end. All before
// these bytes is known to the reader, who takes nothing else.
type dnsFrames struct {
	net.Conn
	out, in frameHead
	left    int // of the record that is being read
}

// dnsFrame is how many bytes of the stream one message carries.
const dnsFrame = 4096

// A frameHead is the beginning of the next message of one direction.
type frameHead struct {
	b []byte // length, header, question, and the record as far as its data
	n uint16 // the id
}

// next gives the head of a message with so many bytes of data.
func (f *frameHead) next(data int) []byte {
	f.n++
	binary.BigEndian.PutUint16(f.b, uint16(len(f.b)-2+data))
	binary.BigEndian.PutUint16(f.b[2:], f.n)
	binary.BigEndian.PutUint16(f.b[len(f.b)-2:], uint16(data))
	return f.b
}

func newDNSFrames(c net.Conn, far bool) *dnsFrames {
	query, answer := frameHead{b: frameHeadOf(false)}, frameHead{b: frameHeadOf(true)}
	if far {
		return &dnsFrames{Conn: c, out: answer, in: query}
	}
	return &dnsFrames{Conn: c, out: query, in: answer}
}

// frameHeadOf packs a message whose record has no data yet.
func frameHeadOf(answer bool) []byte {
	m := new(dns.Msg)
	m.SetQuestion(dnsZone, dns.TypeNULL)
	record := []dns.RR{&dns.NULL{Hdr: dns.RR_Header{Name: dnsZone, Rrtype: dns.TypeNULL, Class: dns.ClassINET}}}
	if answer {
		m.SetReply(m)
		m.Answer = record
	} else {
		m.Extra = record
	}
	b, err := m.Pack()
	if err != nil {
		panic(err) // a constant
	}
	return append([]byte{0, 0}, b...)
}

// Write sends b in as many messages as it takes.
func (f *dnsFrames) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		data := b[:min(len(b), dnsFrame)]
		head := f.out.next(len(data))
		k, err := f.Conn.Write(append(head[:len(head):len(head)], data...))
		n += max(0, k-len(head))
		if err != nil {
			return n, err
		}
		b = b[len(data):]
	}
	return n, nil
}

// Read gives the bytes of the records as they come.
func (f *dnsFrames) Read(b []byte) (int, error) {
	if f.left == 0 {
		if err := f.readHead(); err != nil {
			return 0, err
		}
	}
	n, err := f.Conn.Read(b[:min(len(b), f.left)])
	f.left -= n
	return n, err
}

func (f *dnsFrames) readHead() error {
	got := make([]byte, len(f.in.b))
	if n, err := io.ReadFull(f.Conn, got); err != nil {
		if n == 0 || err != io.ErrUnexpectedEOF {
			return err
		}
		return io.EOF
	}
	data := int(binary.BigEndian.Uint16(got[len(got)-2:]))
	if data == 0 || data > dnsFrame || !bytes.Equal(got, f.in.next(data)) {
		return fmt.Errorf("the DNS message around the data is another: %w", errAltered)
	}
	f.left = data
	return nil
}
