package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// answerTTL is how long, in seconds, an answer may be kept: not at all, for
// the next world may answer otherwise.
const answerTTL = 0

// lookup finds the addresses of a name, without a final dot. A name that is
// listed wins over wildcards, a longer wildcard over a shorter one.
func lookup(names map[string][]netip.Addr, name string) ([]netip.Addr, bool) {
	name = strings.ToLower(name)
	if addrs, ok := names[name]; ok {
		return addrs, true
	}
	for rest := name; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return nil, false
		}
		if addrs, ok := names["*."+parent]; ok {
			return addrs, true
		}
		rest = parent
	}
}

// answer makes the reply to a DNS query (RFC 1035 section 4): addresses of the
// names, NXDOMAIN for others. Replies are longer than 512 bytes only for a name
// with dozens of addresses; such a reply is cut for UDP, with the TC bit.
func answer(names map[string][]netip.Addr, query []byte, limit int) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, fmt.Errorf("dns query: %w", err)
	}
	if header.Response {
		return nil, errors.New("dns query: it is a reply")
	}
	q, err := p.Question()
	if err != nil {
		return nil, fmt.Errorf("dns query: %w", err)
	}
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, OpCode: header.OpCode, Response: true, Authoritative: true,
			RecursionDesired: header.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{q},
	}
	addrs, known := lookup(names, strings.TrimSuffix(q.Name.String(), "."))
	if !known {
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		if body := resource(a, q.Type); body != nil {
			h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: answerTTL}
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: body})
		}
	}
	packed, err := reply.Pack()
	if err == nil && len(packed) > limit {
		reply.Answers, reply.Truncated = nil, true
		packed, err = reply.Pack()
	}
	return packed, err
}

// resource is the record of an address, or nil if it is not of the type asked for.
func resource(a netip.Addr, t dnsmessage.Type) dnsmessage.ResourceBody {
	switch {
	case t == dnsmessage.TypeA && a.Is4():
		return &dnsmessage.AResource{A: a.As4()}
	case t == dnsmessage.TypeAAAA && a.Is6(): // the zero Addr is neither
		return &dnsmessage.AAAAResource{AAAA: a.As16()}
	}
	return nil
}
