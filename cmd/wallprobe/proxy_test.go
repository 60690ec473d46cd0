package main

import (
	"slices"
	"strconv"
	"testing"
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
