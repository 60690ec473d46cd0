package protocol

import (
	"fmt"
	"strings"
)

// IMAP (RFC 9051 and, as spoken, RFC 3501), with TLS from the start on port 993
// (RFC 8314) and with STARTTLS on 143.
var (
	imaps = &Protocol{
		Doc:    "TLS for the path's name; inside IMAP: greeting, CAPABILITY, LOGIN with the token as the name, then wallprobe's own data",
		Greets: true, Inside: true, Means: meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: imapDialect.probe(true), Serve: imapDialect.serve(true)},
	}
	imap = &Protocol{
		Doc:    "IMAP: greeting, CAPABILITY, STARTTLS, TLS for the path's name, CAPABILITY, LOGIN with the token as the name, then wallprobe's own data",
		Greets: true, Means: meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: imapDialect.probe(false), Serve: imapDialect.serve(false)},
	}
)

var imapDialect = &mailDialect{
	greeting: func(n *nearMail) error { _, err := n.wants("* OK"); return err },
	starttls: imapSTARTTLS,
	login:    imapLogin,
	leave:    func(n *nearMail) error { _, _, err := n.imapAsk("LOGOUT"); return err },
	greet:    func(f *farMail) error { return f.say("* OK [CAPABILITY " + imapCan(f) + "] wallprobe is ready") },
	next:     (*farMail).line,
	obey:     imapObey,
	bye:      func(f *farMail, reason string) error { return f.say("* BYE " + reason) },
}

// imapAsk sends a command and hears its answer, whose last line has the
// command's tag; the others are gathered.
func (n *nearMail) imapAsk(command string) (untagged []string, last string, err error) {
	n.tag++
	tag := fmt.Sprintf("a%d ", n.tag)
	if err := n.say(tag + command); err != nil {
		return nil, "", err
	}
	for range maxReplyLines {
		line, err := n.hear()
		switch {
		case err != nil:
			return untagged, line, err
		case strings.HasPrefix(line, "* "):
			untagged = append(untagged, line)
		case strings.HasPrefix(line, tag+"OK"):
			return untagged, line, nil
		default:
			return untagged, line, foreign(tag+"OK", line)
		}
	}
	return untagged, "", errManyLines
}

func imapSTARTTLS(n *nearMail) error {
	can, _, err := n.imapAsk("CAPABILITY")
	if err != nil {
		return err
	}
	offered := strings.Contains(strings.ToUpper(strings.Join(can, " ")+" "), " STARTTLS ")
	_, answer, err := n.imapAsk("STARTTLS")
	if !offered {
		return notOffered("STARTTLS", answer, err)
	}
	return err
}

func imapLogin(n *nearMail) error {
	if _, _, err := n.imapAsk("CAPABILITY"); err != nil {
		return err
	}
	n.tag++
	tag := fmt.Sprintf("a%d ", n.tag)
	return n.ask(tag+"LOGIN "+n.x.Token()+" "+mailPassword, func() (string, error) { return n.wants(tag + "OK") })
}

// imapCan is what the far end can at this point.
func imapCan(f *farMail) string {
	switch {
	case f.proven:
		return "IMAP4rev1"
	case f.inTLS:
		return "IMAP4rev1 SASL-IR AUTH=PLAIN"
	}
	return "IMAP4rev1 STARTTLS LOGINDISABLED"
}

func imapObey(f *farMail, line string) error {
	tag, rest, _ := strings.Cut(line, " ")
	if tag == "" || strings.ContainsAny(tag, `*+(){}"\%`) {
		return f.say("* BAD a command begins with a tag")
	}
	command, rest := verb(rest)
	switch command {
	case "CAPABILITY":
		return f.say("* CAPABILITY "+imapCan(f), tag+" OK that is all")
	case "NOOP":
		return f.say(tag + " OK nothing done")
	case "LOGOUT":
		f.say("* BYE goodbye", tag+" OK")
		return errBye
	case "STARTTLS":
		if f.inTLS {
			return f.say(tag + " BAD TLS is there already")
		}
		return f.secure(f.say, tag+" OK ready for TLS")
	case "LOGIN", "AUTHENTICATE":
		return imapAuth(f, tag, command, rest)
	case "ID":
		return f.say(`* ID ("name" "wallprobe")`, tag+" OK")
	case "LIST", "LSUB", "STATUS", "SELECT", "EXAMINE", "CLOSE", "UNSELECT", "FETCH", "UID", "SEARCH", "CHECK", "EXPUNGE":
		if !f.proven {
			return f.say(tag + " NO log in first")
		}
		return imapMailbox(f, tag, command, strings.ToUpper(rest))
	}
	return f.say(tag + " BAD no such command here")
}

// imapAuth does LOGIN and AUTHENTICATE PLAIN with or without an initial
// response (RFC 4959). A name as a literal is not taken: tokens need none.
func imapAuth(f *farMail, tag, command, rest string) error {
	if !f.inTLS {
		return f.say(tag + " NO [PRIVACYREQUIRED] use STARTTLS first")
	}
	credentials := rest
	if command == "AUTHENTICATE" {
		mechanism, response := verb(rest)
		if mechanism != "PLAIN" {
			return f.say(tag + " NO PLAIN is known here")
		}
		if response == "" {
			var err error
			if response, err = f.challenge("+ "); err != nil {
				return err
			}
		}
		credentials = plainCredentials(response)
	}
	answer, ok := f.login(credentials)
	if !ok {
		return f.unwelcome(f.say(tag + " NO [AUTHENTICATIONFAILED] this name and password are not known here"))
	}
	return f.welcome(f.say(tag + " OK " + answer))
}

// imapMailbox shows an INBOX that holds one message and cannot be changed.
func imapMailbox(f *farMail, tag, command, rest string) error {
	switch command {
	case "LIST", "LSUB":
		return f.say("* "+command+` () "/" INBOX`, tag+" OK that is all")
	case "STATUS":
		return f.say("* STATUS INBOX (MESSAGES 1 RECENT 0 UIDNEXT 2 UIDVALIDITY 1 UNSEEN 0)", tag+" OK")
	case "SELECT", "EXAMINE":
		if strings.Trim(strings.Fields(rest + " -")[0], `"`) != "INBOX" {
			return f.say(tag + " NO there is the INBOX alone")
		}
		f.selected = true
		return f.say("* 1 EXISTS", "* 0 RECENT", `* FLAGS (\Seen)`, "* OK [PERMANENTFLAGS ()] nothing can be changed",
			"* OK [UIDVALIDITY 1] valid", "* OK [UIDNEXT 2] next", tag+" OK [READ-ONLY] one message")
	}
	if !f.selected {
		return f.say(tag + " BAD select the INBOX first")
	}
	byUID := false
	if command == "UID" {
		byUID = true
		command, rest = verb(rest)
	}
	switch command {
	case "CLOSE", "UNSELECT":
		f.selected = false
		return f.say(tag + " OK")
	case "SEARCH":
		return f.say("* SEARCH 1", tag+" OK that is all")
	case "FETCH":
		return imapFetch(f, tag, rest, byUID)
	}
	return f.say(tag + " OK nothing to be done")
}

// imapFetch gives what is asked for of the one message.
func imapFetch(f *farMail, tag, rest string, byUID bool) error {
	set, items, _ := strings.Cut(rest, " ")
	if first, _, _ := strings.Cut(set, ":"); first != "1" && first != "*" {
		return f.say(tag + " OK there is no such message")
	}
	var out []string
	if byUID || strings.Contains(items, "UID") {
		out = append(out, "UID 1")
	}
	if strings.Contains(items, "FLAGS") || strings.Contains(items, "FAST") {
		out = append(out, `FLAGS (\Seen)`)
	}
	if strings.Contains(items, "RFC822.SIZE") || strings.Contains(items, "FAST") {
		out = append(out, fmt.Sprintf("RFC822.SIZE %d", len(onlyMail)))
	}
	header, _, _ := strings.Cut(onlyMail, "\r\n\r\n")
	switch {
	case strings.Contains(items, "BODY[]"), strings.Contains(items, "BODY.PEEK[]"):
		out = append(out, fmt.Sprintf("BODY[] {%d}\r\n%s", len(onlyMail), onlyMail))
	case strings.Contains(items, "HEADER"):
		out = append(out, fmt.Sprintf("BODY[HEADER] {%d}\r\n%s", len(header)+4, header+"\r\n\r\n"))
	}
	return f.say("* 1 FETCH ("+strings.Join(out, " ")+")", tag+" OK that is all")
}
