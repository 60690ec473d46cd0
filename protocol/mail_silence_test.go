package protocol

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var mails = []string{"smtps", "submission", "imaps", "imap", "pop3s", "pop3", "xmpps", "xmpp"}

// All of a stage has one deadline, however the bytes and lines drip.
func TestDrippingAnswersAreBoundedByTheStage(t *testing.T) {
	for name, c := range map[string]struct {
		banner string
		drips  []string // one a second, the last again and again
		stage  string
	}{
		"submission": {"220 x\r\n", []string{"250-x\r\n"}, StageSTARTTLS},
		"imap":       {"* OK\r\n", []string{"* x\r\n"}, StageSTARTTLS},
		"pop3":       {"+OK\r\n+OK\r\n", []string{"x\r\n"}, StageSTARTTLS},
		"xmpp":       {xmppOpen, []string{offersTLS, " "}, StageSTARTTLS},
	} {
		inBubble(t, func(t *testing.T, near, far net.Conn) {
			var wg sync.WaitGroup
			defer wg.Wait()
			defer far.Close()
			wg.Go(func() { io.Copy(io.Discard, far) })
			wg.Go(func() {
				io.WriteString(far, c.banner)
				for i := range 20 {
					time.Sleep(time.Second)
					if _, err := io.WriteString(far, c.drips[min(i, len(c.drips)-1)]); err != nil {
						return
					}
				}
			})
			x := newFar().exchange()
			x.Stall = 5500 * time.Millisecond
			r := protocols[name].TCP.Probe(t.Context(), near, x)
			if (mailEnd{r.Stage, r.Fault}) != (mailEnd{c.stage, FaultTimeout}) || r.Took != x.Stall {
				t.Errorf("%s: %+v", name, r)
			}
			near.Close()
		})
	}
}

// One byte a second gains a peer one command's deadline; commands that keep
// coming gain it a minute in all.
func TestDrippingCommandsAreBounded(t *testing.T) {
	for name, command := range map[string]string{
		"submission": "NOOP\r\n", "smtps": "NOOP\r\n", "imap": "a NOOP\r\n", "imaps": "a NOOP\r\n", "pop3": "NOOP\r\n", "pop3s": "NOOP\r\n", "xmpp": xmppOpen, "xmpps": xmppOpen,
	} {
		for _, c := range []struct {
			every time.Duration
			piece string
			last  time.Duration
		}{{time.Second, strings.Repeat("A", 100), farStall}, {7 * time.Second, command, mailTime}} {
			if name[:4] == "xmpp" && c.every == time.Second {
				c.piece = "<" + c.piece
			}
			inBubble(t, func(t *testing.T, near, far net.Conn) {
				var wg sync.WaitGroup
				defer wg.Wait()
				defer near.Close()
				wg.Go(func() { io.Copy(io.Discard, near) })
				wg.Go(func() {
					if c.every == time.Second {
						trickle(near, []byte(c.piece))
						return
					}
					for range 20 {
						time.Sleep(c.every)
						if _, err := io.WriteString(near, c.piece); err != nil {
							return
						}
					}
				})
				began := time.Now()
				got := endOf(protocols[name].TCP.Serve(t.Context(), far, newFar()))
				if got.Fault != FaultTimeout || time.Since(began) != c.last {
					t.Errorf("%s: %+v after %v, want %v", name, got, time.Since(began), c.last)
				}
				far.Close()
			})
		}
	}
}

// The context may end between two deadlines.
func TestEndedContextIsNotOutlivedByANewDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, near, far net.Conn) {
		ctx, cancel := contextFor(t)
		cancel()
		m, stop := bind(ctx, near)
		defer stop()
		m.SetReadDeadline(time.Now().Add(time.Hour))
		m.SetWriteDeadline(time.Now().Add(time.Hour))
		m.SetDeadline(time.Now().Add(time.Hour))
		began := time.Now()
		_, rerr := m.Read(make([]byte, 1))
		_, werr := m.Write([]byte("x"))
		if faultOf(rerr) != FaultTimeout || faultOf(werr) != FaultTimeout || time.Since(began) != 0 {
			t.Errorf("%v, %v after %v", rerr, werr, time.Since(began))
		}
	})
}

// FuzzMailCommands lets the far ends hear anything, outside and inside of TLS.
func FuzzMailCommands(f *testing.F) {
	for _, seed := range []string{
		"EHLO x\r\nSTARTTLS\r\n", "AUTH PLAIN AGEAYg==\r\nQUIT\r\n", "AUTH LOGIN\r\nYQ==\r\nYg==\r\n", "MAIL FROM:<a@b>\r\nDATA\r\n.\r\n",
		"a LOGIN \"x\" {3}\r\nabc\r\n", "a AUTHENTICATE PLAIN\r\nAGEAYg==\r\n", "a SELECT INBOX\r\nb FETCH 1:* (UID BODY[])\r\nc UID\r\n", "* \r\n+\r\n",
		"USER x\r\nPASS y\r\nRETR 1\r\n", "CAPA\r\nSTLS\r\n", xmppOpen + startTLS, xmppOpen + `<auth mechanism="PLAIN">AGEAYg==</auth>`, string(alert),
		"TOKEN\r\n", "a LOGIN TOKEN x\r\nb SELECT INBOX\r\nc FETCH * (FLAGS)\r\n", "USER TOKEN\r\nPASS x\r\nTOP 1\r\nLIST 1\r\nUIDL\r\n",
	} {
		f.Add([]byte(seed))
	}
	far := newFar()
	x := far.exchange()
	token := x.Token()
	f.Fuzz(func(t *testing.T, b []byte) {
		text := strings.ReplaceAll(string(b), "TOKEN", token)
		for _, name := range mails {
			atOnce(t, func(t *testing.T) {
				c := said(t, []byte(text))
				events := protocols[name].TCP.Serve(t.Context(), c, far)
				c.Close()
				got := endOf(events)
				proven := len(events) == 1 && events[0].Answered
				if len(events) != 1 || got.Stage == "" || (got.Fault == "") != proven || len(events[0].Said.Heard) > 32 || len(events[0].Said.Sent) > 32 {
					t.Errorf("%s: %+v", name, events)
				}
			})
		}
	})
}

// FuzzMailAnswers lets the near ends hear anything.
func FuzzMailAnswers(f *testing.F) {
	for _, seed := range []string{
		"220 x\r\n250-x\r\n250 STARTTLS\r\n220 go\r\n", "220\r\n250\r\n220\r\n", "220-x\r\n220 y\r\n500\r\n", "* OK\r\n* CAPABILITY STARTTLS\r\na1 OK\r\na2 OK\r\n",
		"+OK\r\n+OK\r\nSTLS\r\n.\r\n+OK\r\n", xmppOpen + offersTLS + proceed, "<?xml?>", string(alert), "\x16\x03\x03\x00\x01\x02",
	} {
		f.Add([]byte(seed))
	}
	far := newFar()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range mails {
			atOnce(t, func(t *testing.T) {
				c := said(t, b)
				r := protocols[name].TCP.Probe(t.Context(), c, far.exchange())
				c.Close()
				if r.Stage == StageDone || r.Fault == "" || r.Err == nil || r.Stage == StageData || r.Stage == StageLogin {
					t.Errorf("%s: %+v", name, r)
				}
			})
		}
	})
}

// FuzzReadElement: what is read is what was written, within the bounds, and
// nothing behind it is touched.
func FuzzReadElement(f *testing.F) {
	for _, seed := range []string{xmppOpen + startTLS, "<a b='>'><c/>text</a>", "<?xml version='1.0'?>", " <a/> ", "<a>&lt;</a>", "</stream:stream>", "<!-- -->", "<a", "<a><b></a></b>",
		`<auth xmlns="` + nsSASL + `" mechanism="PLAIN">YQ==</auth>`, "<a\x00/>", "<<", "<>", "< >", "</>", "<a></a>", "<?xml?><?xml?>"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r := bufio.NewReader(strings.NewReader(in))
		text, err := readElement(r)
		if len(text) > maxElement || !strings.HasPrefix(strings.TrimLeft(in, " \t\r\n"), text) {
			t.Fatalf("%q was read from %q", text, in)
		}
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)
		if !strings.HasSuffix(in, text+string(rest)) {
			t.Fatalf("%q and %q were read from %q", text, rest, in)
		}
		again, err := readElement(strings.NewReader(text))
		if again != text || err != nil {
			t.Fatalf("%q became %q, %v", text, again, err)
		}
		attribute(text, "to")
		if _, ok := within(text, nsSASL, "auth"); ok && !strings.Contains(text, "auth") {
			t.Fatalf("%q", text)
		}
	})
}

func TestElementsAreReadAsTheyAreWritten(t *testing.T) {
	for in, want := range map[string]struct {
		Text string
		Err  error
	}{
		" \r\n<a b='>\"' c=\">'\"/>x":             {`<a b='>"' c=">'"/>`, nil},
		"<a><b/>text</c></a><d/>":                 {"<a><b/>text</c>", errXML},
		"<a><b/>text<c></c></a><d/>":              {"<a><b/>text<c></c></a>", nil},
		xmppOpen + "<a/>":                         {xmppOpen, nil},
		"<stream:features><a/></stream:features>": {"<stream:features><a/></stream:features>", nil},
		"<a><stream:stream/></a>":                 {"<a><stream:stream/></a>", nil},
		"<a/":                                     {"<a/", io.EOF},
		strings.Repeat("<a>", 9) + "x":            {strings.Repeat("<a>", 9), errElement},
		"text":                                    {"t", errXML},
		"</a>":                                    {"</a>", errXML},
		"<a><?xml?></a>":                          {"<a><?xml?>", errXML},
	} {
		text, err := readElement(strings.NewReader(in))
		if diff := cmp.Diff(want.Text, text); diff != "" || err != want.Err {
			t.Errorf("%q: %q, %v, want %v", in, text, err, want.Err)
		}
	}
}
