package protocol

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// XMPP (RFC 6120) as Chrome Remote Desktop spoke it: on port 5222 the request
// for TLS goes out right behind the stream header, before any answer; on every
// other port TLS comes first (catalogue 8, CRD-B5 and 8.1, CRD-E2).
//
//	near                                            far
//	<stream:stream to="…"> <starttls/>          ->
//	                                            <-  <stream:stream> <stream:features> <proceed/>
//	TLS for the path's name
//	<stream:stream to="…">                      ->
//	                                            <-  <stream:stream> <stream:features>
//	<auth mechanism="PLAIN">…token…</auth>      ->
//	                                            <-  <success>…answer…</success>
var (
	xmpp = &Protocol{
		Names:  true,
		Doc:    "XMPP: stream header with STARTTLS right behind it, TLS for the path's name, SASL PLAIN with the token as the name, then wallprobe's own data",
		Claims: func(peek Peek, inTLS bool) bool { return !inTLS && isXMPP(peek(2)) },
		Means:  meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: xmppDialect.probe(false), Serve: xmppDialect.serve(false)},
	}
	xmppInTLS = &Protocol{
		Secure: true,
		Doc:    "TLS for the path's name; inside XMPP: stream header, SASL PLAIN with the token as the name, then wallprobe's own data",
		Claims: func(peek Peek, inTLS bool) bool { return inTLS && isXMPP(peek(2)) },
		Means:  meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: xmppDialect.probe(true), Serve: xmppDialect.serve(true)},
	}
)

// isXMPP tells a stream header, or the XML declaration before one.
func isXMPP(b []byte) bool { return len(b) >= 2 && b[0] == '<' && (b[1] == 's' || b[1] == '?') }

var xmppDialect = &mailDialect{
	greeting: xmppGreeting,
	starttls: xmppSTARTTLS,
	login:    xmppLogin,
	leave: func(n *nearMail) error { // ends the stream (RFC 6120 section 4.4)
		if err := n.sayXML(streamEnd); err != nil {
			return err
		}
		_, err := n.wantsXML(streamEnd[1 : len(streamEnd)-1])
		return err
	},
	greet: func(*farMail) error { return nil }, // the near end speaks first
	next:  (*farMail).element,
	obey:  xmppObey,
	bye:   func(f *farMail, reason string) error { return f.sayXML(xmppError, streamEnd) },
}

const (
	nsTLS  = "urn:ietf:params:xml:ns:xmpp-tls"
	nsSASL = "urn:ietf:params:xml:ns:xmpp-sasl"

	streamStart = `xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams">`
	streamEnd   = `</stream:stream>`
	xmppError   = `<stream:error><policy-violation xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>`
	startTLS    = `<starttls xmlns="` + nsTLS + `"/>`
	offersTLS   = `<stream:features><starttls xmlns="` + nsTLS + `"><required/></starttls></stream:features>`
	offersLogin = `<stream:features><mechanisms xmlns="` + nsSASL + `"><mechanism>PLAIN</mechanism></mechanisms></stream:features>`
	offersBind  = `<stream:features><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></stream:features>`
	proceed     = `<proceed xmlns="` + nsTLS + `"/>`
	noLogin     = `<failure xmlns="` + nsSASL + `"><not-authorized/></failure>`
)

func (n *nearMail) xmppHeader() string {
	to := n.x.ServerName
	if to == "" {
		to = mailDomain
	}
	return `<stream:stream to="` + escaped(to) + `" version="1.0" ` + streamStart
}

func escaped(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

// sayXML sends elements at one time, nothing between them.
func (n *nearMail) sayXML(elements ...string) error {
	return n.sayWith("", time.Until(n.until), elements...)
}

func (f *farMail) sayXML(elements ...string) error {
	return f.sayWith("", min(farStall, time.Until(f.until)), elements...)
}

// element hears one whole element, or the tag that begins or ends a stream.
func (n *nearMail) element() (string, error) {
	n.SetReadDeadline(n.until)
	return n.hearXML()
}

func (f *farMail) element() (string, error) {
	f.SetReadDeadline(time.Now().Add(min(farStall, time.Until(f.until))))
	return f.hearXML()
}

func (d *dialogue) hearXML() (string, error) {
	text, err := readElement(d.r)
	if text != "" {
		d.said.Hear(text)
	}
	return text, err
}

// wantsXML hears an element that has to begin in one way.
func (n *nearMail) wantsXML(name string) (string, error) {
	text, err := n.element()
	if err == nil && elementName(text) != name {
		err = foreign("<"+name+">", text)
	}
	return text, err
}

// xmppGreeting opens the stream and, where TLS is yet to come, asks for it in
// the same breath. The far end's header is its banner.
func xmppGreeting(n *nearMail) error {
	out := []string{n.xmppHeader()}
	if !n.inside {
		out = append(out, startTLS)
	}
	if err := n.sayXML(out...); err != nil {
		return err
	}
	_, err := n.wantsXML("stream:stream")
	return err
}

func xmppSTARTTLS(n *nearMail) error {
	features, err := n.wantsXML("stream:features")
	if err != nil {
		return err
	}
	answer, err := n.wantsXML("proceed")
	if _, offered := within(features, nsTLS, "starttls"); !offered {
		return notOffered("STARTTLS", answer, err)
	}
	return err
}

func xmppLogin(n *nearMail) error {
	if !n.inside { // after STARTTLS a stream begins anew (RFC 6120 section 5.4.3.3)
		if err := n.sayXML(n.xmppHeader()); err != nil {
			return err
		}
		if _, err := n.wantsXML("stream:stream"); err != nil {
			return err
		}
	}
	if _, err := n.wantsXML("stream:features"); err != nil {
		return err
	}
	auth := `<auth xmlns="` + nsSASL + `" mechanism="PLAIN">` + n.plainLogin() + `</auth>`
	sent := time.Now()
	if err := n.sayXML(auth); err != nil {
		return err
	}
	text, err := n.wantsXML("success")
	if err != nil {
		return err
	}
	n.r.RTT = time.Since(sent)
	answer, _ := within(text, nsSASL, "success")
	b, _ := base64.StdEncoding.DecodeString(answer)
	return n.x.CheckToken(string(b), n.r)
}

func xmppObey(f *farMail, text string) error {
	switch name := elementName(text); name {
	case "?xml":
		return nil
	case "stream:stream":
		return f.sayXML(xmppStream(text), xmppOffers(f))
	case "/stream:stream":
		f.sayXML(streamEnd)
		return errBye
	case "starttls":
		if f.inTLS {
			return errXMPP
		}
		return f.secure(f.sayXML, proceed)
	case "auth":
		return xmppAuth(f, text)
	case "iq", "message", "presence":
		if f.proven {
			return xmppStanza(f, name, text)
		}
	}
	return errXMPP
}

var errXMPP = fmt.Errorf("an element that does not belong here: %w", ErrForeign)

// xmppStream answers a stream header with one of the far end's own.
func xmppStream(header string) string {
	id := make([]byte, 8)
	rand.Read(id) // never fails
	from := mailDomain
	if to := attribute(header, "to"); to != "" && len(to) <= 253 {
		from = to
	}
	return `<stream:stream from="` + escaped(from) + `" id="` + hex.EncodeToString(id) + `" version="1.0" ` + streamStart
}

func xmppOffers(f *farMail) string {
	switch {
	case f.proven:
		return offersBind
	case f.inTLS:
		return offersLogin
	}
	return offersTLS
}

func xmppAuth(f *farMail, text string) error {
	if !f.inTLS {
		return f.sayXML(`<failure xmlns="` + nsSASL + `"><encryption-required/></failure>`)
	}
	if attribute(text, "mechanism") != "PLAIN" {
		return f.sayXML(`<failure xmlns="` + nsSASL + `"><invalid-mechanism/></failure>`)
	}
	response, _ := within(text, nsSASL, "auth")
	answer, ok := f.login(plainCredentials(response))
	if !ok {
		return f.unwelcome(f.sayXML(noLogin))
	}
	return f.welcome(f.sayXML(`<success xmlns="` + nsSASL + `">` + base64.StdEncoding.EncodeToString([]byte(answer)) + `</success>`))
}

// xmppStanza gives a client that has logged in a name of its own (RFC 6120
// section 7), and otherwise says that there is nothing here.
func xmppStanza(f *farMail, name, text string) error {
	if name != "iq" {
		return nil
	}
	id := escaped(attribute(text, "id"))
	if _, bind := within(text, "urn:ietf:params:xml:ns:xmpp-bind", "bind"); bind {
		return f.sayXML(`<iq type="result" id="` + id + `"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><jid>you@` + mailDomain + `/1</jid></bind></iq>`)
	}
	return f.sayXML(`<iq type="error" id="` + id + `"><error type="cancel"><service-unavailable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>`)
}

// maxElement bounds one element, in bytes, and maxDepth how deep its tags are
// nested.
const (
	maxElement = 4096
	maxDepth   = 8
)

var (
	errElement = mailError("an element of more than 4096 bytes or 8 levels")
	errXML     = fmt.Errorf("not XML as XMPP restricts it: %w", ErrForeign)
)

// readElement reads one element as it is written. The tag that begins a stream
// and the one that ends it stand alone, as does an XML declaration. Space before
// it is kept out. Comments, entities' declarations and processing instructions
// are not XMPP (RFC 6120 section 11.1). What was read of a broken one is given.
func readElement(r io.ByteReader) (string, error) {
	var b strings.Builder
	var open []string // names of the tags that are open
	for {
		began := b.Len()
		if err := readTag(r, &b, len(open) > 0); err != nil {
			return b.String(), err
		}
		tag := b.String()[began:]
		tag = tag[strings.IndexByte(tag, '<'):]
		name := elementName(tag)
		switch {
		case name == "" || name[0] == '!' || name[0] == '?' && (name != "?xml" || len(open) > 0):
			return b.String(), errXML
		case name == "?xml" || len(open) == 0 && (name == "stream:stream" || name == "/stream:stream"):
			return b.String(), nil
		case name[0] == '/':
			if len(open) == 0 || open[len(open)-1] != name[1:] {
				return b.String(), errXML
			}
			open = open[:len(open)-1]
		case !strings.HasSuffix(tag, "/>"):
			open = append(open, name)
		}
		switch {
		case len(open) == 0:
			return b.String(), nil
		case len(open) > maxDepth:
			return b.String(), errElement
		}
	}
}

// readTag reads up to the end of a tag; text before it is allowed inside of an
// element alone.
func readTag(r io.ByteReader, b *strings.Builder, inside bool) error {
	quote, tag := byte(0), false
	for {
		c, err := r.ReadByte()
		if err != nil {
			return err
		}
		space := c == ' ' || c == '\t' || c == '\r' || c == '\n'
		if space && !tag && !inside {
			continue // keep-alives (RFC 6120 section 4.6.1)
		}
		if b.Len() >= maxElement {
			return errElement
		}
		b.WriteByte(c)
		switch {
		case c < ' ' && !space || !tag && !inside && c != '<':
			return errXML
		case !tag:
			tag = c == '<'
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '<':
			return errXML
		case c == '>':
			return nil
		}
	}
}

// elementName is the name in the tag that a text begins with, as it is written.
func elementName(text string) string {
	name := strings.TrimPrefix(text, "<")
	if i := strings.IndexAny(name[min(1, len(name)):], " \t\r\n/>"); i >= 0 {
		name = name[:i+1]
	}
	return name
}

// attribute gives an attribute of the first tag, without its entities. A text
// that is no XML has none.
func attribute(text, name string) string {
	t, err := xml.NewDecoder(strings.NewReader(text)).Token()
	start, ok := t.(xml.StartElement)
	if err != nil || !ok {
		return ""
	}
	for _, a := range start.Attr {
		if a.Name.Local == name && a.Name.Space == "" {
			return a.Value
		}
	}
	return ""
}

// within finds an element of a name space and gives the text in it. text is
// bounded already.
func within(text, space, name string) (content string, ok bool) {
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		t, err := d.Token()
		if err != nil {
			return "", false
		}
		if start, is := t.(xml.StartElement); is && start.Name.Local == name && start.Name.Space == space {
			var inner struct {
				Text string `xml:",chardata"`
			}
			if err := d.DecodeElement(&inner, &start); err != nil && !errors.Is(err, io.EOF) {
				return "", false
			}
			return strings.TrimSpace(inner.Text), true
		}
	}
}
