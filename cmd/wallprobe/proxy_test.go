package main

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/client"
)

func TestProxiesAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"http://proxy.example:3128": "http://proxy.example:3128", "proxy.example:3128": "http://proxy.example:3128", "https://u:p@192.0.2.1": "https://u:p@192.0.2.1",
		"socks5://[2001:db8::1]:1080": "socks5://[2001:db8::1]:1080", "": "",
		"ftp://proxy.example": "refused", "http://": "refused", "http://:3128": "refused", "http://proxy.example:65536": "refused", "a b": "refused",
	} {
		u, err := givenProxy(text)
		got := "refused"
		if err == nil && u == nil {
			got = ""
		} else if err == nil {
			got = u.String()
		}
		if got != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
}

// Where control failed through a proxy, it is named with what it answered, and
// what to try next is said of each of its faults once.
func TestWhatAProxyDidHasARemedy(t *testing.T) {
	for _, fault := range client.ProxyFaults {
		if proxyRemedies[fault] == "" {
			t.Errorf("%s: no remedy", fault)
		}
	}
	if len(proxyRemedies) != len(client.ProxyFaults) {
		t.Errorf("%d remedies for %d faults", len(proxyRemedies), len(client.ProxyFaults))
	}
	r := &client.Result{Reflector: netip.MustParseAddr("192.0.2.1"), Control: client.Control{Proxy: "http://proxy.example:3128", Tried: []client.Tried{
		{Port: 443, Error: "the proxy answered CONNECT with 502 Bad Gateway", Proxy: client.ProxyInVain},
		{Port: 8040, Error: "the proxy answered CONNECT with 403 Forbidden", Proxy: client.ProxyForbids},
		{Port: 8041, Error: "the proxy answered CONNECT with 403 Forbidden", Proxy: client.ProxyForbids},
	}}}
	const want = `the reflector 192.0.2.1 was not reached on any port through the proxy http://proxy.example:3128:
  443/tcp: the proxy answered CONNECT with 502 Bad Gateway
  8040,8041/tcp: the proxy answered CONNECT with 403 Forbidden
The proxy did not get to the reflector: may it connect to that address?
The proxy's rules forbid it. Let them allow the reflector's name or address; many
proxies allow CONNECT to port 443 alone, so let the reflector listen there.
Without --proxy, control is tried straight, as the probes are.
Is the reflector running, and with this address? If it is, stop it and join both ends' evidence:
  wallprobe merge RESULT.json REFLECTOR-JOURNAL`
	if diff := cmp.Diff(want, unreachable(r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOnlyNamesAreNames(t *testing.T) {
	for host, want := range map[string]string{"far.example": "far.example", "far.example.": "far.example", "192.0.2.1": "", "2001:db8::1": "", "[2001:db8::1]": "", "fe80::1%eth0": ""} {
		if got := nameOf(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

// A proxy that is accepted can be asked: it has a host, a scheme that is known,
// and a port that exists.
func FuzzProxy(f *testing.F) {
	for _, s := range []string{"http://proxy:3128", "proxy:3128", "socks5://[::1%25eth0]:1", "HTTPS://A", "http://a:0", "http://a:-1", "//a", "http:///", "://", "\x00"} {
		f.Add(s)
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		f.Setenv(name, "")
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := givenProxy(text)
		if err != nil || u == nil {
			if none := text == "" || text == "auto"; u != nil || none != (err == nil) {
				t.Errorf("%q: %v, %v", text, u, err)
			}
			return
		}
		if u.Hostname() == "" || !slices.Contains(proxySchemes, u.Scheme) {
			t.Errorf("%q is the proxy %v", text, u)
		}
		if port := u.Port(); port != "" {
			if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
				t.Errorf("%q has the port %s", text, port)
			}
		}
		if again, err := givenProxy(u.String()); err != nil || again.String() != u.String() {
			t.Errorf("%q is %v, and again %v, %v", text, u, again, err)
		}
	})
}
