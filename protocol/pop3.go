package protocol

import (
	"fmt"
	"slices"
	"strings"
)

// POP3 (RFC 1939, CAPA of RFC 2449), with TLS from the start on port 995 (RFC
// 8314) and with STLS (RFC 2595) on 110.
var (
	pop3s = &Protocol{
		Doc:    "TLS for the path's name; inside POP3: greeting, USER with the token, PASS, then wallprobe's own data",
		Greets: true, Inside: true, Means: meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: pop3Dialect.probe(true), Serve: pop3Dialect.serve(true)},
	}
	pop3 = &Protocol{
		Doc:    "POP3: greeting, CAPA, STLS, TLS for the path's name, USER with the token, PASS, then wallprobe's own data",
		Greets: true, Means: meansSTARTTLS, Patience: mailTimeIn,
		TCP: &Ends{Probe: pop3Dialect.probe(false), Serve: pop3Dialect.serve(false)},
	}
)

var pop3Dialect = &mailDialect{
	greeting: func(n *nearMail) error { _, err := n.wants("+OK"); return err },
	starttls: pop3STLS,
	login:    pop3Login,
	leave: func(n *nearMail) error {
		if err := n.say("QUIT"); err != nil {
			return err
		}
		_, err := n.wants("+OK")
		return err
	},
	greet: func(f *farMail) error { return f.say("+OK wallprobe is ready") },
	next:  (*farMail).line,
	obey:  pop3Obey,
	bye:   func(f *farMail, reason string) error { return f.say("-ERR " + reason) },
}

func pop3STLS(n *nearMail) error {
	if err := n.say("CAPA"); err != nil {
		return err
	}
	if _, err := n.wants("+OK"); err != nil {
		return err
	}
	var can []string
	for i := 0; ; i++ {
		line, err := n.hear()
		if err == nil && i == maxReplyLines {
			err = errManyLines
		}
		if err != nil {
			return err
		}
		if line == "." {
			break
		}
		can = append(can, strings.ToUpper(line))
	}
	if err := n.say("STLS"); err != nil {
		return err
	}
	answer, err := n.wants("+OK")
	if !slices.Contains(can, "STLS") {
		return notOffered("STLS", answer, err)
	}
	return err
}

func pop3Login(n *nearMail) error {
	if err := n.say("USER " + n.x.Token()); err != nil {
		return err
	}
	if _, err := n.wants("+OK"); err != nil {
		return err
	}
	return n.ask("PASS "+mailPassword, func() (string, error) { return n.wants("+OK") })
}

func pop3Obey(f *farMail, line string) error {
	command, rest := verb(line)
	switch command {
	case "CAPA":
		can := "STLS"
		if f.inTLS {
			can = "USER"
		}
		return f.say("+OK that is", can, "TOP", "UIDL", "RESP-CODES", ".")
	case "STLS":
		if f.inTLS {
			return f.say("-ERR TLS is there already")
		}
		return f.secure(f.say, "+OK ready for TLS")
	case "USER":
		if !f.inTLS {
			return f.say("-ERR use STLS first")
		}
		f.user = rest
		return f.say("+OK and the password")
	case "PASS":
		return pop3Pass(f, rest)
	case "NOOP", "RSET":
		return f.say("+OK")
	case "QUIT":
		f.say("+OK goodbye")
		return errBye
	case "STAT", "LIST", "UIDL", "RETR", "TOP", "DELE":
		if !f.proven {
			return f.say("-ERR log in first")
		}
		return pop3Mailbox(f, command, rest)
	}
	return f.say("-ERR no such command here")
}

func pop3Pass(f *farMail, password string) error {
	if f.user == "" {
		return f.say("-ERR the name comes first")
	}
	answer, ok := f.login(f.user + " " + password)
	f.user = ""
	if !ok {
		return f.unwelcome(f.say("-ERR [AUTH] this name and password are not known here"))
	}
	return f.welcome(f.say("+OK " + answer))
}

// pop3Mailbox shows a maildrop that holds one message and cannot be changed.
func pop3Mailbox(f *farMail, command, rest string) error {
	number, _, _ := strings.Cut(rest, " ")
	if number != "1" && command != "STAT" && (number != "" || command != "LIST" && command != "UIDL") {
		return f.say("-ERR there is no such message")
	}
	switch command {
	case "STAT":
		return f.say(fmt.Sprintf("+OK 1 %d", len(onlyMail)))
	case "DELE":
		return f.say("-ERR nothing can be changed here")
	case "RETR", "TOP":
		return f.say(slices.Concat([]string{"+OK here it is"}, strings.Split(strings.TrimSuffix(onlyMail, "\r\n"), "\r\n"), []string{"."})...)
	}
	what := fmt.Sprint(len(onlyMail))
	if command == "UIDL" {
		what = "only"
	}
	if number != "" {
		return f.say("+OK 1 " + what)
	}
	return f.say("+OK one message", "1 "+what, ".")
}
