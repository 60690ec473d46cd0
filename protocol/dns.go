package protocol

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/wallprobe/wallprobe/wire"
)

// dnsProtocol asks for the address of a name that holds the token, in base32
// because resolvers may change the case of names (RFC 4648 section 6, RFC 4343).
// The answer is an address that both ends know beforehand, so that a rewritten
// one is named, and the answering token as TXT beside it.
var dnsProtocol = &Protocol{
	Doc:    "DNS query whose name holds the token; the answer is a known address, with the answering token as TXT",
	Says:   dnsZone,
	Claims: isDNS,
	TCP:    &Ends{Probe: probeDNSStream, Serve: serveDNSStream},
	UDP:    &Ends{Probe: probeDNS, Answer: answerDNS},
}

const (
	// dnsZone is below a name that no resolver knows (RFC 6761 section 6.4).
	dnsZone = "t.wallprobe.invalid."
	// dnsQuery is the length of a query in bytes: padded (RFC 7830) to whole
	// blocks of 128 bytes (RFC 8467 section 4.1), it pays for the whole answer.
	dnsQuery = 384
	// dnsBuffer is the UDP payload that a query announces (RFC 9715 section 3).
	dnsBuffer = 1232
	// maxDNS is the longest message that an end reads over TCP.
	maxDNS = 4096
	// dnsTokenLabels is how many labels hold a token's 135 characters.
	dnsTokenLabels = 3
)

var base32Text = base32.HexEncoding.WithPadding(base32.NoPadding)

// isDNS tells a query over TCP: two bytes of length, then a header with nothing
// but RD, AD and CD set and one question (RFC 1035 sections 4.1.1 and 4.2.2).
func isDNS(peek Peek, inTLS bool) bool {
	b := peek(4)
	if inTLS || len(b) < 4 {
		return false
	}
	if n := binary.BigEndian.Uint16(b); n < 17 || n > maxDNS {
		return false
	}
	b = peek(8)
	return len(b) == 8 && b[4]&^1 == 0 && b[5]&^0x30 == 0 && binary.BigEndian.Uint16(b[6:]) == 1
}

// dnsName is a name that holds a message, below a zone: labels of at most 63
// characters.
func dnsName(p []byte, zone string) string {
	text := strings.ToLower(base32Text.EncodeToString(p))
	var b strings.Builder
	for len(text) > 63 {
		b.WriteString(text[:63] + ".")
		text = text[63:]
	}
	return b.String() + text + "." + dns.Fqdn(zone)
}

// messageInName reads what dnsName wrote, whatever the case and the zone.
func messageInName(name string) ([]byte, error) {
	labels := dns.SplitDomainName(name)
	if len(labels) < dnsTokenLabels {
		return nil, ErrForeign
	}
	held := strings.Join(labels[:dnsTokenLabels], "")
	p, err := base32Text.DecodeString(strings.ToUpper(held))
	if err != nil || len(p) != wire.MessageSize || !wire.IsMessage(p) {
		return nil, ErrForeign
	}
	return p, nil
}

// dnsAddress is what the name of a probe resolves to: a documentation address
// (RFC 5737, RFC 3849) made from session, probe and port, the same for every attempt.
func dnsAddress(m wire.Message, qtype uint16) netip.Addr {
	b := binary.BigEndian.AppendUint32(m.Session[:], m.Probe)
	sum := sha256.Sum256(binary.BigEndian.AppendUint16(b, m.Port))
	if qtype == dns.TypeAAAA {
		a := netip.MustParseAddr("2001:db8::").As16()
		copy(a[8:], sum[:8])
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, 1 + sum[0]%254})
}

// TokenName is the exchange's token as a name to ask for.
func (x Exchange) TokenName() string {
	m := x.message(wire.Request)
	return dnsName(m.Append(nil, x.Keys), cmp.Or(x.Says, dnsZone))
}

// dnsRequest makes the query of an attempt.
func (x Exchange) dnsRequest(qtype uint16) (*dns.Msg, []byte, error) {
	q := new(dns.Msg)
	q.SetQuestion(x.TokenName(), qtype)
	q.SetEdns0(dnsBuffer, false)
	pad := &dns.EDNS0_PADDING{}
	q.IsEdns0().Option = []dns.EDNS0{pad}
	pad.Padding = make([]byte, max(0, dnsQuery-q.Len()))
	b, err := q.Pack()
	return q, b, err
}

// dnsReply makes the far end's answer to a query with a proven token.
func dnsReply(q *dns.Msg, m wire.Message, token string) *dns.Msg {
	a := new(dns.Msg)
	a.SetReply(q)
	a.Authoritative = true
	a.Compress = true
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	addr := func(t uint16) dns.RR {
		if t == dns.TypeAAAA {
			return &dns.AAAA{Hdr: dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET}, AAAA: dnsAddress(m, t).AsSlice()}
		}
		return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: dnsAddress(m, t).AsSlice()}
	}
	txt := &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{token}}
	if qtype == dns.TypeTXT {
		a.Answer = []dns.RR{txt}
	} else {
		a.Answer, a.Extra = []dns.RR{addr(qtype)}, []dns.RR{txt}
	}
	if o := q.IsEdns0(); o != nil {
		a.SetEdns0(dnsBuffer, false)
	}
	return a
}

// strangerReply is what a query without a token gets: over UDP no more than the
// question, over TCP, where its source is proven, a small answer.
func strangerReply(q *dns.Msg, tcp bool) *dns.Msg {
	a := new(dns.Msg)
	a.SetReply(q)
	a.Rcode = dns.RcodeRefused
	if tcp && len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
		a.Rcode = dns.RcodeSuccess
		a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 53)}}
		a.Compress = true
	}
	return a
}

// checkDNS reads an answer and says it as a line. The error is ErrForeign when
// it is not the reflector's, errAltered when it was once.
func (x Exchange) checkDNS(q *dns.Msg, b []byte, r *Result) (line string, err error) {
	var a dns.Msg
	if err := a.Unpack(b); err != nil {
		r.Sample = b[:min(len(b), 64)]
		return "", fmt.Errorf("%w: %w", err, ErrForeign)
	}
	if !wholeDNS(b, &a) {
		return "", fmt.Errorf("it has other records than its header counts, or more: %w", errAltered)
	}
	token := dnsToken(&a)
	if err = x.CheckToken(token, r); err != nil {
		token = ""
	}
	line = dnsLine("answer", &a, token)
	m := x.message(wire.Request)
	want := dnsReply(q, m, token)
	switch wanted := dnsLine("answer", want, token); {
	case token != "" && line != wanted:
		return line, fmt.Errorf("%q was sent, %q was seen: %w", wanted, line, errAltered)
	case token != "" && !slices.Equal(a.Question, q.Question):
		return line, fmt.Errorf("%q was asked, the answer is to %q: %w", dnsLine("query", q, ""), dnsLine("query", &dns.Msg{Question: a.Question}, ""), errAltered)
	case token == "":
		return line, fmt.Errorf("%q where %s with the token belongs: %w", line, dnsValue(want.Answer[0]), err)
	}
	return line, nil
}

// dnsToken is the text beside an answer, where the far end's has its token.
func dnsToken(a *dns.Msg) string {
	for _, rr := range slices.Concat(a.Answer, a.Extra) {
		if t, ok := rr.(*dns.TXT); ok && len(t.Txt) == 1 {
			return t.Txt[0]
		}
	}
	return ""
}

// dnsLine says all of a message in a line, but for what differs from attempt to
// attempt.
func dnsLine(kind string, m *dns.Msg, token string) string {
	var b strings.Builder
	b.WriteString(kind)
	for _, q := range m.Question {
		b.WriteString(" " + dns.TypeToString[q.Qtype])
		if q.Qclass != dns.ClassINET {
			fmt.Fprintf(&b, " class %d", q.Qclass)
		}
		if kind == "query" {
			b.WriteString(" " + nameOnly(q.Name))
		}
	}
	if m.Rcode != dns.RcodeSuccess {
		b.WriteString(" " + dns.RcodeToString[m.Rcode])
	}
	for i, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		sep := ","
		if i == 0 {
			sep = ":"
		}
		value := dnsValue(rr)
		if t, ok := rr.(*dns.TXT); ok && token != "" && len(t.Txt) == 1 && t.Txt[0] == token {
			value = "TXT with the token"
		}
		b.WriteString(sep + " " + value)
		if h := rr.Header(); rr.Header().Rrtype != dns.TypeOPT && (len(m.Question) == 0 || h.Name != m.Question[0].Name) {
			b.WriteString(" of " + nameOnly(h.Name))
		}
	}
	return b.String() + dnsFlags(m.MsgHdr)
}

// dnsFlags says the flags of a header but RD in a query.
func dnsFlags(h dns.MsgHdr) string {
	var b strings.Builder
	for _, f := range []struct {
		name string
		set  bool
	}{{"qr", h.Response}, {"aa", h.Authoritative}, {"tc", h.Truncated}, {"rd", h.RecursionDesired}, {"ra", h.RecursionAvailable}, {"z", h.Zero}, {"ad", h.AuthenticatedData}, {"cd", h.CheckingDisabled}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	if h.Opcode != dns.OpcodeQuery {
		fmt.Fprintf(&b, " opcode %d", h.Opcode)
	}
	if b.Len() == 0 {
		return ""
	}
	return " (" + b.String()[1:] + ")"
}

// dnsValue says a record without its owner.
func dnsValue(rr dns.RR) string {
	h := rr.Header()
	if o, ok := rr.(*dns.OPT); ok {
		return "EDNS " + ednsValue(o)
	}
	value := dns.TypeToString[h.Rrtype] + " " + strings.TrimPrefix(rr.String(), h.String())
	value = value[:min(len(value), 60)]
	if h.Ttl != 0 {
		value += fmt.Sprintf(" for %d s", h.Ttl)
	}
	if h.Class != dns.ClassINET {
		value += fmt.Sprintf(" class %d", h.Class)
	}
	return value
}

// ednsValue says what EDNS announces, and whether its padding is zeros
// throughout, as RFC 7830 section 3 wants it.
func ednsValue(o *dns.OPT) string {
	said := fmt.Sprintf("%d bytes", o.UDPSize())
	if o.Hdr.Ttl != 0 {
		said += fmt.Sprintf(" flags %x", o.Hdr.Ttl)
	}
	for _, option := range o.Option {
		pad, ok := option.(*dns.EDNS0_PADDING)
		switch {
		case !ok:
			said += fmt.Sprintf(" option %d", option.Option())
		case len(bytes.Trim(pad.Padding, "\x00")) > 0:
			said += " padded with other than zeros"
		default:
			said += " padded"
		}
	}
	return said
}

// nameOnly is a name with its token left out, in lower case.
func nameOnly(name string) string {
	name = strings.ToLower(name)
	if _, err := messageInName(name); err == nil {
		labels := dns.SplitDomainName(name)
		name = "TOKEN." + strings.Join(labels[dnsTokenLabels:], ".")
	}
	return name[:min(len(name), 60)]
}

// A dnsAsker is the near end over UDP.
type dnsAsker struct {
	Exchange
	c       net.Conn
	r       *Result
	said    *wire.Transcript
	asked   map[uint16]dnsAsked // by the query's id
	until   time.Time
	wrong   error // about an answer that is not the reflector's
	spacing time.Duration
	began   time.Time
}

type dnsAsked struct {
	q       *dns.Msg
	attempt uint16
	at      time.Time
}

// dnsAttempts is how often the near end asks over UDP.
const dnsAttempts = 3

// probeDNS is the near end over UDP: spaced attempts until one is answered.
func probeDNS(ctx context.Context, c net.Conn, x Exchange) (r Result) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	step := r.steps()
	var said wire.Transcript
	defer func() { r.Said = said.Said() }()
	now := time.Now()
	a := dnsAsker{Exchange: x, c: c, r: &r, said: &said, asked: make(map[uint16]dnsAsked), began: now, until: now.Add(x.Stall), spacing: x.Stall / 8}
	if step(StageToken, a.run(ctx)) {
		step(StageDone, nil)
	}
	return r
}

func (a *dnsAsker) run(ctx context.Context) error {
	buf := make([]byte, maxDNS)
	for {
		now := time.Now()
		due := a.began.Add(time.Duration(a.r.Sent) * a.spacing)
		more := a.r.Sent < dnsAttempts && a.wrong == nil
		if more && !now.Before(due) {
			if err := a.ask(); err != nil {
				return err
			}
			continue
		}
		next := a.until
		if more && due.Before(next) {
			next = due
		}
		a.c.SetReadDeadline(next)
		if ctx.Err() != nil { // set between the call above and now
			return ctx.Err()
		}
		n, err := a.c.Read(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && faultOf(err) == FaultTimeout && time.Now().Before(a.until):
			continue
		case err != nil && a.wrong != nil:
			return a.wrong
		case err != nil:
			return err
		}
		if done, err := a.heard(buf[:n]); done {
			return err
		}
	}
}

// ask sends one attempt.
func (a *dnsAsker) ask() error {
	x := a.Exchange
	x.Attempt = uint16(a.r.Sent)
	q, b, err := x.dnsRequest(queryType(a.c.RemoteAddr()))
	if err != nil {
		return err
	}
	if a.r.Sent == 0 {
		a.said.Say(dnsLine("query", q, ""))
	}
	a.asked[q.Id] = dnsAsked{q, x.Attempt, time.Now()}
	a.r.Sent++
	_, err = a.c.Write(b)
	return err
}

// heard judges one datagram. Whoever forges an answer is quicker than the far
// end, so after a wrong one its own may still come.
func (a *dnsAsker) heard(b []byte) (done bool, err error) {
	if len(b) < 2 {
		a.r.Strays++
		return false, nil
	}
	asked, ok := a.asked[binary.BigEndian.Uint16(b)]
	x := a.Exchange
	x.Attempt = asked.attempt
	var line string
	switch {
	case ok && x.answers(asked.q, b):
		line, err = x.checkDNS(asked.q, b, a.r)
	case !ok && x.holdsToken(b):
		line, err = "answer with another id", fmt.Errorf("the answer has the id of no query: %w", errAltered)
	default:
		a.r.Strays++ // anybody may send that, and the far end's own may still come
		return false, nil
	}
	switch {
	case err == nil && a.wrong == nil:
		a.said.Hear(line)
		a.r.Heard, a.r.RTT, a.r.Detail = 1, time.Since(asked.at), strings.TrimPrefix(line, "answer ")
		return true, nil
	case err == nil:
		return true, fmt.Errorf("before the reflector's own answer came another: %w", a.wrong)
	case a.wrong == nil:
		a.said.Hear(line)
		a.wrong, a.until = err, time.Now().Add(a.spacing)
	}
	return false, nil
}

// answers tells whether a datagram with a query's id is an answer to it: one to
// its question (RFC 5452 section 9.1), or to another one with the token in it,
// which nobody can forge. That it has the right source is the socket's part.
func (x Exchange) answers(q *dns.Msg, b []byte) bool {
	name, n, err := dns.UnpackDomainName(b, min(12, len(b)))
	if err == nil && len(b) >= n+4 && b[2]&0x80 != 0 {
		asked := q.Question[0]
		if strings.EqualFold(name, asked.Name) && binary.BigEndian.Uint16(b[n:]) == asked.Qtype && binary.BigEndian.Uint16(b[n+2:]) == asked.Qclass {
			return true
		}
	}
	return x.holdsToken(b)
}

// holdsToken tells whether the far end's token is in a message.
func (x Exchange) holdsToken(b []byte) bool {
	var a dns.Msg
	return a.Unpack(b) == nil && x.CheckToken(dnsToken(&a), new(Result)) == nil
}

// queryType asks for an address of the family that is spoken.
func queryType(to net.Addr) uint16 {
	if AddrPort(to).Addr().Is6() {
		return dns.TypeAAAA
	}
	return dns.TypeA
}

// answerDNS is the far end over UDP. What proves nothing gets back no more than
// its own question.
func answerDNS(p []byte, from, _ netip.AddrPort, far Far) (reply []byte, e wire.Event) {
	e = wire.Event{Stage: StageToken}
	q, err := unpackQuery(p)
	if err != nil {
		e.Fault, e.Digest = FaultForeign, digest(p)
		return nil, e
	}
	var said wire.Transcript
	defer func() { e.Said = said.Said() }()
	said.Hear(dnsLine("query", q, ""))
	a, m, _, err := answerQuery(q, net.UDPAddrFromAddrPort(from), far)
	if err != nil {
		e.Fault, a = faultOf(err), strangerReply(q, false)
	}
	e.Session, e.Probe, e.Attempt = m.Session, m.Probe, m.Attempt
	b, perr := a.Pack()
	if perr == nil && len(b) > len(p) { // without padding: as servers do, what does not fit is to be had over TCP
		a = new(dns.Msg)
		a.SetReply(q)
		a.Truncated = true
		b, perr = a.Pack()
	}
	if perr != nil || len(b) > len(p) {
		return nil, e
	}
	said.Say(dnsLine("answer", a, dnsToken(a)))
	e.Answered = err == nil
	return b, e
}

// wholeDNS tells whether a message has what its header counts (RFC 1035 section
// 4.1.1) and nothing behind it; a parser may take what there is, and leave what
// it has no use for.
func wholeDNS(b []byte, m *dns.Msg) bool {
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if len(b) < 12 || int(binary.BigEndian.Uint16(b[4+2*i:])) != n {
			return false
		}
	}
	end, err := 12, error(nil)
	for range m.Question {
		if _, end, err = dns.UnpackDomainName(b, end); err != nil {
			return false
		}
		end += 4 // type and class
	}
	for range len(m.Answer) + len(m.Ns) + len(m.Extra) {
		if _, end, err = dns.UnpackRR(b, end); err != nil {
			return false
		}
	}
	return end == len(b)
}

// unpackQuery reads a query with one question; whatever else there is has no
// business at a name server, least of all an answer, which would begin a loop.
func unpackQuery(p []byte) (*dns.Msg, error) {
	q := new(dns.Msg)
	if err := q.Unpack(p); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrForeign)
	}
	if !wholeDNS(p, q) {
		return nil, fmt.Errorf("it has other records than its header counts, or more: %w", ErrForeign)
	}
	if q.Response || len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return nil, ErrForeign
	}
	return q, nil
}

// answerQuery answers a query whose name holds a token that proves good.
func answerQuery(q *dns.Msg, from net.Addr, far Far) (*dns.Msg, wire.Message, *wire.Keys, error) {
	p, err := messageInName(q.Question[0].Name)
	if err != nil {
		return nil, wire.Message{}, nil, err
	}
	m, keys, err := far.Prove(p, from)
	if err == nil && m.Kind != wire.Request {
		err = wire.ErrAltered
	}
	if err != nil {
		return nil, m, nil, err
	}
	r := m
	r.Kind, r.Seen, r.Time = wire.Reply, AddrPort(from), far.Now()
	return dnsReply(q, m, textOf(&r, keys)), m, keys, nil
}
