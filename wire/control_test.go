package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/scenarios"
)

func testHello(t *testing.T) *http.Request {
	t.Helper()
	req, err := NewControl(testKey(), "https://192.0.2.1:443", CallHello, HelloRequest{Session: testSession(), Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// answered is the reflector's answer to a request.
func answered(key Key, call, requestMAC, body string) *http.Response {
	h := http.Header{}
	h.Set(MACHeader, ReplyMAC(key, call, requestMAC, []byte(body)))
	return &http.Response{StatusCode: 200, Status: "200 OK", Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

func TestControlRequestIsProvenByItsMAC(t *testing.T) {
	req := testHello(t)
	body, err := io.ReadAll(req.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"POST", "https://192.0.2.1:443/wallprobe/1/hello", "application/json", RequestMAC(testKey(), CallHello, body),
		`{"session":"a0a1a2a3a4a5a6a7a8a9aaabacadaeaf","time":"0001-01-01T00:00:00Z","program":"test"}`}
	got := []string{req.Method, req.URL.String(), req.Header.Get("Content-Type"), req.Header.Get(MACHeader), string(body)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEveryPartOfAControlCallIsUnderItsMAC(t *testing.T) {
	other := testKey()
	other[9] ^= 1
	seen := make(map[string]string)
	for name, mac := range map[string]string{
		"request":                      RequestMAC(testKey(), CallHello, []byte("{}")),
		"request, other key":           RequestMAC(other, CallHello, []byte("{}")),
		"request, other call":          RequestMAC(testKey(), CallBye, []byte("{}")),
		"request, other body":          RequestMAC(testKey(), CallHello, []byte("{ }")),
		"request, no body":             RequestMAC(testKey(), CallHello, nil),
		"reply":                        ReplyMAC(testKey(), CallHello, "m", []byte("{}")),
		"reply, other key":             ReplyMAC(other, CallHello, "m", []byte("{}")),
		"reply, other call":            ReplyMAC(testKey(), CallBye, "m", []byte("{}")),
		"reply, other request":         ReplyMAC(testKey(), CallHello, "n", []byte("{}")),
		"reply, no request":            ReplyMAC(testKey(), CallHello, "", []byte("{}")),
		"reply, other body":            ReplyMAC(testKey(), CallHello, "m", []byte("[]")),
		"request, call and body moved": RequestMAC(testKey(), "hell", []byte("o{}")),
	} {
		if was, ok := seen[mac]; ok {
			t.Errorf("%s has the MAC of %s", name, was)
		}
		seen[mac] = name
	}
}

func TestOnlyTheReflectorsOwnAnswerIsBelieved(t *testing.T) {
	other := testKey()
	other[0] ^= 1
	req := testHello(t)
	mac := req.Header.Get(MACHeader)
	const body = `{"program":"far"}`
	tampered := answered(testKey(), CallHello, mac, body)
	tampered.Body = io.NopCloser(strings.NewReader(`{"program":"fax"}`))
	bare := answered(testKey(), CallHello, mac, body)
	bare.Header = http.Header{}
	reflected := answered(testKey(), CallHello, mac, body)
	reflected.Header.Set(MACHeader, RequestMAC(testKey(), CallHello, []byte(body)))
	page := answered(testKey(), CallHello, mac, "<html>please log in</html>")
	page.StatusCode, page.Status = 511, "511 Network Authentication Required"
	refusal := answered(testKey(), CallHello, mac, `{"wallprobe":1,"code":"key","message":"the reflector does not accept this key"}`)
	refusal.StatusCode, refusal.Status = 403, "403 Forbidden"
	lookalike := answered(testKey(), CallHello, mac, `{"code":"key","message":"access denied"}`)
	lookalike.StatusCode, lookalike.Status = 403, "403 Forbidden"
	const unproven = "control call hello: the answer is not from the reflector: its MAC does not verify"
	for name, c := range map[string]struct {
		resp   *http.Response
		want   string
		stands bool // whether it is ErrNotReflector
	}{
		"its own":               {answered(testKey(), CallHello, mac, body), "", false},
		"of another key":        {answered(other, CallHello, mac, body), unproven, true},
		"to another call":       {answered(testKey(), CallLedger, mac, body), unproven, true},
		"to another request":    {answered(testKey(), CallHello, RequestMAC(testKey(), CallHello, []byte("{}")), body), unproven, true},
		"tampered with":         {tampered, unproven, true},
		"without a MAC":         {bare, unproven, true},
		"with a request's MAC":  {reflected, unproven, true},
		"a captive portal":      {page, "control call hello: the answer is not from the reflector: HTTP status 511 Network Authentication Required", true},
		"a refusal":             {refusal, "the reflector does not accept this key", false},
		"another API's refusal": {lookalike, "control call hello: the answer is not from the reflector: HTTP status 403 Forbidden", true},
		"proven but no JSON":    {answered(testKey(), CallHello, mac, "{"), "control call hello: unexpected end of JSON input", false},
	} {
		var got HelloReply
		err := ReadControl(testKey(), req, CallHello, c.resp, &got)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if diff := cmp.Diff(c.want, text); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if errors.Is(err, ErrNotReflector) != c.stands {
			t.Errorf("%s: ErrNotReflector is %v", name, !c.stands)
		}
		if want := (HelloReply{Program: "far"}); err == nil && !cmp.Equal(want, got, sameAddr) {
			t.Errorf("%s: read %+v", name, got)
		}
		if err != nil && got.Program != "" {
			t.Errorf("%s: %q was believed", name, got.Program)
		}
	}
}

func TestRefusalTellsItsCode(t *testing.T) {
	resp := answered(testKey(), CallHello, "", `{"wallprobe":1,"code":"limit","message":"too many sessions"}`)
	resp.StatusCode = 409
	err := ReadControl(testKey(), testHello(t), CallHello, resp, nil)
	got, ok := errors.AsType[*ControlError](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	if diff := cmp.Diff(&ControlError{Wallprobe: 1, Code: "limit", Message: "too many sessions"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEndlessAnswerIsNotReadToItsEnd(t *testing.T) {
	endless := &counted{}
	resp := &http.Response{StatusCode: 200, Status: "200 OK", Header: http.Header{}, Body: io.NopCloser(endless)}
	err := ReadControl(testKey(), testHello(t), CallHello, resp, nil)
	if !errors.Is(err, ErrNotReflector) || endless.n > MaxReplyBody+1 {
		t.Errorf("%d bytes were read: %v", endless.n, err)
	}
}

type counted struct{ n int }

func (c *counted) Read(p []byte) (int, error) { c.n += len(p); return len(p), nil }

func TestUnsendableCallsAreExplained(t *testing.T) {
	_, err := NewControl(testKey(), "https://x", CallHello, make(chan int))
	_, err2 := NewControl(testKey(), "https://[::1", CallHello, nil)
	want := []string{"control call hello: json: unsupported type: chan int", `control call hello: parse "https://[::1/wallprobe/1/hello": missing ']' in host`}
	if diff := cmp.Diff(want, []string{err.Error(), err2.Error()}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func ports(t *testing.T, s string) scenarios.PortSet {
	t.Helper()
	set, err := scenarios.ParsePortSet(s)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func fullLedger(t *testing.T) *Ledger {
	at := time.Date(2026, 3, 14, 15, 9, 26, 535000, time.UTC)
	e := Event{
		Time: at, Transport: scenarios.TCP, Remote: netip.MustParseAddrPort("192.0.2.7:50000"), Local: netip.MustParseAddrPort("[2001:db8::1]:443"),
		Session: testSession(), Probe: 3, Attempt: 2, Stage: "data", Fault: "altered", Length: 84, TTL: 57, TOS: 0xb8, BytesIn: 1000, BytesOut: 16384,
		Digest: "00ff", Answered: true, TCP: &TCPSeen{TTL: 63, TOS: 2, MSS: 1360, Timestamp: 7, Back: 1460, AtLeast: true},
		TLS: &TLSSeen{ServerName: "a.example", Version: "TLS 1.3", ALPN: "h2", Certificate: "aa", Issuer: "CN=x", HelloDigest: "bb", Offered: []string{"h2"},
			Versions: []string{"TLS 1.3"}, HelloName: "a.example", Chain: []Certificate{{Digest: "aa", Subject: "CN=a", Issuer: "CN=x"}}},
	}
	return &Ledger{
		Session: testSession(), Started: at, Taken: at.Add(time.Second), Sources: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		Probes:  []ProbeRecord{{Probe: 3, Counts: []Count{{Ports: ports(t, "40000,40002-65535"), Seen: 3, Answered: 2}}, Events: []Event{e}, More: 9}},
		Strays:  []Event{{Time: at, Transport: scenarios.UDP, Stage: "token"}},
		SYNs:    []Caught{{Ports: ports(t, "443"), N: 2}},
		Witness: "packet", Missed: 4, TCP: ports(t, "80,443"), UDP: ports(t, "3478"),
		Unserved: []Unserved{{Transport: scenarios.TCP, Ports: ports(t, "25"), Reason: "in use"}},
	}
}

func TestJournalLinesSurviveTheirText(t *testing.T) {
	full := fullLedger(t)
	for name, want := range map[string]JournalLine{
		"full":  {Ledger: full},
		"empty": {Ledger: &Ledger{}},
		"unclaimed": {Unclaimed: &Unclaimed{Started: full.Started, Taken: full.Taken, Witness: "half-open", Strays: full.Strays,
			SYNs: []SourceSYNs{{Source: full.Sources[0], First: full.Started, Last: full.Taken, SYNs: full.SYNs}}, TCP: full.TCP, Unserved: full.Unserved}},
	} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got JournalLine
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b)
		}
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if bytes.ContainsRune(b, '\n') {
			t.Errorf("%s takes more than one line", name)
		}
	}
}

func TestReflectorThatServesNothingCanSaySo(t *testing.T) {
	want := HelloReply{Program: "x", Source: netip.MustParseAddrPort("192.0.2.1:1")}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got HelloReply
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameAddr); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, b)
	}
}

func TestOldLedgersAreReadAndNewKeysOverlooked(t *testing.T) {
	const old = `{"session":"a0a1a2a3a4a5a6a7a8a9aaabacadaeaf","started":"2026-03-14T15:09:26Z","taken":"2026-03-14T15:09:27Z","witness":"","tcp":"443","udp":"","somethingNew":[1]}`
	var got Ledger
	if err := json.Unmarshal([]byte(old), &got); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)
	if diff := cmp.Diff(Ledger{Session: testSession(), Started: at, Taken: at.Add(time.Second), TCP: ports(t, "443")}, got, sameAddr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
