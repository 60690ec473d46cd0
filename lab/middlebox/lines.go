package middlebox

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// StripSTARTTLS takes the offer of TLS out of what servers say, in SMTP (RFC
// 3207), IMAP (RFC 3501), POP3 (RFC 2595) and XMPP (RFC 6120).
func StripSTARTTLS() []Rewrite {
	return []Rewrite{
		{From: Server, Old: "250-STARTTLS\r\n"},
		{From: Server, Old: "250 STARTTLS\r\n", New: "250 NOOP\r\n"},
		{From: Server, Old: " STARTTLS"},
		{From: Server, Old: "STLS\r\n"},
		{From: Server, Old: "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"},
		{From: Server, Old: "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>"},
		{From: Server, Old: `<starttls xmlns="urn:ietf:params:xml:ns:xmpp-tls"/>`},
		{From: Server, Old: `<starttls xmlns="urn:ietf:params:xml:ns:xmpp-tls"><required/></starttls>`},
	}
}

// OverwriteSTARTTLS puts X in the place of the word in both directions, as old
// inspection of mail does: nobody is to understand it, and no length changes.
func OverwriteSTARTTLS() []Rewrite {
	return []Rewrite{{From: Server, Old: "STARTTLS", New: "XXXXXXXX"}, {From: Client, Old: "STARTTLS", New: "XXXXXXXX"}}
}

// AddHeaders puts lines into every HTTP/1 request, before its Host, as proxies
// do with Via and X-Forwarded-For (RFC 9110 section 7.6.3).
func AddHeaders(lines ...string) []Rewrite {
	// Without the line's end before it, which a request ends with as well: the box
	// would hold that back.
	return []Rewrite{{From: Client, Old: "Host: ", New: strings.Join(append(lines, "Host: "), "\r\n")}}
}

// FTPHelper rewrites the addresses in FTP commands of a client behind a
// translator (RFC 959, RFC 2428). Ports stay as they are.
func FTPHelper(inside, outside netip.Addr) []Rewrite {
	commas := func(a netip.Addr) string { return strings.ReplaceAll(a.String(), ".", ",") }
	bars := func(a netip.Addr) string {
		family := 1
		if a.Is6() {
			family = 2
		}
		return fmt.Sprintf("EPRT |%d|%s|", family, a)
	}
	list := []Rewrite{{From: Client, Old: bars(inside), New: bars(outside)}}
	if inside.Is4() && outside.Is4() {
		list = append(list, Rewrite{From: Client, Old: "PORT " + commas(inside) + ",", New: "PORT " + commas(outside) + ","})
	}
	return list
}

// DNSAnswers puts another address into the answers of DNS servers; it is a UDP
// box's Edit. What is not DNS passes as it is.
func DNSAnswers(v4, v6 netip.Addr) func(Side, []byte) []byte {
	return func(from Side, b []byte) []byte {
		var m dns.Msg
		if from != Server || m.Unpack(b) != nil {
			return b
		}
		changed := false
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				rr.A, changed = v4.AsSlice(), true
			case *dns.AAAA:
				rr.AAAA, changed = v6.AsSlice(), true
			}
		}
		if !changed {
			return b
		}
		out, err := m.Pack()
		if err != nil {
			return b
		}
		return out
	}
}
