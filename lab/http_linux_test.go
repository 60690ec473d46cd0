package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
	"github.com/wallprobe/wallprobe/internal/need"
	"github.com/wallprobe/wallprobe/lab"
	"github.com/wallprobe/wallprobe/lab/middlebox"
	"github.com/wallprobe/wallprobe/protocol"
	"github.com/wallprobe/wallprobe/reflector"
	"github.com/wallprobe/wallprobe/reflector/steer"
	"github.com/wallprobe/wallprobe/scenarios"
	"github.com/wallprobe/wallprobe/wire"
)

// onHTTP changes what clients or the server send on port 80.
func onHTTP(rewrites ...middlebox.Rewrite) func(*scene) {
	return func(s *scene) { s.serve(middlebox.TCP{Ports: "{ 80, 8484 }", Rewrites: rewrites}.Open(s.firewall())) }
}

// pages answers everything on port 80 with the same bytes.
func pages(head, body string) func(*scene) {
	return func(s *scene) {
		box := middlebox.TCP{Ports: "80", Answer: func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = fmt.Fprintf(c, "%s\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body)
			_, _ = io.Copy(io.Discard, c)
		}}
		s.serve(box.Open(s.firewall()))
	}
}

// httpRows are what firewalls do to HTTP.
func httpRows(t testing.TB) []row {
	whole := fact{Verdict: client.Open, Near: "done", Received: "100000", Far: "done"}
	altered := func(why string) fact { return fact{Verdict: client.Altered, Why: why} }
	fine := join(all(whole, "HTTP", "CENTER"), map[string]fact{"HTTPS": whole, "PROXY": whole})
	foreign := func(why string) map[string]fact {
		return map[string]fact{"HTTP": {Verdict: client.Impostor, Why: why, Near: "token foreign", Far: "nothing"}, "CENTER": whole}
	}
	return []row{
		{name: "nothing wrong", rules: firewall(""), want: fine},
		{name: "a stateful firewall", rules: builtinFirewall(t, "stateful"), want: fine},
		{name: "TLS is inspected", rules: firewall(""), boxes: intercepted("8003"), want: map[string]fact{
			"HTTPS": {Verdict: client.Altered, Why: `issued by "CN=wallprobe lab inspection" was seen`, Near: "done"}, "HTTP": whole, "PROXY": whole}},
		{name: "Via is added to requests", rules: firewall(""), boxes: onHTTP(middlebox.Rewrite{From: middlebox.Client, Old: "User-Agent: ", New: "Via: 1.1 squid\r\nUser-Agent: "}),
			want: map[string]fact{"HTTP": altered(`"Via: 1.1 squid" was put in before it arrived at the reflector`),
				"CENTER": altered(`"Via: 1.1 squid" was put in before it arrived at the reflector`), "HTTPS": whole}},
		{name: "Via is added to answers", rules: firewall(""), boxes: onHTTP(middlebox.Rewrite{From: middlebox.Server, Old: "Cache-Control: ", New: "Via: 1.1 squid\r\nCache-Control: "}),
			want: map[string]fact{"HTTP": altered(`"Via: 1.1 squid" was put in before it arrived here`)}},
		{name: "the host is rewritten", rules: firewall(""), boxes: onHTTP(middlebox.Rewrite{From: middlebox.Client, Old: "Host: web.example", New: "Host: cache.local"}),
			want: map[string]fact{"HTTP": altered(`"Host: web.example" was sent, "Host: cache.local" arrived at the reflector`)}},
		{name: "credentials are taken away", rules: firewall(""), boxes: onHTTP(middlebox.Rewrite{From: middlebox.Client, Old: "Authorization: Bearer ", New: "X-Removed: "}),
			want: map[string]fact{"HTTP": altered(`"Authorization: Bearer `)}},
		{name: "pages are written into", rules: firewall(""), boxes: onHTTP(middlebox.Rewrite{From: middlebox.Server, Old: "<p>This", New: "<p>That"}),
			want: map[string]fact{"HTTP": altered("the reflector's answer arrived changed")}},
		{name: "a captive portal", rules: firewall(""), boxes: pages("HTTP/1.1 302 Found\r\nLocation: http://portal.example/", ""), want: foreign(`it begins "HTTP/1.1 302 Found`)},
		{name: "a proxy that wants a password", rules: firewall(""), boxes: pages("HTTP/1.1 407 Proxy Authentication Required", "no"), want: foreign(`it begins "HTTP/1.1 407 Proxy`)},
		{name: "a proxy that does not get through", rules: firewall(""), boxes: pages("HTTP/1.0 502 Bad Gateway", "no"), want: foreign(`it begins "HTTP/1.0 502 Bad`)},
	}
}

func TestWhatFirewallsDoToHTTPIsNamed(t *testing.T) {
	lab.NeedLab(t)
	program := programFor(t)
	for _, r := range httpRows(t) {
		r.scenario = "http"
		for _, family := range r.families() {
			t.Run(r.name+"/"+family, func(t *testing.T) {
				t.Parallel()
				res := r.play(t, program, family)
				if diff := r.mismatch(res); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
					r.explain(t, res)
				}
				for _, f := range res.Findings {
					if f.Path == "CENTER" && f.Imitation == "" {
						t.Error("the imitation is not told")
					}
					if f.Path == "HTTPS" && len(f.Evidence.Near) != 3 {
						t.Errorf("%d ways of HTTPS", len(f.Evidence.Near))
					}
				}
			})
		}
	}
}

// A peerScene is the reflector alone behind a firewall, for programs of others.
type peerScene struct {
	*testing.T
	world *lab.World
	keys  wire.Keys
	at    netip.Addr
	probe uint32
}

const peerPorts = "80,443,3128,8484"

func standPeers(t *testing.T) *peerScene {
	t.Helper()
	w := lab.Stand(t, lab.Config{Firewall: lab.Firewall{Name: "stateful", Text: []byte(builtinFirewall(t, "stateful"))}})
	ports, err := scenarios.ParsePortSet(peerPorts)
	if err != nil {
		t.Fatal(err)
	}
	key, id := wire.Key{7}, wire.SessionID{8}
	var r *reflector.Reflector
	err = w.Host("server").Do(func() (err error) {
		r, err = reflector.Listen(reflector.Config{Key: key, TCP: ports, Mode: steer.Sockets})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	v4, _ := w.Host("server").Addrs()
	return &peerScene{t, w, wire.Derive(key, id, wire.Nonce{}), v4, 0}
}

// exchange is a new one.
func (p *peerScene) exchange(port uint16, bytes uint32) protocol.Exchange {
	p.probe++
	return protocol.Exchange{Keys: &p.keys, Offline: true, Probe: p.probe, Port: port, ServerName: "web.example", Bytes: bytes, Stall: 5 * time.Second, Now: time.Now}
}

// run runs a program on the host behind the firewall.
func (p *peerScene) run(stdin []byte, name string, args ...string) (stdout, stderr string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 20*time.Second)
	defer cancel()
	h := p.world.Host("host")
	cmd := h.Command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := h.Run(cmd); err != nil {
		p.Errorf("%s %q: %v\n%s%s", name, args, err, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// ours runs this project's own client on the same path.
func (p *peerScene) ours(name, variant string, port uint16) {
	p.Helper()
	var c net.Conn
	err := p.world.Host("host").Do(func() (err error) {
		c, err = net.Dial("tcp", netip.AddrPortFrom(p.at, port).String())
		return err
	})
	if err != nil {
		p.Fatal(err)
	}
	defer c.Close()
	x := p.exchange(port, 100_000)
	x.Variant = variant
	if r := protocol.Named(name).TCP.Probe(p.Context(), c, x); r.Stage != protocol.StageDone || r.Down != 100_000 {
		p.Errorf("%s %s: %+v", name, variant, r)
	}
}

// curl asks with and without a token, and carries data as our own client does.
func (p *peerScene) curl(version, url string) {
	p.Helper()
	args := []string{"--silent", "--show-error", "--insecure", "--max-time", "10", "--include", version, "--noproxy", "*"}
	status := map[string]string{"--http1.1": "HTTP/1.1 200", "--http2": "HTTP/2 200", "--http2-prior-knowledge": "HTTP/2 200", "--http1.0": "HTTP/1.0 200"}[version]
	const page = "<p>This is the far end of wallprobe"
	if out, _ := p.run(nil, "curl", append(args, url)...); !strings.HasPrefix(out, status) || !strings.Contains(out, page) {
		p.Errorf("curl %s %s without a token: %q", version, url, out)
	}
	x := p.exchange(443, 50_000)
	args = append(args, "--header", "Authorization: Bearer "+x.Token())
	out, _ := p.run(nil, "curl", append(args, url)...)
	var r protocol.Result
	if err := x.CheckToken(out, &r); err != nil || !strings.HasPrefix(out, status) || r.Seen.Probe != x.Probe {
		p.Errorf("curl %s %s: %v, %q", version, url, err, out)
	}
	up, down := make([]byte, x.Bytes), make([]byte, x.Bytes)
	p.keys.NewStream(wire.Request, x.Probe, 0).Read(up)
	p.keys.NewStream(wire.Reply, x.Probe, 0).Read(down)
	out, _ = p.run(up, "curl", append(args, "--data-binary", "@-", url+"data")...)
	for strings.HasPrefix(out, "HTTP/1.1 100 ") || strings.HasPrefix(out, status) {
		_, out, _ = strings.Cut(out, "\r\n\r\n")
	}
	if out != string(down) {
		p.Errorf("curl %s %s: %d bytes came back, want the stream of %d", version, url, len(out), len(down))
	}
}

func TestProgramsOfOthersSpeakHTTPWithTheReflector(t *testing.T) {
	lab.NeedLab(t)
	need.Program(t, "curl")
	need.Program(t, "openssl")
	p := standPeers(t)
	web, secure := fmt.Sprintf("http://%s/", p.at), fmt.Sprintf("https://%s/", p.at)
	for _, version := range []string{"--http1.0", "--http1.1", "--http2-prior-knowledge"} {
		p.curl(version, web)
	}
	for _, version := range []string{"--http1.0", "--http1.1", "--http2"} {
		p.curl(version, secure)
	}
	for alpn, want := range map[string]string{"h2,http/1.1": "h2", "http/1.1": "http/1.1"} {
		out, errs := p.run([]byte("Q\n"), "openssl", "s_client", "-connect", netip.AddrPortFrom(p.at, 443).String(), "-servername", "web.example", "-alpn", alpn)
		if !strings.Contains(out, "ALPN protocol: "+want+"\n") || !strings.Contains(out, "web.example") {
			t.Errorf("openssl s_client -alpn %s: %s\n%s", alpn, out, errs)
		}
	}
	x := p.exchange(3128, 0)
	out, _ := p.run(nil, "curl", "--silent", "--show-error", "--insecure", "--max-time", "10", "--include", "--proxy", fmt.Sprintf("http://%s:3128", p.at),
		"--proxy-header", "Proxy-Authorization: Bearer "+x.Token(), "https://web.example/")
	var r protocol.Result
	if err := x.CheckToken(out, &r); err != nil || !strings.Contains(out, "HTTP/1.1 200 Connection established") || !strings.Contains(out, "<p>This is the far end") {
		t.Errorf("curl through the tunnel: %v, %q", err, out)
	}
	for _, way := range []struct {
		name, variant string
		port          uint16
	}{{"http", "", 80}, {"https", "h2", 443}, {"https", "http/1.1", 443}, {"https", "websocket", 443}, {"http-connect", "", 3128}, {"automate-control-center", "", 8484}} {
		p.ours(way.name, way.variant, way.port)
	}
	if diff := cmp.Diff(uint32(13), p.probe); diff != "" {
		t.Errorf("exchanges (-want +got):\n%s", diff)
	}
}
