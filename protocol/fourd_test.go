package protocol

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// What is spoken depends on the port: one path names all three.
func TestFourDSpeaksSQLOnItsPortAndFramesOnTheOthers(t *testing.T) {
	for _, p := range []spoken{{name: "4d", Protocol: fourD}, {name: "4d-tls", Protocol: fourDTLS}} {
		for port, sql := range map[uint16]bool{19812: true, 19813: false, 19814: false} {
			f := newFar()
			x := f.exchange()
			x.Port, x.Bytes = port, 5000
			got, base, events := play(t, loopback, p, f, x, box{})
			checkWhole(t, f, x, base, got, events)
			if (got.Said != nil) != sql {
				t.Errorf("%s on %d: said %+v", p, port, got.Said)
			}
		}
	}
}

func TestFourDLoginIsWhatDriversSend(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.Port = 19812
	var sent bytes.Buffer
	got, _, _ := play(t, loopback, spoken{name: "4d", Protocol: fourD}, f, x, box{up: func(_ int64, b []byte) ([]byte, bool) { sent.Write(b); return b, true }})
	want := fmt.Sprintf("001 LOGIN\r\nUSER-NAME-BASE64:%s\r\nUSER-PASSWORD-BASE64:\r\nREPLY-WITH-BASE64-TEXT:Y\r\nPROTOCOL-VERSION:0.1a\r\n\r\n",
		base64.StdEncoding.EncodeToString([]byte(x.Token())))
	if diff := cmp.Diff(want, sent.String()); diff != "" || got.Stage != StageDone {
		t.Errorf("%s (-want +got):\n%s", got.Stage, diff)
	}
}

func TestFourDFarEndTellsWhatStrangersSend(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	login := func(user string) string {
		return "001 LOGIN\r\nuser-name-base64 : " + base64.StdEncoding.EncodeToString([]byte(user)) + "\r\n\r\n"
	}
	for name, c := range map[string]struct {
		send, fault string
		refused     bool
	}{
		"half a line":         {"001 LOG", FaultEOF, false},
		"a line without end":  {"001 " + strings.Repeat("A", 1<<16), errLongLine.Error(), false},
		"no blank line":       {"001 LOGIN\r\nA:B\r\n", FaultEOF, false},
		"lines without end":   {"001 LOGIN\r\n" + strings.Repeat("A:B\r\n", 1000), errTooMany4D.Error(), false},
		"a line of no header": {"001 LOGIN\r\nrubbish\r\n\r\n", FaultForeign, false},
		"another command":     {"001 QUIT\r\n\r\n", FaultForeign, false},
		"no user":             {"001 LOGIN\r\n\r\n", FaultForeign, true},
		"a user in clear":     {"001 LOGIN\r\nUSER-NAME-BASE64:???\r\n\r\n", FaultAltered, true},
		"a user":              {login("designer"), FaultForeign, true},
		"another key's token": {login(other.exchange().Token()), FaultAltered, true},
	} {
		near, far := pair(t)
		heard := make(chan []byte, 1)
		go func() {
			io.WriteString(near, c.send)
			near.CloseWrite()
			b, _ := io.ReadAll(near)
			heard <- b
		}()
		events := serve4D(t.Context(), far, f)
		far.Close()
		if len(events) != 1 || events[0].Stage != StageLogin || events[0].Fault != c.fault || events[0].Answered {
			t.Errorf("%s: %+v", name, events)
		}
		if b := <-heard; bytes.HasPrefix(b, []byte("001 ERROR\r\nError-Code:")) != c.refused {
			t.Errorf("%s: answered with %q", name, b)
		}
	}
}

func TestFourDNearEndTellsWhatStrangersAnswer(t *testing.T) {
	f := newFar()
	m := f.exchange().message(wire.Reply)
	for name, c := range map[string]struct{ answer, fault string }{
		"nothing":           {"", FaultEOF},
		"a refusal":         {"001 ERROR\r\nError-Code:1108\r\nError-Description:no\r\n\r\n", FaultForeign},
		"a bare welcome":    {"001 OK\r\n\r\n", FaultForeign},
		"its own token":     {"001 OK\r\nSession:" + f.exchange().Token() + "\r\n\r\n", FaultForeign},
		"a changed token":   {"001 OK\r\nSession:" + strings.Replace(textOf(&m, &f.keys), "AAA", "AAB", 1) + "\r\n\r\n", FaultAltered},
		"lines without end": {"001 OK\r\n" + strings.Repeat("A:B\r\n", 1000), errTooMany4D.Error()},
		"a banner":          {"220 mail.example ESMTP\r\n", FaultEOF},
	} {
		near, far := pair(t)
		go func() {
			io.WriteString(far, c.answer)
			far.CloseWrite()
			io.Copy(io.Discard, far)
		}()
		x := f.exchange()
		x.Port = 19812
		got := probe4D(t.Context(), near, x)
		near.Close()
		if got.Stage != StageLogin || got.Fault != c.fault {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func Fuzz4DFarEnd(f *testing.F) {
	far := newFar()
	token := base64.StdEncoding.EncodeToString([]byte(far.exchange().Token()))
	f.Add([]byte("001 LOGIN\r\nUSER-NAME-BASE64:" + token + "\r\n\r\n"))
	f.Add([]byte("001 LOGIN \r\nuser-name-base64 : " + token + "\r\nX:\r\n\r\n"))
	f.Add(fourDFrame.up)
	f.Fuzz(func(t *testing.T, b []byte) { heardByFarEnd(t, fourD, far, b) })
}
