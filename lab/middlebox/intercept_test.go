package middlebox

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A client on a busy machine takes its time; TLS is intercepted all the same, and
// a server that speaks first is heard at once.
func TestInterceptorWaitsForWhoeverSpeaksFirst(t *testing.T) {
	for _, c := range []struct {
		name   string
		server string // what it greets with; "" speaks TLS
	}{{"a slow client", ""}, {"a server that greets", "220 hello\r\n"}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, near := net.Pipe()
				far, server := net.Pipe()
				i := &Interceptor{Authority: "Inspection CA"}
				var wg sync.WaitGroup
				wg.Go(func() { i.Between(near, far); near.Close(); far.Close() })
				if c.server != "" {
					began := time.Now()
					go io.WriteString(server, c.server)
					got := make([]byte, len(c.server))
					if _, err := io.ReadFull(client, got); err != nil || string(got) != c.server || time.Since(began) > 0 {
						t.Errorf("%q, %v, after %v", got, err, time.Since(began))
					}
				} else {
					cert, err := new(Interceptor).leaf("server")
					if err != nil {
						t.Fatal(err)
					}
					wg.Go(func() { tls.Server(server, &tls.Config{Certificates: []tls.Certificate{*cert}}).Handshake() })
					time.Sleep(5 * time.Second) // of the bubble
					tc := tls.Client(client, &tls.Config{ServerName: "a.example", InsecureSkipVerify: true})
					if err := tc.Handshake(); err != nil {
						t.Fatal(err)
					}
					if got := tc.ConnectionState().PeerCertificates[0].Issuer.CommonName; got != "Inspection CA" {
						t.Errorf("issued by %q", got)
					}
				}
				client.Close()
				server.Close()
				wg.Wait()
			})
		})
	}
}
