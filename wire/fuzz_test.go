package wire

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Keys are read back as they are written; what is read is a key's text.
func FuzzParseKey(f *testing.F) {
	f.Add(testKey().String())
	f.Add(" wp1-\n")
	f.Add(strings.ToUpper(testKey().String()))
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		if again, err := ParseKey(k.String()); err != nil || again != k {
			t.Errorf("%q: %v as %q: %v", text, k, k.String(), err)
		}
		if want := strings.ToLower(strings.Join(strings.Fields(text), "")); want != k.String() {
			t.Errorf("%q is %q", text, k.String())
		}
	})
}

func FuzzParseTURN(f *testing.F) {
	name, _ := TURN(testKey(), testSession(), time.Unix(1e9, 0))
	f.Add(name)
	f.Add("wp--")
	f.Add("wp-" + testSession().String() + "-ffffffff")
	f.Fuzz(func(t *testing.T, name string) {
		id, made, ok := ParseTURN(name)
		if !ok {
			return
		}
		text, _ := TURN(testKey(), id, made)
		if id2, made2, ok := ParseTURN(text); !ok || id2 != id || !made2.Equal(made) {
			t.Errorf("%q is %s at %v, again %s at %v", name, id, made, id2, made2)
		}
	})
}

// No answer to a control call is believed without its MAC.
func FuzzControlReply(f *testing.F) {
	f.Add(200, []byte(`{"nonce":"00"}`), "")
	f.Add(403, []byte(`{"wallprobe":1,"code":"mac","message":"no"}`), "x")
	f.Add(502, []byte(`<html>`), "")
	f.Fuzz(func(t *testing.T, status int, body []byte, mac string) {
		req, err := NewControl(testKey(), "https://192.0.2.1:443", CallHello, HelloRequest{Session: testSession()})
		if err != nil {
			t.Fatal(err)
		}
		for _, own := range []bool{false, true} {
			resp := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
			resp.Header.Set(MACHeader, mac)
			if own {
				resp.Header.Set(MACHeader, ReplyMAC(testKey(), CallHello, req.Header.Get(MACHeader), body))
			}
			var got HelloReply
			if err := ReadControl(testKey(), req, CallHello, resp, &got); err == nil && (!own || status != http.StatusOK) {
				t.Errorf("%d %q %q is believed: %+v", status, body, mac, got)
			}
		}
	})
}

// What is read of a journal's line or a request is written the same again.
func FuzzControlJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"ledger":{"session":"00000000000000000000000000000000","probes":[{"probe":1,"events":[{"remote":"1.2.3.4:5","fault":"eof"}]}],"tcp":"1-2"}}`,
		`{"unclaimed":{"tcp":"443","syns":[{"source":"::1"}]}}`, `{"nonce":"x"}`, `{"tcp":"2-1"}`, `{"sent":3,"open":"1-9","fault":[{"ports":"10","fault":"refused"}]}`,
		`{"port":40000,"ufrag":"abcd","pwd":"0123456789012345678901","addr":"::ffff:1.2.3.4","candidates":[""]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again[JournalLine](t, b)
		again[HelloRequest](t, b)
		again[HelloReply](t, b)
		again[LedgerRequest](t, b)
		again[InwardRequest](t, b)
		again[InwardReply](t, b)
		again[ICERequest](t, b)
		again[ICEReply](t, b)
	})
}

func again[T any](t *testing.T, b []byte) {
	t.Helper()
	var first, second T
	if json.Unmarshal(b, &first) != nil {
		return
	}
	text, err := json.Marshal(first)
	if err != nil {
		return // a time that JSON cannot tell
	}
	if err := json.Unmarshal(text, &second); err != nil {
		t.Fatalf("%q is written as %s: %v", b, text, err)
	}
	if text2, err := json.Marshal(second); err != nil || !bytes.Equal(text, text2) {
		t.Errorf("%q is written as %s, then %s, %v", b, text, text2, err)
	}
}
