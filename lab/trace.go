package lab

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/wallprobe/wallprobe/scenarios"
)

// A traceEvent is one step of a packet through the rules, as the kernel tells it
// to those who listen for NFT_MSG_TRACE (linux/netfilter/nf_tables.h).
type traceEvent struct {
	packet  uint32  // the kernel's number for the packet, which it uses again later
	chain   chainID // where it happened; of a family that nft has no name for, ""
	handle  uint64  // of the rule
	kind    uint32  // one of traceRule, traceReturn, tracePolicy
	verdict int32   // of the rule, NF_DROP and the like
	policy  uint32  // of the chain
	header  packetHeader
}

// A packetHeader is what of a packet tells it from others. It is zero where an
// event has none.
type packetHeader struct {
	transport scenarios.Transport
	from, to  netip.AddrPort
}

// The kinds of events and the verdicts (linux/netfilter/nf_tables.h,
// linux/netfilter.h).
const (
	tracePolicy = 1
	traceReturn = 2
	traceRule   = 3

	verdictDrop   = 0
	verdictAccept = 1
)

// The attributes of a trace.
const (
	attrTable     = 1
	attrChain     = 2
	attrHandle    = 3
	attrKind      = 4
	attrVerdict   = 5
	attrPacket    = 6
	attrNetwork   = 8
	attrTransport = 9
	attrPolicy    = 16

	attrVerdictCode = 1
)

// familyNames are those of nft for the kernel's numbers (linux/netfilter.h).
var familyNames = map[byte]string{1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

var errTrace = errors.New("this is no event of a trace")

// parseTrace reads a message: struct nfgenmsg, 4 bytes whose first is the family,
// then attributes, whose numbers are in network order.
func parseTrace(message []byte) (traceEvent, error) {
	if len(message) < 4 {
		return traceEvent{}, errTrace
	}
	e := traceEvent{chain: chainID{familyNames[message[0]]}}
	var network, transport []byte
	err := attributes(message[4:], func(kind uint16, value []byte) error {
		var err error
		switch kind {
		case attrTable:
			e.chain[1] = cString(value)
		case attrChain:
			e.chain[2] = cString(value)
		case attrHandle:
			e.handle, err = number(value, 8)
		case attrKind:
			e.kind, err = number32(value)
		case attrPacket:
			e.packet, err = number32(value)
		case attrPolicy:
			e.policy, err = number32(value)
		case attrVerdict:
			err = attributes(value, func(kind uint16, value []byte) error {
				if kind != attrVerdictCode {
					return nil
				}
				n, err := number32(value)
				e.verdict = int32(n)
				return err
			})
		case attrNetwork:
			network = value
		case attrTransport:
			transport = value
		}
		return err
	})
	e.header = parseHeader(network, transport)
	return e, err
}

// attributes reads struct nlattr, length and kind in the machine's order, each
// with its value, padded to 4 bytes.
func attributes(b []byte, each func(kind uint16, value []byte) error) error {
	const flags = 0xc000 // nested, network order
	for len(b) >= 4 {
		length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if length < 4 || length > len(b) {
			return errTrace
		}
		if err := each(kind&^flags, b[4:length]); err != nil {
			return err
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return nil
}

func number(value []byte, size int) (uint64, error) {
	if len(value) != size {
		return 0, errTrace
	}
	var n uint64
	for _, b := range value {
		n = n<<8 | uint64(b)
	}
	return n, nil
}

func number32(value []byte) (uint32, error) {
	n, err := number(value, 4)
	return uint32(n), err
}

// cString is a text that may end in a zero.
func cString(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

// parseHeader reads the addresses of an IPv4 or IPv6 header and the ports behind
// it; it is zero for anything but TCP and UDP.
func parseHeader(network, transport []byte) packetHeader {
	var from, to netip.Addr
	var h packetHeader
	switch {
	case len(network) >= 20 && network[0]>>4 == 4:
		from, _ = netip.AddrFromSlice(network[12:16])
		to, _ = netip.AddrFromSlice(network[16:20])
		h.transport = transportOf(network[9])
	case len(network) >= 40 && network[0]>>4 == 6:
		from, _ = netip.AddrFromSlice(network[8:24])
		to, _ = netip.AddrFromSlice(network[24:40])
		h.transport = transportOf(network[6])
	}
	if h.transport == "" || len(transport) < 4 {
		return packetHeader{}
	}
	h.from = netip.AddrPortFrom(from, binary.BigEndian.Uint16(transport))
	h.to = netip.AddrPortFrom(to, binary.BigEndian.Uint16(transport[2:]))
	return h
}

// transportOf is the name for a protocol's number (IANA).
func transportOf(protocol byte) scenarios.Transport {
	return map[byte]scenarios.Transport{6: scenarios.TCP, 17: scenarios.UDP}[protocol]
}

// A ruleRef names a rule by nft's number, or with 0 the policy of a chain.
type ruleRef struct {
	chain  chainID
	handle uint64
}

// A course is how one packet went through the rules: dropped by a rule, or let
// through. A zero ruleRef is none.
type course struct {
	begun      bool
	end        ending
	dropped    ruleRef
	let        ruleRef // the rule or policy that let it be forwarded
	translated ruleRef // that gave it another destination
	base       Chain   // the chain with a hook that it is in
	chosen     bool    // let is a rule, and not the policy of a chain
}

// An ending is where a packet was seen last, when no rule had dropped it before.
type ending string

// The endings, which are the names of the chains that see them, in a table of
// the lab's own. "" is none: where it went was not seen.
const (
	forwarded ending = "forwarded" // it left the firewall
	delivered ending = "delivered" // it was for the firewall itself, which no rule had to do with
)

// step takes an event into account; chain tells what is listed of one. Every
// chain that a packet comes by as it is forwarded must accept: the one that does
// so by a rule says more than one that does by its policy, and of several the
// last one.
func (c *course) step(e traceEvent, chain func(chainID) Chain) {
	if base := chain(e.chain); base.Hook != "" {
		c.base = base
	}
	ref := ruleRef{e.chain, e.handle}
	accepted := e.kind == traceRule && e.verdict == verdictAccept
	switch {
	case e.kind == traceRule && e.verdict&0xff == verdictDrop && e.verdict >= 0:
		c.dropped = ref
	case e.kind == tracePolicy && e.policy == verdictDrop:
		c.dropped = ruleRef{chain: e.chain}
	case accepted && c.base.Type == "nat" && c.base.Hook == "prerouting":
		c.translated = ref
	case c.base.Hook != "forward":
	case accepted:
		c.let, c.chosen = ref, true
	case e.kind == tracePolicy && !c.chosen:
		c.let = ruleRef{chain: e.chain}
	}
}
