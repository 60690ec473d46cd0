package protocol

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/wallprobe/wallprobe/wire"
)

// The bytes that Chromium's mcs.proto gives for a login.
func TestMCSLoginHasItsTokenInTheFifthField(t *testing.T) {
	p := appendText(appendText(nil, fieldID, "a"), fieldAuthToken, "token")
	p = appendNumber(p, fieldRMQ2, 1)
	p = appendNumber(p, fieldService, 2)
	got := hex.EncodeToString(appendMCS([]byte{mcsVersion}, mcsLoginRequest, p))
	if want := "2902" + "0f" + "0a0161" + "2a05746f6b656e" + "7001" + "800102"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestProtobufThatIsNoneIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		b    string // hexadecimal
		want string
		err  error
	}{
		"nothing":                     {"", "", nil},
		"another field":               {"0a0161", "", nil},
		"the field":                   {"2a0161", "a", nil},
		"the field twice":             {"2a01612a0162", "b", nil},
		"after fixed fields":          {"09" + strings.Repeat("00", 8) + "0d" + "00000000" + "2a0161", "a", nil},
		"a key without an end":        {"80", "", errProtobuf},
		"an endless key":              {strings.Repeat("ff", 11), "", errProtobuf},
		"field 0":                     {"020161", "", errProtobuf},
		"a length beyond the end":     {"2a0261", "", errProtobuf},
		"an endless length":           {"2a" + strings.Repeat("ff", 9) + "01", "", errProtobuf},
		"a fixed field that is cut":   {"0900", "", errProtobuf},
		"a number without an end":     {"7080", "", errProtobuf},
		"a group":                     {"0b", "", errProtobuf},
		"the token before what is no": {"2a01617080", "", errProtobuf},
	} {
		b, err := hex.DecodeString(c.b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := textField(b, fieldAuthToken)
		if !errors.Is(err, c.err) || got != c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestMCSFarEndTellsWhatStrangersSend(t *testing.T) {
	f, other := newFar(), newFar()
	other.keys = wire.Derive(wire.Key{9}, f.keys.ID, wire.Nonce{})
	login := func(f *testFar) []byte {
		return appendMCS([]byte{mcsVersion}, mcsLoginRequest, appendText(nil, fieldAuthToken, f.exchange().Token()))
	}
	for name, c := range map[string]struct {
		send         []byte
		stage, fault string
	}{
		"nothing":                {nil, StageLogin, FaultEOF},
		"the version alone":      {[]byte{mcsVersion}, StageLogin, FaultEOF},
		"another version":        {append([]byte{38}, login(f)[1:]...), StageLogin, FaultForeign},
		"a heartbeat":            {[]byte{mcsVersion, mcsHeartbeatPing, 0}, StageLogin, FaultForeign},
		"an endless length":      {append([]byte{mcsVersion, mcsLoginRequest}, bytes.Repeat([]byte{0x80}, 100)...), StageLogin, FaultForeign},
		"a message too long":     {[]byte{mcsVersion, mcsLoginRequest, 0x81, 0x20}, StageLogin, FaultForeign},
		"half a login":           {login(f)[:60], StageLogin, FaultEOF},
		"a login without token":  {appendMCS([]byte{mcsVersion}, mcsLoginRequest, nil), StageLogin, FaultForeign},
		"another key's token":    {login(other), StageLogin, FaultAltered},
		"a token, then nothing":  {login(f), StageToken, FaultEOF},
		"a token, then no pulse": {append(login(f), 8, 0), StageToken, FaultForeign},
	} {
		_, events := say(t, mcs, f, c.send)
		if len(events) != 1 || events[0].Stage != c.stage || events[0].Fault != c.fault || events[0].Answered != (c.stage == StageToken) {
			t.Errorf("%s: %+v", name, events)
		}
	}
}

func TestMCSNearEndTellsWhatStrangersAnswer(t *testing.T) {
	f := newFar()
	welcome := func(text string) []byte {
		return appendMCS([]byte{mcsVersion}, mcsLoginResponse, appendText(nil, fieldJID, text))
	}
	m := f.exchange().message(wire.Reply)
	for name, c := range map[string]struct {
		answer       []byte
		stage, fault string
	}{
		"nothing":                   {nil, StageLogin, FaultEOF},
		"a refusal":                 {appendMCS([]byte{mcsVersion}, 4, nil), StageLogin, FaultForeign},
		"a welcome without a token": {welcome("user@example"), StageLogin, FaultForeign},
		"its own token":             {welcome(f.exchange().Token()), StageLogin, FaultForeign},
		"no answer to a heartbeat":  {welcome(textOf(&m, &f.keys)), StageToken, FaultEOF},
		"another pulse":             {append(welcome(textOf(&m, &f.keys)), mcsHeartbeatPing, 0), StageToken, FaultForeign},
	} {
		near, far := pair(t)
		go func() {
			tc := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{*f.cert}})
			tc.Read(make([]byte, 4096))
			tc.Write(c.answer)
			tc.CloseWrite()
			io.Copy(io.Discard, tc)
		}()
		got := probeMCS(t.Context(), near, f.exchange())
		near.Close()
		if got.Stage != c.stage || got.Fault != c.fault || got.TLS == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestMCSWithoutANameAsksForGooglesOwn(t *testing.T) {
	f := newFar()
	x := f.exchange()
	x.ServerName = ""
	got, _, events := play(t, loopback, spoken{name: "mcs", Protocol: mcs}, f, x, box{})
	if got.Stage != StageDone || len(events) != 1 || events[0].TLS.ServerName != "mtalk.google.com" {
		t.Errorf("%+v, %+v", got, events)
	}
}

func FuzzMCSMessage(f *testing.F) {
	f.Add(appendMCS(nil, mcsLoginRequest, appendText(nil, fieldAuthToken, "token")))
	f.Add([]byte{2, 0x80, 0x80, 0x80, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		tag, p, err := readMCS(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, q, err := readMCS(bytes.NewReader(appendMCS(nil, tag, p))); err != nil || again != tag || !bytes.Equal(p, q) || len(p) > maxMCS {
			t.Errorf("%x: tag %d, %x; again %d, %x, %v", b, tag, p, again, q, err)
		}
		if text, err := textField(p, fieldAuthToken); err == nil && text != "" && !bytes.Contains(p, []byte(text)) {
			t.Errorf("%x: %q", b, text)
		}
	})
}
