package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// handshakes are the far end's views of the probe's TLS handshake: those of
// connections that proved to be the probe's or, where there are none, those for
// its server name. Control may have tried the port as well.
func (e *portEvidence) handshakes() []*wire.TLSSeen {
	var list []*wire.TLSSeen
	for _, ev := range e.events {
		if ev.TLS != nil {
			list = append(list, ev.TLS)
		}
	}
	if len(list) > 0 {
		return list
	}
	for _, ev := range e.strays {
		if ev.TLS != nil && ev.TLS.ServerName == e.near.TLS.ServerName {
			list = append(list, ev.TLS)
		}
	}
	return list
}

// certificate compares what was served for the name with what was seen. same is
// true only if both are known.
func (e *portEvidence) certificate() (same bool, differs string) {
	near := e.near.TLS
	if near == nil || near.Certificate == "" || !e.ledger {
		return false, ""
	}
	var far *wire.TLSSeen
	for _, seen := range e.handshakes() {
		if seen.Certificate == near.Certificate {
			return true, ""
		}
		if seen.Certificate != "" {
			far = seen
		}
	}
	switch {
	case far != nil:
		return false, intercepted(near, far)
	case e.unwrapped():
		return false, "TLS ended on the way: the reflector was spoken to without it" + fmt.Sprintf("; certificate %.12s issued by %q was seen", near.Certificate, near.Issuer)
	}
	return false, ""
}

// unwrapped tells whether the probe, which spoke TLS, arrived without it.
func (e *portEvidence) unwrapped() bool {
	plain := func(ev wire.Event) bool { return ev.TLS == nil && ev.Stage == protocol.StageDone }
	return e.near.Stage == protocol.StageDone && e.transport == scenarios.TCP && protocol.Named(e.speak) != nil &&
		len(e.events) > 0 && !slices.ContainsFunc(e.events, func(ev wire.Event) bool { return !plain(ev) })
}

// intercepted names both chains and what became of the ClientHello.
func intercepted(near, far *wire.TLSSeen) string {
	why := fmt.Sprintf("TLS intercepted: certificate %.12s was sent, %.12s issued by %q was seen", far.Certificate, near.Certificate, near.Issuer)
	if len(near.Chain) > 0 && len(far.Chain) > 0 { // else of an older program
		why += fmt.Sprintf("; the chain sent was %s, the chain seen was %s", chainWords(far), chainWords(near))
	}
	if hello := helloDiffers(near, far); hello != "" {
		why += "; " + hello
	}
	if far.Version != "" && near.Version != far.Version {
		why += fmt.Sprintf("; %s here, %s at the reflector", near.Version, far.Version)
	}
	return why
}

// chainWords writes a chain: its subjects, leaf first.
func chainWords(s *wire.TLSSeen) string {
	var names []string
	for _, c := range s.Chain {
		names = append(names, fmt.Sprintf("%q", c.Subject))
	}
	return strings.Join(names, ", ")
}

// helloChanged says that the ClientHello arrived as another, where the
// certificate does not tell more.
func (e *portEvidence) helloChanged() string {
	near := e.near.TLS
	if near == nil || near.HelloDigest == "" {
		return ""
	}
	var changed *wire.TLSSeen
	for _, ev := range e.own() {
		switch far := ev.TLS; {
		case far == nil || far.HelloDigest == "":
		case far.HelloDigest == near.HelloDigest:
			return ""
		case len(far.Versions) == 0 && brokeOff(e.near.Fault): // it did not arrive whole
		case len(e.events) == 0 && !likelyOf(near, far):
		case changed == nil:
			changed = far
		}
	}
	if changed == nil {
		return ""
	}
	return helloDiffers(near, changed)
}

// brokeOff tells a fault that leaves open what was under way.
func brokeOff(fault string) bool {
	return fault == protocol.FaultTimeout || fault == protocol.FaultReset || fault == protocol.FaultEOF
}

// likelyOf tells whether a hello that nothing else ties to the probe may have
// been its own: it asks for the same name, or lost it and still offers the same.
func likelyOf(near, far *wire.TLSSeen) bool {
	lost := far.HelloName == "" && len(near.Offered) > 0 && slices.Equal(near.Offered, far.Offered)
	return far.HelloName == near.HelloName || lost
}

// helloDiffers says in what a ClientHello arrived as another.
func helloDiffers(near, far *wire.TLSSeen) string {
	if near.HelloDigest == far.HelloDigest || near.HelloDigest == "" || far.HelloDigest == "" {
		return ""
	}
	var said []string
	add := func(what, sent, arrived string) {
		if sent != arrived {
			said = append(said, fmt.Sprintf("%s %s arrived as %s", what, orNone(sent), orNone(arrived)))
		}
	}
	add("server name", near.HelloName, far.HelloName)
	add("ALPN", strings.Join(near.Offered, ", "), strings.Join(far.Offered, ", "))
	add("versions", strings.Join(near.Versions, ", "), strings.Join(far.Versions, ", "))
	if len(said) == 0 {
		return "the ClientHello arrived as another"
	}
	return "the ClientHello arrived as another: " + strings.Join(said, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// negotiated says what the ends of one handshake do not agree on.
func (e *portEvidence) negotiated() string {
	near := e.near.TLS
	if near == nil || near.Version == "" || len(e.events) == 0 {
		return ""
	}
	var differs string
	for _, far := range e.handshakes() {
		switch {
		case far.Version == "" || far.ALPN == near.ALPN && far.Version == near.Version:
			return ""
		case far.Version != near.Version:
			differs = fmt.Sprintf("TLS was agreed on twice: %s here, %s at the reflector", near.Version, far.Version)
		default:
			differs = fmt.Sprintf("ALPN was agreed on as %s at the reflector, as %s here", orNone(far.ALPN), orNone(near.ALPN))
		}
	}
	return differs
}

// localAlert and remoteAlert begin crypto/tls's words for what it found itself
// and for what the other end sent.
const (
	localAlert  = "tls: "
	remoteAlert = "remote error: tls: "
)

// brokenTLS says that one of the ends met something that is not what the other
// sent: TLS itself found it. An alert of which the other end knows nothing is
// somebody else's.
func (e *portEvidence) brokenTLS() string {
	o := e.near
	if o.TLS == nil {
		return ""
	}
	found := func(fault string) bool {
		return strings.Contains(fault, localAlert) && !strings.HasPrefix(fault, remoteAlert)
	}
	if found(o.Fault) {
		return fmt.Sprintf("bytes of the TLS stream changed on the way (stage %s): %s", o.Stage, o.Fault)
	}
	for _, ev := range e.own() {
		if ev.TLS == nil || ev.Fault == "" {
			continue
		}
		if found(ev.Fault) || strings.HasPrefix(ev.Fault, remoteAlert) && !strings.HasPrefix(o.Fault, remoteAlert) {
			return fmt.Sprintf("bytes of the TLS stream changed on the way (at the reflector, stage %s): %s", ev.Stage, ev.Fault)
		}
	}
	if o.TLS.Version != "" && o.Fault == remoteAlert+"bad record MAC" { // an alert within TLS, which nobody else can send
		return fmt.Sprintf("bytes of the TLS stream changed on the way (stage %s): %s", o.Stage, o.Fault)
	}
	return ""
}
