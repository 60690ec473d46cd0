package protocol

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// SMTP (RFC 5321), as mail programs hand in mail (RFC 6409): with TLS from the
// start on port 465 (RFC 8314), with STARTTLS (RFC 3207) on 587 and 25.
var (
	smtps = &Protocol{
		Doc:    "TLS for the path's name; inside SMTP: greeting, EHLO, AUTH PLAIN with the token as the name, then wallprobe's own data",
		Greets: true, Inside: true, Means: meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: smtpDialect.probe(true), Serve: smtpDialect.serve(true)},
	}
	submission = &Protocol{
		Doc:    "SMTP: greeting, EHLO, STARTTLS, TLS for the path's name, EHLO, AUTH PLAIN with the token as the name, then wallprobe's own data",
		Greets: true, Means: meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: smtpDialect.probe(false), Serve: smtpDialect.serve(false)},
	}
)

var smtpDialect = &mailDialect{
	greeting: func(n *nearMail) error { _, err := n.smtpReply("220"); return err },
	starttls: smtpSTARTTLS,
	login:    smtpLogin,
	leave: func(n *nearMail) error {
		if err := n.say("QUIT"); err != nil {
			return err
		}
		_, err := n.smtpReply("221")
		return err
	},
	greet: func(f *farMail) error { return f.say("220 " + mailDomain + " ESMTP wallprobe") },
	next:  (*farMail).line,
	obey:  smtpObey,
	bye:   func(f *farMail, reason string) error { return f.say("421 4.7.0 " + reason) },
}

// smtpReply hears an answer that has to have the code. All its lines but the
// last have "-" behind it (RFC 5321 section 4.2.1).
func (n *nearMail) smtpReply(code string) (lines []string, err error) {
	for range maxReplyLines {
		line, err := n.wants(code)
		if err != nil {
			return append(lines, line), err
		}
		lines = append(lines, line)
		switch rest := line[len(code):]; {
		case rest == "" || rest[0] == ' ':
			return lines, nil
		case rest[0] != '-':
			return lines, foreign(code, line)
		}
	}
	return lines, errManyLines
}

// ehlo says who calls and hears what the far end can. A client without a name
// gives its address (RFC 5321 section 4.1.4).
func (n *nearMail) ehlo() ([]string, error) {
	if err := n.say("EHLO " + addressLiteral(AddrPort(n.LocalAddr()).Addr())); err != nil {
		return nil, err
	}
	return n.smtpReply("250")
}

func addressLiteral(a netip.Addr) string {
	switch {
	case a.Is4():
		return fmt.Sprintf("[%s]", a)
	case a.Is6():
		return fmt.Sprintf("[IPv6:%s]", a.WithZone(""))
	}
	return mailDomain
}

func smtpSTARTTLS(n *nearMail) error {
	can, err := n.ehlo()
	if err != nil {
		return err
	}
	offered := slices.ContainsFunc(can, func(line string) bool { return strings.EqualFold(line[min(4, len(line)):], "STARTTLS") })
	if err := n.say("STARTTLS"); err != nil {
		return err
	}
	answer, err := n.smtpReply("220")
	if !offered {
		return notOffered("STARTTLS", strings.Join(answer, " "), err)
	}
	return err
}

func smtpLogin(n *nearMail) error {
	if _, err := n.ehlo(); err != nil {
		return err
	}
	return n.ask("AUTH PLAIN "+n.plainLogin(), func() (string, error) {
		lines, err := n.smtpReply("235")
		return strings.Join(lines, " "), err
	})
}

// verb splits a command from what follows it.
func verb(line string) (command, rest string) {
	command, rest, _ = strings.Cut(strings.TrimSpace(line), " ")
	return strings.ToUpper(command), strings.TrimSpace(rest)
}

func smtpObey(f *farMail, line string) error {
	switch command, rest := verb(line); command {
	case "EHLO":
		return f.say(smtpCan(f)...)
	case "HELO":
		return f.say("250 " + mailDomain)
	case "STARTTLS":
		if f.inTLS {
			return f.say("503 5.5.1 TLS is there already")
		}
		return f.secure(f.say, "220 2.0.0 ready for TLS")
	case "AUTH":
		return smtpAuth(f, rest)
	case "MAIL", "RCPT", "DATA":
		return smtpMail(f, command)
	case "NOOP", "RSET":
		return f.say("250 2.0.0 ok")
	case "VRFY":
		return f.say("252 2.5.0 try to send something")
	case "HELP":
		return f.say("214 2.0.0 EHLO STARTTLS AUTH MAIL RCPT DATA RSET NOOP QUIT")
	case "QUIT":
		f.say("221 2.0.0 goodbye")
		return errBye
	}
	return f.say("500 5.5.1 no such command here")
}

// smtpCan is the answer to EHLO.
func smtpCan(f *farMail) []string {
	can := "250-STARTTLS"
	if f.inTLS {
		can = "250-AUTH PLAIN LOGIN"
	}
	return []string{"250-" + mailDomain, fmt.Sprintf("250-SIZE %d", maxMail), can, "250-ENHANCEDSTATUSCODES", "250 8BITMIME"}
}

// smtpAuth does PLAIN with or without an initial response, and LOGIN (RFC 4954).
func smtpAuth(f *farMail, rest string) error {
	if !f.inTLS {
		return f.say("538 5.7.11 use STARTTLS first")
	}
	mechanism, response := verb(rest)
	var credentials string
	switch mechanism {
	case "PLAIN":
		if response == "" {
			var err error
			if response, err = f.challenge("334 "); err != nil {
				return err
			}
		}
		credentials = plainCredentials(response)
	case "LOGIN":
		for i, prompt := range []string{"334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"} { // "Username:", "Password:"
			if i > 0 || response == "" {
				var err error
				if response, err = f.challenge(prompt); err != nil {
					return err
				}
			}
			word, _ := base64.StdEncoding.DecodeString(response)
			credentials += string(word) + " "
		}
	default:
		return f.say("504 5.5.4 PLAIN and LOGIN are known here")
	}
	answer, ok := f.login(credentials)
	if !ok {
		return f.unwelcome(f.say("535 5.7.8 this name and password are not known here"))
	}
	return f.welcome(f.say("235 2.7.0 " + answer))
}

// challenge asks for one more line of a login.
func (f *farMail) challenge(prompt string) (string, error) {
	if err := f.say(prompt); err != nil {
		return "", err
	}
	return f.line()
}

// smtpMail takes a message of who has logged in, and throws it away.
func smtpMail(f *farMail, command string) error {
	switch {
	case !f.inTLS:
		return f.say("530 5.7.0 use STARTTLS first")
	case !f.proven:
		return f.say("530 5.7.0 log in first")
	case command != "DATA":
		return f.say("250 2.1.0 ok")
	}
	if err := f.say("354 send it; a dot ends it, and then it is thrown away"); err != nil {
		return err
	}
	for size := 0; size <= maxMail; {
		line, err := f.line()
		if err != nil {
			return err
		}
		if line == "." {
			return f.say("250 2.0.0 thrown away")
		}
		size += len(line) + 2
	}
	return errTooLarge
}

// meansSTARTTLS says what it means to mail and XMPP when a line about TLS is changed.
func meansSTARTTLS(sent, heard string) string {
	for _, line := range []string{sent, heard} {
		if strings.Contains(line, "TLS") || strings.Contains(line, "starttls") {
			return "somebody between keeps the connection from going on in TLS, so programs give up or send passwords in clear"
		}
	}
	return ""
}
