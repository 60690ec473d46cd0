package protocol

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wallprobe/wallprobe/wire"
)

// helloOf is what crypto/tls sends for a configuration.
func helloOf(t testing.TB, c *tls.Config) []byte {
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		tls.Client(far, c).Handshake()
		far.Close()
	}()
	buf := make([]byte, maxRecord)
	n := 0
	for n < 5 || n < len(firstRecord(buf[:n])) || n < 5+int(buf[3])<<8+int(buf[4]) {
		k, err := near.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	return buf[:n]
}

func TestHelloIsReadAsItWasSent(t *testing.T) {
	for _, c := range []struct {
		config *tls.Config
		want   Hello
	}{
		{&tls.Config{ServerName: "a.example", NextProtos: []string{"h2", "http/1.1"}},
			Hello{"a.example", []string{"h2", "http/1.1"}, []uint16{tls.VersionTLS13, tls.VersionTLS12}}},
		{&tls.Config{ServerName: "b.example", MaxVersion: tls.VersionTLS12}, Hello{"b.example", nil, []uint16{tls.VersionTLS12}}},
		{&tls.Config{InsecureSkipVerify: true}, Hello{"", nil, []uint16{tls.VersionTLS13, tls.VersionTLS12}}},
	} {
		got, err := ParseHello(helloOf(t, c.config))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestHelloWithoutAnExtensionKeepsTheRest(t *testing.T) {
	record := helloOf(t, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}})
	changed, err := Without(record, ExtALPN)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseHello(changed)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Hello{"a.example", nil, []uint16{tls.VersionTLS13, tls.VersionTLS12}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	const alpn = 4 + 2 + 1 + len("h2")
	if len(changed) != len(record)-alpn {
		t.Errorf("%d bytes, want %d", len(changed), len(record)-alpn)
	}
	again, err := Without(changed, ExtALPN)
	if err != nil || !cmp.Equal(changed, again) {
		t.Errorf("a hello without it is changed: %v", err)
	}
}

func TestOfferReplacesTheProtocolsOwnNames(t *testing.T) {
	for _, offer := range [][]string{nil, {}, {"h2", "other"}} {
		f := newFar()
		x := f.exchange()
		x.Offer = offer
		near, far := pair(t)
		heard := make(chan *wire.TLSSeen, 1)
		go func() {
			_, seen, _ := acceptTLS(t.Context(), far, f, nil)
			heard <- seen
		}()
		_, sent, res := x.overTLS(t.Context(), near, "http/1.1")
		want := offer
		if offer == nil {
			want = []string{"http/1.1"}
		}
		if diff := cmp.Diff([][]string{want, want}, [][]string{sent.Offered, (<-heard).Offered}, same); diff != "" || res.Fault != "" {
			t.Errorf("%v: %s (-want +got):\n%s", offer, res.Fault, diff)
		}
	}
}

func TestTruncatedHelloIsNoHello(t *testing.T) {
	record := helloOf(t, &tls.Config{ServerName: "a.example"})
	for n := range record {
		if h, err := ParseHello(record[:n]); err == nil {
			t.Fatalf("%d of %d bytes were read as %+v", n, len(record), h)
		}
	}
}

func TestGreaseIsNoVersion(t *testing.T) {
	got := versions([]byte{6, 0x2a, 0x2a, 3, 4, 3, 3})
	if diff := cmp.Diff([]uint16{0x0304, 0x0303}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzHello(f *testing.F) {
	f.Add(helloOf(f, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2", "http/1.1"}}))
	f.Add(helloOf(f, &tls.Config{ServerName: "a.example", MaxVersion: tls.VersionTLS12}))
	f.Add([]byte("\x16\x03\x01\x00\x2a\x01\x00\x00\x26\x03\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		for _, extension := range []uint16{ExtALPN, extServerName} {
			changed, err := Without(b, extension)
			if err != nil {
				t.Fatalf("read, but not rewritten: %v", err)
			}
			got, err := ParseHello(changed)
			if err != nil {
				t.Fatalf("rewritten, but not read: %v", err)
			}
			want := h
			if extension == ExtALPN {
				want.ALPN = nil
			} else {
				want.ServerName = ""
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		}
	})
}
